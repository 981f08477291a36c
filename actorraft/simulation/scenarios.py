"""Figures 7 and 8 of the Raft paper as simulations: their states, and functions that play them on and check the text.

    sim = figure_7()          # the leader of term 8 has just come to power
    print_logs(sim)
    play_figure_7(sim)        # ... and brings all six followers in line

    sim = figure_8()          # state (c): an entry of term 2 is on a majority and yet not committed
    play_figure_8d(sim)       # S1 crashes now: S5 wins and overwrites it
    play_figure_8e(figure_8())   # or an entry of term 4 reaches a majority first: S5 cannot win any more

Indexes are 0-based here, 1-based in the paper; node i is the paper's S(i+1). Leaders append no empty entry, as in the
figures.

Source:     Raft §5.3, Figure 7; §5.4.2, Figure 8.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from actorraft.raft.config import RaftConfig
from actorraft.raft.messages import AppendEntries, LogEntry
from actorraft.raft.ready import LeaderState
from actorraft.simulation.stepwise import RaftSimulation

FIGURE_7_LOGS = (  # terms; the leader's first, then the followers (a) to (f)
    (1, 1, 1, 4, 4, 5, 5, 6, 6, 6),
    (1, 1, 1, 4, 4, 5, 5, 6, 6),
    (1, 1, 1, 4),
    (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6),
    (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7),
    (1, 1, 1, 4, 4, 4, 4),
    (1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3),
)

# The elections of the figures are Raft's own, without the extensions that would delay them.
PLAIN = RaftConfig(pre_vote=False, check_quorum=False)
COLOURS = ("white", "cyan", "green", "yellow", "magenta", "blue", "red", "bright_cyan", "bright_green")


def entries_of(terms: Iterable[int]) -> list[LogEntry]:
    """Return a log with these terms; items say index and term, so that equal entries are equal and others are not."""
    return [LogEntry(term, f"{index}@{term}") for index, term in enumerate(terms)]


def campaign(sim: RaftSimulation, node_id: int) -> bool:
    """Let a node time out and hold its election, to the end; return whether it leads."""
    node = sim.nodes[node_id]
    node.process_event(lambda: node.server.campaign(pre_vote=False))
    sim.step_all()
    return node.is_leader()


def print_logs(sim: RaftSimulation, *, title: str = "", console: Console | None = None) -> None:
    """Draw the logs: a line a node, an entry's term at its index, in brackets if the node knows it to be committed."""
    console = console if console is not None else Console(highlight=False)
    if title:
        console.print(title, style="bold")
    length = max(len(node.server.log) for node in sim.nodes)
    console.print(Text("          " + "".join(f"{index:>3} " for index in range(length)), style="dim"))
    for node_id, node in enumerate(sim.nodes):
        server = node.server
        role = "down" if node_id in sim.crashed else "leader" if server.state is LeaderState else ""
        line = Text(f"{node_id} {role:<8}")
        for index in range(length):
            if index >= len(server.log) or index < server.log.first_index:
                line.append("  . ", style="dim")
                continue
            term = server.log[index].term
            box = f"[{term:>2}]" if index <= server.commit_index else f" {term:>2} "
            line.append(box, style=COLOURS[term % len(COLOURS)])
        line.append(f"   term {server.current_term}", style="dim")
        console.print(line)


# --- Figure 7 ---


def figure_7() -> RaftSimulation:
    """Return the state in which "the leader at the top comes to power": node 0 leads term 8, nothing is sent yet."""
    sim = RaftSimulation(len(FIGURE_7_LOGS), noop=False, config=PLAIN)
    for node_id, terms in enumerate(FIGURE_7_LOGS):
        sim.set_disk(node_id, entries_of(terms), term=7)
    sim.hold(lambda message: isinstance(message, AppendEntries))
    assert campaign(sim, 0), "the leader of Figure 7 wins term 8 with the votes of (a), (b), (e) and (f)"
    sim.drop(lambda message: True)
    sim.release()
    return sim


def play_figure_7(sim: RaftSimulation) -> None:
    """Let the leader append one entry of its own term: it makes every follower's log equal to its own (§5.3).

    Missing entries (a, b) are filled in, extra ones (c, d) removed, and both (e, f), though the leader never overwrites
    or deletes one of its own. Only with that entry all the ones before it are committed.
    """
    leader = sim.nodes[0]
    before = list(leader.server.log)
    assert leader.is_leader()
    assert leader.server.commit_index == -1, "no entry of an older term is committed by counting"
    leader.client_append_entry("first of term 8")
    sim.step_all()
    sim.tick(sim.config.heartbeat_ticks)  # to those whose answers were lost with the figure's messages
    sim.step_all()
    log = leader.server.log
    assert list(log)[: len(before)] == before, "a leader never overwrites or deletes entries of its own log"
    assert log[len(before)] == LogEntry(8, "first of term 8")
    for node in sim.nodes:
        assert node.server.log == log, f"follower {node.node_id} has not become equal: {node.server.log}"
        assert node.server.commit_index == len(log) - 1
    sim.check_invariants()


def electable_in_figure_7() -> set[int]:
    """Return who could win the next election, if the leader crashed before it sent anything (§5.4.1)."""
    winners = set()
    for candidate in range(1, len(FIGURE_7_LOGS)):
        sim = figure_7()
        sim.crash(0)
        if campaign(sim, candidate):
            winners.add(candidate)
    return winners


# --- Figure 8 ---


def figure_8() -> RaftSimulation:
    """Return state (c), reached by (a) and (b), every election a real one.

    (a) S1 leads term 2 and replicates index 1 to S2 only. (b) S1 crashes; S5 is elected for term 3 by S3, S4 and itself
    and accepts another entry at index 1. (c) S5 crashes; S1 restarts, is elected for term 4, appends an entry of its
    own and goes on replicating: the entry of term 2 is now on S1, S2 and S3, a majority, but it is not committed.
    """
    sim = RaftSimulation(5, noop=False, config=PLAIN)
    assert campaign(sim, 0)
    sim.nodes[0].client_append_entry("0@1")
    sim.step_all()
    sim.restart(0)  # (a)
    assert campaign(sim, 0)
    sim.hold(lambda message: isinstance(message, AppendEntries) and message.dest != 1)
    sim.nodes[0].client_append_entry("1@2")
    sim.step_all()
    sim.drop(lambda message: True)
    sim.crash(0)  # (b)
    sim.isolate(1)
    assert campaign(sim, 4)
    sim.nodes[4].client_append_entry("1@3")
    sim.step_all()
    sim.drop(lambda message: True)
    sim.crash(4)  # (c)
    sim.heal()
    sim.restart(0)
    sim.release()
    sim.hold(lambda message: isinstance(message, AppendEntries) and message.dest == 3)
    for _ in range(2):  # in term 3 it cannot win: S3 and S4 have voted
        if not sim.nodes[0].is_leader():
            campaign(sim, 0)
    sim.hold(lambda message: isinstance(message, AppendEntries) and (message.dest == 3 or _term_4(message)))
    sim.tick(sim.config.heartbeat_ticks)
    sim.step_all()
    sim.nodes[0].client_append_entry("2@4")
    sim.step_all()
    sim.drop(lambda message: True)
    sim.release()
    assert [terms_of(sim, node_id) for node_id in range(5)] == [[1, 2, 4], [1, 2], [1, 2], [1], [1, 3]]
    return sim


def _term_4(message: AppendEntries) -> bool:
    return any(entry.term == 4 for entry in message.entries)


def terms_of(sim: RaftSimulation, node_id: int) -> list[int]:
    """Return the terms of a node's log."""
    return [entry.term for entry in sim.nodes[node_id].server.log]


def play_figure_8d(sim: RaftSimulation) -> None:
    """From (c): S1 crashes. S5 wins term 5 with the votes of S2, S3 and S4 and overwrites the entry of term 2.

    So an entry that is on a majority may vanish: had S1 committed it by counting replicas, a committed entry would be
    lost (§5.4.2).
    """
    assert terms_of(sim, 1) == terms_of(sim, 2) == [1, 2], "index 1 of term 2 is on a majority"
    assert sim.nodes[0].server.commit_index < 1, "and not committed: its term is not the leader's"
    sim.crash(0)
    sim.restart(4)
    while not sim.nodes[4].is_leader():
        campaign(sim, 4)
    sim.nodes[4].client_append_entry("2@5")
    sim.step_all()
    for node_id in (1, 2, 3, 4):
        assert sim.nodes[node_id].server.log[1] == LogEntry(3, "1@3"), "the entry of term 2 is overwritten"
    sim.restart(0)
    sim.nodes[4].client_append_entry("3@5")
    sim.tick(sim.config.heartbeat_ticks)
    sim.step_all()
    assert all(node.server.log == sim.nodes[4].server.log for node in sim.nodes)
    sim.check_invariants()


def play_figure_8e(sim: RaftSimulation) -> None:
    """From (c): S1 replicates its entry of term 4 to a majority before it crashes. Now S5 cannot win any more.

    The entry of term 4 is committed, and with it, indirectly, the one of term 2 before it (log matching).
    """
    sim.hold(lambda message: isinstance(message, AppendEntries) and message.dest == 3)
    sim.tick(sim.config.heartbeat_ticks)
    sim.step_all()
    assert sim.nodes[0].server.commit_index == 2, "the entry of term 4 is on a majority: all three are committed"
    sim.drop(lambda message: True)
    sim.release()
    sim.crash(0)
    sim.restart(4)
    for _ in range(3):
        assert not campaign(sim, 4), "S2 and S3 refuse it: their logs are more up-to-date"
    while not sim.nodes[1].is_leader():
        campaign(sim, 1)
    sim.nodes[1].client_append_entry("after the election")
    sim.restart(0)
    sim.tick(sim.config.heartbeat_ticks)
    sim.step_all()
    assert all(terms_of(sim, node_id)[:3] == [1, 2, 4] for node_id in range(5))
    assert all(node.server.log == sim.nodes[1].server.log for node in sim.nodes)
    sim.check_invariants()


def main() -> None:
    """Show both figures: `python -m actorraft.simulation.scenarios`."""
    sim = figure_7()
    print_logs(sim, title="Figure 7: the leader of term 8 (node 0) comes to power")
    play_figure_7(sim)
    print_logs(sim, title="\n... and after its first entry has reached everybody")
    print_logs(figure_8(), title="\nFigure 8 (c): index 1 of term 2 is on a majority, and not committed")
    sim = figure_8()
    play_figure_8d(sim)
    print_logs(sim, title="\n(d): node 4 overwrote it")
    sim = figure_8()
    play_figure_8e(sim)
    print_logs(sim, title="\n(e): or an entry of term 4 reached a majority, and all of them stay")


if __name__ == "__main__":
    main()
