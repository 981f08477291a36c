"""The reads that clients wait for at one node: what each still needs, and whose turn it is.

A read goes through three stations: the core says at which index it may be served (unless any state will do), the
executor is given the log up to there, and then its client's turn comes. One of which the machine says that it has not
got there yet comes back to the second station, for the next entry. Only a few are with the executor at a time, one
client after the other, so that whoever asks for much does not keep the others waiting, nor the commands.

Every read that is not refused is answered once. A read that is asked again while it waits or runs is the same read: it
runs once, however long it takes.

Invariant:  at most READS_MAX reads and READS_BYTES_MAX bytes of them are here, and of one client CLIENT_READS_MAX.
Threads:    the node's loop.
Source:     D§6.4.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import Any, Final

from actorraft import codec
from actorraft.node import work
from actorraft.node.snapshotting import Snapshotting
from actorraft.node.work import ExecutorPort
from actorraft.ports import Clock
from actorraft.raft.ready import LeaderState
from actorraft.raft.server import RaftServer

READS_MAX: Final = 10_000  # frames
READS_BYTES_MAX: Final = 64 << 20
CLIENT_READS_MAX: Final = 2_500
WAIT_S: Final = 60.0  # for an index, if the asker did not say how long it waits; then it is told to ask again
SWEEP_S: Final = 0.5  # from one look at who has waited too long to the next
LOOKS: Final = 256  # at clients whose reads wait, whether they are still there, in each of them
AT_ONCE: Final = 16  # frames with the executor
AT_ONCE_CALLS: Final = 256  # and reads in them, if there is more than one frame


class _Read:
    """One frame of reads, from when it came until it is answered or dropped."""

    __slots__ = ("at_index", "client", "over", "query", "running", "told", "until_s")

    def __init__(self, client: Any, query: codec.Query, until_s: float, *, told: bool) -> None:
        self.client = client
        self.query = query
        self.until_s = until_s
        self.told = told  # when its time is over: its asker did not say when that is
        self.running = False  # the executor has it
        self.at_index = -1  # the executor was given the log up to there before it
        self.over = False  # it was answered, refused or dropped before its turn came


class Reads:
    """The reads of a node.

    Args:
        reply: answers a client.
        ask: asks the core at which index a read may be served, by its lease or not; the answer comes to `on_index`.
        is_gone: says whether a client certainly is; looked at now and then while its reads wait.
    """

    def __init__(
        self,
        server: RaftServer,
        executor: ExecutorPort,
        clock: Clock,
        snapshots: Snapshotting,
        *,
        reply: Callable[[Any, codec.Reply], object],
        ask: Callable[[Any, bool], None],
        is_gone: Callable[[Any], bool],
    ) -> None:
        self._server = server
        self._executor = executor
        self._clock = clock
        self._snapshots = snapshots
        self._reply = reply
        self._ask = ask
        self._is_gone = is_gone
        self._reads: dict[tuple[Any, int], _Read] = {}  # (client, its number) -> all that are here
        self._bytes = 0  # of them
        self._of_client: Counter[Any] = Counter()  # how many
        self._behind: list[tuple[int, int, _Read]] = []  # a heap: (index that is not handed over yet, number, read)
        self._number = 0
        self._turns: OrderedDict[Any, deque[_Read]] = OrderedDict()  # client -> what only waits for its turn
        self._running = self._running_calls = 0
        self._sweep_s = 0.0
        self._looked = 0  # clients, in this round of looking whether they are there

    def __len__(self) -> int:
        return len(self._reads)

    def on_query(self, client: Any, query: codec.Query) -> None:
        """Take a frame of reads."""
        key = (client, query.request_id)
        if key in self._reads:
            return
        if self._server.state is not LeaderState and not query.follower:
            self._refuse(client, query, "not leader")
        elif (
            len(self._reads) >= READS_MAX
            or self._bytes + len(query.body) > READS_BYTES_MAX
            or self._of_client[client] >= CLIENT_READS_MAX
        ):
            self._refuse(client, query, "busy")
        else:
            wait_s = query.wait_s if query.wait_s > 0 else WAIT_S
            read = _Read(client, query, self._clock.monotonic() + wait_s, told=query.wait_s <= 0)
            self._reads[key] = read
            self._bytes += len(query.body)
            self._of_client[client] += 1
            if query.consistency == "stale":
                self._needs(read, query.min_index)
            else:
                self._ask(read, query.consistency == "lease")

    def on_index(self, read: Any, index: int) -> None:
        """The core says at which index a read may be served; -1: not by this node now."""
        if index >= 0:
            self._needs(read, max(index, read.query.min_index))
        elif not read.over:
            self._drop(read)
            self._refuse(read.client, read.query, "not leader")

    def _needs(self, read: _Read, index: int) -> None:
        if index <= self._snapshots.handed_index:
            self._queue(read)
        else:
            self._number += 1
            heapq.heappush(self._behind, (index, self._number, read))

    def handed_over(self) -> None:
        """The executor was given more: reads that waited for it have their turn."""
        behind = self._behind
        if not behind:
            return
        handed_index = self._snapshots.handed_index
        while behind and behind[0][0] <= handed_index:
            self._queue(heapq.heappop(behind)[2])

    # --- In turn ---

    def _queue(self, read: _Read) -> None:
        if not read.over:
            self._turns.setdefault(read.client, deque()).append(read)
            self._serve()

    def _serve(self) -> None:
        """Give the executor what it may have, one frame of each client in turn."""
        turns = self._turns
        while turns and self._running < AT_ONCE and (self._running_calls < AT_ONCE_CALLS or not self._running):
            client, waiting = next(iter(turns.items()))
            read = waiting.popleft()
            if waiting:
                turns.move_to_end(client)
            else:
                del turns[client]
            if not read.over:
                read.running = True
                read.at_index = self._snapshots.handed_index
                self._running += 1
                self._running_calls += read.query.count
                self._executor.submit(work.Read(client, read.query))

    def answered(self, client: Any, request_id: int) -> None:
        """The executor is done with one."""
        read = self._reads.get((client, request_id))
        if read is not None and read.running:
            self._running -= 1
            self._running_calls -= read.query.count
            self._drop(read)
            self._serve()

    def not_yet(self, client: Any, request_id: int) -> bool:
        """The machine has not what one asks for: ask again after more is applied; False if it is not to wait here."""
        read = self._reads.get((client, request_id))
        if read is None or not read.running:
            return True
        read.running = False
        self._running -= 1
        self._running_calls -= read.query.count
        waits = (
            read.query.parks
            and read.until_s > self._clock.monotonic()
            and (read.query.follower or self._server.state is LeaderState)
        )
        if waits:
            self._needs(read, read.at_index + 1)
        else:
            self._drop(read)
        self._serve()
        return waits

    # --- The end of those that are not served ---

    def leader_changed(self) -> None:
        """A node that does not lead any more serves no reads that go to the leader."""
        if self._server.state is LeaderState:
            return
        for read in [read for read in self._reads.values() if not read.query.follower and not read.running]:
            self._drop(read)
            self._refuse(read.client, read.query, "not leader")

    def tick(self) -> None:
        """Drop what has waited too long, and what nobody waits for any more."""
        now_s = self._clock.monotonic()
        if not self._reads or now_s < self._sweep_s:
            return
        self._sweep_s = now_s + SWEEP_S
        for read in [read for read in self._reads.values() if read.until_s <= now_s and not read.running]:
            self._drop(read)
            if read.told:
                self._refuse(read.client, read.query, "not yet")
        self._release()
        self._behind = [waiting for waiting in self._behind if not waiting[2].over]
        heapq.heapify(self._behind)

    def _release(self) -> None:
        """Drop the reads of clients that are gone; so many clients are looked at, others the next time."""
        clients = list(self._of_client)
        self._looked %= max(1, len(clients))
        looked = clients[self._looked : self._looked + LOOKS]
        self._looked += LOOKS
        gone = {client for client in looked if self._is_gone(client)}
        for read in [read for read in self._reads.values() if read.client in gone and not read.running] if gone else ():
            self._drop(read)

    def _drop(self, read: _Read) -> None:
        read.over = True
        del self._reads[(read.client, read.query.request_id)]
        self._bytes -= len(read.query.body)
        self._of_client[read.client] -= 1
        if not self._of_client[read.client]:
            del self._of_client[read.client]

    def _refuse(self, client: Any, query: codec.Query, reason: str) -> None:
        self._reply(client, codec.QueryRefused(query.request_id, reason, self._server.leader_id))
