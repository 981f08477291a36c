"""A client of a running cluster: submit and query from any thread, one I/O thread behind.

`submit` encodes in the caller's thread, puts the command and its future into a queue, and returns. The I/O thread
owns the sockets and the session (session.py): it takes all that wait, lets the session decide what leaves when, and
resolves futures a whole frame at a time. It is asleep exactly when there is nothing to do, and woken only then.

Source:     contract section 2; the outcomes are decided in session.py, in one place.
Threads:    every public method may be called from any thread; callbacks of futures run in the I/O thread.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

import msgspec

from actorraft import codec
from actorraft.client.events import EventHub, EventStream, Published, WatchStream
from actorraft.client.session import Call, ClientSession, NodeSilent, QueryCall
from actorraft.client.status import MemberStatus, Status
from actorraft.errors import ActorRaftError, OutcomeUnknown, Unavailable, UsageError
from actorraft.futures import ResultFuture, resolve_many
from actorraft.pickling.encoder import Encoder, machine_name
from actorraft.pickling.results import decode_many, decode_result, is_unknown_type
from actorraft.ports import Kinds

if TYPE_CHECKING:
    from actorraft.ports import Channel

logger = logging.getLogger("actorraft")

_Ext = msgspec.msgpack.Ext
M = TypeVar("M")
ASK_WHERE_S = 0.1  # how often nodes are asked where an unknown leader is
LINK_S = 1.0  # how long a node that was never reached is given for its link to come up
CONSISTENCIES = ("linearizable", "lease", "stale")


class _NodeRefused(Unavailable):
    """A node's own answer to an administrator that it cannot."""


class Client(Generic[M]):
    """An independent session with a cluster; made by `connect` and `Cluster.client`.

    Closing it closes only itself. What happens to a write is said by exactly one of the outcomes of contract section 2.
    """

    def __init__(
        self,
        endpoints: Mapping[int, str],
        machine: Callable[..., M] | None = None,
        *,
        channel: Channel,
        frame_bytes_max: int = 16 << 20,
    ) -> None:
        self._endpoints = dict(endpoints)
        self._machine = machine
        self._machine_name = machine_name(machine) if machine is not None else ""  # of portable snapshots
        self._channel = channel
        self._frame_bytes_max = frame_bytes_max
        self._inbox: deque[Call] = deque()
        self._requests: deque[Callable[[ClientSession], None]] = deque()
        self._sleeping = False
        self._closed = False
        self._closing = False
        self._owner_pid = os.getpid()
        self._encoder = Encoder(self._on_definition)
        self._definitions: list[Future[Any]] = []
        self._changed = threading.Condition()  # the session's leader or nodes changed
        self._events = EventHub()
        self._watches: dict[int, WatchStream] = {}
        self._watch_ids = itertools.count()
        self._asked_where_s = -math.inf
        self._session = ClientSession(
            channel.send,
            nonce=int.from_bytes(os.urandom(7), "little"),
            make_future=ResultFuture,
            frame_bytes_max=min(1 << 20, frame_bytes_max // 2),
        )
        try:
            channel.set_endpoints(self._endpoints)
        except BaseException:
            self._closed = True
            channel.close()
            raise
        self._thread = threading.Thread(
            target=_run, args=(weakref.ref(self), channel), name="actorraft-client", daemon=True
        )
        self._thread.start()

    # --- Commands ---

    def submit(self, command: Any, *, timeout: float | None = 5.0) -> ResultFuture[Any]:
        """Send a command; return a future of its result.

        Args:
            command: what the machine takes: a command object, or any object for a machine with `apply`.
            timeout: seconds for the whole call, retries included; None waits for ever.

        Raises:
            UsageError: it cannot be sent at all; nothing was sent.
        """
        return self._enqueue(self._encoder.encode_command(command), timeout)

    def execute(self, command: Any, *, timeout: float | None = 5.0) -> Any:
        """Send a command and wait: `submit(...).result()`."""
        return self._wait(self.submit(command, timeout=timeout))

    def query(
        self, request: Any, *, consistency: str = "linearizable", to: str | int = "leader", timeout: float | None = 5.0
    ) -> Any:
        """Read without logging.

        Args:
            request: a callable on the state, or, if the machine has `query`, what that takes.
            consistency: "linearizable", "lease" or "stale".
            to: "leader", "any" or a node's id: a follower serves it, as consistent as asked.
            timeout: seconds; None waits for ever.
        """
        return self._wait(self._enqueue_query(self._encoder.encode_command(request), consistency, to, timeout))

    def proxy(self, *, timeout: float | None = 5.0, consistency: str = "linearizable", to: str | int = "leader") -> M:
        """Return an object with the machine's commands and queries as methods, typed as the machine."""
        from actorraft.client.proxy import make_proxy

        if self._machine is None:
            raise UsageError("this client does not know the machine's class: connect(endpoints, MyMachine)")
        _check_read(consistency, to)
        return cast(M, make_proxy(self, self._machine, timeout, consistency, to))

    def _submit_call(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None
    ) -> ResultFuture[Any]:
        return self._enqueue(self._encoder.encode_call(method, args, kwargs), timeout)

    def _query_call(
        self,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        consistency: str,
        to: str | int,
        timeout: float | None,
    ) -> ResultFuture[Any]:
        return self._enqueue_query(self._encoder.encode_call(method, args, kwargs), consistency, to, timeout)

    def _enqueue(self, encoded: bytes, timeout: float | None) -> ResultFuture[Any]:
        if self._closed:
            raise UsageError("this client is closed")
        if len(encoded) > self._frame_bytes_max - 1024:
            raise UsageError(
                f"a command of {len(encoded)} bytes is over the limit of {self._frame_bytes_max} "
                "(RaftConfig.frame_bytes_max)"
            )
        future: ResultFuture[Any] = ResultFuture()
        call = (encoded, future, math.inf if timeout is None else time.monotonic() + timeout)
        self._inbox.append(call)
        if self._sleeping:
            self._sleeping = False
            self._channel.wake()
        if self._closed and self._withdrawn(call):  # type: ignore[unreachable]  # another thread closed it meanwhile
            raise UsageError("this client is closed")
        return future

    def _withdrawn(self, call: Call) -> bool:
        """Take back what was put into the inbox; False if the I/O thread has taken it, and ends it."""
        try:
            self._inbox.remove(call)
        except ValueError:
            return False
        return True

    def _enqueue_query(
        self, encoded: bytes, consistency: str, to: str | int, timeout: float | None
    ) -> ResultFuture[Any]:
        _check_read(consistency, to)
        if isinstance(to, int) and to not in self._endpoints:
            raise UsageError(f"there is no node {to}; the nodes are {sorted(self._endpoints)}")
        if self._definitions:
            self._settle_definitions(timeout)
        future: ResultFuture[Any] = ResultFuture()
        deadline_s = math.inf if timeout is None else time.monotonic() + timeout
        call = QueryCall(encoded, future, deadline_s, consistency, to)
        self._request(lambda session: session.query(call))
        return future

    def _on_definition(self, encoded: bytes) -> None:
        """A class that the nodes cannot import goes ahead of the first command that names it."""
        future = self._enqueue(encoded, None)
        future.add_done_callback(self._on_defined)
        self._definitions.append(future)

    def _on_defined(self, future: Future[Any]) -> None:
        """A definition that was lost, as with an expired session, goes again with the next command that needs one."""
        if future.exception() is not None:
            self._encoder.forget_definitions()

    def _settle_definitions(self, timeout: float | None) -> None:
        """A read is not in the log's order, so the definitions it may need must be applied first."""
        pending, self._definitions = self._definitions, []
        for future in pending:
            future.result(timeout)

    def _request(self, act: Callable[[ClientSession], None]) -> None:
        """Have the I/O thread do something with the session."""
        if self._closed:
            raise UsageError("this client is closed")
        self._requests.append(act)
        if self._sleeping:
            self._sleeping = False
            self._channel.wake()

    def _wait(self, future: Future[Any]) -> Any:
        if threading.current_thread() is self._thread:
            raise UsageError("a blocking call in a future's callback would wait for itself: use submit there")
        return future.result()

    # --- The cluster ---

    @property
    def endpoints(self) -> dict[int, str]:
        """What `connect` takes: node id -> endpoint."""
        return dict(self._endpoints)

    @property
    def closed(self) -> bool:
        """Whether it takes no more calls; in a fork of the process that made it, it does not."""
        return self._closed or self._owner_pid != os.getpid()

    def leader(self) -> int | None:
        """Return the leader's id, None if none is known now."""
        return self._session.leader

    def wait_for_leader(self, timeout: float | None = 30.0) -> int:
        """Wait until a leader is known and return its id.

        Raises:
            Unavailable: nobody led within `timeout` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._session.leader is not None or self._closed, timeout):
                raise Unavailable(f"no leader within {timeout} s; status() says which nodes can be reached")
        leader = self._session.leader
        if leader is None:
            raise Unavailable("there is no leader")
        return leader

    def status(self, *, timeout: float = 1.0) -> Status:
        """Ask every node how it is; a dead member is a row, not an error."""
        asked = {node_id: self._admin(node_id, "status", {}, timeout) for node_id in sorted(self._endpoints)}
        rows: list[MemberStatus] = []
        for node_id, future in asked.items():
            try:
                rows.append(self._member(node_id, future.result()))
            except ActorRaftError as error:
                rows.append(self._member(node_id, {}, str(error)))
        commit_index = max((row.commit_index for row in rows), default=-1)
        return Status(
            MemberStatus(**{**asdict(row), "lag_entries": commit_index - row.last_applied})
            if row.error is None
            else row
            for row in rows
        )

    def _member(self, node_id: int, said: dict[str, Any], error: str | None = None) -> MemberStatus:
        """Make a row of what a node said; Cluster adds what it knows of the process."""
        names = ("state", "term", "commit_index", "last_applied")
        known = {name: said[name] for name in names if name in said}
        wrong = error if error is not None else said.get("error")
        return MemberStatus(id=node_id, endpoint=self._endpoints[node_id], alive=error is None, error=wrong, **known)

    def transfer_leadership(self, to: int | None = None, *, timeout: float = 10.0) -> int:
        """Hand leadership over on purpose: to node `to`, or to whoever is most up to date.

        Returns:
            The new leader's id.
        """
        if to is not None and to not in self._endpoints:
            raise UsageError(f"there is no node {to}; the nodes are {sorted(self._endpoints)}")
        before = self.wait_for_leader(timeout)
        if to == before:
            return before
        deadline_s = time.monotonic() + timeout

        def handed_over() -> bool:
            return self._led_by_other(before) if to is None else self._session.leader == to

        try:
            self._ask_leader("transfer", {"target": to}, timeout)
        except Unavailable:
            if not handed_over():  # else an election was faster
                raise
        with self._changed:
            done = self._changed.wait_for(handed_over, max(0.0, deadline_s - time.monotonic()))
        if not done:
            raise Unavailable(f"node {before} could not hand over within {timeout} s and leads on")
        return self.wait_for_leader(timeout)

    def take_snapshot(self, *, timeout: float = 60.0) -> dict[int, int]:
        """Compact now, on every node that can be reached; on the leader last, so that it need not share the machine.

        Returns:
            node id -> index of its snapshot's last entry.

        Raises:
            ActorRaftError: the machine's `snapshot` raised, or the disk refused; nothing is lost, the log goes on.
        """
        leader = self._session.leader
        others = sorted(self._endpoints.keys() - {leader})
        asked = {node_id: self._admin(node_id, "snapshot", {}, timeout) for node_id in others}
        if leader is not None:
            until_s = time.monotonic() + timeout
            wait(asked.values(), timeout=timeout / 2)  # one that is stuck has the leader wait no longer than that
            asked[leader] = self._admin(leader, "snapshot", {}, until_s - time.monotonic())
        taken: dict[int, int] = {}
        failed: list[str] = []
        for node_id, future in sorted(asked.items()):
            try:
                taken[node_id] = future.result()
            except _NodeRefused as error:
                failed.append(f"node {node_id}: {error}")
            except Unavailable:
                pass  # it is not reachable, which status() says too
        if failed:
            raise ActorRaftError("; ".join(failed))
        return taken

    def digest(self, node_id: int, *, timeout: float = 5.0) -> tuple[int, str]:
        """Return the index a node has applied up to, and a digest of its state, equal on all nodes that got as far.

        Raises:
            Unavailable: the node did not answer in time.
        """
        said = self._admin(node_id, "digest", {}, timeout).result()
        return said["last_applied"], said["digest"]

    def events(self) -> EventStream:
        """Return an iterator over what happens from now on: leader changes; at a Cluster also exits, restarts, more."""
        return self._events.open()

    def watch(self, topic: str, from_index: int | None = None) -> WatchStream:
        """Return an iterator over what the machine publishes to `topic` (`context().publish`), in order.

        Args:
            topic: as published.
            from_index: begin with the entry at this index (resume with the last seen `index + 1`); None: from now on.

        Raises:
            Unavailable: while iterating, if events from `from_index` on are no longer held.
        """
        watch_id = next(self._watch_ids)
        stream = WatchStream(lambda: self._end_watch(watch_id))
        self._watches[watch_id] = stream
        self._request(lambda session: session.watch(watch_id, topic, from_index))
        return stream

    def _end_watch(self, watch_id: int) -> None:
        if self._watches.pop(watch_id, None) is not None and not self._closed:
            self._request(lambda session: session.unwatch(watch_id))

    def export_snapshot(self, path: str | os.PathLike[str], *, timeout: float = 60.0) -> Path:
        """Write a portable copy of the state, as of now, for `spawn(from_snapshot=path)`.

        Returns:
            The absolute path.

        Raises:
            UsageError: it cannot be written there.
            Unavailable: no leader took a snapshot in time, or another one came in between three times.
        """
        from actorraft.storage.portable import PortableInfo, write_portable

        machine = self._machine_name
        for _ in range(3):
            self._ask_leader("snapshot", {}, timeout)
            term, index, data, done = self._ask_leader("read_snapshot", {"offset": 0}, timeout)
            chunks = self._snapshot_chunks((term, index), data, done, timeout)
            with contextlib.suppress(_Superseded):
                return write_portable(path, PortableInfo(machine=machine, term=term, index=index), chunks)
        raise Unavailable("newer snapshots came in between each time; try again")

    def _snapshot_chunks(
        self, snapshot_id: tuple[int, int], data: bytes, done: bool, timeout: float
    ) -> Iterator[bytes]:
        offset = 0
        while True:
            yield data
            offset += len(data)
            if done:
                return
            term, index, data, done = self._ask_leader("read_snapshot", {"offset": offset}, timeout)
            if (term, index) != snapshot_id:
                raise _Superseded

    def _admin(self, node_id: int, verb: str, arguments: dict[str, Any], timeout: float) -> Future[Any]:
        future: Future[Any] = ResultFuture()
        now_s = time.monotonic()
        deadline_s, link_by_s = now_s + timeout, now_s + min(timeout, LINK_S)
        self._request(lambda session: session.admin(node_id, verb, arguments, future, deadline_s, link_by_s))
        return future

    def _ask_leader(self, verb: str, arguments: dict[str, Any], timeout: float) -> Any:
        """Ask whoever leads, through changes of leader; one that is paused is not waited for once another leads."""
        deadline_s = time.monotonic() + timeout
        while True:
            leader = self.wait_for_leader(max(0.0, deadline_s - time.monotonic()))
            asked = self._admin(leader, verb, arguments, max(0.1, deadline_s - time.monotonic()))
            asked.add_done_callback(self._tell_changed)
            with self._changed:
                self._changed.wait_for(lambda asked=asked, leader=leader: asked.done() or self._led_by_other(leader))  # type: ignore[misc]
            if not asked.done():
                continue  # what it answers later is dropped
            try:
                return asked.result()
            except Unavailable as error:
                elsewhere = isinstance(error, NodeSilent) or "not leader" in str(error)
                if time.monotonic() >= deadline_s or not elsewhere:
                    raise
                time.sleep(0.01)

    def _led_by_other(self, node_id: int) -> bool:
        return self._session.leader not in (None, node_id)

    def _tell_changed(self, _: Any) -> None:
        with self._changed:
            self._changed.notify_all()

    # --- The end ---

    def close(self) -> None:
        """Close this session. Idempotent.

        Calls still outstanding end with OutcomeUnknown if they were sent, else with Unavailable.
        """
        if self._closed or self._owner_pid != os.getpid():
            return
        self._closed = True
        self._channel.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=5.0)

    def __enter__(self) -> Client[M]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and self._owner_pid == os.getpid():
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self._closed = True
            with contextlib.suppress(Exception):
                self._channel.wake()

    def __repr__(self) -> str:
        return f"<Client {len(self._endpoints)} nodes, leader {self._session.leader}, term {self._session.term}>"

    # --- The I/O thread ---

    def _step(self, envelopes: Iterable[Any]) -> None:
        """One round: what came in, what waits, what is due, what is done."""
        session, now_s = self._session, time.monotonic()
        before = (session.leader, session.term)
        for kind, node_id, frame in envelopes:
            if kind == Kinds.FRAME:
                try:
                    session.receive(node_id, codec.decode_reply(frame), now_s)
                except codec.MalformedFrame as error:
                    logger.warning("dropped a frame from node %s: %s", node_id, error)
            elif kind == Kinds.CONNECTED:
                session.connected(node_id, now_s)
            elif kind == Kinds.DISCONNECTED:
                session.disconnected(node_id, now_s)
        requests = self._requests
        while requests:
            requests.popleft()(session)
        inbox = self._inbox
        if inbox:
            count = len(inbox)
            session.submit([inbox.popleft() for _ in range(count)])
        session.advance(now_s)
        self._resolve()
        if session.stranger is not None and session.stranger not in self._endpoints:
            self._ask_where(session, now_s)
        if (session.leader, session.term) != before:
            if session.leader not in (None, before[0]):
                self._events.emit("leader", session.leader, f"leads in term {session.term}")
            with self._changed:
                self._changed.notify_all()

    def _ask_where(self, session: ClientSession, now_s: float) -> None:
        """Somebody leads who joined after this client came: whoever can be reached knows where it is."""
        session.stranger = None
        if now_s < self._asked_where_s + ASK_WHERE_S:
            return
        self._asked_where_s = now_s
        for node_id in session.nodes:
            future: ResultFuture[list[tuple[int, str]]] = ResultFuture()
            future.add_done_callback(self._on_endpoints)
            session.admin(node_id, "endpoints", {}, future, now_s + 1.0)

    def _on_endpoints(self, future: Future[list[tuple[int, str]]]) -> None:
        """In the I/O thread: link to nodes that are new."""
        told = future.result() if future.exception() is None else []
        new = {node_id: endpoint for node_id, endpoint in told if node_id not in self._endpoints}
        if new and not self._closed:
            _, mark, token_file = next(iter(self._endpoints.values())).partition("#")  # one for all
            self._endpoints = self._endpoints | {node_id: at + mark + token_file for node_id, at in new.items()}
            self._channel.set_endpoints({node_id: at.partition("#")[0] for node_id, at in self._endpoints.items()})

    def _resolve(self) -> None:
        session = self._session
        if session.results:
            done, session.results = session.results, []
            for calls, values in done:
                self._resolve_values([call[1] for call in calls], values)
        if session.answers:
            answers, session.answers = session.answers, []
            for queries, values in answers:
                if queries[0].consistency == "stale":
                    queries, values = self._settle_stale(queries, values)
                self._resolve_values([query.future for query in queries], values)
        if session.failures:
            failures, session.failures = session.failures, []
            for future, error in failures:
                if isinstance(error, OutcomeUnknown) and hasattr(error, "later"):
                    error._resolve = _resolver(error.later)
                if future is not None:
                    future.set_exception(error)
        if session.published:
            published, session.published = session.published, []
            for one in published:
                self._publish(one)
        if session.admin_replies:
            replies, session.admin_replies = session.admin_replies, []
            for future, reply in replies:
                if reply.error:
                    future.set_exception(_NodeRefused(reply.error))
                else:
                    future.set_result(reply.value)

    def _settle_stale(self, queries: list[QueryCall], values: list[Any]) -> tuple[list[QueryCall], list[Any]]:
        """Ask again for what a node did not know that lags behind the definition of it: so that it catches up first."""
        settled = []
        for query, value in zip(queries, values, strict=False):
            if is_unknown_type(value):
                self._session.query(query._replace(consistency="linearizable"))
            else:
                settled.append((query, value))
        return [query for query, _ in settled], [value for _, value in settled]

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
            except ActorRaftError as error:
                stream.close(error)

    def _resolve_values(self, futures: list[Any], values: list[Any]) -> None:
        if _Ext in set(map(type, values)) or None in futures:
            resolve_many(*decode_many(futures, values))
        else:
            resolve_many(zip(futures, values, strict=False))

    def _finish(self) -> None:
        """The last thing the I/O thread does: nobody waits for ever."""
        self._closed = True
        self._step(())
        self._session.close()
        self._resolve()
        self._channel.close()
        self._events.close()
        for stream in list(self._watches.values()):
            stream.close()
        with self._changed:
            self._changed.notify_all()


class _Superseded(Exception):
    """A newer snapshot, or another leader's, took the place of the one that was being copied."""


def _run(reference: weakref.ref[Client[Any]], channel: Channel) -> None:
    """The I/O thread; it holds its client only while it works, so that a forgotten one can be collected."""
    wait_s = 0.0
    while True:
        envelopes = channel.wait(wait_s)
        client = reference()
        if client is None:
            channel.close()
            return
        client._sleeping = False
        try:
            client._step(envelopes)
        except Exception:
            logger.exception("the client's I/O thread met an error of ours; the client is closed")
            client._closed = True
        if client._closed:
            client._finish()
            return
        wait_s = min(1.0, max(0.0, client._session.deadline_s() - time.monotonic()))
        # Asleep from here on: whoever adds work after this line wakes the channel; what came before is seen here.
        client._sleeping = True
        if client._inbox or client._requests:
            wait_s = 0.0
        del client


def _resolver(later: Future[Any]) -> Callable[[float | None], Any]:
    def resolve(timeout: float | None) -> Any:
        try:
            return later.result(timeout)
        except TimeoutError as error:
            if later.done():
                raise
            raise OutcomeUnknown("still no answer; ask again later") from error

    return resolve


def _check_read(consistency: str, to: str | int) -> None:
    if consistency not in CONSISTENCIES:
        raise UsageError(f"consistency is one of {', '.join(CONSISTENCIES)}, not {consistency!r}")
    if to not in ("leader", "any") and type(to) is not int:
        raise UsageError(f'to is "leader", "any" or a node\'s id, not {to!r}')


@overload
def connect(endpoints: Mapping[int, str], machine: Callable[..., M], *, timeout: float | None = 5.0) -> Client[M]: ...
@overload
def connect(endpoints: Mapping[int, str], machine: None = None, *, timeout: float | None = 5.0) -> Client[Any]: ...
def connect(
    endpoints: Mapping[int, str], machine: Callable[..., M] | None = None, *, timeout: float | None = 5.0
) -> Client[M]:
    """Reach a running cluster.

    Args:
        endpoints: `cluster.endpoints`; a tcp endpoint ends in `#` and the path of the cluster's token file.
        machine: the machine's class, for `proxy()`.
        timeout: seconds to find a leader; None waits for ever.

    Raises:
        Unavailable: no leader was found in time.
    """
    if not isinstance(endpoints, Mapping) or not endpoints:  # type: ignore[redundant-expr]  # not everybody checks types
        raise UsageError(
            f"endpoints is a mapping from node id to endpoint, as cluster.endpoints gives, not {endpoints!r}"
        )
    client = open_client(endpoints, machine)
    try:
        client.wait_for_leader(timeout)
    except BaseException:
        client.close()
        raise
    return client


def open_client(endpoints: Mapping[int, str], machine: Callable[..., M] | None, **options: Any) -> Client[M]:
    """Make a client over ZeroMQ; the one place here that names a transport."""
    from transports.zeromq import ZeroMQClientChannel

    plain, token = {}, None
    for node_id, endpoint in endpoints.items():
        address, _, token_file = endpoint.partition("#")
        plain[node_id] = address
        if token_file:
            token = Path(token_file).read_bytes()
    client: Client[M] = Client(plain, machine, channel=ZeroMQClientChannel(token=token), **options)
    client._endpoints = dict(endpoints)
    return client
