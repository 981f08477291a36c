"""A node's side of commands: the user's machine, what it offers, and how commands, queries and snapshots reach it.

By its class a machine is one of three kinds: one with commands and queries as methods, one with `apply`, or any object,
whose commands are objects that are given the state. User code can raise whatever it likes; that is a result. Only
what may differ from node to node (no memory, no stack, a module that is not there) stops this node.

Source:     contract section 1; the formats are those of pickling.py.
Invariant:  a result is encoded before the next command runs, so it never aliases the state.
Threads:    one thread at a time.
"""

from __future__ import annotations

import io
import logging
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, Final

import msgspec

from actorraft.errors import ActorRaftError, StorageFailed, UnknownType, UsageError
from actorraft.machine import (
    CommandContext,
    CommandObjects,
    MachineMethods,
    Replace,
    StateMachine,
    active,
    default_state,
    methods_of,
    restore_default,
)
from actorraft.pickling import byvalue, canonical, formats
from actorraft.pickling.definitions import Definitions
from actorraft.pickling.formats import (
    CALL,
    DEFINITION,
    FLAT,
    NOT_KNOWN,
    NOT_USABLE,
    OBJECT,
    RAISED,
    check_python,
)
from actorraft.pickling.results import encode_error, encode_loss

logger = logging.getLogger("actorraft")

_Ext = msgspec.msgpack.Ext
_encode = msgspec.msgpack.Encoder().encode
_SIMPLE: Final = frozenset((bool, float, bytes, type(None)))
_OBJECTS: Final = (FLAT, OBJECT)
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 63) - 1
_HEAD: Final = struct.Struct("<4sI")
_MAGIC: Final = b"ARM1"
_MISSING: Final = object()
SAMPLE_BYTES: Final = 1 << 19  # of the state, for comparing replicas: about 6 ms


class MachineStopped(ActorRaftError):
    """The machine of this node cannot go on as the others' do; the node stops, saying why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class MachineHost:
    """The machine of one node.

    Args:
        factory: builds the machine; called now, and again before each restore.
        cluster_seed: what randomness of commands is drawn from, equal on all nodes.
        definitions: the classes that are known so far.
    """

    def __init__(
        self, factory: Callable[[], Any], cluster_seed: int = 0, *, definitions: Definitions | None = None
    ) -> None:
        self._factory = factory
        self._seed = cluster_seed
        self._definitions = definitions or Definitions()
        self._dumps = self._definitions.dumps
        self._context: CommandContext | None = None
        # Called before a command that may do anything to the state.
        self.before_object: Callable[[], None] | None = None
        self._objects_only = False
        self._adopt(self._build())
        self._check_snapshots()

    @classmethod
    def from_factory(cls, factory: bytes, cluster_seed: int = 0) -> MachineHost:
        """Build the machine that `pickling.encode_factory` described in another process.

        Raises:
            UsageError: it holds code from another Python version.
            UnknownType: it names a class that cannot be imported here.
            Exception: whatever the machine's constructor raised.
        """
        major, minor, payloads, data = msgspec.msgpack.decode(factory)
        definitions = Definitions()
        if payloads:
            check_python(major, minor, "the machine")
        for payload in payloads:
            definitions.define(msgspec.msgpack.decode(payload).data, base=True)
        machine, args, kwargs = definitions.loads(data)
        return cls(lambda: machine(*args, **kwargs), cluster_seed, definitions=definitions)

    # --- The machine ---

    def _build(self) -> Any:
        built = self._factory()
        self._objects_only = isinstance(built, CommandObjects)
        machine = built.state if isinstance(built, CommandObjects) else built
        self._built_type = type(machine)
        return machine

    def _adopt(self, machine: Any) -> None:
        """Serve this machine from now on."""
        self.machine = machine
        kind = type(machine)
        self._methods = MachineMethods({}, {}, "objects") if self._objects_only else methods_of(kind)
        self._row = self._methods.row
        self._commands = {name: each.__get__(machine, kind) for name, each in self._methods.commands.items()}
        self._queries = {name: each.__get__(machine, kind) for name, each in self._methods.queries.items()}

    def _check_snapshots(self) -> None:
        kind = type(self.machine)
        snapshot, restore = (callable(getattr(kind, name, None)) for name in ("snapshot", "restore"))
        if snapshot != restore and self._row != "objects":
            has, lacks = ("snapshot", "restore") if snapshot else ("restore", "snapshot")
            raise UsageError(f"{kind.__qualname__} has {has}() and no {lacks}(): a snapshot needs both, or neither")

    @property
    def version(self) -> int:
        """The machine's version, as it says itself; 0 if it says none."""
        return int(self._offered("version") or 0)

    @property
    def wake_at(self) -> float | None:
        """The log time (seconds) at which the machine wants a clock entry; None: never."""
        wake_at = self._offered("wake_at")
        if callable(wake_at):
            wake_at = wake_at()
        return None if wake_at is None else float(wake_at)

    def _offered(self, name: str) -> Any:
        """Return what the machine offers under this name; objects that only hold state offer nothing."""
        return None if self._row == "objects" else getattr(self.machine, name, None)

    # --- Commands ---

    def apply(self, command: Any, ctx: CommandContext) -> Any:
        """Apply one command; return its result ready for a frame, errors of user code included.

        Raises:
            MachineStopped: this node cannot go on.
        """
        return self.apply_in_order((command,), ctx)[0]

    def apply_in_order(self, commands: Sequence[Any], ctx: CommandContext) -> list[Any]:
        """Apply the commands of one entry, one after the other; return their results, as `apply` would.

        Args:
            commands: as decoded.
            ctx: the position and the serial of the first; the others' follow on.

        Raises:
            MachineStopped: this node cannot go on.
        """
        if ctx is not self._context:
            self._know(ctx)
        serial = ctx.serial
        results: list[Any] = []
        add = results.append
        active.context = ctx  # nobody but commands can ask for it, so it may stay between two of them
        try:
            for position, command in enumerate(commands, ctx.position):
                ctx.position, ctx.serial = position, serial
                serial += 1
                try:
                    if type(command) is list:
                        result = self._commands[command[0]](*command[1:])
                    else:
                        result = self._apply_other(command)
                    kind = type(result)
                    if (
                        kind in _SIMPLE
                        or (kind is int and _INT_MIN <= result <= _INT_MAX)
                        or (kind is str and result.isascii())
                    ):
                        add(result)
                    else:
                        add(self._result(result))
                except BaseException as error:
                    add(self._failed(command, error))
        finally:
            active.context = None
        return results

    def _know(self, ctx: CommandContext) -> None:
        ctx.seed, ctx.encode = self._seed, self.encode_value
        self._context = ctx

    def _apply_other(self, command: Any) -> Any:
        if command is None:
            return None
        if type(command) is not _Ext:
            raise UsageError(f"not a command: {type(command).__name__}")
        if command.code in _OBJECTS:
            if self.before_object is not None:
                self.before_object()
            asked = self._object(command)
            return self._commands["apply"](asked) if self._row == "apply" else _on_state(asked, self.machine)
        if command.code == CALL:
            method, args, kwargs = self._definitions.loads(command.data)
            return self._commands[method](*args, **kwargs)
        if command.code == DEFINITION:
            self._definitions.define(command.data)
            return None
        raise UsageError(f"a command of kind {command.code}, which this version does not know")

    def _object(self, command: Any) -> Any:
        definitions = self._definitions
        return definitions.rebuild(command.data) if command.code == FLAT else definitions.loads(command.data)

    def _result(self, result: Any) -> Any:
        if isinstance(result, Replace):
            self._adopt(result.state)
            result = result.result
        return self.encode_value(result)

    def encode_value(self, value: Any) -> Any:
        """Encode a value for a frame: a scalar as it is, else a pickle; what cannot be pickled is lost, and says so."""
        kind = type(value)
        if kind in _SIMPLE or (kind is int and _INT_MIN <= value <= _INT_MAX) or (kind is str and _is_unicode(value)):
            return value
        try:
            return _Ext(OBJECT, self._dumps(value))
        except MemoryError:
            raise
        except BaseException as error:
            return encode_loss(kind, error)

    def _failed(self, command: Any, error: BaseException) -> Any:
        """Turn what a command raised into its result, unless other nodes may have fared better."""
        if isinstance(error, MachineStopped):
            raise error
        if isinstance(error, MemoryError | RecursionError | ImportError | StorageFailed):
            raise MachineStopped(
                f"{self._describe(command)} raised {type(error).__name__}: {error}; other nodes may have fared "
                "better, so this one stops rather than differ from them"
            ) from error
        return self._error(command, error, self._commands, "command")

    def _error(self, request: Any, error: BaseException, offered: dict[str, Any], kind: str) -> Any:
        if isinstance(error, UnknownType) and _raised_here(error):
            return encode_error(error, self._dumps, NOT_KNOWN)
        if isinstance(error, UsageError) and _raised_here(error):
            return encode_error(error, self._dumps, NOT_USABLE)
        if isinstance(error, KeyError) and error.__traceback__ is not None:
            name = self._unknown_method(request, offered)
            if name is not None:
                name_of_machine = type(self.machine).__qualname__
                return encode_error(UsageError(f"{name_of_machine} has no {kind} {name!r}"), self._dumps, NOT_USABLE)
        return encode_error(error, self._dumps, RAISED)

    def _unknown_method(self, request: Any, offered: dict[str, Any]) -> str | None:
        """Return the name of a called method that there is not; looked at only after a KeyError."""
        if type(request) is list:
            name = request[0] if request else ""
        elif type(request) is _Ext and request.code == CALL:
            try:
                name = self._definitions.loads(request.data)[0]
            except Exception:
                return None
        else:
            return None
        return None if name in offered else str(name)

    def _describe(self, command: Any) -> str:
        machine = type(self.machine).__qualname__
        if type(command) is list and command:
            return f"{machine}.{command[0]}"
        return f"a command on {machine}"

    def clock(self, ctx: CommandContext) -> None:
        """Tell the machine that log time has come: its `on_clock()`, if it has one, inside a context like a command's.

        Raises:
            MachineStopped: this node cannot go on.
        """
        on_clock = self._offered("on_clock")
        if not callable(on_clock):
            return
        if ctx is not self._context:
            self._know(ctx)
        active.context = ctx
        try:
            on_clock()
        except BaseException as error:
            self._failed(["on_clock"], error)  # equal on every node, and nobody waits for its result
            logger.exception("%s.on_clock failed; the log goes on", type(self.machine).__qualname__)
        finally:
            active.context = None

    # --- Many at once ---

    @property
    def takes_many(self) -> bool:
        """Whether the machine offers `apply_many`; worth calling where several commands are at hand."""
        return self._row != "methods" and callable(self._offered("apply_many"))

    def apply_many(self, commands: Sequence[Any], ctx: CommandContext) -> list[Any]:
        """Apply command objects together; return their results, as `apply` would.

        An exception among what `apply_many` returns is that command's; one that it raises is every command's.
        Whatever is no command object is applied by itself, in its place.
        """
        results: list[Any] = [None] * len(commands)
        batch: list[tuple[int, Any]] = []
        for position, command in enumerate(commands):
            if type(command) is _Ext and command.code in _OBJECTS:
                try:
                    batch.append((position, self._object(command)))
                except Exception as error:
                    results[position] = self._failed(command, error)
                continue
            self._apply_batch(batch, results, ctx)
            batch = []
            results[position] = self.apply(command, ctx)
        self._apply_batch(batch, results, ctx)
        return results

    def _apply_batch(self, batch: list[tuple[int, Any]], results: list[Any], ctx: CommandContext) -> None:
        if not batch:
            return
        if ctx is not self._context:
            self._know(ctx)
        active.context = ctx
        try:
            answers = list(self.machine.apply_many([command for _, command in batch]))
            if len(answers) != len(batch):
                raise ValueError(f"apply_many was given {len(batch)} commands and returned {len(answers)} results")
            for (position, command), answer in zip(batch, answers, strict=True):
                failed = isinstance(answer, BaseException)
                results[position] = self._failed(command, answer) if failed else self._result(answer)
        except BaseException as error:
            for position, command in batch:
                results[position] = self._failed(command, error)
        finally:
            active.context = None

    # --- Queries ---

    def query(self, request: Any) -> Any:
        """Answer a read; the state must not change. Never raises for what user code does."""
        try:
            return self.encode_value(self._ask(request))
        except BaseException as error:
            return self._error(request, error, self._queries, "query")

    def _ask(self, request: Any) -> Any:
        if type(request) is list:
            return self._queries[request[0]](*request[1:])
        if type(request) is not _Ext:
            raise UsageError(f"not a query: {type(request).__name__}")
        if request.code == CALL:
            method, args, kwargs = self._definitions.loads(request.data)
            return self._queries[method](*args, **kwargs)
        if request.code not in _OBJECTS:
            raise UsageError(f"a query of kind {request.code}, which this version does not know")
        asked = self._object(request)
        if self._row == "apply" and "query" in self._queries:
            return self._queries["query"](asked)
        return _on_state(asked, self.machine)

    # --- Snapshots ---

    def snapshot(self, write: Callable[[bytes], Any]) -> None:
        """Write the machine's state, the definitions, and the machine's version.

        Raises:
            Exception: whatever the machine's `snapshot` or pickling its state raised.
        """
        file = _File(write)
        way = self._way()
        state = self._state(way)
        chunked = isinstance(state, Iterator)
        write(self._snapshot_head(way, chunked))
        for chunk in state if chunked else (state,):
            file.write(b"\x01")
            self._definitions.dump(chunk, file)
        file.write(b"\x00")

    @property
    def serves_while_copied(self) -> bool:
        """Whether `pieces` can be drawn while commands go on.

        The machine's class must say so itself: commands that a subclass adds may not keep what that takes.
        """
        return "snapshot_while_serving" in vars(type(self.machine)) and self._way() == "own"

    def pieces(self) -> Iterator[bytes]:
        """Yield what `snapshot` writes, as it is when the first piece is drawn, for a host that `serves_while_copied`.

        Raises:
            Exception: while iterating, what `snapshot` would.
        """
        chunks = self.machine.snapshot_while_serving()
        yield self._snapshot_head("own", True)
        for chunk in chunks:
            buffer = io.BytesIO(b"\x01")
            buffer.seek(1)
            self._definitions.dump(chunk, buffer)
            yield buffer.getvalue()
        yield b"\x00"

    def _snapshot_head(self, way: str, chunked: bool) -> bytes:
        head = _encode([self.version, way, chunked, self._definitions.state()])
        return _HEAD.pack(_MAGIC, len(head)) + head

    def restore(self, file: BinaryIO) -> None:
        """Become what `snapshot` wrote, on an instance fresh from the constructor.

        Raises:
            MachineStopped: the snapshot is of a newer version of the machine, or of another Python.
            Exception: whatever the machine's `restore` raised.
        """
        magic, size = _HEAD.unpack(file.read(_HEAD.size))
        if magic != _MAGIC:
            raise MachineStopped("this is no snapshot of a machine")
        version, way, chunked, definitions = msgspec.msgpack.decode(file.read(size))
        machine = self._build()
        self._adopt(machine)
        if version > self.version:
            raise MachineStopped(
                f"the snapshot was made by version {version} of {type(machine).__qualname__}, and this node runs "
                f"version {self.version}: start it with the newer code"
            )
        try:
            self._definitions.restore(definitions)
        except UsageError as error:
            raise MachineStopped(str(error)) from error
        chunks = self._chunks(file)
        self._take_up(way, chunks if chunked else next(chunks))
        for _ in chunks:
            pass  # to the end mark, also if the machine did not read them all

    def _chunks(self, file: BinaryIO) -> Iterator[Any]:
        while (mark := file.read(1)) == b"\x01":
            yield self._definitions.load(file)
        if mark != b"\x00":
            raise MachineStopped("the snapshot of the machine ends too early")

    def _way(self) -> str:
        """Say how the state is taken: by the machine's "own" methods, its "attributes", or the "whole" object."""
        kind = type(self.machine)
        has_own = callable(getattr(kind, "snapshot", None)) and callable(getattr(kind, "restore", None))
        inherited = getattr(kind, "snapshot", None) is StateMachine.snapshot
        if has_own and not self._objects_only and not (inherited and kind.restore is StateMachine.restore):
            return "own"
        if self._row == "objects" or isinstance(self.machine, _BUILTIN_STATE):
            return "whole"  # its items are state as well
        pickles_its_own_way = any(
            "__reduce__" in vars(each) or "__reduce_ex__" in vars(each) for each in kind.__mro__[:-1]
        )
        return "whole" if pickles_its_own_way or kind is not self._built_type else "attributes"

    def _state(self, way: str) -> Any:
        if way == "own":
            return self.machine.snapshot()
        return default_state(self.machine) if way == "attributes" else self.machine

    def _take_up(self, way: str, state: Any) -> None:
        if way == "own":
            self.machine.restore(state)
        elif way == "attributes":
            restore_default(self.machine, state)
        else:
            self._adopt(state)

    def digest(self) -> bytes:
        """Return bytes that are equal on all nodes that have applied the same entries."""
        own = self._offered("digest")
        if callable(own):
            made = own()
            return bytes(made) if isinstance(made, bytes | bytearray | memoryview) else str(made).encode()
        state = self._state(self._way())
        return canonical.digest(list(state) if isinstance(state, Iterator) else state)

    def sample(self) -> bytes:
        """Return a digest that is cheap: the machine's own, or one of the first SAMPLE_BYTES of the state."""
        if callable(self._offered("digest")):
            return self.digest()
        state = self._state(self._way())
        walk = canonical.Sample(SAMPLE_BYTES)
        walk.take(state if isinstance(state, Iterator) else (state,))
        return walk.result()


_BUILTIN_STATE = (dict, list, tuple, set, frozenset, str, bytes, bytearray, int, float, complex)


class _File:
    """As much of a file as a pickler needs."""

    def __init__(self, write: Callable[[bytes], Any]) -> None:
        self.write = write


def _on_state(command: Any, state: Any) -> Any:
    """Run a command object on the state: its `apply` if it has one, else itself."""
    apply = None if isinstance(command, type) else getattr(command, "apply", None)
    if callable(apply):
        return apply(state)
    if callable(command):
        return command(state)
    raise TypeError(f"a command object has apply(self, state) or can be called with the state; {command!r} neither")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _raised_here(error: BaseException) -> bool:
    """Whether an error of this library's kinds was raised by the library and not by user code."""
    trace = error.__traceback__
    if trace is None:
        return True
    while trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "")
    return module in _OURS


_OURS: Final = frozenset((__name__, Definitions.__module__, byvalue.__name__, formats.__name__))
