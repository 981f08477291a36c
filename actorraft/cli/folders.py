"""`verify`, `show`, `skip` and `recover`: what is done with folders while nothing runs, here under one name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from actorraft.cli.output import USED_WRONGLY, Format, Output, errors, fail, print_json, say
from actorraft.cli.reaching import ClientFolder
from actorraft.cluster import recovering
from actorraft.errors import UsageError
from actorraft.node.folder import NODE_FILE
from actorraft.storage import __main__ as storage

if TYPE_CHECKING:
    from transports.keys import ClientFolder as Folder


def register(app: typer.Typer) -> None:
    """Add the subcommands."""
    app.command(name="verify")(storage.verify_command)
    app.command(name="show")(storage.show_command)
    app.command(name="skip")(storage.skip_command)
    app.command()(recover)


def recover(
    path: Annotated[Path, typer.Argument(help="A node's folder on this machine; or a folder that spawn made.")],
    keep: Annotated[str, typer.Option(help="Ids of the nodes to go on with; on one machine of many, its own.")] = "",
    show: Annotated[bool, typer.Option("--show", help="Only say what is here, to compare across machines.")] = False,
    data_dir: Annotated[Path | None, typer.Option(help="Where the node's data is; by default in its folder.")] = None,
    client: ClientFolder = None,
    force: Annotated[bool, typer.Option("--force", help="Also if that gives up nodes that are still whole.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    output: Output = Format.table,
) -> None:
    """Go on with what is left after a majority is lost for good.

    On one machine of many: run it with --show on each that is left, choose the one whose log ends in the latest term,
    and there at the highest index. It becomes a new cluster of one node, with a new id; the others join it anew.
    """
    with errors():
        of_machine = (path / NODE_FILE).is_file()
    if not of_machine:
        storage.recover_command(str(path), keep, show, force, dry_run, output.value)
        return
    with errors():
        found = recovering.look(path, data_dir)
        if output is Format.table:
            say(found.survivor.words)
        elif show or dry_run:
            print_json([storage.survivor_row(found.survivor)])
        if show or dry_run:
            return
        own = str(found.folder.node.id)
        if keep != own:
            raise fail(f"--keep {own}: one machine goes on, the others join it anew", USED_WRONGLY)
        known = None if client is None else _client_of(client, found.folder.cluster.id)  # before anything is changed
        cluster_id = recovering.go_on_alone(path, found)
        if output is Format.json:
            print_json({"cluster_id": cluster_id, "kept": [found.folder.node.id]})
        else:
            say(f"node {own} is cluster {cluster_id} now; whatever the lost machines alone had acknowledged is gone")
            say(f"  actorraft serve {path}{f' --data-dir {data_dir}' if data_dir else ''}")
            id_for_clients = f'id = "{cluster_id}" in the [cluster] of their client.toml, or --client FOLDER here'
            say(f"  clients: {id_for_clients}" if client is None else f"  {client} is for the new cluster")
        if client is not None and known is not None:
            endpoints = {each: at for each, at in known.endpoints.items() if each == found.folder.node.id}
            replace(known, cluster_id=cluster_id, endpoints=endpoints or known.endpoints).save(client)


def _client_of(folder: Path, cluster_id: str) -> Folder:
    """Read a client's folder, if it is one of this cluster; it may well come from the environment."""
    from transports.keys import ClientFolder as Folder

    known = Folder.load(folder)
    if known.cluster_id != cluster_id:
        raise UsageError(
            f"{folder} is for clients of cluster {known.cluster_id}, and this node is of {cluster_id}: name one of its "
            "clients' folders, or none (--client, ACTORRAFT_CLIENT); nothing was changed"
        )
    return known
