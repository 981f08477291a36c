"""How a subcommand reaches a running cluster: the client's folder, and a session that is closed whatever happens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from actorraft.cli.output import USED_WRONGLY, errors, fail
from actorraft.client import administration
from actorraft.client.connect import open_thread
from actorraft.client.thread import ClientThread

ClientFolder = Annotated[
    Path | None,
    typer.Option("--client", envvar="ACTORRAFT_CLIENT", help="The client's folder, as `actorraft init` wrote it."),
]
Timeout = Annotated[float, typer.Option(help="Seconds to wait for an answer.", min=0.1)]


@contextlib.contextmanager
def cluster(folder: Path | None) -> Iterator[ClientThread]:
    """Open a session with the cluster whose client's folder this is; ends the subcommand when the library refuses."""
    if folder is None:
        raise fail("which cluster? Name its client's folder: --client FOLDER, or ACTORRAFT_CLIENT", USED_WRONGLY)
    with errors():
        thread = open_thread(folder)
        try:
            yield thread
        finally:
            thread.close()


def ask(folder: Path | None, verb: str, arguments: dict[str, Any], timeout: float) -> Any:
    """Ask the leader for one thing."""
    with cluster(folder) as thread:
        return administration.ask_leader(thread, verb, arguments, timeout)
