"""What an administrator asks of a cluster. Functions of a ClientThread: a command line has no machine's class.

Threads:    any but the I/O thread.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import wait
from dataclasses import asdict, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from actorraft.client.arguments import seconds
from actorraft.client.requests import NodeDoesNotLead, NodeHasNothing, NodeRefused, NodeSilent
from actorraft.client.status import MemberStatus, Status
from actorraft.client.thread import ClientThread
from actorraft.errors import ActorRaftError, Unavailable, UsageError
from actorraft.steady import monotonic

AGAIN_S = 0.05  # until a node is asked again what it could not yet
_NO_READ = msgspec.msgpack.encode(["no read at all"])
# What a node said ({}: nothing), and why not (None: it did) -> its row.
MakeRow = Callable[[int, dict[str, Any], str | None], MemberStatus]


def wait_for_leader(thread: ClientThread, timeout: float | None = 30.0) -> int:
    """Wait until a leader is known and return its id.

    Raises:
        Unavailable: nobody led within `timeout` seconds; the text says whether nodes were reached.
    """
    thread.ready()
    thread.changed.wait_for(lambda: thread.leader is not None or thread.closed, timeout)
    leader = thread.leader
    if leader is not None:
        return leader
    if thread.closed:
        raise Unavailable("the client was closed")
    raise Unavailable(
        f"no leader within {seconds(timeout)}: {thread.where()}; status() says which nodes can be reached"
    )


def has_quorum(thread: ClientThread, timeout: float) -> bool:
    """Return whether a leader confirms in time that a majority follows it.

    It is asked for a linearizable read that no machine has: whatever it answers, it has confirmed that first.
    """
    return not isinstance(thread.query(_NO_READ, "linearizable", "leader", None, timeout).exception(), Unavailable)


def ask_leader(thread: ClientThread, verb: str, arguments: dict[str, Any], timeout: float) -> Any:
    """Ask whoever leads, through changes of leader; one that is paused is not waited for once another leads."""
    deadline_s = monotonic() + timeout
    while True:
        leader = wait_for_leader(thread, max(0.0, deadline_s - monotonic()))
        asked = thread.admin(leader, verb, arguments, max(0.1, deadline_s - monotonic()))
        asked.add_done_callback(lambda _: thread.changed.ring())
        elsewhere = _led_by_other(thread, leader)
        thread.changed.wait_for(lambda asked=asked, elsewhere=elsewhere: asked.done() or elsewhere(), timeout)  # type: ignore[misc]
        if not asked.done() and elsewhere():
            continue  # what it answers later is dropped
        try:
            return asked.result()
        except (NodeSilent, NodeDoesNotLead):
            if monotonic() >= deadline_s:
                raise
            time.sleep(0.01)


def _led_by_other(thread: ClientThread, node_id: int) -> Callable[[], bool]:
    return lambda: thread.leader not in (None, node_id)


def status(thread: ClientThread, timeout: float, make_row: MakeRow) -> Status:
    """Ask every node how it is; a dead member is a row, not an error."""
    said: dict[int, dict[str, Any]] = {}
    errors: dict[int, str] = {}
    _ask_each(thread, set(thread.endpoints), timeout, said, errors)
    new = _members_in(said) - said.keys() - errors.keys()
    if new:  # they joined since this client was told who there is
        thread.learn(max(said, key=lambda node_id: said[node_id].get("commit_index", -1)), timeout)
        _ask_each(thread, new, timeout, said, errors)
    for one in said.values():  # who is refused by the others is the last to know
        errors |= {node_id: why for node_id, why in one.get("refused", {}).items() if node_id in errors}
    members = _members_in(said)
    gone = {node_id for node_id in errors if members and node_id not in members}  # a folder may still know of them
    asked = sorted((said.keys() | errors.keys()) - gone)
    rows = [make_row(node_id, said.get(node_id, {}), errors.get(node_id)) for node_id in asked]
    commit_index = max((row.commit_index for row in rows), default=-1)
    return Status(
        MemberStatus(**{**asdict(row), "lag_entries": commit_index - row.last_applied}) if row.alive else row
        for row in rows
    )


def _ask_each(
    thread: ClientThread, node_ids: set[int], timeout: float, said: dict[int, dict[str, Any]], errors: dict[int, str]
) -> None:
    asked = {node_id: thread.admin(node_id, "status", {}, timeout) for node_id in sorted(node_ids)}
    for node_id, future in asked.items():
        try:
            said[node_id] = future.result()
        except ActorRaftError as error:
            errors[node_id] = str(error)


def _members_in(said: dict[int, dict[str, Any]]) -> set[int]:
    return {each for one in said.values() for each in (*one.get("voters", ()), *one.get("learners", ()))}


def member_status(endpoints: dict[int, str], node_id: int, said: dict[str, Any], error: str | None) -> MemberStatus:
    """Make a row of what a node said, or of why it said nothing."""
    own = ("id", "endpoint", "alive", "error")  # what is known here
    known = {each.name: said[each.name] for each in fields(MemberStatus) if each.name in said and each.name not in own}
    wrong = error if error is not None else said.get("error")
    return MemberStatus(id=node_id, endpoint=endpoints.get(node_id, ""), alive=error is None, error=wrong, **known)


def check_node(thread: ClientThread, node_id: object, timeout: float) -> None:
    """Ask the leader of a node that is not known: a client's folder may be older than the newest members.

    Raises:
        UsageError: there is no such node.
    """
    leader = thread.leader
    if type(node_id) is int and node_id not in thread.endpoints and leader is not None:
        thread.learn(leader, timeout)
    if type(node_id) is not int or node_id not in thread.endpoints:
        raise UsageError(f"there is no node {node_id!r}; the nodes are {sorted(thread.endpoints)}")


def transfer_leadership(thread: ClientThread, to: int | None, timeout: float) -> int:
    """Hand leadership over on purpose: to node `to`, or to whoever is most up to date; return the new leader's id."""
    deadline_s = monotonic() + timeout
    if to is not None and type(to) is not int:
        check_node(thread, to, 0.0)  # refused without a leader, too
    before = wait_for_leader(thread, timeout)
    if to is not None:
        check_node(thread, to, max(0.0, deadline_s - monotonic()))
    if to == before:
        return before
    handed_over = _led_by_other(thread, before) if to is None else lambda: thread.leader == to
    try:
        ask_leader(thread, "transfer", {"target": to}, max(0.0, deadline_s - monotonic()))
    except Unavailable:
        if not handed_over():  # else an election was faster
            raise
    if not thread.changed.wait_for(handed_over, max(0.0, deadline_s - monotonic())):
        raise Unavailable(f"node {before} could not hand over within {seconds(timeout)} and leads on")
    return wait_for_leader(thread, timeout)


def take_snapshot(thread: ClientThread, timeout: float) -> dict[int, int]:
    """Compact now, on every node that can be reached; on the leader last, so that it need not share the machine.

    Returns:
        node id -> index of its snapshot's last entry.

    Raises:
        ActorRaftError: the machine's `snapshot` raised, or the disk refused; nothing is lost, the log goes on.
        Unavailable: no node did so in time.
    """
    leader = thread.leader
    others = sorted(thread.endpoints.keys() - {leader})
    until_s = monotonic() + timeout
    asked = {node_id: thread.admin(node_id, "snapshot", {}, timeout) for node_id in others}
    if leader is not None:
        wait(asked.values(), timeout=timeout / 2)  # one that is stuck has the leader wait no longer than that
        asked[leader] = thread.admin(leader, "snapshot", {}, until_s - monotonic())
    taken: dict[int, int] = {}
    failed: list[str] = []
    while asked:
        again: list[int] = []
        for node_id, future in sorted(asked.items()):
            try:
                taken[node_id] = future.result()
            except NodeRefused as error:
                soon = isinstance(error, NodeDoesNotLead | NodeHasNothing) and monotonic() + AGAIN_S < until_s
                again += [node_id] * soon
                failed += [f"node {node_id}: {error}"] * (not soon)
            except Unavailable:
                pass  # it is not reachable, which status() says too
        time.sleep(AGAIN_S * bool(again))
        asked = {node_id: thread.admin(node_id, "snapshot", {}, until_s - monotonic()) for node_id in again}
    if failed:
        raise ActorRaftError("; ".join(failed))
    if not taken:
        raise Unavailable(f"no node took a snapshot in time: {thread.where()}")
    return taken


def digest(thread: ClientThread, node_id: int, timeout: float) -> tuple[int, str]:
    """Return the index a node has applied up to, and a digest of its state, equal on all nodes that got as far.

    Raises:
        Unavailable: the node did not answer in time.
    """
    said = thread.admin(node_id, "digest", {}, timeout).result()
    return said["last_applied"], said["digest"]


def export_snapshot(
    thread: ClientThread,
    path: str | os.PathLike[str],
    machine: str,
    timeout: float,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Write a portable copy of the state, as of now, for `spawn(from_snapshot=path)`; return its absolute path.

    Args:
        machine: the name of the machine's class, which the copy remembers.
        settings: what else decides the state, as JSON by name.

    Raises:
        UsageError: it cannot be written there.
        Unavailable: no leader took a snapshot in time, or another one came in between three times.
    """
    from actorraft.storage.portable import PortableInfo, write_portable

    for _ in range(3):
        covered = ask_leader(thread, "snapshot", {}, timeout)
        term, index, data, done = ask_leader(thread, "read_snapshot", {"offset": 0}, timeout)
        if index < covered:
            continue  # another node leads by now, and its newest one is older than what was acknowledged
        chunks = _snapshot_chunks(thread, (term, index), data, done, timeout)
        with contextlib.suppress(_Superseded):
            info = PortableInfo(machine=machine, term=term, index=index, settings=dict(settings))
            return write_portable(path, info, chunks)
    raise Unavailable("newer snapshots came in between each time; try again")


class _Superseded(Exception):
    """A newer snapshot, or another leader's, took the place of the one that was being copied."""


def _snapshot_chunks(
    thread: ClientThread, snapshot_id: tuple[int, int], data: bytes, done: bool, timeout: float
) -> Iterator[bytes]:
    offset = 0
    while True:
        yield data
        offset += len(data)
        if done:
            return
        asked = {"offset": offset, "id": list(snapshot_id)}  # the two newest are kept
        try:
            term, index, data, done = ask_leader(thread, "read_snapshot", asked, timeout)
        except NodeRefused as error:
            raise _Superseded from error
        if (term, index) != snapshot_id:
            raise _Superseded
