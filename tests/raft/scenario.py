"""Scenarios as text: what is done to a few servers, and below it what they do, in the order of their effects.

A file is prose with commands in it. A line that begins with "> " is a command; the indented lines after it are what
happened, and are compared with what happens now. All other lines are for the reader.

    > campaign 0
        0 is candidate of term 1
        0 stores term 1, vote 0
        0>1 RequestVote term 1, log ends at -1
    > deliver 0>1

An entry is shown as index@term. Messages lie still until they are delivered, a server does what it has to do at once.
`pytest tests/raft/test_scenarios.py --rewrite-scenarios` writes what happens now into the files; review it as text.

Not here:   what is right. Whoever rewrites a file says so by committing it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Any

from actorraft.raft import (
    AddLearner,
    AddVoter,
    AppendEntries,
    AppendEntriesResponse,
    Configuration,
    EntryId,
    HardState,
    InstallSnapshot,
    InstallSnapshotResponse,
    LogEntry,
    Message,
    NotLeader,
    ProposalRefused,
    RaftConfig,
    ReadIndex,
    ReadIndexResponse,
    Ready,
    Reminder,
    RemoveNode,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
)
from actorraft.raft.ready import NOT_URGENT
from tests.helpers import Cluster, log_of

COMMAND, OUTPUT = "> ", "    "


class Scenario:
    """A cluster that is told what to do line by line, and tells what it does."""

    def __init__(self) -> None:
        self.cluster: _Told
        self.lines: list[str] = []

    def run(self, text: str) -> str:
        """Return `text` with what happens now below its commands."""
        written: list[str] = []
        for line in text.splitlines():
            if line.startswith(COMMAND):
                written.append(line)
                written += [OUTPUT + said for said in self.do(line.removeprefix(COMMAND))]
            elif not line.startswith(OUTPUT):
                written.append(line)
        return "\n".join(written) + "\n"

    def do(self, command: str) -> list[str]:
        """Carry out one command; return what happened."""
        verb, *words = shlex.split(command)
        arguments = [word for word in words if "=" not in word]
        options = dict(word.split("=", 1) for word in words if "=" in word)
        if verb == "cluster":
            self.cluster = _Told(int(arguments[0]), options, self.lines)
        else:
            try:
                getattr(self, "do_" + verb)(*arguments, **options)
            except (NotLeader, ProposalRefused) as refused:
                self.lines.append(f"refused: {refused}")
            self.cluster.work_all()
        said = list(self.lines)
        self.lines.clear()
        return said

    # -- what servers are told

    def do_campaign(self, node: str, pre_vote: str = "no") -> None:
        self.cluster[int(node)].campaign(pre_vote=pre_vote == "yes")

    def do_elect(self, node: str) -> None:
        """Campaign and settle, without a word on how."""
        leader = self.cluster.elect(int(node))
        self.lines[:] = [f"{node} is {_role(leader.role)}, committed {leader.commit_index}"]

    def do_tick(self, nodes: str, ticks: str) -> None:
        for node_id in self._nodes(nodes):
            for _ in range(int(ticks)):
                self.cluster[node_id].tick()
                self.cluster.work(node_id)

    def do_propose(self, node: str, *items: str) -> None:
        for item in items:
            self.cluster[int(node)].propose(item)

    def do_read(self, node: str, token: str, lease: str = "no") -> None:
        self.cluster[int(node)].read_index(int(token), lease=lease == "yes")

    def do_transfer(self, node: str, target: str | None = None) -> None:
        self.cluster[int(node)].transfer_leadership(None if target is None else int(target))

    def do_change(self, node: str, *changes: str) -> None:
        """`+3` makes node 3 a voter, `~3` a learner, `-3` removes it."""
        kinds: dict[str, Any] = {"+": AddVoter, "~": AddLearner, "-": RemoveNode}
        self.cluster[int(node)].change_membership([kinds[change[0]](int(change[1:])) for change in changes])

    def do_snapshot(self, node: str, trailing: str = "0") -> None:
        self.cluster.snapshot(int(node), int(trailing))
        self.lines.append(f"{node} takes a snapshot at {_id(self.cluster[int(node)].snapshot_id)}")

    def do_disconnect(self, one: str, other: str) -> None:
        self.cluster[int(one)].peer_disconnected(int(other))

    def do_connect(self, one: str, other: str) -> None:
        self.cluster[int(one)].peer_connected(int(other))

    def do_urgent(self, node: str) -> None:
        self.cluster[int(node)].urgent()

    # -- what happens around them

    def do_start(self, node: str, log: str = "", term: str = "", vote: str = "") -> None:
        """Start a node, empty and of no configuration; with `log` (terms, by commas), put that on its disk first."""
        node_id = int(node)
        if node_id not in self.cluster.disks:
            self.cluster.add(node_id, configuration=Configuration())
        elif node_id in self.cluster.servers:
            self.cluster.crash(node_id)
        disk = self.cluster.disks[node_id]
        if log or term:
            terms = [int(one) for one in log.split(",") if one]
            disk.log = log_of(*terms)
            disk.hard_state = HardState(int(term or max(terms)), int(vote) if vote else None)
        self.cluster.restart(node_id)

    def do_crash(self, node: str) -> None:
        self.cluster.crash(int(node))

    def do_deliver(self, links: str = "all") -> None:
        """Deliver what is under way now, on all links, to one node (`>1`), from one (`0>`), or on one (`0>1`)."""
        self.cluster.deliver([message for message in self.cluster.messages if _on(message, links)])

    def do_settle(self) -> None:
        self.cluster.settle()

    def do_lose(self, links: str = "all") -> None:
        for message in [message for message in self.cluster.messages if _on(message, links)]:
            self.cluster.messages.remove(message)
            self.lines.append(f"lost: {self.cluster.show(message)}")

    def do_cut(self, *nodes: str) -> None:
        """Cut these nodes off from the others, from now on."""
        self.cluster.isolate(*map(int, nodes))

    def do_heal(self) -> None:
        self.cluster.heal()

    # -- looking

    def do_state(self, *nodes: str) -> None:
        for node_id in map(int, nodes or self.cluster.servers):
            server = self.cluster[node_id]
            log = " ".join(_entry(index, entry) for index, entry in enumerate(server.log, server.log.first_index))
            cut = f"snapshot {_id(server.snapshot_id)}, " if server.snapshot_id.index >= 0 else ""
            self.lines.append(f"{node_id} {_role(server.role)}: {cut}log [{log}], committed {server.commit_index}")

    def do_progress(self, node: str) -> None:
        for peer_id, progress in sorted(self.cluster[int(node)].progress.items()):
            self.lines.append(f"{peer_id} {progress}")

    def do_configuration(self, node: str) -> None:
        self.lines.append(_configuration(self.cluster[int(node)].configuration))

    def _nodes(self, nodes: str) -> list[int]:
        return list(self.cluster.servers) if nodes == "all" else [int(node) for node in nodes.split(",")]


class _Told(Cluster):
    """A cluster that writes down what each Ready asks for."""

    def __init__(self, size: int, options: dict[str, str], lines: list[str]) -> None:
        self.lines = lines
        self.shown = options.pop("show", "").split(",")
        learners = frozenset(range(size, size + int(options.pop("learners", "0"))))
        noop = options.pop("noop", "yes") == "yes"
        settings: dict[str, Any] = {
            name: {"yes": True, "no": False}[value] if value in ("yes", "no") else int(value)
            for name, value in {"pre_vote": "no", "check_quorum": "no", **options}.items()
        }
        members = Configuration(frozenset(range(size)), learners=learners, next_node_id=size + len(learners))
        self.roles: dict[int, Any] = {}
        super().__init__(size + len(learners), config=RaftConfig(**settings), configuration=members, noop=noop)

    def restart(self, node_id: int) -> Any:
        server = super().restart(node_id)
        self.roles[node_id] = server.role[:3]
        return server

    def work_all(self) -> None:
        for node_id in list(self.servers):
            self.work(node_id)

    def work(self, node_id: int, *, crash_at: str = "") -> None:
        server = self.servers[node_id]
        while server.has_ready():
            ready = server.ready()
            if ready.state_changed and server.role[:3] != self.roles[node_id]:
                self.roles[node_id] = server.role[:3]
                self.say(f"{node_id} is {_role(server.role)}")
            self.send(node_id, ready.messages)
            self.say_write(node_id, ready)
            self.take_snapshot_in(node_id, ready)
            self.disks[node_id].persist(ready)
            server.advance(ready)
            self.send(node_id, ready.messages_after_persist)
            if ready.committed:
                committed = " ".join(_entry(i, entry) for i, entry in enumerate(ready.committed, ready.committed_from))
                self.say(f"{node_id} applies {committed}")
            self.apply(node_id, ready)
            for read in ready.reads:
                outcome = "is refused" if read.index < 0 else f"may be served at {read.index}"
                self.say(f"{node_id} read {read.token} {outcome}")
            for lost in ready.lost_logs:
                self.say(f"{node_id} says: {lost.node_id} lost {lost.last_index + 1} to {lost.acknowledged_index}")
            if ready.urgent_delay_ms == NOT_URGENT:
                self.say(f"{node_id} has nothing urgent any more")
            elif ready.urgent_delay_ms is not None:
                self.say(f"{node_id} wants to be called in {ready.urgent_delay_ms} ms")

    def say(self, line: str) -> None:
        self.lines.append(line)

    def say_write(self, node_id: int, ready: Ready) -> None:
        stored: list[str] = []
        if ready.install is not None:
            stored.append(f"snapshot {_id(ready.install)} in the place of its log")
        if ready.hard_state is not None:
            term, vote = ready.hard_state
            stored.append(f"term {term}" + ("" if vote is None else f", vote {vote}"))
        stored += [_entry(index, entry) for index, entry in enumerate(ready.entries, ready.entries_from)]
        if stored:
            self.say(f"{node_id} stores " + ", ".join(stored))

    def send(self, node_id: int, messages: Iterable[Message]) -> None:
        before = len(self.messages)
        super().send(node_id, messages)
        for message in self.messages[before:]:
            self.say(self.show(message))

    def show(self, message: Message) -> str:
        """Return a message as text."""
        said = f"{message.source}>{message.dest} {_said(message)}"
        if "round" in self.shown and hasattr(message, "round"):
            said += f", round {message.round}"
        if isinstance(message, AppendEntries) and message.lease_ticks:
            said += f", lease {message.lease_ticks}"
        return said


def _on(message: Message, links: str) -> bool:
    if links == "all":
        return True
    source, dest = links.split(">")
    return source in ("", str(message.source)) and dest in ("", str(message.dest))


def _said(message: Message) -> str:
    match message:
        case AppendEntries():
            entries = " ".join(_entry(i, entry) for i, entry in enumerate(message.entries, message.prev_index + 1))
            after = _id(EntryId(message.prev_term, message.prev_index))
            return f"AppendEntries term {message.term}, after {after} [{entries}], commit {message.commit_index}"
        case AppendEntriesResponse(success=True):
            return f"AppendEntriesResponse term {message.term}, holds {message.match_index}"
        case AppendEntriesResponse():
            hint = _id(EntryId(message.hint_term, message.hint_index))
            return f"AppendEntriesResponse term {message.term}, rejects after {message.rejected_index}, see {hint}"
        case RequestVote():
            name = "PreVote" if message.pre_vote else "RequestVote"
            asked = " for a transfer" if message.transfer else ""
            last = _id(EntryId(message.last_log_term, message.last_log_index))
            return f"{name} term {message.term}{asked}, log ends at {last}"
        case RequestVoteResponse():
            name = "PreVoteResponse" if message.pre_vote else "RequestVoteResponse"
            return f"{name} term {message.term}, {'granted' if message.vote_granted else 'refused'}"
        case InstallSnapshot():
            at = _id(EntryId(message.snapshot_term, message.snapshot_index))
            last = ", the last" if message.done else ""
            return f"InstallSnapshot term {message.term}, {at}, offset {message.offset}{last}"
        case InstallSnapshotResponse():
            got = "installed" if message.done else f"go on at offset {message.next_offset}"
            return f"InstallSnapshotResponse term {message.term}, {message.snapshot_index}, {got}"
        case TimeoutNow():
            return f"TimeoutNow term {message.term}"
        case ReadIndex():
            return f"ReadIndex term {message.term}, {message.token}"
        case ReadIndexResponse():
            answer = "refused" if message.index < 0 else f"at {message.index}"
            return f"ReadIndexResponse term {message.term}, {message.token} {answer}"
        case Reminder():
            return f"Reminder term {message.term}, owes {_id(EntryId(message.owed_term, message.owed_index))}"


def _id(entry_id: EntryId) -> str:
    return f"{entry_id.index}@{entry_id.term}" if entry_id.index >= 0 else "-1"


def _entry(index: int, entry: LogEntry) -> str:
    item = entry.item
    if isinstance(item, Configuration):
        return f"{index}@{entry.term}({_configuration(item)})"
    if item is None or item == b"%d@%d" % (index, entry.term):
        return f"{index}@{entry.term}"
    return f"{index}@{entry.term}={item}"


def _configuration(configuration: Configuration) -> str:
    parts = ["voters " + ",".join(map(str, sorted(configuration.voters)))]
    if configuration.voters_outgoing:
        parts.append("outgoing " + ",".join(map(str, sorted(configuration.voters_outgoing))))
    if configuration.learners:
        parts.append("learners " + ",".join(map(str, sorted(configuration.learners))))
    if configuration.learners_next:
        parts.append("learners next " + ",".join(map(str, sorted(configuration.learners_next))))
    return "; ".join(parts)


def _role(role: Any) -> str:
    state, term, leader_id = role[:3]
    name = state.name.removesuffix("State").lower()
    if name != "follower":
        return f"{name} of term {term}"
    return f"follower in term {term}" + ("" if leader_id is None else f", of {leader_id}")
