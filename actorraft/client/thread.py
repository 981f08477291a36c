"""The I/O thread of one client, and the seam between it and all the others.

The thread owns the channel and the session (session.py): it takes all that wait, lets the session decide what leaves
when, and resolves futures a whole frame at a time. It is asleep exactly when there is nothing to do, and woken only
then; the rule for that is here and nowhere else:

    whoever adds work     puts it into `_inbox` or `_requests`, then wakes the channel if `_sleeping` says so;
    the thread            says `_sleeping`, then looks into both once more, then sleeps.

A call ends by its deadline whatever happens in this process:

    close() meanwhile     who adds work looks afterwards whether the end has come, and takes it back;
    a client forgotten    the thread holds what it needs and nothing of the client, and goes on until all has ended;
    a fork                a child has the memory and not the thread: what was outstanding ends there as unknown, and the
                          first call opens a session of its own;
    a signal handler      nothing here is locked that a caller and the thread share (bell.py, futures.py).

Source:     docs/clients.md; the outcomes are decided in session.py, in one place.
Threads:    every public method may be called from any; those with an underscore belong to the I/O thread.
One idea:   the seam between two sides. What either does is elsewhere; what makes it hold in a fork, a signal handler
            or at the end is the order of a few lines on both sides, which must be read together.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import msgspec

from actorraft import codec, roles
from actorraft.client.bell import Bell
from actorraft.client.events import EventHub, Published, WatchStream
from actorraft.client.failures import Failure
from actorraft.client.reads import QueryCall
from actorraft.client.session import FRAME_BYTES_MAX, NONE_TRACED, Call, ClientSession
from actorraft.client.tracing import Tracing
from actorraft.errors import ActorRaftError, OutcomeUnknown, ResultLost, Unavailable, UsageError
from actorraft.futures import ResultFuture, WrongArguments, end_untold, log_raised, resolve_many
from actorraft.loggers import guarded_logger
from actorraft.pickling.exceptions import summary
from actorraft.pickling.results import decode_many, decode_result, is_unknown_type
from actorraft.ports import Kinds
from actorraft.steady import monotonic

if TYPE_CHECKING:
    from actorraft.ports import Channel

logger = guarded_logger("actorraft")

_Ext = msgspec.msgpack.Ext
HEAD_BYTES = 1024  # of a frame, at most, beside its commands
ASK_WHERE_S = 0.1  # how often nodes are asked where an unknown leader is
LEARN_S = 10.0  # how often a client with a leader asks it where all members are
LOST_S = 0.5  # the same while a member cannot be reached: it may be elsewhere by now
LINK_S = 1.0  # how long a node that was never reached is given for its link to come up
FORGOTTEN_S = 60.0  # how long the calls without a deadline of a client that nobody has any more are tried
LOOK_S = 1.0  # how often to see whether a thread that is to begin is still there
JOIN_S = 5.0  # how long `close` waits for the thread, which may be in a callback of the user's
FORK_S = 1.0  # how long a fork waits for the thread to be between two steps, likewise


class ClientThread:
    """One session with a cluster, and the thread behind it.

    Args:
        endpoints: node id -> endpoint, as a channel takes them.
        open_channel: opens links; called once here, and once in each forked process that uses this.
        folder: of a client's keys, for whoever is told of the endpoints.
        learns: these endpoints are places to begin at; the cluster says where its members are.
        frame_bytes_max: the cluster's, until its nodes say what it is.
    """

    def __init__(
        self,
        endpoints: Mapping[int, str],
        open_channel: Callable[[], Channel],
        *,
        folder: str = "",
        learns: bool = False,
        frame_bytes_max: int = 16 << 20,
    ) -> None:
        self.folder = folder
        self._learns = learns
        self._members: dict[int, tuple[str, ...]] = {}  # node id -> keys that it was told of since; replaced
        self._endpoints = dict(endpoints)  # replaced, never changed
        self._open_channel = open_channel
        self._command_bytes_max = frame_bytes_max - HEAD_BYTES
        self.on_fork: Callable[[], object] | None = None  # called in a forked process
        self.definitions: Callable[[], Sequence[bytes]] = tuple  # says what a new session must be told of first
        self._begin()
        try:
            self._start()
        except BaseException:  # a signal handler's, perhaps: the thread, if there is one, ends by itself
            self._closed = self._halted = True
            self._wake()
            raise
        _threads.add(self)

    def _begin(self) -> None:
        """Be as if nothing had been asked yet."""
        self._inbox: deque[Call] = deque()  # commands that the thread has not taken
        self._requests: deque[QueryCall | Callable[[ClientSession], object]] = deque()  # the same, of everything else
        self._sleeping = False  # whoever adds work must wake the channel
        self._halted = True  # nothing may be added: closed, closing, or not started in this process
        self._closed = False  # for good
        self._ended_by = ""  # what closed it, if nobody asked for that
        self._forgotten = False  # the client is gone; the thread ends once nothing is outstanding
        self._forgotten_until_s: float | None = None  # at the latest then
        self._stepping = threading.Lock()  # held by the thread while it works, and by a fork
        self._starting = threading.RLock()  # held by whoever starts the thread; never by the thread
        self._claiming = threading.Lock()  # held by a thread for the moment in which it becomes the one
        self._channel: Channel | None = None
        self._thread: threading.Thread | None = None
        self._tracing = Tracing.begin()
        self._session = ClientSession(
            self._send,
            nonce=int.from_bytes(os.urandom(7), "little"),
            make_future=ResultFuture,
            definitions=lambda: self.definitions(),
            frame_bytes_max=min(FRAME_BYTES_MAX, self._command_bytes_max // 2),
            traceparents=NONE_TRACED if self._tracing is None else self._tracing.traceparents,
        )
        self._watches: dict[int, WatchStream] = {}  # by the number that the session knows it by
        self._watch_ids = itertools.count()
        self._asked_where_s = -math.inf
        self._learn_s = 0.0  # when the leader is asked where the members are
        self._role = roles.ADMIN  # of this client's key, as the node said that was reached last; a node refuses anyway
        self.events = EventHub()
        self.changed = Bell()  # the session's leader or nodes did

    def _start(self) -> None:
        """Have the thread open its channel: no signal handler can interrupt that there, and leave half a socket."""
        opened: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        thread = threading.Thread(target=self._begin_to_run, args=(opened,), name="actorraft-client", daemon=True)
        thread.start()
        while True:
            with contextlib.suppress(queue.Empty):
                error = opened.get(timeout=LOOK_S)
                break
            if not thread.is_alive() and opened.empty():  # ended by a trace function of the user's, before it began
                raise Unavailable("the client's I/O thread ended before it could open its links")
        if error is not None:
            raise error

    def _send(self, node_id: int, frame: bytes) -> bool:
        return self._channel is not None and self._channel.send(node_id, frame)

    # --- What is known ---

    @property
    def endpoints(self) -> dict[int, str]:
        """Node id -> endpoint, as `connect` takes them; those of nodes that joined since included."""
        suffix = f"#{self.folder}" if self.folder else ""
        return {node_id: endpoint + suffix for node_id, endpoint in self._endpoints.items()}

    @property
    def leader(self) -> int | None:
        """The leader, None if none is known now."""
        return self._session.leader

    @property
    def term(self) -> int:
        """Of the last leader that was named."""
        return self._session.term

    @property
    def members(self) -> dict[int, tuple[str, ...]]:
        """Node id -> public keys that prove it, as members have said; empty before, and where there are none."""
        return self._members

    @property
    def refusals(self) -> dict[int, str]:
        """Nodes that let this client in no link now, and why."""
        return dict(self._session.leadership.refusals_of_links)

    @property
    def closed(self) -> bool:
        """Whether it takes no more calls."""
        return self._closed

    @property
    def is_current(self) -> bool:
        """Whether the caller is the I/O thread, in a callback, and would wait for itself."""
        return threading.current_thread() is self._thread

    def is_alive(self) -> bool:
        """Whether the I/O thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def where(self) -> str:
        """Say what is known of the leader, for an error's text."""
        return self._session.leadership.where()

    # --- Work ---

    def submit(self, encoded: bytes, timeout: float | None, traced_as: str | type | None = None) -> ResultFuture[Any]:
        """Send a command; return a future of its result.

        Args:
            traced_as: its name, or its class, for whoever traces; None: it is none of the user's.

        Raises:
            UsageError: it is too large, this client's role does not allow it, or this is closed; nothing was sent.
        """
        if self._halted:
            self.ready()
        if len(encoded) > self._command_bytes_max:
            raise UsageError(
                f"a command of {len(encoded)} bytes is over the limit of {self._command_bytes_max} "
                "(RaftConfig.frame_bytes_max, less what goes with it)"
            )
        if self._role != roles.ADMIN:
            self._check_role(codec.Commands(0, 0, 0, 1, codec.join_body([encoded])))
        future: ResultFuture[Any] = ResultFuture()
        if timeout is None:
            call = (encoded, future, math.inf)
        else:
            future.deadline_s = deadline_s = monotonic() + timeout
            call = (encoded, future, deadline_s)
        if self._tracing is not None and traced_as is not None:
            self._tracing.submitted(future, traced_as)  # before the thread can make a frame of it
        self._inbox.append(call)
        if self._sleeping:
            self._wake()
        if self._halted and _withdraw(self._inbox, call):
            error = UsageError(f"this client is closed{self._ended_by}")
            future.set_exception(error)  # for whoever traces it
            raise error
        return future

    def query(
        self,
        encoded: bytes,
        consistency: str,
        to: str | int,
        min_index: int | None,
        timeout: float | None,
        held: Callable[[], bool] | None = None,
    ) -> ResultFuture[Any]:
        """Send a read once `held` (if there is one) says no; return a future of its answer.

        Args:
            min_index: what its server's state must have; None: nothing beyond what `consistency` says.
        """
        if type(to) is int and to not in self._endpoints:
            raise UsageError(f"there is no node {to}; the nodes are {sorted(self._endpoints)}")
        if self._role != roles.ADMIN:
            self._check_role(codec.Query(0, consistency, False, 1, codec.join_body([encoded])))
        future = self._future(timeout)
        ends_s = math.inf if future.deadline_s is None else future.deadline_s
        self.request(QueryCall(encoded, future, ends_s, consistency, to, -1 if min_index is None else min_index, held))
        return future

    def admin(self, node_id: int, verb: str, arguments: dict[str, Any], timeout: float) -> ResultFuture[Any]:
        """Ask one node for something rare.

        Returns:
            A future of what it says; it fails with NodeSilent or NodeRefused (requests.py).

        Raises:
            UsageError: there is no such question: nothing was sent.
        """
        if type(node_id) is not int:
            raise WrongArguments(f"node_id is a node's id, not {node_id!r}")
        try:  # here, where the caller is told, and not in the thread
            codec.encode(codec.Admin(0, verb, arguments))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise UsageError(f"a node cannot be asked this: {summary(error)}") from error
        future = self._future(timeout)
        now_s = monotonic()
        deadline_s, link_by_s = now_s + timeout, now_s + min(timeout, LINK_S)
        self.request(lambda session: session.admin(node_id, verb, arguments, future, deadline_s, link_by_s))
        return future

    def _check_role(self, request: codec.Request) -> None:
        why = roles.why_not(self._role, request)
        if why:
            raise UsageError(f"{why}. Nothing was sent; an administrator may give this client another role")

    def _future(self, timeout: float | None) -> ResultFuture[Any]:
        future: ResultFuture[Any] = ResultFuture()
        future.overdue = Unavailable  # it changes nothing
        if timeout is not None:
            future.deadline_s = monotonic() + timeout
        return future

    def watch(self, topic: str, from_index: int | None) -> WatchStream:
        """Return a stream of what the machine publishes to `topic`."""
        watch_id = next(self._watch_ids)
        stream = WatchStream(lambda: self._end_watch(watch_id))
        self._watches[watch_id] = stream
        try:
            self.request(lambda session: session.watch(watch_id, topic, from_index))
        except BaseException:
            self._watches.pop(watch_id, None)
            raise
        return stream

    def _end_watch(self, watch_id: int) -> None:
        if self._watches.pop(watch_id, None) is not None:
            with contextlib.suppress(UsageError):  # closed: nobody is told
                self.request(lambda session: session.unwatch(watch_id))

    def set_endpoints(self, endpoints: Mapping[int, str], members: Mapping[int, tuple[str, ...]]) -> None:
        """Reach these nodes from now on, and no others; over tcp, these keys prove them."""
        self._endpoints = told = dict(endpoints)
        self._members = dict(members)
        self.request(lambda _: self._link(told))

    def request(self, act: QueryCall | Callable[[ClientSession], object]) -> None:
        """Have the I/O thread send a read, or do something else with the session.

        Raises:
            UsageError: it is closed.
        """
        if self._halted:
            self.ready()
        self._requests.append(act)
        if self._sleeping:
            self._wake()
        if self._halted and _withdraw(self._requests, act):
            raise UsageError(f"this client is closed{self._ended_by}")

    def _wake(self) -> None:
        self._sleeping = False
        channel = self._channel
        if channel is not None:
            channel.wake()

    def ready(self) -> None:
        """See to it that the thread runs: in a forked process the first call starts one.

        Raises:
            UsageError: this is closed.
        """
        with self._starting:
            if self._closed:
                raise UsageError(f"this client is closed{self._ended_by}")
            if self._halted and self._channel is None:
                self._start()

    # --- The end ---

    def close(self) -> None:
        """End the thread, and truthfully all that is outstanding. Idempotent."""
        self._closed = self._halted = True
        self._wake()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=JOIN_S)

    def forget(self) -> None:
        """Nobody can add anything any more: end the thread once all that is outstanding has ended."""
        self._forgotten = True
        self._wake()

    # --- The I/O thread ---

    def _begin_to_run(self, opened: queue.SimpleQueue[BaseException | None]) -> None:
        try:
            channel = self._open_channel()
            try:
                if self._members:
                    channel.set_keys(self._members)
                channel.set_endpoints(self._endpoints)
            except BaseException:
                channel.close()
                raise
        except BaseException as error:
            opened.put(error)
            return
        with self._claiming:
            mine = self._channel is None  # else a signal handler was here meanwhile
            if mine:
                self._channel, self._thread = channel, threading.current_thread()
                self._session.leadership.refusals_of_links = channel.refusals
                self._session.leadership.unresolved = channel.unresolved
                self._halted = self._closed
        opened.put(None)
        if mine:
            self._run(channel)
        else:
            channel.close()

    def _run(self, channel: Channel) -> None:
        wait_s = 0.0
        try:
            while True:
                envelopes = channel.wait(wait_s)
                self._sleeping = False
                with self._stepping:
                    self._step(envelopes)
                if self._closed or (self._forgotten and self._is_over()):
                    break
                wait_s = min(1.0, max(0.0, self._session.deadline_s() - monotonic()))
                # Asleep from here on: whoever adds work after this line wakes the channel; what came before is seen.
                self._sleeping = True
                if self._inbox or self._requests:
                    wait_s = 0.0
        except BaseException as error:  # one of ours, or thrown into this thread from another
            self._ended_by = (
                f": its I/O thread met {summary(error)}. Another client of the same cluster is not concerned"
            )
            log_raised("the client's I/O thread met an error of ours; the client is closed: it", error)
        finally:
            self._end(channel)

    def _is_over(self) -> bool:
        """Whether nothing of a forgotten client's is outstanding, or nobody waits for it any more."""
        if self._forgotten_until_s is None:
            self._take_work()
            self._forgotten_until_s = self._session.last_deadline_s(monotonic() + FORGOTTEN_S)
        return self._session.idle or monotonic() >= self._forgotten_until_s

    def _step(self, envelopes: Iterable[Any]) -> None:
        """One round: what came in, what waits, what is due, what is done."""
        session, now_s = self._session, monotonic()
        leadership = session.leadership
        leader, term = leadership.leader, leadership.term
        for kind, node_id, frame in envelopes:
            if kind == Kinds.FRAME:
                try:
                    session.receive(node_id, codec.decode_reply(frame), now_s)
                except codec.MalformedFrame as error:
                    logger.warning("dropped a frame from node %s: %s", node_id, error)
            elif kind == Kinds.CONNECTED:
                self._role = frame.decode("utf-8", "replace") or self._role
                session.connected(node_id, now_s)
            elif kind == Kinds.DISCONNECTED:
                session.disconnected(node_id, now_s)
                self._learn_s = min(self._learn_s, now_s + LOST_S)
        if self._requests or self._inbox:
            self._take_work()
        session.advance(now_s)
        if session.has_news:
            self._hand_out()
        stranger = leadership.stranger
        if stranger is not None and (self._learns or stranger not in self._endpoints):
            self._ask_where(now_s)
        elif self._learns and leadership.leader is not None and now_s >= self._learn_s:
            self._learn_s = now_s + (LEARN_S if self._endpoints.keys() <= session.nodes else LOST_S)
            self._ask_for_endpoints(leadership.leader, now_s)
        if session.frame_bytes_max:
            self._command_bytes_max = session.frame_bytes_max - HEAD_BYTES
        if leadership.leader != leader or leadership.term != term:
            self._learn_s = 0.0
            if leadership.leader not in (None, leader):
                self.events.emit("leader", leadership.leader, f"leads in term {leadership.term}")
            self.changed.ring()

    def _take_work(self) -> None:
        requests, inbox, session = self._requests, self._inbox, self._session
        while requests:
            _ask(session, requests.popleft())
        if inbox:
            session.submit(_all_of(inbox))

    def _ask_where(self, now_s: float) -> None:
        """Somebody leads who joined after this client came: whoever can be reached knows where it is."""
        session = self._session
        session.leadership.stranger = None
        if now_s < self._asked_where_s + ASK_WHERE_S:
            return
        self._asked_where_s = now_s
        for node_id in session.nodes:
            self._ask_for_endpoints(node_id, now_s)

    def learn(self, node_id: int, timeout: float) -> None:
        """Ask a node where all members are, from any thread: what is asked next can go to those that are new, too."""
        deadline_s = monotonic() + timeout
        future, taken = self.admin(node_id, "endpoints", {}, timeout), threading.Event()
        future.exception()

        def take(_: ClientSession) -> None:
            self._on_endpoints(future)
            taken.set()

        self.request(take)
        taken.wait(max(0.0, deadline_s - monotonic()))

    def _ask_for_endpoints(self, node_id: int, now_s: float) -> None:
        future: ResultFuture[list[tuple[Any, ...]]] = ResultFuture()
        future.add_done_callback(self._on_endpoints)
        self._session.admin(node_id, "endpoints", {}, future, now_s + 1.0)

    def _on_endpoints(self, future: Future[list[tuple[Any, ...]]]) -> None:
        """Link to nodes that are new; and, if nobody else says where they are, to those that have moved."""
        said = future.result() if future.exception() is None else []
        told = {node_id: endpoint for node_id, endpoint, *_ in said}
        keys = {node_id: tuple(keys) for node_id, _, *keys in said if keys}  # a proven member says so
        known = self._endpoints
        if self._learns and told:  # who is neither named nor reached is no member any more, or was a place to begin at
            kept = self._members.keys() | self._session.nodes
            known = {node_id: at for node_id, at in known.items() if node_id >= 0 and node_id in kept} | told
        else:
            known = told | known
        if known != self._endpoints or (self._learns and keys != self._members and keys):
            self._endpoints, self._members = known, self._members | keys
            self._link(known)

    def _link(self, endpoints: dict[int, str]) -> None:
        if self._channel is not None and not self._closed:
            if self._members:
                self._channel.set_keys(self._members)
            self._channel.set_endpoints(endpoints)

    def _hand_out(self) -> None:
        """Give everybody what the session has for them; each list is empty before anybody is told."""
        session = self._session
        if session.results:
            results, session.results[:] = session.results[:], []
            for calls, values, index in results:
                _resolve([call[1] for call in calls], values, None if index < 0 else index)
        if session.answers:
            for queries, values in _all_of(session.answers):
                self._answer(queries, values)
        if session.failures:
            _fail(_all_of(session.failures))
        if session.published:
            for one in _all_of(session.published):
                self._publish(one)
        if session.admin_replies:
            for future, value in _all_of(session.admin_replies):
                future.set_result(value)

    def _answer(self, queries: list[QueryCall], values: list[Any]) -> None:
        if queries[0].consistency == "stale":  # a frame has reads of one consistency
            unknown = [is_unknown_type(value) for value in values]
            for query in itertools.compress(queries, unknown):
                # Ask again for what a node did not know that lags behind the definition of it: so that it catches up.
                self._session.query(query._replace(consistency="linearizable"))
            known = [not each for each in unknown]
            queries, values = [*itertools.compress(queries, known)], [*itertools.compress(values, known)]
        _resolve([query.future for query in queries], values)

    def _publish(self, said: codec.Published) -> None:
        stream = self._watches.get(said.watch_id)
        if stream is None:
            return
        if said.error:
            stream.close(Unavailable(said.error))
            return
        for value in said.values:
            try:
                stream.put(Published(said.index, decode_result(value)))
            except BaseException as error:  # it is the user's class that is rebuilt
                lost = f"an event at index {said.index} cannot be rebuilt here: {type(error).__name__}"
                stream.close(error if isinstance(error, ActorRaftError) else ResultLost(lost))

    def _end(self, channel: Channel) -> None:
        """The last thing the thread does: nobody waits for ever."""
        self._closed = self._halted = True
        with self._stepping:
            for act in (self._take_work, self._session.close, self._hand_out):
                try:
                    act()
                except BaseException as error:
                    log_raised("the end of a client", error)
        channel.close()
        self._end_streams(None)
        self.changed.ring()

    def _end_streams(self, error: BaseException | None) -> None:
        self.events.close()
        watches, self._watches = self._watches, {}
        for stream in watches.values():
            stream.close(error)

    # --- Forks ---

    def fork_begins(self) -> bool:
        """Wait until the thread is between two steps, so that the child finds all of it whole; say whether it is."""
        return not self.is_current and self._stepping.acquire(timeout=FORK_S)

    def fork_ends(self) -> None:
        """In the parent: go on."""
        self._stepping.release()

    def was_forked(self) -> None:
        """In the child: what was outstanding is the parent's; the next call begins anew."""
        session, calls, closed = self._session, _all_of(self._inbox), self._closed
        self._channel = None  # sends nothing: not even goodbye, for the session is the parent's
        session.submit(calls)
        for act in _all_of(self._requests):
            _ask(session, act)
        session.close("this process was forked from the one that made the call, and that one goes on with it:")
        for failure in session.failures:
            if failure.future is not None:
                end_untold([failure.future], failure.error)
        self._end_streams(UsageError("this stream belongs to the process that this one was forked from; open one here"))
        self._begin()
        self._closed = closed
        if self.on_fork is not None:
            self.on_fork()


def _withdraw(queue: deque[Any], what: Any) -> bool:
    """Take back what was put into a queue; False if the I/O thread has taken it, and ends it."""
    try:
        queue.remove(what)
    except ValueError:
        return False
    return True


def _all_of(queue: Any) -> list[Any]:
    """Take all that there is now; others may go on adding."""
    if type(queue) is list:
        taken, queue[:] = queue[:], []
        return taken
    return [queue.popleft() for _ in range(len(queue))]


def _ask(session: ClientSession, act: QueryCall | Callable[[ClientSession], object]) -> None:
    if isinstance(act, QueryCall):
        session.query(act)
    else:
        act(session)


def _resolve(futures: list[Any], values: list[Any], index: int | None = None) -> None:
    if _Ext in set(map(type, values)) or None in futures:
        resolve_many(*decode_many(futures, values), index)
    else:
        resolve_many(zip(futures, values, strict=False), (), index)


def _fail(failures: list[Failure]) -> None:
    for _, error, later in failures:
        if later is not None and isinstance(error, OutcomeUnknown):
            error.known_by(later)
    resolve_many((), [(future, error) for future, error, _ in failures if future is not None])


# --- Forks: all clients of a process at once ---

_threads: weakref.WeakSet[ClientThread] = weakref.WeakSet()
_held: list[ClientThread] = []  # those that stand still for a fork


def _all_threads() -> list[ClientThread]:
    while True:
        with contextlib.suppress(RuntimeError):  # another thread made one meanwhile
            return list(_threads)


def _before_fork() -> None:
    for thread in _all_threads():
        if thread.fork_begins():
            _held.append(thread)


def _after_fork_in_parent() -> None:
    for thread in _held:
        thread.fork_ends()
    _held.clear()


def _after_fork_in_child() -> None:
    _held.clear()
    for thread in _all_threads():
        try:
            thread.was_forked()
        except Exception:
            logger.exception("a client could not be made ready for use in a forked process")


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
