"""A linearizable read on an idle cluster took a heartbeat interval: nothing was sent when it came."""

from __future__ import annotations

from actorraft.raft.messages import AppendEntries, AppendEntriesResponse, Configuration, Message, RequestVoteResponse
from actorraft.raft.server import RaftServer


def drain(server: RaftServer) -> list[Message]:
    """Do what the server asks for, as a driver with a perfect disk would; return what it sends."""
    sent: list[Message] = []
    while server.has_ready():
        ready = server.ready()
        sent += ready.messages
        server.advance(ready)
        sent += ready.messages_after_persist
        server.applied(server.commit_index)
    return sent


def test_a_read_begins_a_round_at_once() -> None:
    server = RaftServer(0, configuration=Configuration(voters=frozenset({0, 1, 2})), draw=lambda low, high: low)
    server.campaign(pre_vote=False)
    drain(server)
    server.step(RequestVoteResponse(source=1, dest=0, term=1, vote_granted=True))
    drain(server)
    server.step(AppendEntriesResponse(source=1, dest=0, term=1, success=True, match_index=0))
    drain(server)
    assert server.commit_index == 0

    server.read_index(7)

    assert sorted(message.dest for message in drain(server) if isinstance(message, AppendEntries)) == [1, 2]
