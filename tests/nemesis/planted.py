"""Machines that break the node they run in: each plants one bug, for the nemesis to find.

The patch is made when a node's process makes its machine, so nothing outside that process changes, and nothing that is
shipped knows of it.
"""

from __future__ import annotations

from typing import Any

from actorraft import codec
from actorraft.node import work
from actorraft.node.reads import Reads
from actorraft.node.requests import Requests
from actorraft.node.session_table import Admission, Sessions
from tests.nemesis.machine import Registers


def plant(owner: type, name: str, bug: Any) -> None:
    """Put a bug in the place of a method, which must be there: in no other place would it be one."""
    getattr(owner, name)
    setattr(owner, name, bug)


class AcknowledgesBeforeCommit(Registers):
    """A leader answers appends and puts when it has them itself, as if they were committed."""

    def __init__(self) -> None:
        super().__init__()
        honest = Requests._append

        def append(requests: Requests, client: Any, frame: bytes, client_id: int, first_sequence: int) -> Any:
            index = honest(requests, client, frame, client_id, first_sequence)
            if first_sequence < 0 or index is None:
                return index
            request = codec.decode_request(frame)
            assert isinstance(request, codec.Commands)
            commands = codec.decode_body(request.body)
            if all(isinstance(command, list) and command[0] in ("set", "append") for command in commands):
                values = [True if command[0] == "set" else None for command in commands]
                requests.reply(client, codec.Results(client_id, first_sequence, values))
            return index

        plant(Requests, "_append", append)


class ReadsWithoutAQuorum(Registers):
    """Whoever is asked answers a linearizable read at once, from what it has applied."""

    def __init__(self) -> None:
        super().__init__()

        def on_query(reads: Reads, client: Any, query: codec.Query) -> None:
            reads._executor.submit(work.Read(client, query))

        plant(Reads, "on_query", on_query)


class ForgetsSessions(Registers):
    """A repetition is taken for a new command: what was sent twice applies twice."""

    def __init__(self) -> None:
        super().__init__()
        honest = Sessions.admit

        def admit(sessions: Sessions, frame: codec.Commands, log_time_s: float) -> Admission:
            admission = honest(sessions, frame, log_time_s)
            if admission.session is None and admission.resume_from is None and not admission.expired:
                return Admission(session=sessions._sessions[frame.client_id])
            return admission

        def record(sessions: Sessions, session: Any, frame: codec.Commands, results: list[Any], index: int) -> None:
            session.next_sequence = max(session.next_sequence, frame.first_sequence + frame.count)
            session.results[frame.first_sequence] = (results, index)

        plant(Sessions, "admit", admit)
        plant(Sessions, "record", record)
