"""`backup`: a copy of the state of a running cluster, in one file that `init --from-backup` begins a cluster with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from actorraft.cli.output import Format, Output, fail, print_json, say
from actorraft.cli.reaching import ClientFolder, Timeout, cluster
from actorraft.client import administration
from actorraft.storage.portable import read_portable


def register(app: typer.Typer) -> None:
    """Add the subcommand."""
    app.command()(backup)


def backup(
    file: Annotated[Path, typer.Argument(help="A new file; it appears whole or not at all.")],
    force: Annotated[bool, typer.Option("--force", help="Also in the place of a file that is there.")] = False,
    client: ClientFolder = None,
    timeout: Timeout = 600.0,
    output: Output = Format.table,
) -> None:
    """Write a copy of the state, while the cluster serves; read it back and compare its checksum.

    It is the state at one index of the log, and holds everything that was acknowledged before this began.
    """
    if file.exists() and not force:
        raise fail(f"{file} exists: name a new file, or say --force")
    with cluster(client) as thread:
        settings = administration.ask_leader(thread, "roster", {}, timeout)["settings"]
        machine = json.loads(settings.get("machine", '""'))
        path = administration.export_snapshot(thread, file, machine, timeout, settings)
        info, crc = read_portable(path)
    told = {"file": str(path), "index": info.index, "term": info.term, "bytes": path.stat().st_size}
    if output is Format.json:
        print_json({**told, "machine": info.machine, "crc32": f"{crc:08x}"})
    else:
        state = f"the state of {info.machine} up to index {info.index}"
        say(f"wrote {path}: {told['bytes']} bytes, {state}, read back whole")
