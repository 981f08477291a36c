"""How a subcommand reaches a running cluster: the client's folder, and a session that is closed whatever happens.

A folder is written once, and members come, go and move; so each subcommand that was answered leaves in it where they
are now and by which keys they are known. Else, once the last member of the first day is gone, it would reach nobody.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from actorraft.cli.output import USED_WRONGLY, errors, fail
from actorraft.client import administration
from actorraft.client.arguments import FOR_EVER_S
from actorraft.client.connect import open_thread
from actorraft.client.thread import ClientThread
from actorraft.errors import UsageError

ClientFolder = Annotated[
    Path | None,
    typer.Option("--client", envvar="ACTORRAFT_CLIENT", help="The client's folder, as `actorraft init` wrote it."),
]
_UNSAID = logging.NullHandler()
Timeout = Annotated[float, typer.Option(help="Seconds to wait for an answer.", min=0.1, max=FOR_EVER_S)]


@contextlib.contextmanager
def cluster(folder: Path | None) -> Iterator[ClientThread]:
    """Open a session with the cluster whose client's folder this is; ends the subcommand when the library refuses."""
    if folder is None:
        raise fail("which cluster? Name its client's folder: --client FOLDER, or ACTORRAFT_CLIENT", USED_WRONGLY)
    # What a link meets is in the error, if it matters; in a row of its own it is noise where all went well.
    logging.getLogger("actorraft.transports").addHandler(_UNSAID)
    with errors():
        _look_for_key(folder)
        thread = open_thread(folder)
        try:
            yield thread
            _refresh(folder, thread)
        finally:
            thread.close()


def nobody_answers(thread: ClientThread) -> str:
    """Say why no member answers, as far as that is known; to be asked before the session is closed."""
    return f"no member answers: {thread.where()}; are the addresses in the client's folder right?"


def _refresh(folder: Path, thread: ClientThread) -> None:
    """Write down what was learned of the members, if it is news; a folder that cannot be written stays as it is."""
    from transports.keys import ClientFolder as Folder

    own, endpoints = Folder.load(folder), {each: at.partition("#")[0] for each, at in thread.endpoints.items()}
    known = {node_id: keys for node_id, keys in thread.members.items() if node_id in endpoints}
    if thread.leader is None or min(endpoints) < 0 or known.keys() != endpoints.keys():
        return  # nobody has said all of it
    if (endpoints, known) != (own.endpoints, own.keys.members):
        with contextlib.suppress(OSError):
            replace(own, endpoints=endpoints, keys=own.keys.trusting(known)).save(folder)


def _look_for_key(folder: Path) -> None:
    from transports.keys import CLIENT_FILE, SECRET_FILE

    if (folder / CLIENT_FILE).is_file() and not (folder / SECRET_FILE).is_file():
        raise UsageError(
            f"{folder / SECRET_FILE} is missing, and the cluster knows its clients by their keys: put it back, or "
            "have an administrator make another folder: actorraft clients add NAME"
        )


def ask(folder: Path | None, verb: str, arguments: dict[str, Any], timeout: float) -> Any:
    """Ask the leader for one thing."""
    with cluster(folder) as thread:
        return administration.ask_leader(thread, verb, arguments, timeout)
