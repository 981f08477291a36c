"""A node's side of commands: the user's machine, what it offers, and how commands, queries and snapshots reach it.

By its class a machine is one of three kinds: one with commands and queries as methods, one with `apply`, or any object,
whose commands are objects that are given the state. User code can raise whatever it likes; that is a result. Only
what may differ from node to node (no memory, no stack, a module that is not there) stops this node.

A hook that raises is a fault: it is logged when it begins, stands in the node's status as long as it lasts, and stops
nobody.

Source:     docs/machines.md; the formats are those of pickling/formats.py.
Invariant:  a result is encoded before the next command runs, so it never aliases the state.
Threads:    one thread at a time.
Not here:   snapshots and digests of the state (machine_state.py).
One idea:   the border to user code. Each way over it (build, apply, query, hooks, migrate) is guarded alike, and the
            guards share what the machine's class offers.
"""

from __future__ import annotations

import copy
import io
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

import msgspec

from actorraft import codec
from actorraft.errors import ActorRaftError, NotYet, StorageFailed, UnknownType, UsageError
from actorraft.loggers import guarded_logger
from actorraft.machine import (
    NO_HOOKS,
    CommandContext,
    CommandObjects,
    LookingContext,
    MachineMethods,
    Replace,
    active,
    bound,
    defined,
    hooks_of,
    methods_of,
    own_attributes,
)
from actorraft.node.guest import HookFailed, can_be_found, failed, fork, limit_of, profile_of, put_back, trace_of
from actorraft.node.machine_state import MachineState, NotRestorable
from actorraft.pickling import beside, byvalue, exceptions, formats
from actorraft.pickling.definitions import ANYBODY, Definitions
from actorraft.pickling.fingerprint import late_imports
from actorraft.pickling.formats import (
    ARRAYS,
    CALL,
    DEFINITION,
    FLAT,
    NOT_KNOWN,
    NOT_USABLE,
    OBJECT,
    RAISED,
    check_python,
)
from actorraft.pickling.pins import Pins
from actorraft.pickling.results import encode_error, encode_loss

logger = guarded_logger("actorraft")

T = TypeVar("T")
_Ext = msgspec.msgpack.Ext
_SIMPLE: Final = frozenset((bool, float, bytes, type(None)))
_OBJECTS: Final = (FLAT, OBJECT)
_MAY_HOLD_ARRAYS: Final = frozenset((tuple, list, dict))
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 63) - 1


class MachineStopped(ActorRaftError):
    """The machine of this node cannot go on as the others' do; the node stops, saying why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Refusal(MachineStopped):
    """It stops on purpose, for what the log says; no entry has ended it."""


class MachineHeld(ActorRaftError):
    """A command cannot be applied now, for a reason that other nodes may not have; it may have changed the state.

    Attributes:
        position: of the command in its entry; set by who knows it.
        result: what the command would give; None: it was not tried.
        module: the name that could not be imported, if that is why.
        untouched: the machine was not called: its state is that before the command.
    """

    def __init__(
        self, reason: str, position: int = 0, result: Any = None, *, module: str = "", untouched: bool = False
    ) -> None:
        super().__init__(reason)
        self.position = position
        self.result = result
        self.module = module
        self.untouched = untouched


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
        self.looking = LookingContext(cluster_seed)  # of queries, and of hooks that take or compare the state
        # Called before a command that may do anything to the state.
        self.before_object: Callable[[], None] | None = None
        # Told what is wrong with the machine's hooks, whenever that changes; "" once nothing is.
        self.on_fault: Callable[[str], object] | None = None
        self._faults: dict[str, str] = {}  # by hook
        self._said_wake_at = False
        self._state = MachineState(self._definitions)
        self._adopt(self._build())
        self._check_snapshots()
        why = self._state.why_unpicklable()
        if why:
            self._fault("snapshot", f"{why}; so no snapshot can be made of it, and the log grows for ever")
        # Who looks at an object's attributes as a whole makes each slower to read from then on (CPython keeps them in a
        # dict after that): so the machine that serves is another one, at which nobody has looked yet.
        self._adopt(self._build(look=False))

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
        try:
            machine, args, kwargs = definitions.loads(data)
        except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
            why = f"a module that the machine needs raised {exceptions.summary(error)} when a node imported it"
            raise UsageError(why) from error
        finally:
            fork.end_if_it_came()

        def build() -> Any:
            # Each machine has arguments of its own: commands may change what the constructor was given.
            own_args, own_kwargs = copy.deepcopy((args, kwargs))
            try:
                made = machine(*own_args, **own_kwargs)
            except TypeError as error:
                if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                    raise  # what it ran did
                raise UsageError(f"{exceptions.name(machine)} does not take these arguments: {error}") from error
            except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
                # It would end this process as if that had been asked for.
                raise UsageError(f"{exceptions.name(machine)}() raised {exceptions.summary(error)}") from error
            brings_code = isinstance(machine, type) and methods_of(machine).row != "objects"
            if brings_code and not any(each is machine for each in type(made).__mro__):
                raise UsageError(
                    f"{exceptions.name(machine)}() made {exceptions.name(type(made))}, which has not its commands"
                )
            return made

        return cls(build, cluster_seed, definitions=definitions)

    # --- The machine ---

    def _build(self, *, look: bool = True) -> Any:
        try:
            built = self._factory()
        finally:
            fork.end_if_it_came()
        holds_objects = issubclass(type(built), CommandObjects)
        machine = built.state if holds_objects else built
        self._holds_objects = holds_objects
        if look:
            self._state.built(machine, holds_objects or self._methods_of(type(machine)).row == "objects")
        return machine

    @property
    def only_holds(self) -> bool:
        """Whether the machine is a state that command objects and callables bring their own code to."""
        return self._row == "objects"

    def _methods_of(self, kind: type) -> MachineMethods:
        return MachineMethods({}, {}, "objects") if self._holds_objects else methods_of(kind)

    def _adopt(self, machine: Any) -> None:
        """Serve this machine from now on."""
        kind = type(machine)
        methods = self._methods_of(kind)
        holds_state_only = methods.row == "objects"
        hooks = NO_HOOKS if holds_state_only else hooks_of(kind)
        self._state.serve(machine, hooks, holds_state_only)
        self.machine, self._hooks, self._row = machine, hooks, methods.row
        self._commands = {name: bound(each, machine) for name, each in methods.commands.items()}
        self._queries = {name: bound(each, machine) for name, each in methods.queries.items()}
        # Worth calling where several commands are at hand.
        self.takes_many = methods.row == "apply" and hooks.apply_many is not None
        # Where a wake_at may turn up that is no hook.
        self._own: dict[str, Any] = {}
        if not (hooks.wake_at or holds_state_only or self._said_wake_at):
            marked = defined(kind, "wake_at", None) is not None  # as a command or a query
            self._own = {"wake_at": None} if marked else own_attributes(machine)

    def _check_snapshots(self) -> None:
        hooks = self._hooks
        if (hooks.snapshot is None) != (hooks.restore is None):
            has, lacks = ("snapshot", "restore") if hooks.restore is None else ("restore", "snapshot")
            name = exceptions.name(type(self.machine))
            raise UsageError(f"{name} has {has}() and no {lacks}(): a snapshot needs both, or neither")
        _ = self.version  # which may be refused

    @property
    def version(self) -> int:
        """The version of the machine's class: its `machine_version`, 0 if it has none."""
        return self._state.version

    @property
    def wake_at(self) -> float | None:
        """The log time (seconds) at which the machine wants a clock entry; None: never. Asked for after each batch."""
        if not self._hooks.wake_at:
            if "wake_at" in self._own:
                self._warn_of_wake_at()
            return None
        try:
            at_s = self._visit(None, self._wake_at)
        except BaseException as error:
            self._fault("wake_at", f"{failed(self.machine, 'wake_at', error)}; no clock entry is made for it")
            return None
        if self._faults:
            self._well("wake_at")
        return at_s

    def _wake_at(self) -> float | None:
        wake_at = self.machine.wake_at
        if callable(wake_at):
            wake_at = wake_at()
        if wake_at is None:
            return None
        if isinstance(wake_at, str | bytes):
            raise TypeError(f"a log time is a number of seconds, not {wake_at!r}")
        number = float(wake_at)
        if math.isnan(number):
            raise ValueError("a log time is a number of seconds, not nan")
        return None if number == math.inf else number

    def _warn_of_wake_at(self) -> None:
        """Warn once of a `wake_at` that the class does not name: it is the user's own, and wakes nobody."""
        self._own, self._said_wake_at = {}, True
        logger.warning(
            "%s has a wake_at that is no hook, so no clock entry is made for it: hooks are what the class defines. Say "
            "it in the class's body (`wake_at: float | None = None`, a method, or a property)",
            exceptions.name(type(self.machine)),
        )

    # --- Faults ---

    @property
    def fault(self) -> str:
        """What is wrong with the machine's hooks, each named with its class; "" if nothing is."""
        return "; ".join(self._faults.values())

    def _fault(self, hook: str, text: str) -> None:
        if self._faults.get(hook) == text:
            return
        if hook not in self._faults:
            logger.error("%s", text)  # once while it lasts
        self._faults[hook] = text
        self._tell_fault()

    def _well(self, hook: str) -> None:
        if self._faults.pop(hook, None) is not None:
            self._tell_fault()

    def _tell_fault(self) -> None:
        if self.on_fault is not None:
            self.on_fault(self.fault)

    def _guarded(self, hook: str, act: Callable[[], T], consequence: str = "") -> T:
        """Do what runs user code; remember as a fault that it failed, until it does not.

        Raises:
            HookFailed: it did.
        """
        try:
            done = self._visit(self.looking, act)
        except HookFailed as error:
            self._fault(hook, f"{error}{consequence}")
            raise
        if self._faults:
            self._well(hook)
        return done

    def _visit(self, ctx: CommandContext | None, act: Callable[..., T], *arguments: Any) -> T:
        """Call what runs user code, inside a context; undo what it left in this thread before code of ours runs."""
        trace, profile, limit = trace_of(), profile_of(), limit_of()
        outer, active.context = active.context, ctx
        try:
            return act(*arguments)
        finally:
            active.context = outer
            for _ in range(4):  # written out here, since a function that raises does so when one is called
                try:
                    if trace_of() is trace and profile_of() is profile and limit_of() == limit:
                        break
                    put_back(trace, profile, limit)
                except BaseException:
                    continue
            fork.end_if_it_came()

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
        return self._visit(ctx, self._apply_in_order, commands, ctx)

    def _apply_in_order(self, commands: Sequence[Any], ctx: CommandContext) -> list[Any]:
        serial = ctx.serial
        results: list[Any] = []
        add = results.append
        trace, profile, limit = trace_of(), profile_of(), limit_of()
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
                if trace_of() is not trace:  # a debugger's: it may raise in our own code too
                    sys.settrace(trace)
                put_back(trace, profile, limit)
                add(self._failed(command, error))
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
        if command.code == ARRAYS:
            method, args, kwargs = beside.loads(command.data)
            return self._commands[method](*args, **kwargs)
        if command.code == DEFINITION:
            owner = ANYBODY if self._context is None else self._context.client_id
            self._definitions.define(command.data, owner)
            return None
        raise UsageError(f"a command of kind {command.code}, which this version does not know")

    def _object(self, command: Any) -> Any:
        definitions = self._definitions
        return definitions.rebuild(command.data) if command.code == FLAT else definitions.loads(command.data)

    def _result(self, result: Any) -> Any:
        if issubclass(type(result), Replace):
            self._adopt(result.state)
            result = result.result
        return self.encode_value(result)

    def end_session(self, client_id: int) -> None:
        """Let go of the definitions that only this session held."""
        self._definitions.end_session(client_id)

    def encode_value(self, value: Any) -> Any:
        """Encode a value for a frame: scalars and arrays as they are, else a pickle; if that fails, that it is lost."""
        kind = type(value)
        if kind in _SIMPLE or (kind is int and _INT_MIN <= value <= _INT_MAX) or (kind is str and _is_unicode(value)):
            return value
        try:
            if kind in _MAY_HOLD_ARRAYS or kind.__name__ == "ndarray":
                data = beside.dumps(value) if beside.holds_array((value,), depth=3) else None
                if data is not None:
                    return _Ext(ARRAYS, data)
            return _Ext(OBJECT, self._dumps(value))
        except (MemoryError, ImportError):
            raise
        except BaseException as error:
            return encode_loss(kind, error)

    def decode_value(self, data: bytes) -> Any:
        """Read a pickle that `encode_value` made, in the light of the definitions that are known here."""
        return self._definitions.loads(data)

    def _failed(self, command: Any, error: BaseException) -> Any:
        """Turn what a command raised into its result, unless other nodes may have fared better.

        Raises:
            MachineHeld: they may: there was no memory, or no such module.
            MachineStopped: this node cannot go on.
        """
        if _is(error, MachineStopped | MachineHeld | StorageFailed) and _is_ours_alone(error):
            if _is(error, StorageFailed):
                raise MachineStopped(exceptions.summary(error)) from error
            raise error
        unread = _is(error, UnknownType) and _raised_here(error)
        cause = _cause_of(error) if unread else error
        if cause is not None and _is(cause, MemoryError | ImportError):
            raise MachineHeld(
                f"{self._describe(command)} raised {exceptions.summary(cause)}",
                result=self._error(command, error, self._commands, "command"),
                module=module_of(cause),
                untouched=unread,
            ) from error
        return self._error(command, error, self._commands, "command")

    def _error(self, request: Any, error: BaseException, offered: dict[str, Any], kind: str) -> Any:
        if _is(error, UnknownType) and _raised_here(error):
            return encode_error(error, self._dumps, NOT_KNOWN)
        if _is(error, UsageError) and _raised_here(error):
            return encode_error(error, self._dumps, NOT_USABLE)
        if _is(error, KeyError) and _trace_of(error) is not None:
            name = self._unknown_method(request, offered)
            if name is not None:
                return encode_error(UsageError(self._has_no(kind, name, offered)), self._dumps, NOT_USABLE)
        return encode_error(error, self._dumps, RAISED)

    def _has_no(self, kind: str, name: str, offered: dict[str, Any]) -> str:
        other, others = ("query", self._queries) if kind == "command" else ("command", self._commands)
        instead = f"that is a {other}" if name in others else f"it has {', '.join(sorted(offered)) or 'none'}"
        return f"{exceptions.name(type(self.machine))} has no {kind} {name!r}; {instead}"

    def _unknown_method(self, request: Any, offered: dict[str, Any]) -> str | None:
        """Return the name of a called method that there is not; looked at only after a KeyError."""
        if type(request) is list:
            name = request[0] if request else ""
        elif type(request) is _Ext and request.code in (CALL, ARRAYS):
            loads = beside.loads if request.code == ARRAYS else self._definitions.loads
            try:
                name = loads(request.data)[0]
            except BaseException:  # user code, though it did not raise the first time
                return None
        else:
            return None
        return None if name in offered else str(name)

    def _describe(self, command: Any) -> str:
        machine = exceptions.name(type(self.machine))
        if type(command) is list and command:
            return f"{machine}.{command[0]}"
        return f"a command on {machine}"

    def clock(self, ctx: CommandContext) -> None:
        """Tell the machine that log time has come: its `on_clock()`, if it has one, inside a context like a command's.

        Raises:
            MachineStopped: this node cannot go on.
        """
        on_clock = self._hooks.on_clock
        if on_clock is None:
            return
        if ctx is not self._context:
            self._know(ctx)
        try:
            self._visit(ctx, bound(on_clock, self.machine))
        except BaseException as error:
            self._failed(["on_clock"], error)  # equal on every node, and nobody waits for its result
            self._fault("on_clock", f"{failed(self.machine, 'on_clock', error)}; the log goes on")
        else:
            if self._faults:
                self._well("on_clock")

    # --- Many at once ---

    def apply_many(self, commands: Sequence[Any], ctx: CommandContext) -> list[Any]:
        """Apply command objects together; return their results, as `apply` would.

        An exception among what `apply_many` returns is that command's; one that it raises is every command's.
        Whatever is no command object is applied by itself, in its place.
        """
        if ctx is not self._context:
            self._know(ctx)
        return self._visit(ctx, self._apply_many, commands, ctx)

    def _apply_many(self, commands: Sequence[Any], ctx: CommandContext) -> list[Any]:
        results: list[Any] = [None] * len(commands)
        batch: list[tuple[int, Any]] = []
        for position, command in enumerate(commands):
            if type(command) is _Ext and command.code in _OBJECTS:
                try:
                    batch.append((position, self._object(command)))
                except BaseException as error:
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
        try:
            answers = self._visit(ctx, self._give_many, [command for _, command in batch])
        except BaseException as error:
            for position, command in batch:
                results[position] = self._failed(command, error)
        else:
            for (position, command), answer in zip(batch, answers, strict=True):
                results[position] = self._answer(command, answer)

    def _give_many(self, commands: list[Any]) -> list[Any]:
        answers = list(bound(self._hooks.apply_many, self.machine)(commands))
        if len(answers) != len(commands):
            raise ValueError(f"apply_many was given {len(commands)} commands and returned {len(answers)} results")
        return answers

    def _answer(self, command: Any, answer: Any) -> Any:
        """Turn one of the things that `apply_many` returned into a result."""
        if issubclass(type(answer), BaseException):
            return self._failed(command, answer)
        try:
            return self._result(answer)
        except BaseException as error:
            return self._failed(command, error)

    # --- Queries ---

    def queries(self, requests: Sequence[Any]) -> list[Any]:
        """Answer reads; the state must not change. Never raises for what user code does."""
        return self._visit(self.looking, self._read_all, requests)

    def _read_all(self, requests: Sequence[Any]) -> list[Any]:
        trace, profile, limit = trace_of(), profile_of(), limit_of()
        answers = []
        for request in requests:
            try:
                answers.append(self.encode_value(self._ask(request)))
            except BaseException as error:
                if trace_of() is not trace:
                    sys.settrace(trace)
                put_back(trace, profile, limit)
                answers.append(self._not_answered(request, error))
        return answers

    def _not_answered(self, request: Any, error: BaseException) -> Any:
        if _is(error, NotYet):
            return codec.NOT_YET
        return self._error(request, error, self._queries, "query")

    def _ask(self, request: Any) -> Any:
        if type(request) is list:
            return self._queries[request[0]](*request[1:])
        if type(request) is not _Ext:
            raise UsageError(f"not a query: {type(request).__name__}")
        if request.code == CALL:
            method, args, kwargs = self._definitions.loads(request.data)
            return self._queries[method](*args, **kwargs)
        if request.code == ARRAYS:
            method, args, kwargs = beside.loads(request.data)
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
            HookFailed: the machine's `snapshot` raised, or its state cannot be pickled.
            Exception: whatever `write` raised.
        """
        self._guarded("snapshot", lambda: self._state.write(write), _LOG_GROWS)

    @property
    def serves_while_copied(self) -> bool:
        """Whether `pieces` can be drawn while commands go on.

        The machine's class must say so itself: commands that a subclass adds may not keep what that takes.
        """
        return self._state.serves_while_copied

    def pieces(self) -> Iterator[bytes]:
        """Yield what `snapshot` writes, as it is when the first piece is drawn, for a host that `serves_while_copied`.

        Raises:
            HookFailed: while iterating, as `snapshot` does.
        """
        pieces = self._state.pieces()
        while (piece := self._guarded("snapshot", lambda: next(pieces, None), _LOG_GROWS)) is not None:
            yield piece

    def forecast(self) -> None:
        """Warn of modules that the machine's methods import once they are called, and that are not there.

        A command that meets that holds every node; now nobody is held up by it.
        """
        for method, module in late_imports(type(self.machine)):
            name = module.partition(".")[0]
            if not can_be_found(name):
                logger.warning(
                    "%s imports %s, and there is no %s here: a command that comes to it is not applied before there is",
                    method, module, name,
                )  # fmt: skip

    def keep_modules(self, folder: Path) -> None:
        """Load modules of commands, also those that their bodies import, as the other nodes of this run have."""
        pins = Pins(folder, lambda: active.context is not None)
        pins.install()
        self._definitions.pins = pins

    @property
    def class_name(self) -> str:
        """How the machine's class is called."""
        return exceptions.name(type(self.machine))

    def use_rules(self, version: int) -> None:
        """Commands are applied by the rules of that version of the machine: snapshots are of it too."""
        self._state.rules = self.looking.machine_version = version

    def migrate(self, from_version: int, ctx: CommandContext) -> str:
        """Have the machine take the step from that version to the next; return why it did not, if so.

        If its `migrate` raises, its state is as before, and the fault is named.

        Raises:
            MachineHeld: other nodes may fare better, or its state cannot be kept aside or had again.
        """
        migrate = defined(type(self.machine), "migrate", None) if self._row != "objects" else None
        if migrate is None:
            return ""
        if ctx is not self._context:
            self._know(ctx)
        before = io.BytesIO()
        try:
            self.snapshot(before.write)
        except HookFailed as error:
            why = f"{exceptions.name(type(self.machine))}.migrate was not called: {error}"
            raise MachineHeld(why, result=encode_error(error, self._dumps), untouched=True) from error
        try:
            self._visit(ctx, bound(migrate, self.machine), from_version)
        except BaseException as error:
            before.seek(0)
            why = str(failed(self.machine, "migrate", error))
            result = encode_error(error, self._dumps)
            try:
                self.restore(before)
            except BaseException as worse:
                raise MachineHeld(f"{why}, and the state before it cannot be had: {worse}", result=result) from error
            if _is(error, MemoryError | ImportError):
                raise MachineHeld(why, result=result, module=module_of(error), untouched=True) from error
            why = f"{why}; it stays at version {from_version}"
            self.did_not_migrate(why)
            return why
        self.did_not_migrate("")
        return ""

    def did_not_migrate(self, why: str) -> None:
        """Name it as a fault, or that it is none any more; also where a snapshot has brought the state."""
        if why:
            self._fault("migrate", why)
        else:
            self._well("migrate")

    def begin_anew(self) -> None:
        """Become what it was before the first command.

        Raises:
            HookFailed: it cannot.
            MemoryError, ImportError, UsageError: as the constructor raised them.
        """
        self._build_anew()
        self._definitions.restore(([], [], []))
        self._adopt(self._state.begin_anew())

    def _build_anew(self) -> None:
        try:
            self._adopt(self._build())
        except (MemoryError, ImportError, UsageError):
            raise
        except BaseException as error:
            raise failed(self.machine, "__init__", error) from error

    def restore(self, file: BinaryIO) -> None:
        """Become what `snapshot` wrote, on an instance fresh from the constructor.

        Raises:
            MachineStopped: the snapshot is of a newer version of the machine, or of another Python.
            HookFailed: the constructor or the machine's `restore` raised.
            Exception: whatever reading the file raised; MemoryError and ImportError as user code raised them.
        """
        self._build_anew()
        try:
            self._adopt(self._guarded("restore", lambda: self._state.read(file)))
        except NotRestorable as error:
            raise MachineStopped(str(error)) from error

    def digest(self) -> bytes:
        """Return bytes that are equal on all nodes that have applied the same entries.

        Raises:
            HookFailed: user code raised.
        """
        return self._guarded("digest", self._state.digest)

    def parts(self) -> dict[str, bytes]:
        """Return a digest for each part of the state, by its name, to say where two machines differ."""
        return self._state.parts()

    def known_parts(self) -> dict[str, bytes]:
        """Return digests of the attributes, cheap; of those that can be read. Never raises for what user code does."""
        return self._state.known_parts()

    def sample(self) -> bytes:
        """Return a digest that is cheap: the machine's own, or one of the first part of the state.

        Raises:
            HookFailed: user code raised.
        """
        return self._guarded("digest", self._state.sample)


_LOG_GROWS: Final = "; so no snapshot can be made, and the log goes on growing"


_trace_of = vars(BaseException)["__traceback__"].__get__
_cause_of = vars(BaseException)["__cause__"].__get__


def module_of(error: BaseException) -> str:
    """Return what an ImportError could not import, whatever its class makes of that."""
    name = vars(ImportError)["name"].__get__(error) if _is(error, ImportError) else None
    return name if type(name) is str else ""


def _is(error: BaseException, kinds: Any) -> bool:
    """`isinstance`, without asking the error for its `__class__`."""
    return issubclass(type(error), kinds)


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


def _is_ours_alone(error: BaseException) -> bool:
    """Whether no code but the library's own had a part in raising this: what a user raises stops no node."""
    trace = _trace_of(error)
    here = trace is not None
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__")
        here = here and type(module) is str and module.startswith("actorraft.")
        trace = trace.tb_next
    return here


def _raised_here(error: BaseException) -> bool:
    """Whether an error of this library's kinds was raised by the library and not by user code."""
    trace = _trace_of(error)
    if trace is None:
        return True
    while trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "")
    return module in _OURS


_OURS: Final = frozenset((__name__, Definitions.__module__, beside.__name__, byvalue.__name__, formats.__name__))
