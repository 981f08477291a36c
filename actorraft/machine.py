"""What a user writes a replicated machine with: StateMachine, `command`, `query`, `context()`, Replace, CommandObjects.

A machine is plain Python. `@command` and `@query` are descriptors that only mark a method; on an instance they give a
BoundCommand, which on a local instance runs the method and on a proxy sends it. So the same class is tested without a
cluster, runs on every node, and types the proxy.

Differs:    the self type is erased inside the descriptor (`Callable[Concatenate[Any, P], R]`): one that kept it would
            make pyright refuse an override in a subclass.
Threads:    `context()` belongs to the thread that applies; there is one for each node, also when many nodes share a
            process (the simulator).
"""

from __future__ import annotations

import functools
import inspect
import random
import threading
import types
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Concatenate, Generic, NamedTuple, NoReturn, ParamSpec, TypeVar, overload

from actorraft.errors import UsageError

if TYPE_CHECKING:
    from actorraft.futures import ResultFuture

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
M = TypeVar("M", bound="Method[Any, Any]")


# --- Commands and queries ---------------------------------------------------------------------------------------------


class BoundCommand(Generic[P, R_co]):
    """A command or query of one object: call it, or send it with `submit` (a future) or `aio` (in asyncio).

    On a local machine the call runs the method, and there is nothing to submit to.
    """

    def __init__(self, method: Method[P, R_co], instance: object) -> None:
        self._method = method
        self._instance = instance
        functools.update_wrapper(self, method.function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Run it; on a proxy, wait until it is committed and applied, and return its result."""
        return self._method.function(self._instance, *args, **kwargs)

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> ResultFuture[R_co]:
        """Send it and return at once; thousands may be outstanding."""
        self._refuse("submit")

    def aio(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[R_co]:
        """Send it from a coroutine: `await machine.method.aio(...)`."""
        self._refuse("aio")

    def _refuse(self, how: str) -> NoReturn:
        raise UsageError(
            f"{self._method.function.__qualname__}.{how}: this is a local object, no replica; call it directly, "
            f"or use {how} on what cluster.proxy() returns"
        )

    @property
    def __signature__(self) -> inspect.Signature:
        signature = inspect.signature(self._method.function)
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    @overload
    def __get__(self, instance: None, owner: Any) -> BoundCommand[P, R_co]: ...
    @overload
    def __get__(self, instance: object, owner: Any) -> BoundCommand[P, R_co]: ...
    def __get__(self, instance: object, owner: Any) -> BoundCommand[P, R_co]:
        """Return self: bound already. Being a descriptor makes `help` show it as the routine that it is."""
        return self

    def __repr__(self) -> str:
        return f"<{self._method.kind} {self._method.function.__qualname__} of {self._instance!r}>"


class Method(Generic[P, R_co]):
    """A method marked as `kind`; made by `@command` and `@query` only."""

    kind = "method"

    def __init__(self, function: Callable[Concatenate[Any, P], R_co]) -> None:
        if isinstance(function, staticmethod | classmethod):
            raise UsageError(
                f"@{self.kind} {function.__func__.__qualname__} is a {type(function).__name__}: it would see no state; "
                f"make it a plain method"
            )
        if isinstance(function, property | Method) or not callable(function):
            raise UsageError(f"@{self.kind} marks a plain method, not {function!r}; put it nearest to the def")
        if inspect.isgeneratorfunction(function):
            raise UsageError(
                f"@{self.kind} {function.__qualname__} is a generator: its body would never run; return a list instead"
            )
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise UsageError(
                f"@{self.kind} {function.__qualname__} is async: a machine runs the same on every node and waits "
                f"for nothing; make it a plain method (callers await `.aio(...)`)"
            )
        self.function = function
        self.__isabstractmethod__ = getattr(function, "__isabstractmethod__", False)
        functools.update_wrapper(self, function)

    @overload
    def __get__(self: M, instance: None, owner: Any) -> M: ...
    @overload
    def __get__(self, instance: object, owner: Any) -> BoundCommand[P, R_co]: ...
    def __get__(self, instance: object | None, owner: Any) -> Any:
        return self if instance is None else BoundCommand(self, instance)

    def __call__(self, instance: Any, /, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Run the method: what `Bank.deposit(bank, ...)` means for any method."""
        return self.function(instance, *args, **kwargs)

    def __repr__(self) -> str:
        return f"<{self.kind} {getattr(self.function, '__qualname__', self.function)}>"


class Command(Method[P, R_co]):
    """A method that goes through the log and runs once on every node, in log order."""

    kind = "command"


class Query(Method[P, R_co]):
    """A method that only reads; it is never logged."""

    kind = "query"


def command(function: Callable[Concatenate[Any, P], R]) -> Command[P, R]:
    """Mark a method as a command: it goes through the log and runs once on every node, in log order.

    Returns:
        A descriptor: on a local instance it is the method; on a proxy a BoundCommand, which sends it.

    Raises:
        UsageError: it is no plain method: a coroutine, a generator, a property, a static or class method.
    """
    return Command(function)


def query(function: Callable[Concatenate[Any, P], R]) -> Query[P, R]:
    """Mark a method as a query: it reads only, is never logged, and is linearizable unless asked otherwise.

    Returns:
        A descriptor, as `command` does.

    Raises:
        UsageError: it is no plain method: a coroutine, a generator, a property, a static or class method.
    """
    return Query(function)


class MachineMethods(NamedTuple):
    """What a machine class offers, by name: plain functions that take the machine first."""

    commands: dict[str, Callable[..., Any]]
    queries: dict[str, Callable[..., Any]]
    row: str  # how it takes commands: "methods", "apply" or "objects"


def methods_of(cls: type) -> MachineMethods:
    """Return the commands and queries of a machine class; an override without a decorator stays what it overrides.

    Raises:
        UsageError: a command or query stands inside another decorator, where it would not be found.
    """
    commands: dict[str, Callable[..., Any]] = {}
    queries: dict[str, Callable[..., Any]] = {}
    kinds: dict[str, dict[str, Callable[..., Any]]] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            kind = type(value)  # an attribute of the user's may lie about its class, or raise
            if issubclass(kind, Method):
                _forget(kinds, name)
                kinds[name] = commands if issubclass(kind, Command) else queries
                kinds[name][name] = value.function
            elif name in kinds and kind is types.FunctionType:
                kinds[name][name] = value
            else:
                if name in kinds:
                    _forget(kinds, name)
                _check_hides_none(base, name, value, [kind[each] for each, kind in kinds.items()])
    if kinds:
        return MachineMethods(commands, queries, "methods")
    apply, ask = _hook(cls, "apply"), _hook(cls, "query")
    if apply is not None:
        return MachineMethods({"apply": apply}, {} if ask is None else {"query": ask}, "apply")
    return MachineMethods({}, {}, "objects")


def _forget(kinds: dict[str, dict[str, Callable[..., Any]]], name: str) -> None:
    if name in kinds:
        del kinds.pop(name)[name]


def _check_hides_none(cls: type, name: str, value: Any, found: list[Callable[..., Any]]) -> None:
    """See that no decorator was put around a command or query: it would silently be none.

    Args:
        found: commands and queries that are not hidden; a helper may look like one of them.
    """
    kind = type(value)
    inner: Any = None
    if kind in (classmethod, staticmethod):
        inner = value.__func__
    elif kind is property:
        inner = value.fget
    elif kind in (functools.cached_property, functools.singledispatchmethod):
        inner = value.func
    elif kind is types.FunctionType:
        inner = vars(value).get("__wrapped__")  # as functools.wraps leaves it
    if issubclass(type(inner), Method) and inner.function not in found:
        around = "another decorator" if kind is types.FunctionType else kind.__name__
        raise UsageError(
            f"{cls.__qualname__}.{name}: @{inner.kind} stands inside {around}, where it marks nothing; it goes "
            f"outermost, on a plain method"
        )


# --- Hooks ------------------------------------------------------------------------------------------------------------


class Hooks(NamedTuple):
    """What a machine's class offers beside commands and queries, as it stands in the class; None: it does not."""

    apply_many: Any = None
    snapshot: Any = None
    restore: Any = None
    digest: Any = None
    on_clock: Any = None
    snapshot_while_serving: Any = None
    wake_at: bool = False  # its value is read from the instance


NO_HOOKS = Hooks()
_ABSENT: Any = object()


def hooks_of(cls: type) -> Hooks:
    """Return the hooks of a machine class: what it or a base defines, never what an instance or `__getattr__` answers.

    A name that is marked as a command or a query is that, and no hook.

    Raises:
        UsageError: a hook is a coroutine, or a generator whose body would never run.
    """
    found = {name: _hook(cls, name) for name in Hooks._fields[:5]}
    serving = vars(cls).get("snapshot_while_serving")  # the commands of a subclass do not know of its guard
    called = dict(found)
    if methods_of(cls).row == "apply":  # else these names are helpers of its own
        called |= {name: _hook(cls, name) for name in ("apply", "query")}
    for name, member in called.items():
        function = member if inspect.isfunction(member) else None
        if function is not None and name in found:  # around `apply` a decorator may make a result of what it gives
            function = inspect.unwrap(function)
        never_run = name in _NO_GENERATORS and inspect.isgeneratorfunction(function)
        if never_run or inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            what = "a generator" if never_run else "async"
            raise UsageError(f"{cls.__qualname__}.{name} is {what}: it would never run; make it a plain method")
    for name, other in (("snapshot", "restore"), ("restore", "snapshot")):
        if found[name] is None and found[other] is vars(StateMachine)[other]:
            found[other] = None  # the user's own name hides one half of the default
    wake_at = defined(cls, "wake_at")
    return Hooks(
        **found,
        snapshot_while_serving=serving if _is_hook(serving) else None,
        wake_at=wake_at is not _ABSENT and not isinstance(wake_at, Method),
    )


_NO_GENERATORS = ("apply", "query", "restore", "digest", "on_clock")


def defined(cls: type, name: str, default: Any = _ABSENT) -> Any:
    """Return what a class or a base defines under this name, unbound."""
    for base in cls.__mro__[:-1]:
        if name in vars(base):
            return vars(base)[name]
    return default


def bound(member: Any, machine: Any) -> Any:
    """Return a member of a class as the machine's own, past its attributes and its `__getattr__`."""
    bind = getattr(type(member), "__get__", None)
    return member if bind is None else bind(member, machine, type(machine))


def _hook(cls: type, name: str) -> Any:
    member = defined(cls, name, None)
    return member if _is_hook(member) else None


def _is_hook(member: Any) -> bool:
    if isinstance(member, Method | type):
        return False
    return callable(member) or isinstance(member, classmethod | functools.partialmethod)


def machine_version(cls: type) -> int:
    """Return the version of a machine class: its `machine_version`, 0 if there is none.

    Raises:
        UsageError: it is no int from 0.
    """
    version = defined(cls, "machine_version", 0)
    if not isinstance(version, int) or isinstance(version, bool) or version < 0:
        raise UsageError(f"{cls.__qualname__}.machine_version is an int from 0, not {version!r}")
    return int(version)


# --- Machines ---------------------------------------------------------------------------------------------------------


class StateMachine:
    """A convenient base of machines: the defaults of `snapshot` and `restore`, to be called by `super()`."""

    def snapshot(self) -> Any:
        """Return the state as something that pickle takes, or an iterator of such chunks; here, the attributes.

        Commands wait until it is written, unless the class itself also has `snapshot_while_serving`, which returns
        such an iterator whose chunks are of the moment of the call, whatever commands do between two of them.
        """
        return default_state(self)

    def restore(self, state: Any) -> None:
        """Take up a state that `snapshot` gave; runs on an instance fresh from its constructor."""
        restore_default(self, state)


def default_state(machine: object) -> Any:
    """Return the attributes of a machine as pickle would see them.

    Raises:
        TypeError: what its own `__getstate__` gives is none that `restore_default` could put back.
    """
    state = machine.__getstate__()
    parts = state if type(state) is tuple and len(state) == 2 else (state,)
    if not all(part is None or isinstance(part, dict) for part in parts) and not _takes_up_its_own(machine):
        raise TypeError(
            f"it gave a {type(state).__qualname__}, which only a __setstate__ of the class could take up, and there is "
            "none; give a dict of attributes, or have one"
        )
    return state


def _takes_up_its_own(machine: object) -> bool:
    return defined(type(machine), "__setstate__") is not _ABSENT


def restore_default(machine: Any, state: Any) -> None:
    """Put back what `default_state` gave, on a machine fresh from its constructor.

    What the state does not know stays as the constructor made it: a newer class may have attributes that an older one
    had not.
    """
    if _takes_up_its_own(machine):
        machine.__setstate__(state)
        return
    attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
    if attributes:
        machine.__dict__.update(attributes)
    for name, value in (slots or {}).items():
        object.__setattr__(machine, name, value)


def own_attributes(machine: Any) -> dict[str, Any]:
    """Return the `__dict__` of a machine, whatever its class says of it; {} if it has none."""
    try:
        found: dict[str, Any] = object.__getattribute__(machine, "__dict__")
    except BaseException:  # it has only slots, or a property of that name that raises
        return {}
    return found if type(found) is dict else {}


def attribute_names(machine: Any) -> frozenset[str]:
    """Return the names of the attributes that a machine has of its own, in `__dict__` and slots."""
    cls = type(machine)
    names = set(own_attributes(machine))
    for base in cls.__mro__[:-1]:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            name = f"_{base.__name__.lstrip('_')}{name}" if name.startswith("__") and not name.endswith("__") else name
            try:
                object.__getattribute__(machine, name)
            except AttributeError:
                continue
            names.add(name)
    return frozenset(names - {"__dict__", "__weakref__"})


class CommandObjects:
    """Say that commands are objects or callables that are given the state.

    `ReplicatedStateMachine(CommandObjects, DataFrame)`. Needed only for a class that has an `apply` of its own.
    """

    def __init__(self, factory: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
        self.state = factory(*args, **kwargs)


class Replace(NamedTuple):
    """Returned by a command to replace an immutable state: the new state, and the command's result."""

    state: Any
    result: Any = None


# --- The context of a command -----------------------------------------------------------------------------------------


class CommandContext:
    """What a command may ask instead of reading a clock or rolling dice. One object, changed from command to command.

    Attributes:
        index: of the log entry.
        position: place in the entry, from 0; many commands share an index.
        serial: unique per command, strictly increasing over the cluster's life.
        term: of the entry.
        time: seconds of log time; never falls, whatever leaders' wall clocks do.
        machine_version: by whose rules the command is applied; the class's own, or an older one while an upgrade rolls.
        events: what was published so far: (index, topic, event as encoded by `encode`).
    """

    __slots__ = (
        *("_random", "_random_serial", "client_id", "encode", "events", "index", "position", "seed", "serial"),
        *("machine_version", "term", "time"),
    )

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.index = self.position = self.serial = self.term = -1
        self.client_id = -1  # the session that sent the entry; for the library's use
        self.time = 0.0
        self.machine_version = 0
        self.events: list[tuple[int, str, Any]] = []
        self.encode: Callable[[Any], Any] = _as_it_is
        self._random_serial: int | None = None
        self._random = random.Random(0)

    def begin_entry(self, index: int, term: int, time: float) -> None:
        """Say what is common to the commands of one entry."""
        self.index, self.term, self.time = index, term, time

    @property
    def random(self) -> random.Random:
        """A generator of this command's own, equal on every node."""
        if self._random_serial != self.serial:
            self._random = random.Random((self.seed << 64) ^ (self.serial + 1))
            self._random_serial = self.serial
        return self._random

    def publish(self, topic: str, event: Any) -> None:
        """Tell those who watch `topic`, in log order.

        Raises:
            TypeError: the topic is no string.
            UnicodeEncodeError: it holds half a surrogate.
        """
        if type(topic) is not str:
            if not issubclass(type(topic), str):
                raise TypeError(f"a topic is a str, not {topic!r}")
            topic = str.__getitem__(topic, slice(None))  # a plain one, as of an enum
        if not topic.isascii():
            topic.encode()  # what no frame and no snapshot can hold is this command's error
        self.events.append((self.index, topic, self.encode(event)))

    def __repr__(self) -> str:
        return (
            f"<CommandContext index={self.index} position={self.position} serial={self.serial} "
            f"term={self.term} time={self.time}>"
        )


class LookingContext(CommandContext):
    """What queries and the hooks of a snapshot may ask: what is true of the last entry that was applied."""

    __slots__ = ()

    def publish(self, topic: str, event: Any) -> None:
        """Refuse: only commands publish, in log order."""
        raise UsageError(
            "context().publish() is for commands: what looks at the state happens at one node, at any time"
        )


def _as_it_is(event: Any) -> Any:
    return event


class Active(threading.local):
    """The context of the command that this thread is applying."""

    context: CommandContext | None = None


active = Active()


def context() -> CommandContext:
    """Return the context of the command being applied; in a query or a hook, that of the last entry applied.

    Raises:
        UsageError: nothing of a machine is being run in this thread.
    """
    current = active.context
    if current is None:
        raise UsageError(
            "context() is for commands while they are applied; in a unit test, use "
            "`with actorraft.testing.context(): ...`"
        )
    return current
