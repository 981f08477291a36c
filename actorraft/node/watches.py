"""Who watches what a machine publishes, and from which entry on each of them is owed it.

A watcher that does not read has a full queue, as far as the transport is willing to keep one. Nothing is lost by that:
the watch remembers the first entry whose events did not leave, and once something leaves again, the executor looks up
what came since, in the history that every node keeps. Where that does not reach back so far, the watcher is told.

Threads:    the node's loop.
Not here:   the history (executor.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from actorraft import codec
from actorraft.node import work
from actorraft.node.work import ExecutorPort
from actorraft.ports import GONE, Clock

AGAIN_S: Final = 0.1  # from one try to reach a watcher that is behind to the next
CLIENT_WATCHES_MAX: Final = 1_000


class _Watch:
    """One watch."""

    __slots__ = ("asked", "behind", "next_index", "topic")

    def __init__(self, topic: str, next_index: int | None) -> None:
        self.topic = topic
        self.next_index = next_index  # of the first entry that its watcher is owed; None: what comes from now on
        self.behind = True  # events are not passed on as they come: they would leave a gap
        self.asked = True  # the executor looks up what it is owed


class Watches:
    """The watches of a node.

    Args:
        send: sends to a client; what it returns is that of ports.Clients.
    """

    def __init__(self, executor: ExecutorPort, clock: Clock, send: Callable[[Any, codec.Reply], object]) -> None:
        self._executor = executor
        self._clock = clock
        self._send = send
        self._watches: dict[tuple[Any, int], _Watch] = {}  # by client and its number
        self._behind: dict[tuple[Any, int], _Watch] = {}  # those of them that are to be tried again
        self._again_s = 0.0

    def __len__(self) -> int:
        return len(self._watches)

    def watch(self, client: Any, request: codec.Watch) -> None:
        """Begin a watch, or begin it anew."""
        key = (client, request.watch_id)
        if key not in self._watches and sum(one == client for one, _ in self._watches) >= CLIENT_WATCHES_MAX:
            error = f"a client has at most {CLIENT_WATCHES_MAX} watches"
            self._send(client, codec.Published(request.watch_id, -1, [], error))
            return
        self._behind.pop(key, None)
        self._watches[key] = _Watch(request.topic, request.from_index)
        self._executor.submit(work.Watch(client, request))

    def unwatch(self, client: Any, watch_id: int) -> None:
        """Nobody reads it any more."""
        self._forget((client, watch_id))

    def looked_up(self, client: Any, request: codec.Watch, replies: list[codec.Published]) -> None:
        """The executor says what a watch was owed; from here on events are passed on as they come."""
        key = (client, request.watch_id)
        watch = self._watches.get(key)
        if watch is None or (watch.topic, watch.next_index) != (request.topic, request.from_index):
            return  # it has ended, or begun anew, meanwhile
        watch.asked = False
        for reply in replies:
            # What was read up to there is owed from there on, whether it is heard of or not.
            watch.next_index = reply.index + (0 if reply.values else 1)
            sent = self._send(client, reply)
            if sent is GONE or (reply.error and sent is not False):
                self._forget(key)
                return
            if sent is False:
                if reply.error:
                    watch.next_index = request.from_index
                self._fall_behind(key, watch)
                return
            watch.next_index = reply.index + 1
        watch.behind = False

    def published(self, events: list[tuple[int, str, Any]]) -> None:
        """Pass on what the machine published."""
        if not self._watches:
            return
        self.tick()
        for index, topic, values in work.by_entry(events):
            for key, watch in list(self._watches.items()):
                if watch.topic != topic or watch.behind:
                    continue
                client, watch_id = key
                watch.next_index = index
                sent = self._send(client, codec.Published(watch_id, index, values))
                if sent is GONE:
                    self._forget(key)
                elif sent is False:
                    self._fall_behind(key, watch)
                else:
                    watch.next_index = index + 1

    def restored(self, applied_index: int) -> None:
        """The state became that of a snapshot: what was published after `applied_index` comes by no entry any more.

        A node that led until lately has watchers, too: who watches may not have heard of it.
        """
        for (client, watch_id), watch in self._watches.items():
            if not watch.behind:  # else it is looked up anyway, as this is
                assert watch.next_index is not None, "whoever is not behind was told where it began"
                watch.behind = watch.asked = True
                watch.next_index = max(watch.next_index, applied_index + 1)
                self._executor.submit(work.Watch(client, codec.Watch(watch_id, watch.topic, watch.next_index)))

    def _fall_behind(self, key: tuple[Any, int], watch: _Watch) -> None:
        watch.behind = True
        self._behind[key] = watch

    def _forget(self, key: tuple[Any, int]) -> None:
        self._watches.pop(key, None)
        self._behind.pop(key, None)

    def tick(self) -> None:
        """Try those that are behind: once something small leaves, so may the rest."""
        if not self._behind:
            return
        now_s = self._clock.monotonic()
        if now_s < self._again_s:
            return
        self._again_s = now_s + AGAIN_S
        for key, watch in list(self._behind.items()):
            client, watch_id = key
            if watch.asked or watch.next_index is None:
                continue
            sent = self._send(client, codec.Published(watch_id, watch.next_index - 1, []))
            if sent is not False and sent is not GONE:
                watch.asked = True
                self._executor.submit(work.Watch(client, codec.Watch(watch_id, watch.topic, watch.next_index)))
                del self._behind[key]
            elif sent is GONE:  # never for being slow: it could not know that it is watched no more
                self._forget(key)
