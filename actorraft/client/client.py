"""A client of a running cluster: submit and query from any thread, one I/O thread behind (thread.py).

`submit` encodes in the caller's thread, hands the command and its future over, and returns.

Source:     docs/clients.md; the outcomes are decided in session.py, in one place.
Threads:    every public method may be called from any thread; callbacks of futures run in the I/O thread.
One idea:   what a user may ask, each in a few lines that lead to where it is done.
Process:    a process that was forked from one with a client goes on with a session of its own.
"""

from __future__ import annotations

import asyncio
import os
import sys
import warnings
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar, cast, overload

from actorraft.client import administration
from actorraft.client.arguments import Consistency, To, bounded, check_index, check_read
from actorraft.client.session import NOOP
from actorraft.errors import UsageError
from actorraft.futures import check_timeout, running_loop
from actorraft.pickling.encoder import Encoder, machine_name
from actorraft.steady import monotonic

if TYPE_CHECKING:
    from actorraft.client.events import EventStream, WatchStream
    from actorraft.client.status import MemberStatus, Status
    from actorraft.client.thread import ClientThread
    from actorraft.futures import ResultFuture
    from actorraft.machine import CommandObjects

M_co = TypeVar("M_co", covariant=True)  # what takes or gives a machine only ever gives one
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Asked = TypeVar("Asked")
Asked_contra = TypeVar("Asked_contra", contravariant=True)
CHECK_S = 60.0  # how often a client that has defined classes, and reads, looks whether its session is alive


class _Answers(Protocol[Asked_contra, T_co]):
    """A machine with a `query` of its own, which says what it takes.

    Told apart by the client's type, so that a lambda fits one overload only: of what fits two, mypy knows nothing.
    """

    def query(self, request: Asked_contra, /) -> T_co: ...


class Client(Generic[M_co]):
    """An independent session with a cluster; made by `connect` and `Cluster.client`.

    Closing it closes only itself. What happens to a write is said by exactly one outcome (`execute`).

    Args:
        thread: its session.
        machine: the machine's class, for `proxy()`.
        name: of the machine's class in portable snapshots; None: as `machine` says.
    """

    _owner_pid = -1  # until it is one

    def __init__(
        self, thread: ClientThread, machine: Callable[..., M_co] | None = None, *, name: str | None = None
    ) -> None:
        self._thread = thread
        self._machine = machine
        self._machine_name = name if name is not None else machine_name(machine) if machine is not None else ""
        self._owner_pid = os.getpid()
        self._encoder = Encoder(self._on_definition)  # replaced when what it sent may not be known to the nodes
        self._definitions: deque[ResultFuture[Any]] = deque()  # under way when last looked at
        self._check_s = 0.0  # when a read next asks whether the nodes still have them
        renew = weakref.WeakMethod(self._renew_encoder)
        thread.on_fork = lambda: (method := renew()) is not None and method()
        defined = weakref.WeakMethod(self._defined)
        thread.definitions = lambda: () if (method := defined()) is None else method()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} belongs to its process and cannot be sent; send its endpoints, "
            "and connect() there"
        )

    # --- Commands ---

    def submit(self, command: Any, *, timeout: float | None = 5.0) -> ResultFuture[Any]:
        """Send a command; return a future of its result, which ends as `execute` does.

        Commands of one client are applied in the order in which they were submitted, across changes of leader.

        Args:
            command: what the machine takes: a command object, or any object for a machine with `apply`.
            timeout: seconds for the whole call, retries included; None waits for ever.

        Raises:
            UsageError: it cannot be sent at all; nothing was sent. All else is told by the future.
        """
        return self._thread.submit(self._encoder.encode_command(command), check_timeout(timeout), type(command))

    def execute(self, command: Any, *, timeout: float | None = 5.0) -> Any:
        """Send a command and wait: `submit(...).result()`.

        Returns:
            What the command returned; it is committed and applied, exactly once, whatever was sent again underneath.

        Raises:
            Exception: the command's own, raised on every node alike; it is committed.
            CommandFailed, ResultLost: committed; what it raised, or its result, cannot be rebuilt here.
            Unavailable, Busy: certainly not applied, now or later.
            OutcomeUnknown: sent, and no answer came in time; `error.resolve()` finds out.
            UsageError: nothing was sent.
        """
        return self.wait(self.submit(command, timeout=timeout), "await client.submit(command)")

    @overload
    def query(
        self,
        request: Callable[[M_co], T],
        *,
        consistency: Consistency = "linearizable",
        to: To = "leader",
        min_index: int | None = None,
        timeout: float | None = 5.0,
    ) -> T: ...
    @overload
    def query(
        self: Client[CommandObjects],
        request: Callable[[Any], T],
        *,
        consistency: Consistency = "linearizable",
        to: To = "leader",
        min_index: int | None = None,
        timeout: float | None = 5.0,
    ) -> T: ...
    @overload
    def query(
        self: Client[_Answers[Asked, T]],
        request: Asked,
        *,
        consistency: Consistency = "linearizable",
        to: To = "leader",
        min_index: int | None = None,
        timeout: float | None = 5.0,
    ) -> T: ...
    def query(
        self,
        request: Any,
        *,
        consistency: Consistency = "linearizable",
        to: To = "leader",
        min_index: int | None = None,
        timeout: float | None = 5.0,
    ) -> Any:
        """Read without logging.

        Args:
            request: a callable on the state, or, if the machine has `query`, what that takes.
            consistency: "linearizable", "lease" or "stale".
            to: "leader", "any" or a node's id: a follower serves it, as consistent as asked.
            min_index: not before the state has the entry at this index (`ResultFuture.index`).
            timeout: seconds; None waits for ever.

        Returns:
            What the callable, or the machine's `query`, returned.

        Raises:
            Exception: what that raised.
            Unavailable: nobody could answer in time as consistently as asked.
            UsageError: there is no such way to read, or the request cannot be sent.
        """
        future = self._query(request, consistency, to, min_index, timeout)
        return self.wait(future, "await client.query_async(request)")

    @overload
    async def query_async(
        self,
        request: Callable[[M_co], T],
        *,
        consistency: Consistency = "linearizable",
        to: To = "leader",
        min_index: int | None = None,
        timeout: float | None = 5.0,
    ) -> T: ...
    @overload
    async def query_async(
        self: Client[CommandObjects],
        request: Callable[[Any], T],
        *,
        consistency: Consistency = "linearizable",
        to: To = "leader",
        min_index: int | None = None,
        timeout: float | None = 5.0,
    ) -> T: ...
    @overload
    async def query_async(
        self: Client[_Answers[Asked, T]],
        request: Asked,
        *,
        consistency: Consistency = "linearizable",
        to: To = "leader",
        min_index: int | None = None,
        timeout: float | None = 5.0,
    ) -> T: ...
    async def query_async(
        self,
        request: Any,
        *,
        consistency: Consistency = "linearizable",
        to: To = "leader",
        min_index: int | None = None,
        timeout: float | None = 5.0,
    ) -> Any:
        """As `query`, from a coroutine: the event loop goes on meanwhile. Returns and raises the same."""
        return await self._query(request, consistency, to, min_index, timeout)

    def proxy(
        self, *, timeout: float | None = 5.0, consistency: Consistency = "linearizable", to: To = "leader"
    ) -> M_co:
        """Return an object with the machine's commands and queries as methods, typed as the machine.

        Of a method `m`, `m(...)` waits as `execute` and `query` do and ends as they do; `m.submit(...)` returns a
        future; `await m.aio(...)` is for asyncio.

        Args:
            timeout: seconds for each call; None waits for ever.
            consistency: of its queries, as in `query`.
            to: who serves its queries.

        Raises:
            UsageError: this client was not told the machine's class, or there is no such way to read.
        """
        from actorraft.client.proxy import make_proxy

        if self._machine is None:
            raise UsageError("this client does not know the machine's class: connect(endpoints, MyMachine)")
        check_read(consistency, to)
        return cast(M_co, make_proxy(self, self._machine, check_timeout(timeout), consistency, to))

    def submit_call(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None
    ) -> ResultFuture[Any]:
        """Send a command by its method's name; return the future. For proxies, which have checked `timeout`."""
        return self._thread.submit(self._encoder.encode_call(method, args, kwargs), timeout, method)

    def encode(self, command: Any) -> bytes:
        """Return the bytes of a command, for `submit_encoded`; a definition that they need may be sent ahead.

        Raises:
            UsageError: it cannot be sent.
        """
        return self._encoder.encode_command(command)

    def submit_encoded(self, encoded: bytes, timeout: float | None, traced_as: type) -> ResultFuture[Any]:
        """Send a command that `encode` made bytes of; return the future. For who bounds how much is under way.

        Raises:
            UsageError: as `submit`.
        """
        return self._thread.submit(encoded, check_timeout(timeout), traced_as)

    def query_call(
        self,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        consistency: Consistency,
        to: To,
        timeout: float | None,
    ) -> ResultFuture[Any]:
        """Send a read by its method's name; return the future. For proxies, which have checked the rest."""
        return self._enqueue_query(self._encoder.encode_call(method, args, kwargs), consistency, to, None, timeout)

    def _query(
        self, request: Any, consistency: Consistency, to: To, min_index: int | None, timeout: float | None
    ) -> ResultFuture[Any]:
        check_read(consistency, to)
        min_index, timeout = check_index(min_index, "min_index"), check_timeout(timeout)
        return self._enqueue_query(self._encoder.encode_command(request), consistency, to, min_index, timeout)

    def _enqueue_query(
        self, encoded: bytes, consistency: Consistency, to: To, min_index: int | None, timeout: float | None
    ) -> ResultFuture[Any]:
        if self._encoder.has_defined and consistency == "linearizable":
            self._check_session()
        held = self._definitions_held() if self._definitions else None
        return self._thread.query(encoded, consistency, to, min_index, timeout, held)

    def _check_session(self) -> None:
        """Whoever only reads does not hear that the session expired, and what it had defined went with it."""
        if (now_s := monotonic()) >= self._check_s:
            self._check_s = now_s + CHECK_S
            self._definitions.append(self._thread.submit(NOOP, None))

    def wait(self, future: Future[Any], instead: str = "await") -> Any:
        """Wait for a future of this client's, return its result; where that holds up others, say what to do `instead`.

        Raises:
            UsageError: it is called in a future's callback, and would wait for itself.
        """
        if self._thread.is_current:
            raise UsageError("a blocking call in a future's callback would wait for itself: use submit there")
        if asyncio._get_running_loop() is not None:  # noqa: SLF001 (None, where the public one raises)
            _warn_of_loop(instead)
        return future.result()

    # --- Classes that the nodes cannot import ---

    def _on_definition(self, encoded: bytes) -> None:
        """A class that the nodes cannot import goes ahead of the first command that names it."""
        future = self._thread.submit(encoded, None)
        self._definitions.append(future)
        future.add_done_callback(self._on_defined)

    def _on_defined(self, future: Future[Any]) -> None:
        """A definition that was lost, as with an expired session, goes again with the next command that needs one."""
        if future.exception() is not None:
            self._renew_encoder()

    def _renew_encoder(self) -> None:
        self._encoder = Encoder(self._on_definition)  # the old one's lock may be held: here that must not matter

    def _defined(self) -> list[bytes]:
        """What a new session must be told of first."""
        return self._encoder.definitions

    def _definitions_held(self) -> Callable[[], bool] | None:
        """A read is not in the log's order, so the definitions it may need must be applied first."""
        while self._definitions and self._definitions[0].done():
            self._definitions.popleft()
        pending = tuple(self._definitions)
        return (lambda: not all(future.done() for future in pending)) if pending else None

    # --- The cluster ---

    @property
    def endpoints(self) -> dict[int, str]:
        """Return what `connect` takes: node id -> endpoint; over tcp with the path of a folder with keys."""
        return self._thread.endpoints

    @property
    def closed(self) -> bool:
        """Return whether it is closed, and takes no more calls."""
        return self._thread.closed

    def leader(self) -> int | None:
        """Return the leader's id, None if none is known now."""
        return self._thread.leader

    def wait_for_leader(self, timeout: float | None = 30.0) -> int:
        """Wait until a leader is known and return its id.

        Raises:
            Unavailable: nobody led within `timeout` seconds; the text says whether nodes were reached.
        """
        return administration.wait_for_leader(self._thread, check_timeout(timeout))

    def has_quorum(self, timeout: float = 1.0) -> bool:
        """Return whether a leader confirms within `timeout` seconds that a majority follows it; raises for neither."""
        return administration.has_quorum(self._thread, bounded(timeout))

    def status(self, *, timeout: float = 1.0) -> Status:
        """Ask every node how it is; return a row for each, which prints as a table.

        A member that is dead, or does not answer within `timeout` seconds, is a row too, not an error.
        """
        return administration.status(self._thread, bounded(timeout), self._member)

    def _member(self, node_id: int, said: dict[str, Any], error: str | None = None) -> MemberStatus:
        """Make a row of what a node said; Cluster adds what it knows of the process."""
        return administration.member_status(self.endpoints, node_id, said, error)

    def ask_node(self, node_id: int, verb: str, arguments: dict[str, Any], timeout: float) -> ResultFuture[Any]:
        """Ask one node for something rare, as tools do: its own "status", its "digest"; return a future of plain data.

        Raises:
            Unavailable: in the future: the node said nothing in time, or that it cannot.
        """
        return self._thread.admin(node_id, verb, arguments, bounded(timeout))

    _admin = ask_node  # as scripts know it from 0.1.0

    def transfer_leadership(self, to: int | None = None, *, timeout: float = 10.0) -> int:
        """Hand leadership over on purpose: to node `to`, or to whoever is most up to date.

        Returns:
            The new leader's id.

        Raises:
            UsageError: there is no such node, or it does not vote.
            Unavailable: nobody leads, or `to` has not taken over within `timeout` seconds.
        """
        return administration.transfer_leadership(self._thread, to, bounded(timeout))

    def take_snapshot(self, *, timeout: float = 60.0) -> dict[int, int]:
        """Compact now, on every node that can be reached.

        Returns:
            node id -> index of its snapshot's last entry.

        Raises:
            ActorRaftError: the machine's `snapshot` raised, or the disk refused; nothing is lost, the log goes on.
        """
        return administration.take_snapshot(self._thread, bounded(timeout))

    def digest(self, node_id: int, *, timeout: float = 5.0) -> tuple[int, str]:
        """Return the index a node has applied up to, and a digest of its state, equal on all nodes that got as far.

        Raises:
            Unavailable: the node did not answer in time.
        """
        return administration.digest(self._thread, node_id, bounded(timeout))

    def export_snapshot(self, path: str | os.PathLike[str], *, timeout: float = 60.0) -> Path:
        """Write a portable copy of the state, as of now, for `spawn(from_snapshot=path)`.

        Returns:
            The absolute path.

        Raises:
            UsageError: it cannot be written there.
            Unavailable: no leader took a snapshot in time, or another one came in between three times.
        """
        return administration.export_snapshot(self._thread, path, self._machine_name, bounded(timeout))

    def events(self) -> EventStream:
        """Return an iterator over what happens from now on: leader changes; at a Cluster also exits, restarts, more.

        `for` waits in the caller's thread, `async for` in its event loop.
        """
        return self._thread.events.open()

    def watch(self, topic: str, from_index: int | None = None) -> WatchStream:
        """Return an iterator over what the machine publishes to `topic` (`context().publish`), in order.

        It goes on through changes of leader and broken links, without a gap and without repeating anything.

        Args:
            topic: as published.
            from_index: begin with the entry at this index (resume with the last seen `index + 1`); None: from now on.

        Raises:
            Unavailable: while iterating, if events from `from_index` on are no longer held.
        """
        if not isinstance(topic, str):
            raise UsageError(f"a topic is a string, not {topic!r}")
        try:
            topic.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"a topic is a string that UTF-8 can hold: {error}") from None
        return self._thread.watch(topic, check_index(from_index, "from_index"))

    # --- The end ---

    def close(self) -> None:
        """Close this session. Idempotent.

        Calls still outstanding end with OutcomeUnknown if they were sent, else with Unavailable.
        """
        self._thread.close()

    def __enter__(self) -> Client[M_co]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Client[M_co]:
        running_loop("begin an `async with`", "client.__enter__")
        return self

    async def __aexit__(self, *_: object) -> None:
        running_loop("end an `async with`", "client.close")
        await asyncio.to_thread(self.close)

    def __del__(self) -> None:
        thread = self.__dict__.get("_thread")
        if thread is None or thread.closed:
            return
        thread.forget()  # what is outstanding ends as it would have
        if self._owner_pid == os.getpid():
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        thread = self._thread
        return f"<Client {len(thread.endpoints)} nodes, leader {thread.leader}, term {thread.term}>"


_warned_of_loop = False


def _warn_of_loop(instead: str) -> None:
    """Say once in a process that a blocking call holds up an event loop; a notebook's cell does that by its nature."""
    global _warned_of_loop
    if not _warned_of_loop and "ipykernel" not in sys.modules:
        _warned_of_loop = True
        warnings.warn(
            f"a blocking call holds up the event loop that runs in this thread; there: {instead}",
            RuntimeWarning,
            stacklevel=4,
        )
