"""The classes and functions that clients have defined: replicated state of a node, and how its pickles are read.

A definition is a command: from its place in the log on, a plain name means what it defines. An equal one (by
fingerprint) changes nothing, so a second client running the same script finds the same class objects; a changed one
is a second version beside the first, and what was made of the first stays what it was.

A definition is kept as long as its name means it, or a client holds it (it sent it, has not said that it is gone there,
and its session lives), or one that is kept rests on it. One that is no longer kept may still be the class of something
in the state. It lives on as that does, is written beside it where the state is pickled, and is made again with it.

Source:     docs/decisions/0015 and 0025.
Invariant:  after the same entries the same definitions are kept, whether they came from the log or from a snapshot.
            What the garbage collector does decides about memory, never about what a name means.
Shape:      a payload is msgpack: (major, minor, [Ref, ...], pickle, fingerprints that are gone at the sender). The
            version is looked at before the pickle is.
Threads:    one thread at a time.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import pickle
import sys
import types
import weakref
from collections.abc import Iterable
from typing import Any

import cloudpickle.cloudpickle as cp  # type: ignore[import-untyped]
import msgspec

from actorraft.errors import UnknownType, UsageError
from actorraft.pickling import byvalue, exceptions
from actorraft.pickling.arrays import reduce_read_only
from actorraft.pickling.byvalue import CodePickler, Ref
from actorraft.pickling.formats import BY_VALUE, MOVED, check_python, mark_by_value
from actorraft.pickling.names import Name, can_be_found, look_up
from actorraft.pickling.pins import Pins
from actorraft.pickling.rests import Rests, needed

_flat_decoder = msgspec.msgpack.Decoder(tuple[str, str, dict[str, Any]])
_encode = msgspec.msgpack.Encoder().encode

ANYBODY = -1  # holds what came from a snapshot of 0.1.0, which did not say for whom


class Payload(msgspec.Struct, array_like=True):
    """A definition as it travels."""

    major: int
    minor: int
    refs: list[Ref]
    body: bytes
    gone: list[bytes] = []


_payload_decoder = msgspec.msgpack.Decoder(Payload)


class Definitions:
    """What the names that no node can import mean; and the pickles read and written in their light.

    Args:
        own_first: a class or function of that name which this process has without having been sent it is what the name
            means here, whatever a definition says: for a process that is no node, and has a script of its own.
    """

    pins: Pins | None = None  # where modules of commands are kept, as they were loaded first
    machine: Any = None  # whose state is read: what refers to it there means this one

    def __init__(self, *, own_first: bool = False) -> None:
        self._own_first = own_first
        self._made: set[int] = set()  # ids of what was built here
        self._objects: dict[bytes, Any] = {}  # by fingerprint: what is kept
        self._loose: weakref.WeakValueDictionary[bytes, Any] = weakref.WeakValueDictionary()  # what lives all the same
        self._loose_payloads: dict[
            bytes, list[bytes]
        ] = {}  # what that is made of, in order; of code in a command: none
        self._refs: dict[int, Ref] = {}  # by id of an object in _objects or _loose
        self._current: dict[Name, Any] = {}  # what a plain name means now
        self._base: dict[Name, Any] = {}  # the same, before anything was defined in the log
        self._payloads: dict[bytes, Rests] = {}  # from the log, in order: each after what it names
        self._provided: set[bytes] = set()  # what they define
        self._holders: dict[bytes, set[int]] = {}  # from the log: fingerprint -> sessions of those who hold it
        self._named: dict[Name, bytes] = {}  # from the log: name -> fingerprint
        self._failed: dict[Name, str] = {}  # from the log: names whose definition did not work
        self._building: dict[int, Any] = {}
        self._named_by_body: set[bytes] | None = None  # while a definition is built
        self._reviving: list[Any] = []
        self._instances: set[type] = set()
        self._plain: set[Any] = set()
        self._cached = self._make_finder()
        self._reader = type("Reader", (pickle.Unpickler,), {"find_class": staticmethod(self._cached)})

    # --- Defining ---

    def define(self, payload: Any, owner: int = ANYBODY, *, base: bool = False) -> None:
        """Take up a definition, and let go of what is gone at its sender.

        Args:
            payload: as it came.
            owner: the session of who sent it.
            base: it is not from the log but this process's own; it is kept for ever.

        Raises:
            UsageError: it is of another Python version.
            Exception: whatever building the classes raised.
        """
        try:
            definition = _payload_decoder.decode(payload)
        except msgspec.DecodeError as error:
            raise UsageError(f"not a definition: {error}") from error
        try:
            self._define(definition, owner, base)
        finally:
            if definition.gone:
                for fingerprint in definition.gone:
                    self._holders.get(fingerprint, set()).discard(owner)
                self._let_go()

    def _define(self, definition: Payload, owner: int, base: bool) -> None:
        refs = definition.refs
        needs: frozenset[bytes] = frozenset()
        new = any(ref.fingerprint not in self._provided for ref in refs)
        try:
            what = "the definition of " + ", ".join(f"{m}:{q}" for m, q, _, _ in refs)
            check_python(definition.major, definition.minor, what)
            if new or any(ref.fingerprint not in self._objects for ref in refs):
                needs = self._build(refs, definition.body)
        except BaseException as error:
            self._failed.update({ref.name: exceptions.summary(error) for ref in refs})
            raise
        superseded = False
        for ref in refs:
            self._failed.pop(ref.name, None)
            if not base:
                self._holders.setdefault(ref.fingerprint, set()).add(owner)
            if ref.plain:
                superseded |= self._named.get(ref.name, ref.fingerprint) != ref.fingerprint
                self._point(ref.name, ref.fingerprint)
                if base:
                    self._base[ref.name] = self._objects[ref.fingerprint]
                else:
                    self._named[ref.name] = ref.fingerprint
        if new and not base:
            data = _encode((definition.major, definition.minor, refs, definition.body))
            self._payloads[data] = Rests(frozenset(ref.fingerprint for ref in refs), needs)
            self._provided.update(self._payloads[data].defines)
        if superseded:
            self._let_go()

    def _build(self, refs: list[Ref], body: bytes) -> frozenset[bytes]:
        """Build what is new in a definition; the unfinished is thrown away if anything goes wrong.

        Returns:
            The fingerprints of what it names of other definitions.
        """
        before, outer = set(self._objects), (self._building, self._named_by_body)
        self._building, self._named_by_body = {}, set()
        try:
            self.loads(body)
            needs = frozenset(self._named_by_body)
        except BaseException:
            for fingerprint in [each for each in self._objects if each not in before]:
                self._refs.pop(id(self._objects.pop(fingerprint)), None)
            raise
        finally:
            self._building, self._named_by_body = outer
        missing = [ref for ref in refs if ref.fingerprint not in self._objects]
        if missing:
            raise UsageError(f"a definition does not hold what it names: {missing[0].module}:{missing[0].qualname}")
        return needs

    # --- Letting go ---

    def end_session(self, owner: int) -> None:
        """Let go of what only this session held."""
        held = [holders for holders in self._holders.values() if owner in holders]
        for holders in held:
            holders.discard(owner)
        if held:
            self._let_go()

    def _let_go(self) -> None:
        """Stop keeping the definitions that nothing needs, as far as the log says."""
        wanted = {fingerprint for fingerprint, holders in self._holders.items() if holders}
        wanted.update(self._named.values())
        kept = needed(self._payloads, wanted)
        if len(kept) == len(self._payloads):
            return
        before, self._payloads = self._payloads, kept
        self._provided = {fingerprint for one in kept.values() for fingerprint in one.defines}
        for payload, one in before.items():
            for fingerprint in () if payload in kept else one.defines - self._provided:
                self._loosen(fingerprint, _rests_on(payload, before))
        self._cached.cache_clear()

    def _loosen(self, fingerprint: bytes, payloads: list[bytes]) -> None:
        """Let a class or function live on only as long as the state holds something of it."""
        self._holders.pop(fingerprint, None)
        code = self._objects.get(fingerprint)
        if code is None or any(code is each for each in self._base.values()):
            return
        del self._objects[fingerprint]
        self._instances.discard(code)
        self._loose_payloads[fingerprint] = payloads
        self._live_loosely(fingerprint, code)

    def _live_loosely(self, fingerprint: bytes, code: Any) -> None:
        self._loose[fingerprint] = code
        weakref.finalize(code, self._ended, fingerprint, id(code)).atexit = False

    def _ended(self, fingerprint: bytes, key: int) -> None:
        self._refs.pop(key, None)
        self._made.discard(key)
        if fingerprint not in self._loose:
            self._loose_payloads.pop(fingerprint, None)

    def _point(self, name: Name, fingerprint: bytes) -> None:
        found = self._current[name] = self._objects[fingerprint]
        if fingerprint not in byvalue.local_code:
            _install(name, found, self._refs)
        self._cached.cache_clear()

    # --- Called by pickles ---

    def _known(self, ref: Ref | None) -> Any:
        if ref is None:
            return None
        ref = Ref(*ref)
        found = self._objects.get(ref.fingerprint)
        if found is None and self._own_first and ref.plain:
            own = look_up(ref.name)
            if own is not None and id(own) not in self._made:
                self._take_in(ref, own)
                return own
        if found is None:
            found = self._loose.get(ref.fingerprint)
            if found is None:
                found = byvalue.local_code.get(ref.fingerprint)  # a simulation: the caller is in this very process
            if found is not None:
                self._take_in(ref, found)
        return found

    def _take_in(self, ref: Ref, code: Any) -> None:
        """Remember what has this fingerprint: for good if it is being defined, loosely if it came with a command."""
        self._refs[id(code)] = ref
        if self._named_by_body is not None:
            self._objects[ref.fingerprint] = code
        elif self._loose.get(ref.fingerprint) is not code:
            self._live_loosely(ref.fingerprint, code)

    def _began(self, ref: Ref | None, made: Any) -> Any:
        self._building[id(made)] = made
        if self._own_first:
            self._made.add(id(made))
        if ref is not None:
            self._take_in(Ref(*ref), made)
        return made

    def _begin_class(self, ref: Ref | None, *arguments: Any) -> Any:
        known = self._known(ref)
        return self._began(ref, byvalue.build_class(*arguments)) if known is None else known

    def _begin_enum(self, ref: Ref | None, *arguments: Any) -> Any:
        known = self._known(ref)
        return self._began(ref, byvalue.begin_enum(None, *arguments)) if known is None else known

    def _begin_function(self, ref: Ref | None, *arguments: Any) -> Any:
        known = self._known(ref)
        return self._began(ref, byvalue.build_function(*arguments)) if known is None else known

    def _finish_class(self, cls: Any, state: Any) -> None:
        if self._building.pop(id(cls), None) is not None:
            byvalue.fill_class(cls, *state)

    def _finish_function(self, function: Any, state: Any) -> None:
        if self._building.pop(id(function), None) is not None:
            cp._function_setstate(function, state)

    def _revive(self, module: str, qualname: str, fingerprint: bytes, payloads: list[bytes]) -> Any:
        """Return a class or function that is no longer kept and that something in a state is of."""
        found = self._objects.get(fingerprint)
        if found is None:
            found = self._loose.get(fingerprint)
        if found is None:
            found = self._make_again(fingerprint, payloads)
        return self._resolve(module, qualname, fingerprint) if found is None else found

    def _make_again(self, fingerprint: bytes, payloads: list[bytes]) -> Any:
        kept = dict(self._objects)
        try:
            for payload in payloads:
                definition = _payload_decoder.decode(payload)
                check_python(definition.major, definition.minor, "the state")
                self._build(definition.refs, definition.body)
            made = {each: code for each, code in self._objects.items() if each not in kept}
        finally:
            self._objects = kept
        for each, code in made.items():
            self._loose_payloads.setdefault(each, payloads)
            self._live_loosely(each, code)
        self._reviving.extend(made.values())  # they live until what is read now holds them
        return made.get(fingerprint)

    def _resolve(self, module: str, qualname: str, fingerprint: bytes) -> Any:
        if self._named_by_body is not None:
            self._named_by_body.add(fingerprint)
        found = self._objects.get(fingerprint)
        if found is None:
            found = byvalue.local_code.get(fingerprint)
        return self._find(module, qualname) if found is None else found

    def _find(self, module: str, qualname: str) -> Any:
        """Return what a plain name means: what was defined last, else what can be imported.

        Raises:
            UnknownType: nothing has this name.
        """
        found = self._current.get((module, qualname))
        if found is not None:
            return found
        outer, *inner = qualname.split(".")
        try:
            found = self._current.get((module, outer))
            if found is None:
                found = getattr(self._import(module), outer)
            for part in inner:
                found = getattr(found, part)
        except (ImportError, AttributeError, ValueError) as error:
            why = self._failed.get((module, qualname))
            if why is not None:  # on every node alike, so it has no cause that another may not have
                raise UnknownType(f"the nodes have no {module}:{qualname} ({why})") from None
            raise UnknownType(f"the nodes have no {module}:{qualname} ({error})") from error
        return found

    def _import(self, module: str) -> Any:
        found = sys.modules.get(module)
        if found is not None or self.pins is None:
            return importlib.import_module(module)
        with self.pins.keeping():
            return importlib.import_module(module)

    # --- Reading and writing pickles ---

    def _make_finder(self) -> Any:
        """Make what finds a global for an unpickler. The cache is in C; with it, this is faster than pickle.loads."""
        ours = {
            "begin_class": self._begin_class,
            "begin_enum": self._begin_enum,
            "begin_function": self._begin_function,
            "finish_class": self._finish_class,
            "finish_function": self._finish_function,
            "itself": lambda: self.machine,
            "resolve": self._resolve,
            "revive": self._revive,
        }

        def find(module: str, qualname: str) -> Any:
            module = MOVED.get(module, module)
            mine = ours.get(qualname) if module == byvalue.__name__ else None
            return mine or self._find(module, qualname)

        return functools.lru_cache(maxsize=4096)(find)

    def loads(self, data: Any, buffers: list[Any] | None = None) -> Any:
        """Read a pickle that a client or a node made; `buffers`: what came beside it.

        Raises:
            UnknownType: it names a class or function that is not known here.
            UsageError: it holds code of another Python version.
        """
        try:
            if data[0] != BY_VALUE:
                return self._reader(io.BytesIO(data), buffers=buffers).load()
            check_python(data[1], data[2], "a command")
            return self._reader(io.BytesIO(data[3:]), buffers=buffers).load()
        except ImportError as error:
            raise UnknownType(f"the nodes cannot import what this needs: {error}") from error
        except RecursionError as error:
            raise UsageError("a command is too deeply nested to be read") from error
        finally:
            if self._building:
                self._building.clear()
            if self._reviving and self._named_by_body is None:
                self._reviving.clear()

    def rebuild(self, data: Any) -> Any:
        """Make the object that an Encoder took apart into plain data, as its pickle would make it.

        Raises:
            UnknownType: its class is not known here.
            UsageError, ValueError: these bytes are no such object.
        """
        try:
            module, qualname, attributes = _flat_decoder.decode(data)
        except RecursionError as error:
            raise UsageError("a command is too deeply nested to be read") from error
        kind = self._cached(module, qualname)
        made = kind.__new__(kind)
        own = made.__dict__
        for name, value in attributes.items():
            own[sys.intern(name)] = value
        return made

    def load(self, file: Any) -> Any:
        """Read the next pickle of a file."""
        try:
            return self._reader(file).load()
        finally:
            self._reviving.clear()

    def dumps(self, value: Any, *, for_state: bool = False, machine: Any = None) -> bytes:
        """Pickle a result, plainly if that will do, or a small part of the state of a machine, as `dump` does."""
        if not for_state:
            with contextlib.suppress(Exception):
                return pickle.dumps(value, byvalue.PROTOCOL)
        buffer = io.BytesIO()
        pickler = _Writer(buffer, self, for_state=for_state, machine=machine)
        pickler.dump(value)
        data = buffer.getvalue()
        return mark_by_value(data) if pickler.by_value else data

    def dump(self, value: Any, file: Any, machine: Any = None, *, holds_it: bool = False) -> None:
        """Pickle a part of the state to a file, with what it takes to read it anywhere.

        Args:
            machine: whose state it is; what refers to it in there will refer to the machine that reads it, not to
                another one beside it. None: the value is the machine.
            holds_it: the machine may be in there as the state itself, and only its methods refer to it.
        """
        _Writer(file, self, for_state=True, machine=machine, holds_it=holds_it).dump(value)

    # --- State ---

    def state(self) -> list[Any]:
        """Return what a snapshot holds of this."""
        named = [[*name, fingerprint] for name, fingerprint in self._named.items()]
        failed = [[*name, why] for name, why in self._failed.items()]
        holders = [[fingerprint, sorted(each)] for fingerprint, each in sorted(self._holders.items()) if each]
        return [list(self._payloads), named, failed, holders]

    def restore(self, state: Iterable[Any]) -> None:
        """Become what `state` was taken from; what is known already by fingerprint stays the same object.

        Raises:
            UsageError: it holds code of another Python version.
        """
        payloads, named, failed, *more = state
        before = self._payloads
        self._payloads, self._provided, self._holders = {}, set(), {}
        for name, fingerprint in self._named.items():
            if name not in self._base and fingerprint not in byvalue.local_code:
                _uninstall(name, self._current.get(name))
        self._named.clear()
        self._current = dict(self._base)
        for payload in payloads:
            self.define(payload)
        if more:
            self._holders = {fingerprint: set(sessions) for fingerprint, sessions in more[0]}
        for payload, one in before.items():
            for fingerprint in one.defines - self._provided:
                self._loosen(fingerprint, _rests_on(payload, before))
        for module, qualname, fingerprint in named:
            self._named[module, qualname] = fingerprint
            self._point((module, qualname), fingerprint)
        self._failed = {(module, qualname): why for module, qualname, why in failed}
        self._cached.cache_clear()


class _Itself:
    """Stands for the machine where only a method of it is meant."""

    def __reduce__(self) -> Any:
        return byvalue.itself, ()


class _Writer(CodePickler):
    """Pickles on a node: what clients defined goes by its exact version, code made here by value."""

    def __init__(
        self,
        file: Any,
        definitions: Definitions,
        *,
        for_state: bool = False,
        machine: Any = None,
        holds_it: bool = False,
    ) -> None:
        super().__init__(file, definitions._instances, set())
        self._definitions = definitions
        self._for_state = for_state
        self._machine = machine
        self._holds_it = holds_it

    def reducer_override(self, obj: Any) -> Any:
        if self._machine is not None:
            if obj is self._machine and not self._holds_it:
                return byvalue.itself, ()
            if self._holds_it and type(obj) is types.MethodType and obj.__self__ is self._machine:
                name = obj.__func__.__name__
                if getattr(type(self._machine), name, None) is obj.__func__:
                    return getattr, (_Itself(), name)
        found = super().reducer_override(obj)
        return reduce_read_only(obj) if found is NotImplemented and hasattr(type(obj), "__array_finalize__") else found

    def local(self, code: Any) -> Any:
        ref = self._definitions._refs.get(id(code))
        if ref is None:
            return self.inline(code, None)
        if self._definitions._current.get(ref.name) is code and look_up(ref.name) is code:
            return NotImplemented
        if self._for_state and ref.fingerprint not in self._definitions._objects:
            payloads = self._definitions._loose_payloads.get(ref.fingerprint)
            if payloads is None:
                return self.inline(code, ref)
            return byvalue.revive, (ref.module, ref.qualname, ref.fingerprint, payloads)
        return byvalue.resolve, (ref.module, ref.qualname, ref.fingerprint)


def _rests_on(payload: bytes, payloads: dict[bytes, Rests]) -> list[bytes]:
    """Return a payload and those before it that it needs, in order."""
    needs, found = set(payloads[payload].needs), [payload]
    order = list(payloads)
    for before in reversed(order[: order.index(payload)]):
        if not needs.isdisjoint(payloads[before].defines):
            needs = (needs - payloads[before].defines) | payloads[before].needs
            found.append(before)
    return found[::-1]


def _install(name: Name, found: Any, ours: dict[int, Ref]) -> None:
    """Let a module of this process have what was defined for it, so that plain pickle and type hints find it too.

    Nothing is replaced but what came here the same way.
    """
    module_name, qualname = name
    module = sys.modules.get(module_name)
    if module is None and can_be_found(module_name):
        return  # sent by value by the user's wish; whoever imports it here finds what is on the disk
    if module is None:
        module = sys.modules[module_name] = types.ModuleType(module_name, "Definitions that came over the log.")
    if "." in qualname:
        return
    present = getattr(module, qualname, None)
    if present is None or id(present) in ours:
        setattr(module, qualname, found)


def _uninstall(name: Name, code: Any) -> None:
    """Take back what `_install` put there: a node that never had it must not find more than this one."""
    module = vars(sys.modules.get(name[0], types))
    if code is not None and module.get(name[1]) is code:
        del module[name[1]]
