"""`init`: the folders of a new cluster, before anything starts."""

from __future__ import annotations

import contextlib
import inspect
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from actorraft.cli.output import USED_WRONGLY, Format, Output, errors, fail, print_json, say, warn
from actorraft.cluster.founding import found
from actorraft.errors import UsageError
from actorraft.node.folder import Durability, NodeFolder, Profile, read_folder
from actorraft.node.standalone import arguments_of, load_machine


def register(app: typer.Typer) -> None:
    """Add the subcommand."""
    app.command()(init)


def init(
    directory: Annotated[Path, typer.Argument(help="A new directory, for a folder a node and one for clients.")],
    nodes: Annotated[str, typer.Option(help="One HOST:PORT a node, with commas between; clients dial the next port.")],
    machine: Annotated[
        str, typer.Option(help="The machine, as module:Class; importable wherever nodes run. A backup knows it.")
    ] = "",
    args: Annotated[str | None, typer.Option(help="Arguments of the machine's constructor, as a JSON list.")] = None,
    kwargs: Annotated[str | None, typer.Option(help="Keyword arguments of it, as a JSON object.")] = None,
    name: Annotated[str, typer.Option(help="The cluster's name; by default the class's.")] = "",
    durability: Annotated[
        Durability, typer.Option(help="fsync survives loss of power; os the death of processes.")
    ] = "fsync",
    profile: Annotated[Profile, typer.Option(help="How far apart the machines are.")] = "lan",
    no_keys: Annotated[bool, typer.Option("--no-keys", help="Without encryption; on the loopback only.")] = False,
    from_backup: Annotated[
        Path | None, typer.Option(help="Begin with the state that `actorraft backup` wrote; every node gets a copy.")
    ] = None,
    output: Output = Format.table,
) -> None:
    """Found a cluster: write DIRECTORY/node-0, node-1, … and DIRECTORY/client.

    Copy each node's folder to its machine, and start it there with `actorraft serve`; keep the client's folder for
    whoever uses the cluster. Each folder holds one secret key and no other's.
    """
    if not machine and from_backup is None:
        raise fail("name the machine's class: --machine MODULE:CLASS; or --from-backup FILE", USED_WRONGLY)
    addresses = [address.strip() for address in nodes.split(",") if address.strip()]
    with errors():
        cluster_id = found(
            directory,
            machine,
            addresses,
            args=_json(args, list, "--args", "a list"),
            kwargs=_json(kwargs, dict, "--kwargs", "an object"),
            name=name,
            durability=durability,
            profile=profile,
            keys=not no_keys,
            backup=from_backup,
        )
        _look_at_machine(read_folder(directory / "node-0", environment={}))
    if output is Format.json:
        folders = sorted(str(folder) for folder in directory.iterdir())
        print_json({"cluster_id": cluster_id, "folders": folders})
        return
    say(f"founded cluster {cluster_id} in {directory}")
    for node_id, address in enumerate(addresses):
        say(f"  {directory / f'node-{node_id}'}  for {address}: actorraft serve FOLDER --data-dir DIRECTORY")
    say(f"  {directory / 'client'}  for clients: connect(…), ACTORRAFT_CLIENT")


def _look_at_machine(folder: NodeFolder) -> None:
    """Warn of a machine that cannot be made here: a slip of the pen, or else a machine without the nodes' code."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what its module prints is no part of what this command prints
            args, kwargs = arguments_of(folder)
            inspect.signature(load_machine(folder.cluster.machine)).bind(*args, **kwargs)
    except TypeError as error:
        warn(f"{folder.cluster.machine} does not take these arguments: {error}")
    except UsageError as error:
        warn(f"{error}; wherever nodes are to run, it must be possible")
    except ValueError:
        return  # it does not say what it takes; its first node will


def _json(text: str | None, kind: type, option: str, wanted: str) -> Any:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise fail(f"{option} is not JSON: {error}", USED_WRONGLY) from None
    if not isinstance(value, kind):
        raise fail(f"{option} is {wanted} in JSON, not {text}", USED_WRONGLY)
    return value
