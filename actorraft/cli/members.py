"""`status`, `members`, `token` and `transfer`: who takes part, how they are, and who leads."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from actorraft.cli.output import Format, Output, fail, print_json, print_rows, say
from actorraft.cli.reaching import ClientFolder, Timeout, cluster, nobody_answers
from actorraft.client import administration
from actorraft.client.requests import NodeForbids
from actorraft.client.thread import ClientThread
from actorraft.cluster.joining import create_token
from actorraft.errors import ActorRaftError, Unavailable
from actorraft.steady import monotonic

LOST_S = 1.0  # a member that its leader has not reached for so long is not there
STATUS = ("id", "state", "term", "commit_index", "last_applied", "lag_entries", "alive", "error", "endpoint")

members = typer.Typer(no_args_is_help=True, help="List, add, remove and promote members.")
token = typer.Typer(no_args_is_help=True, help="Tokens with which new machines join.")


def register(app: typer.Typer) -> None:
    """Add the subcommands."""
    app.command()(status)
    app.command()(transfer)
    app.add_typer(members, name="members")
    app.add_typer(token, name="token")


def status(client: ClientFolder = None, timeout: Timeout = 1.0, output: Output = Format.table) -> None:
    """Show how each member is; a dead one is a row, too. Exits with 1 if nobody answers."""
    with cluster(client) as thread:
        _find(thread, timeout)
        rows = administration.status(
            thread, timeout, lambda *said: administration.member_status(thread.endpoints, *said)
        )
        why = "" if any(row.alive for row in rows) else nobody_answers(thread)
    told = [{**asdict(row), "endpoint": row.endpoint.partition("#")[0]} for row in rows]
    if output is Format.table:  # which has to fit; and a member that is alive may have a reason to be of no use
        for row in told:
            row["endpoint"] = row["endpoint"].removeprefix("tcp://")
            row["error"] = row["error"] or row["not_ready"] or None
    print_rows(told, STATUS, output)
    if why:
        raise fail(why)


def _find(thread: ClientThread, timeout: float) -> None:
    """Learn of all members from any one; without a leader those of the folder will do."""
    try:
        administration.wait_for_leader(thread, timeout)
    except Unavailable:
        return


def transfer(
    to: Annotated[int | None, typer.Argument(help="The node that is to lead; by default the most up to date.")] = None,
    client: ClientFolder = None,
    timeout: Timeout = 10.0,
    output: Output = Format.table,
) -> None:
    """Hand leadership over."""
    with cluster(client) as thread:
        leader = administration.transfer_leadership(thread, to, timeout)
    print_json({"leader": leader}) if output is Format.json else say(f"node {leader} leads")


@members.command(name="list")
def list_members(client: ClientFolder = None, timeout: Timeout = 5.0, output: Output = Format.table) -> None:
    """Show who the members are, by the leader's word."""
    with cluster(client) as thread:
        rows = _members(thread, timeout)
    print_rows(rows, ("id", "role", "peer", "client", "storage_id"), output)


def _members(thread: ClientThread, timeout: float) -> list[dict[str, Any]]:
    said = administration.ask_leader(thread, "status", {}, timeout)
    known = administration.ask_leader(thread, "roster", {}, timeout)
    rows = {row[0]: row for row in known["members"]}
    found = []
    for node_id in sorted({*said["voters"], *said["learners"]}):
        _, peer, at, _, storage_id = rows.get(node_id, (node_id, "", "", "", ""))
        role = "voter" if node_id in said["voters"] else "learner"
        found.append({"id": node_id, "role": role, "peer": peer, "client": at, "storage_id": storage_id})
    return found


@members.command()
def add(
    client: ClientFolder = None,
    learner: Annotated[bool, typer.Option("--learner", help="It stays a learner, which does not vote.")] = False,
    ttl: Annotated[float, typer.Option(help="Seconds for which the token is good.")] = 3600.0,
    timeout: Timeout = 5.0,
    output: Output = Format.table,
) -> None:
    """Print what to run on a new machine, so that it becomes a member."""
    text = _create(client, ttl, learner, timeout)
    if output is Format.json:
        print_json({"token": text, "ttl_s": ttl, "learner": learner})
        return
    say("run on the new machine, with the machine's package installed:")
    say(f"  actorraft serve --join {text} --data-dir DIRECTORY --listen HOST:PORT")


@members.command()
def remove(
    node_id: Annotated[int, typer.Argument(help="The member to remove.")],
    client: ClientFolder = None,
    timeout: Timeout = 30.0,
    output: Output = Format.table,
) -> None:
    """Remove a member, alive or not. Its process leaves; its directory stays where it is."""
    _change(client, ["remove", node_id], timeout, lambda said: node_id not in {*said["voters"], *said["learners"]})
    if output is Format.json:
        print_json({"removed": node_id})
    else:
        say(f"node {node_id} is no member any more; its data directory may be removed")


@members.command()
def promote(
    node_id: Annotated[int, typer.Argument(help="The learner that is to vote.")],
    client: ClientFolder = None,
    timeout: Timeout = 60.0,
    output: Output = Format.table,
) -> None:
    """Let a learner vote, once it has caught up."""
    _change(client, ["add_voter", node_id], timeout, lambda said: node_id in said["voters"])
    print_json({"voter": node_id}) if output is Format.json else say(f"node {node_id} is a voter")


def _change(client: Path | None, change: list[Any], timeout: float, done: Any) -> None:
    """Ask for a change of membership until it is committed."""
    deadline_s, refusal = monotonic() + timeout, ""
    node_id = change[1]
    with cluster(client) as thread:
        while monotonic() < deadline_s:
            said = administration.ask_leader(thread, "status", {}, timeout)
            if (
                change[0] == "remove" and not 0 <= node_id < said["next_node_id"]
            ):  # one that was a member, and is none, is removed already
                raise fail(f"there is no node {node_id}; the nodes are {sorted({*said['voters'], *said['learners']})}")
            if change[0] == "remove" and said["voters"] == [node_id]:
                raise fail(f"node {node_id} is the only voter, and a cluster needs one")
            if change[0] == "remove" and not done(said) and (why := _loses_majority(said, node_id)):
                raise fail(why)
            if done(said) and not said["joint"] and said["configuration_index"] <= said["commit_index"]:
                return
            if not done(said) and change[0] != "remove" and node_id not in said["learners"]:
                raise fail(f"there is no learner {node_id}; the learners are {said['learners']}")
            try:
                administration.ask_leader(thread, "change_membership", {"changes": [change]}, timeout)
            except NodeForbids:
                raise
            except ActorRaftError as error:  # another change is under way, or it cannot be
                refusal = str(error)
            time.sleep(0.05)
    raise fail(f"the membership did not change within {timeout:g} s: {refusal or 'it is not committed yet'}")


def _loses_majority(said: dict[str, Any], node_id: int) -> str:
    """Say why a voter that is there must not go now, if it must not; `said` is the leader's status."""
    lost = {peer for peer, since_s in said["links"].items() if since_s is not None and since_s >= LOST_S}
    left = {*said["voters"]} - {node_id}
    if node_id in {*said["voters"]} - lost and len(left - lost) * 2 <= len(left):
        return (
            f"without node {node_id} nothing could be committed any more: of {sorted(left)} there would be "
            f"{sorted(left - lost)} alone. Bring {sorted(left & lost)} back, or remove them first"
        )
    return ""


@token.command()
def create(
    client: ClientFolder = None,
    ttl: Annotated[float, typer.Option(help="Seconds for which it is good.")] = 3600.0,
    learner: Annotated[bool, typer.Option("--learner", help="What joins with it stays a learner.")] = False,
    timeout: Timeout = 5.0,
    output: Output = Format.table,
) -> None:
    """Print a token: it lets one machine join, once."""
    text = _create(client, ttl, learner, timeout)
    print_json({"token": text, "ttl_s": ttl, "learner": learner}) if output is Format.json else print(text)


def _create(folder: Path | None, ttl: float, learner: bool, timeout: float) -> str:
    with cluster(folder) as thread:
        assert folder is not None
        return create_token(folder, thread, ttl, learner, timeout)
