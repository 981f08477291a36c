"""Client sessions: what makes a command that is sent again apply once (§8, D§6.3).

The table is replicated state: every node runs the same commands through it and holds the same. A session is opened
by an entry of its own and named by that entry's index, so a name is never given twice. Its commands carry dense
sequences; a frame whose first sequence is not the next one is either a repetition, answered from memory, or would
leave a gap, and then changes nothing at all.

Why no holes: if frame 1 is refused and frame 2 taken, a table that only remembers the highest sequence would drop the
retry of frame 1 as a repetition, and lose it without a word.

Source:     D§6.3.
Invariant:  results are held for exactly the sequences in [lowest unanswered, next_sequence), frame by frame.
Not here:   what a command is (executor.py, host.py).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

from actorraft.codec import Commands


class Session:
    """One client's place in its own order.

    Attributes:
        next_sequence: the sequence of the next new command; starts at 0.
        last_active_s: log time of its last frame.
        results: first sequence of a frame -> its results, and the index of the entry that gave them; oldest first.
    """

    __slots__ = ("last_active_s", "next_sequence", "results")

    def __init__(
        self, last_active_s: float, next_sequence: int = 0, results: dict[int, tuple[list[Any], int]] | None = None
    ) -> None:
        self.next_sequence = next_sequence
        self.last_active_s = last_active_s
        self.results = results if results is not None else {}


class Admission(NamedTuple):
    """What to do with a frame: run it (`session` is set), answer from memory (`repeated`), or refuse.

    None of them: it is a repetition whose results the client already has.
    """

    session: Session | None = None
    repeated: list[Any] | None = None
    resume_from: int | None = None  # it would leave a gap
    expired: bool = False  # nobody knows this session
    repeated_index: int = -1  # of the entry that gave those results; -1: not known, it was before a snapshot of 0.1.0


class Sessions:
    """All sessions, least recently active first."""

    def __init__(self, expiry_s: float) -> None:
        self.expiry_s = expiry_s
        self._sessions: OrderedDict[int, Session] = OrderedDict()
        self._none_before_s = -math.inf  # up to this log time nobody expires, as was seen when it was last looked at

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self, client_id: int, log_time_s: float) -> None:
        """Open the session whose registration is the entry at index `client_id`."""
        self._sessions[client_id] = Session(log_time_s)

    def close(self, client_id: int) -> None:
        """Forget a session whose client said goodbye."""
        self._sessions.pop(client_id, None)

    def admit(self, frame: Commands, log_time_s: float) -> Admission:
        """Decide on a frame, and forget the results that its client says it has."""
        session = self._sessions.get(frame.client_id)
        if session is None:
            return Admission(expired=True)
        session.last_active_s = log_time_s
        self._sessions.move_to_end(frame.client_id)
        results = session.results
        while results and (first := next(iter(results))) < frame.lowest_unanswered:
            del results[first]
        if frame.first_sequence == session.next_sequence:
            return Admission(session=session)
        if frame.first_sequence > session.next_sequence:
            return Admission(resume_from=session.next_sequence)
        repeated = results.get(frame.first_sequence)
        return Admission() if repeated is None else Admission(repeated=repeated[0], repeated_index=repeated[1])

    def record(self, session: Session, frame: Commands, results: list[Any], index: int) -> None:
        """Remember what a frame gave in the entry at `index`, until its client has it."""
        session.next_sequence = frame.first_sequence + frame.count
        session.results[frame.first_sequence] = (results, index)

    def expire(self, log_time_s: float) -> Sequence[int]:
        """Forget sessions that have been silent for `expiry_s` of log time: the same ones on every node.

        Returns:
            Which these are.
        """
        expired: list[int] | tuple[()] = ()
        if log_time_s <= self._none_before_s:
            return expired
        while self._sessions:
            client_id, session = next(iter(self._sessions.items()))
            until_s = session.last_active_s + self.expiry_s
            if until_s >= log_time_s:
                self._none_before_s = until_s  # the others were active later, and so is whoever comes
                break
            del self._sessions[client_id]
            expired = [*expired, client_id]
        return expired

    def state(self) -> list[Any]:
        """Return the table as plain data, for a snapshot."""
        return [
            [
                client_id,
                one.last_active_s,
                one.next_sequence,
                [[first, results, index] for first, (results, index) in one.results.items()],
            ]
            for client_id, one in self._sessions.items()
        ]

    def restore(self, state: list[Any]) -> None:
        """Take over the table of a snapshot; in one of 0.1.0 the results have no index."""
        self._none_before_s = -math.inf
        self._sessions = OrderedDict(
            (client_id, Session(last_active_s, next_sequence, {row[0]: (row[1], (*row, -1)[2]) for row in rows}))
            for client_id, last_active_s, next_sequence, rows in state
        )
