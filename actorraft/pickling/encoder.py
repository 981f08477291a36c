"""The caller's side of commands: what goes into a frame.

A call whose arguments are all plain scalars is one msgpack array; arrays go beside it as they are (beside.py).
Everything else is pickled, by one C pickler that asks about classes and functions only: importable ones go by name;
those that no node can import (`__main__`, a notebook) are sent once, as a definition that goes ahead of the first
command that needs it, and by name from then on; closures and lambdas go by value each time.

Source:     docs/decisions/0015; the formats are in formats.py.
Threads:    an Encoder may be used by any.
"""

from __future__ import annotations

import contextlib
import copyreg
import functools
import io
import pickle
import sys
import threading
import types
from collections.abc import Callable
from typing import Any, Final, NoReturn

import cloudpickle.cloudpickle as cloudpickle  # type: ignore[import-untyped]
import msgspec

from actorraft.errors import ActorRaftError, UsageError
from actorraft.machine import CommandObjects, defined
from actorraft.pickling import beside, byvalue, exceptions, formats
from actorraft.pickling.byvalue import HEAP_TYPE, CodePickler, Ref, fingerprint_of
from actorraft.pickling.canonical import SCALARS
from actorraft.pickling.formats import ARRAYS, CALL, DEFINITION, FLAT, OBJECT, mark_by_value
from actorraft.pickling.names import BY_VALUE_MODULES, Name, is_importable, look_up, name_of
from actorraft.pickling.rests import Rests, needed
from actorraft.pickling.sent import Sent

_encode = msgspec.msgpack.Encoder().encode
_Ext = msgspec.msgpack.Ext

VERSIONS_MAX: Final = 8  # classes that share a name, and are not what it means, that one client has the nodes keep


class Encoder:
    """Turns calls and command objects into bytes, in the caller's thread.

    Args:
        on_definition: called with an encoded definition command, before the command that needs it is returned, and
            under the encoder's lock: what it enqueues is ahead of any command that names what it defines.
    """

    def __init__(self, on_definition: Callable[[bytes], Any], *, explains: bool = True) -> None:
        self._on_definition = on_definition
        self._explains = explains  # False: for finding out what cannot be sent, which is told once
        self._lock = threading.RLock()
        self._instances: set[type] = set()
        self._plain: set[Any] = set()
        self._flat: dict[type, bool] = {}  # whether the instances of a plain class are their __dict__ and nothing else
        self._sent = Sent()
        self._registered: frozenset[str] = frozenset()  # modules that go by value by the user's wish, when last looked
        self._inline = Sent()  # classes that go by value with each command, since too many are sent under their name
        self._current: dict[Name, Ref] = {}  # plain name -> what the nodes have under it
        self._definitions: dict[bytes, Rests] = {}  # replaced, never changed: read without the lock
        self._idle: list[_CommandPickler] = []  # picklers with their buffers, for reuse; append and pop are atomic

    def encode_call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Encode a method call.

        Raises:
            UsageError: an argument cannot be sent; it says which and why.
        """
        if not kwargs and SCALARS.issuperset(map(type, args)):
            try:
                return _encode([method, *args])
            except (OverflowError, UnicodeEncodeError):
                pass  # an int of more than 64 bits, or a string with a lone surrogate: pickle takes these
        if beside.holds_array(args) or (kwargs and beside.holds_array(kwargs.values())):
            data = beside.dumps([method, list(args), kwargs])
            if data is not None:
                return formats.joined(ARRAYS, data)
        return _encode(_Ext(CALL, self.dumps((method, args, kwargs))))

    def encode_command(self, command: object) -> bytes:
        """Encode a command object, or any callable on the state.

        Raises:
            UsageError: it cannot be sent; it says why.
        """
        if BY_VALUE_MODULES:
            self._heed_registered()
        kind = type(command)
        if self._flat.get(kind) and kind in self._plain and SCALARS.issuperset(map(type, vars(command).values())):
            # Nothing in it needs a look, and its class is known there: plain data, at a third of what a pickle costs.
            module, name = kind.__module__, kind.__qualname__
            if getattr(sys.modules.get(module), name, None) is kind:  # else it has been redefined since
                with contextlib.suppress(OverflowError, UnicodeEncodeError):  # which pickle takes
                    return _encode(_Ext(FLAT, _encode((module, name, vars(command)))))
        return _encode(_Ext(OBJECT, self.dumps(command)))

    @property
    def definitions(self) -> list[bytes]:
        """The encoded definitions that a new session must be told of first, in order; never waits for the lock."""
        return list(self._definitions)

    @property
    def has_defined(self) -> bool:
        """Whether there are any."""
        return bool(self._definitions)

    def _heed_registered(self) -> None:
        """Look at every class again if modules were registered for going by value, or are not any more."""
        registered = frozenset(BY_VALUE_MODULES)
        if registered != self._registered:
            with self._lock:
                self._registered = registered
                for held in (self._plain, self._instances, self._flat):
                    held.clear()

    def dumps(self, value: Any, beside: list[memoryview] | None = None) -> bytes:
        """Pickle a value, defining what the nodes need first.

        Args:
            beside: takes large buffers, such as arrays have, which are then not in the pickle.
        """
        kind = type(value)
        if BY_VALUE_MODULES:
            self._heed_registered()
        try:
            pickler = self._idle.pop()
        except IndexError:
            pickler = _CommandPickler(self)
        pickler.beside = beside
        try:
            pickler.dump(value)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if beside:
                beside.clear()
            return self._dump_anew(value, error)
        finally:
            pickler.beside = None
        chunks = pickler.chunks
        if len(chunks) == 1 and not pickler.by_value:
            data = chunks.pop()
            pickler.clear_memo()
        else:
            data = pickler.take()
        self._idle.append(pickler)
        if kind in self._plain and kind not in self._flat:
            self._flat[kind] = _is_flat(kind)
        return data

    def _dump_anew(self, value: Any, first: BaseException) -> bytes:
        """Try again without what was remembered: a class may have been redefined since, in a notebook say.

        What is no Exception and does not come again was not the value's, but a signal handler's: it goes on its way.
        """
        if issubclass(type(first), ActorRaftError):
            raise first
        with self._lock:
            self._plain.clear()
            pickler = _CommandPickler(self)
            try:
                pickler.dump(value)
            except (ActorRaftError, KeyboardInterrupt):
                raise
            except BaseException as error:
                if not self._explains:
                    raise
                _refuse(value, error)
            if not issubclass(type(first), Exception):
                raise first
            return pickler.take()

    def _local(self, code: Any, pickler: _CommandPickler) -> Any:
        """Say how a class or function goes that no node can import, after sending its definition if need be."""
        with self._lock:
            name = name_of(code)
            plain = look_up(name) is code
            if not isinstance(code, type) and not plain:
                return pickler.inline(code, None)  # a closure, a lambda, a local function
            ref = self._sent.ref(code) or self._inline.ref(code)
            if ref is None or (plain and self._current.get(name) != ref) or _has_changed(code, ref):
                self._define(_outermost(name) if plain else code)
                if self._sent.ref(code) is None and self._inline.ref(code) is None:
                    self._define(code)
                ref = self._sent.ref(code) or self._inline.ref(code)
                assert ref is not None, f"{code} was neither defined nor refused"
            by_value = self._inline.ref(code) is not None
        if not plain:
            byvalue.local_code[ref.fingerprint] = code  # of several equal ones, the last that was sent comes back
            if by_value:
                return pickler.inline(code, ref)
            return byvalue.resolve, (ref.module, ref.qualname, ref.fingerprint)
        if type(code) is type:
            self._plain.add(code)
        return NotImplemented

    def _define(self, code: Any) -> None:
        pickler = _DefinitionPickler(self, code)
        try:
            _DefinitionPickler(self, code, rehearsal=True).dump(code)
            pickler.dump(code)
        except (ActorRaftError, KeyboardInterrupt):
            raise
        except BaseException as error:
            if not self._explains:
                raise
            _refuse(code, error)
        root = pickler.inlined[id(code)][1]
        if not root.plain and not self._is_worth_defining(code, root):
            return
        inlined = list(pickler.inlined.values())
        superseded = [
            old for _, ref in inlined if ref.plain and (old := self._current.get(ref.name)) is not None and old != ref
        ]
        new = {ref.fingerprint for _, ref in inlined}
        gone = [each for each in (*self._sent.take_gone(), *(ref.fingerprint for ref in superseded)) if each not in new]
        payload = [*sys.version_info[:2], [ref for _, ref in inlined], pickler.buffer.getvalue()]
        for made, ref in inlined:
            byvalue.local_code[ref.fingerprint] = made
        plainly = _encode(_Ext(DEFINITION, _encode(payload)))
        before, wanted = self._definitions, new | self._sent.held
        wanted.difference_update(gone)
        rests = Rests(frozenset(new), frozenset(pickler.named))
        # First: the session may end as soon as this is on its way.
        self._definitions = needed({**before, plainly: rests}, wanted)
        try:
            self._on_definition(_encode(_Ext(DEFINITION, _encode([*payload, gone]))) if gone else plainly)
        except BaseException:
            self._definitions = before
            self._sent.put_back(gone)
            raise
        for old in superseded:
            self._sent.let_go(old)
        for made, ref in inlined:
            self._sent.add(made, ref)
            if ref.plain:
                self._current[ref.name] = ref
        if superseded:
            for held in (self._plain, self._instances, self._flat):
                held.clear()  # they hold what had these names before

    def _is_worth_defining(self, code: Any, ref: Ref) -> bool:
        """Whether a class that no name leads to is to be defined: not if it is there already, nor the ninth of a name.

        A function that makes a class with every call may make equal ones; or each its own, and used once.
        """
        if self._sent.holds(ref.fingerprint):
            self._sent.add(code, ref)
            return False
        if self._sent.versions(ref.name) >= VERSIONS_MAX:
            self._inline.add(code, ref)
            self._inline.take_gone()  # of these nobody needs to be told
            return False
        return True


def _has_changed(code: Any, ref: Ref) -> bool:
    """Whether a function is not what it was, such as for a global; classes are what they were when they were sent."""
    return isinstance(code, types.FunctionType) and fingerprint_of(code) != ref.fingerprint


def _is_flat(kind: type) -> bool:
    """Whether pickle takes an instance apart into its class and its `__dict__`, and asks nobody how, either way."""
    asked = ("__reduce__", "__reduce_ex__", "__getstate__")
    own = ("__getnewargs__", "__getnewargs_ex__", "__setstate__", "__slots__")
    return (
        all(getattr(kind, name, None) is getattr(object, name) for name in asked)
        and not any(name in vars(each) for each in kind.__mro__[:-1] for name in own)
        and all(each.__flags__ & HEAP_TYPE for each in kind.__mro__[:-1])
        and kind not in copyreg.dispatch_table
    )


class _Chunks:
    """As much of a file as a pickler needs: a small pickle is written in one piece, which can be taken as it is."""

    __slots__ = ("write",)

    def __init__(self, chunks: list[bytes]) -> None:
        self.write = chunks.append


BESIDE_BYTES: Final = 64 << 10  # a buffer of this size is worth a part of its own


class _CommandPickler(CodePickler):
    """A reusable pickler of commands."""

    def __init__(self, owner: Encoder) -> None:
        self.chunks: list[bytes] = []
        super().__init__(_Chunks(self.chunks), owner._instances, owner._plain, self._on_buffer)
        self._owner = owner
        self.beside: list[memoryview] | None = None  # where large buffers go; None: into the pickle

    def _on_buffer(self, buffer: pickle.PickleBuffer) -> bool:
        """Whether a buffer is to go into the pickle."""
        if self.beside is None:
            return True
        try:
            raw = buffer.raw()
        except BufferError:  # it has gaps
            return True
        if raw.nbytes < BESIDE_BYTES:
            return True
        self.beside.append(raw)
        return False

    def take(self) -> bytes:
        """Return the pickle just made, and be ready for the next."""
        data = b"".join(self.chunks)
        self.chunks.clear()
        if self.by_value:
            data = mark_by_value(data)
        self.forget()
        return data

    def local(self, code: Any) -> Any:
        return self._owner._local(code, self)


class _DefinitionPickler(CodePickler):
    """Pickles one definition: the class or function asked for, and all it rests on that the nodes do not have yet.

    A rehearsal shows that all of it can be pickled at all; only then is it worth walking through for fingerprints.
    """

    def __init__(self, owner: Encoder, root: Any, *, rehearsal: bool = False) -> None:
        self.buffer = io.BytesIO()
        super().__init__(self.buffer, set(), set())
        self._owner = owner
        self._root = root
        self._rehearsal = rehearsal
        self.inlined: dict[int, tuple[Any, Ref]] = {}
        self.named: set[bytes] = set()  # fingerprints of what it rests on

    def reducer_override(self, obj: Any) -> Any:
        return byvalue.reduce_method(obj) if type(obj) is types.MethodType else super().reducer_override(obj)

    def local(self, code: Any) -> Any:
        name = name_of(code)
        plain = look_up(name) is code
        if not isinstance(code, type) and not plain:
            return self.inline(code, None)
        _check_definable(code)
        known = self._owner._sent.ref(code)
        if known is not None and code is not self._root and (self._rehearsal or not _has_changed(code, known)):
            self.named.add(known.fingerprint)
            return byvalue.resolve, (known.module, known.qualname, known.fingerprint)
        ref = Ref(*name, b"" if self._rehearsal else fingerprint_of(code), plain)
        self.inlined[id(code)] = code, ref
        return self.inline(code, ref)


def _check_definable(code: Any) -> None:
    if isinstance(code, msgspec.StructMeta):
        raise UsageError(
            f"{code.__module__}.{code.__qualname__} is a msgspec.Struct, which cannot be taken apart and rebuilt in "
            "another process: put it in a module that the nodes can import"
        )


def _outermost(name: Name) -> Any:
    """Return the class around a nested one: by its plain name, the inner one is found through it."""
    return look_up((name[0], name[1].partition(".")[0]))


# --- Saying why something cannot be sent ------------------------------------------------------------------------------


def _refuse(value: Any, error: BaseException) -> NoReturn:
    path, reason = f"a {exceptions.name(type(value))}", error
    try:
        path, reason = _blame(value, error, _describe(value), depth=5)
    except KeyboardInterrupt:
        raise
    except BaseException:
        pass  # whatever it did when it was looked at; its type is named
    plain = issubclass(type(reason), TypeError | AttributeError | RecursionError | pickle.PicklingError)
    why = exceptions.message(reason) if plain else exceptions.summary(reason)  # what else it is says the most
    raise UsageError(f"cannot send {path}: {why}") from error


def _describe(value: Any) -> str:
    if isinstance(value, type | types.FunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    return f"a {type(value).__qualname__}"


def _blame(value: Any, error: BaseException, path: str, depth: int) -> tuple[str, BaseException]:
    """Find the innermost part that cannot be pickled, so that the message names it."""
    if depth == 0 or any(
        "__reduce__" in vars(each) for each in type(value).__mro__[:-1] if each.__module__ != "builtins"
    ):
        return path, error
    for where, part in _parts(value):
        pickler = _CommandPickler(Encoder(lambda _: None, explains=False))
        try:
            pickler.dump(part)
        except KeyboardInterrupt:
            raise
        except BaseException as inner:
            return _blame(part, inner, f"{path}{where}", depth - 1)
    return path, error


def _parts(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [(f"[{key!r:.100}]", part) for key, part in value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        return [(f"[{position}]", part) for position, part in enumerate(value)]
    if isinstance(value, types.FunctionType):
        if is_importable(value):
            return []
        names = cloudpickle._extract_code_globals(value.__code__)
        found = [(f" (its global {name})", value.__globals__[name]) for name in names if name in value.__globals__]
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=False)
        return found + [(f" (its variable {name})", cell.cell_contents) for name, cell in cells if _filled(cell)]
    if isinstance(value, type):
        return [] if is_importable(value) else [(f".{k}", v) for k, v in byvalue.class_attributes(value).items()]
    if isinstance(value, types.MethodType):
        return [(" (its object)", value.__self__)]
    return [(f".{name}", part) for name, part in _attributes(value).items()]


def _attributes(value: Any) -> dict[str, Any]:
    slots = [name for each in type(value).__mro__ for name in _as_names(vars(each).get("__slots__", ()))]
    found = {name: getattr(value, name) for name in slots if hasattr(value, name) and name != "__dict__"}
    return {**found, **getattr(value, "__dict__", {})}


def _as_names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


# --- The machine's class and its arguments ----------------------------------------------------------------------------


def encode_factory(machine: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """Encode what builds a machine, for `MachineHost.from_factory` in another process.

    Raises:
        UsageError: `machine` is an instance, or something cannot be sent; it says what and why.
    """
    if not isinstance(
        machine, type | types.FunctionType | types.BuiltinFunctionType | types.MethodType | functools.partial
    ):
        kind = type(machine).__qualname__
        raise UsageError(
            f"give the class, not an instance: ReplicatedStateMachine({kind}, ...) and the arguments of its "
            "constructor; each node makes an instance of its own"
        )
    definitions: list[bytes] = []
    data = Encoder(definitions.append).dumps((machine, args, kwargs))
    return _encode((*sys.version_info[:2], definitions, data))


def machine_name(machine: Callable[..., Any], args: tuple[Any, ...] = ()) -> str:
    """Return the name under which data remembers whose it is: the class's `machine_name`, else module:qualname.

    Raises:
        UsageError: `machine_name` is no name.
    """
    if machine is CommandObjects and args:
        return machine_name(args[0])
    if isinstance(machine, functools.partial):
        return machine_name(machine.func)
    if not isinstance(machine, type) or (own := defined(machine, "machine_name", None)) is None:
        return ":".join(name_of(machine))
    if type(own) is not str or not own.isprintable() or not own.strip():
        raise UsageError(f"{exceptions.name(machine)}.machine_name is a text that names the machine, not {own!r}")
    return own
