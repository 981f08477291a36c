"""`keys rotate`: another key for each member, one after the other, while the cluster serves.

The member makes its secret itself; only the public half travels, through the log. Until every voter has it, and the
member serves with it, the old one proves the same.

Source:     docs/trust.md.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from actorraft.cli.output import USED_WRONGLY, Format, Output, fail, print_json, say
from actorraft.cli.reaching import ClientFolder, cluster
from actorraft.client import administration
from actorraft.client.requests import NodeRefused
from actorraft.client.thread import ClientThread
from actorraft.errors import ActorRaftError, Unavailable
from actorraft.steady import monotonic

AGAIN_S = 0.1
keys = typer.Typer(no_args_is_help=True, help="Replace the keys of members.")


@keys.callback()
def _group() -> None:
    """Replace the keys of members."""


def register(app: typer.Typer) -> None:
    """Add the subcommands."""
    app.add_typer(keys, name="keys")


@keys.command()
def rotate(
    node_ids: Annotated[list[int] | None, typer.Argument(help="Members; by default all, the leader last.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Also if a voter cannot hear of it now.")] = False,
    client: ClientFolder = None,
    timeout: Annotated[float, typer.Option(help="Seconds for each member.", min=0.1)] = 60.0,
    output: Output = Format.table,
) -> None:
    """Give members new keys, one at a time; each begins anew with its own, leadership handed over before."""
    with cluster(client) as thread:
        roster = administration.ask_leader(thread, "roster", {}, timeout)
        rows, begun = roster["members"], roster.get("rotating", ())  # an older leader does not say
        if not any(public for _, _, _, public, _ in rows):
            raise fail("this cluster was founded without keys: there is none to replace")
        known = [row[0] for row in rows]
        # What an earlier run has begun comes first: nobody else's turn comes before that is finished.
        wanted = sorted(
            node_ids or known,
            key=lambda node_id: (node_id not in begun, not node_ids and node_id == thread.leader),
        )
        for node_id in begun:
            if node_id not in wanted:
                raise fail(
                    f"the key of node {node_id} is being replaced, one member at a time: first "
                    f"actorraft keys rotate {node_id}"
                )
        for node_id in wanted:
            if node_id not in known:
                raise fail(f"there is no member {node_id}; the members are {known}", USED_WRONGLY)
            _rotate(thread, node_id, force, timeout)
            _write_folder(client, administration.ask_leader(thread, "roster", {}, timeout)["members"])
            if output is Format.table:
                say(f"node {node_id} has a new key")
        if output is Format.json:
            print_json({"rotated": wanted})


def _rotate(thread: ClientThread, node_id: int, force: bool, timeout: float) -> None:
    until_s = monotonic() + timeout
    if administration.wait_for_leader(thread, timeout) == node_id:
        with contextlib.suppress(Unavailable):  # the only voter has nobody to hand over to
            administration.transfer_leadership(thread, None, 5.0)
    public = _until(until_s, lambda: thread.admin(node_id, "make_key", {}, 5.0).result(), final=(NodeRefused,))
    _until(
        until_s,
        lambda: administration.ask_leader(thread, "rotate_key", {"node_id": node_id, "public_key": public}, 5.0),
    )
    _until(until_s, lambda: thread.admin(node_id, "use_key", {}, 5.0).result())
    _until(until_s, lambda: _serves(thread, node_id))
    _until(until_s, lambda: administration.ask_leader(thread, "retire_key", {"node_id": node_id, "force": force}, 5.0))


def _serves(thread: ClientThread, node_id: int) -> None:
    """Whether it serves and the leader feeds it: then its new key has been proven both ways."""
    said = thread.admin(node_id, "status", {}, 2.0).result()
    led = administration.ask_leader(thread, "status", {}, 2.0)
    if said["commit_index"] < led["configuration_index"]:
        raise Unavailable(f"node {node_id} is behind")


def _until(until_s: float, ask: Any, *, final: tuple[type[ActorRaftError], ...] = ()) -> Any:
    """Ask again until it is done; `final` is what would be refused again and again."""
    while True:
        try:
            return ask()
        except final:
            raise
        except ActorRaftError as error:
            if monotonic() >= until_s:
                raise fail(f"{error}; what was begun goes on when this is run again") from None
            time.sleep(AGAIN_S)


def _write_folder(folder: Path | None, known: list[Any]) -> None:
    """Keep the client's own folder up to date, so that its next session knows the keys."""
    from transports.keys import ClientFolder as Folder

    assert folder is not None
    own = Folder.load(folder)
    members = {node_id: (key,) for node_id, _, _, key, _ in known if key}
    endpoints = {node_id: f"tcp://{at}" for node_id, _, at, _, _ in known if at}
    Folder(own.cluster_id, endpoints, own.keys.trusting(members), own.cluster_name, own.name, own.role).save(folder)
