"""The classes and functions that clients have defined: replicated state of a node, and how its pickles are read.

A definition is a command: from its place in the log on, a plain name means what it defines. An equal one (by
fingerprint) changes nothing, so a second client running the same script finds the same class objects; a changed one
is a second version beside the first, and what was made of the first stays what it was.

Source:     contract section 1, "code and data on the way".
Invariant:  after the same entries the same definitions, whether they came from the log or from a snapshot.
Shape:      a payload is msgpack: (major, minor, [Ref, ...], pickle). The version is looked at before the pickle is.
Threads:    one thread at a time.
"""

from __future__ import annotations

import functools
import importlib
import io
import pickle
import sys
import types
from collections.abc import Iterable
from typing import Any

import cloudpickle.cloudpickle as cp  # type: ignore[import-untyped]
import msgspec

from actorraft.errors import UnknownType, UsageError
from actorraft.pickling import byvalue, exceptions
from actorraft.pickling.arrays import reduce_read_only
from actorraft.pickling.byvalue import CodePickler, Ref
from actorraft.pickling.formats import BY_VALUE, MOVED, check_python, mark_by_value
from actorraft.pickling.names import Name, look_up

_flat_decoder = msgspec.msgpack.Decoder(tuple[str, str, dict[str, Any]])
_payload_decoder = msgspec.msgpack.Decoder(tuple[int, int, list[Ref], bytes])


class Definitions:
    """What the names that no node can import mean; and the pickles read and written in their light."""

    def __init__(self) -> None:
        self._objects: dict[bytes, Any] = {}  # by fingerprint; every version there ever was
        self._refs: dict[int, Ref] = {}  # by id of an object in _objects
        self._current: dict[Name, Any] = {}  # what a plain name means now
        self._base: dict[Name, Any] = {}  # the same, before anything was defined in the log
        self._payloads: dict[bytes, None] = {}  # from the log, in order
        self._named: dict[Name, bytes] = {}  # from the log: name -> fingerprint
        self._failed: dict[Name, str] = {}  # from the log: names whose definition did not work
        self._building: dict[int, Any] = {}
        self._instances: set[type] = set()
        self._plain: set[Any] = set()
        self._cached = self._make_finder()
        self._reader = type("Reader", (pickle.Unpickler,), {"find_class": staticmethod(self._cached)})

    # --- Defining ---

    def define(self, payload: Any, *, base: bool = False) -> None:
        """Take up a definition; `base` says that it is not from the log but this process's own.

        Raises:
            UsageError: it is of another Python version.
            Exception: whatever building the classes raised.
        """
        try:
            major, minor, refs, body = _payload_decoder.decode(payload)
        except msgspec.DecodeError as error:
            raise UsageError(f"not a definition: {error}") from error
        try:
            check_python(major, minor, "the definition of " + ", ".join(f"{m}:{q}" for m, q, _, _ in refs))
            if any(ref.fingerprint not in self._objects for ref in refs):
                self._build(refs, body)
        except BaseException as error:
            self._failed.update({ref.name: exceptions.summary(error) for ref in refs})
            raise
        for ref in refs:
            self._failed.pop(ref.name, None)
            if ref.plain:
                self._point(ref.name, ref.fingerprint)
                if base:
                    self._base[ref.name] = self._objects[ref.fingerprint]
                else:
                    self._named[ref.name] = ref.fingerprint
        if not base:
            self._payloads.setdefault(bytes(payload))

    def _build(self, refs: list[Ref], body: bytes) -> None:
        """Build what is new in a definition; the unfinished is thrown away if anything goes wrong."""
        before = set(self._objects)
        try:
            self.loads(body)
        except BaseException:
            for fingerprint in [each for each in self._objects if each not in before]:
                self._refs.pop(id(self._objects.pop(fingerprint)), None)
            raise
        finally:
            self._building.clear()
        missing = [ref for ref in refs if ref.fingerprint not in self._objects]
        if missing:
            raise UsageError(f"a definition does not hold what it names: {missing[0].module}:{missing[0].qualname}")

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
        if found is None:
            found = byvalue.local_code.get(ref.fingerprint)  # a simulation: the caller is in this very process
            if found is not None:
                self._objects[ref.fingerprint] = found
                self._refs[id(found)] = ref
        return found

    def _began(self, ref: Ref | None, made: Any) -> Any:
        self._building[id(made)] = made
        if ref is not None:
            self._objects[ref[2]] = made
            self._refs[id(made)] = Ref(*ref)
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

    def _resolve(self, module: str, qualname: str, fingerprint: bytes) -> Any:
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
                found = getattr(importlib.import_module(module), outer)
            for part in inner:
                found = getattr(found, part)
        except (ImportError, AttributeError, ValueError) as error:
            why = self._failed.get((module, qualname))
            if why is not None:  # on every node alike, so it has no cause that another may not have
                raise UnknownType(f"the nodes have no {module}:{qualname} ({why})") from None
            raise UnknownType(f"the nodes have no {module}:{qualname} ({error})") from error
        return found

    # --- Reading and writing pickles ---

    def _make_finder(self) -> Any:
        """Make what finds a global for an unpickler. The cache is in C; with it, this is faster than pickle.loads."""
        ours = {
            "begin_class": self._begin_class,
            "begin_enum": self._begin_enum,
            "begin_function": self._begin_function,
            "finish_class": self._finish_class,
            "finish_function": self._finish_function,
            "resolve": self._resolve,
        }

        def find(module: str, qualname: str) -> Any:
            module = MOVED.get(module, module)
            mine = ours.get(qualname) if module == byvalue.__name__ else None
            return mine or self._find(module, qualname)

        return functools.lru_cache(maxsize=4096)(find)

    def loads(self, data: Any) -> Any:
        """Read a pickle that a client or a node made.

        Raises:
            UnknownType: it names a class or function that is not known here.
            UsageError: it holds code of another Python version.
        """
        try:
            if data[0] != BY_VALUE:
                return self._reader(io.BytesIO(data)).load()
            check_python(data[1], data[2], "a command")
            return self._reader(io.BytesIO(data[3:])).load()
        except ImportError as error:
            raise UnknownType(f"the nodes cannot import what this needs: {error}") from error
        except RecursionError as error:
            raise UsageError("a command is too deeply nested to be read") from error
        finally:
            if self._building:
                self._building.clear()

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
        return self._reader(file).load()

    def dumps(self, value: Any) -> bytes:
        """Pickle a result: plainly if that will do."""
        try:
            return pickle.dumps(value, byvalue.PROTOCOL)
        except Exception:
            buffer = io.BytesIO()
            pickler = _Writer(buffer, self)
            pickler.dump(value)
            data = buffer.getvalue()
            return mark_by_value(data) if pickler.by_value else data

    def dump(self, value: Any, file: Any) -> None:
        """Pickle a part of the state to a file."""
        _Writer(file, self).dump(value)

    # --- State ---

    def state(self) -> list[Any]:
        """Return what a snapshot holds of this."""
        named = [[*name, fingerprint] for name, fingerprint in self._named.items()]
        failed = [[*name, why] for name, why in self._failed.items()]
        return [list(self._payloads), named, failed]

    def restore(self, state: Iterable[Any]) -> None:
        """Become what `state` was taken from; what is known already by fingerprint stays the same object.

        Raises:
            UsageError: it holds code of another Python version.
        """
        payloads, named, failed = state
        self._payloads.clear()
        self._named.clear()
        self._current = dict(self._base)
        for payload in payloads:
            self.define(payload)
        for module, qualname, fingerprint in named:
            self._named[module, qualname] = fingerprint
            self._point((module, qualname), fingerprint)
        self._failed = {(module, qualname): why for module, qualname, why in failed}
        self._cached.cache_clear()


class _Writer(CodePickler):
    """Pickles on a node: what clients defined goes by its exact version, code made here by value."""

    def __init__(self, file: Any, definitions: Definitions) -> None:
        super().__init__(file, definitions._instances, set())
        self._definitions = definitions

    def reducer_override(self, obj: Any) -> Any:
        found = super().reducer_override(obj)
        return reduce_read_only(obj) if found is NotImplemented and hasattr(type(obj), "__array_finalize__") else found

    def local(self, code: Any) -> Any:
        ref = self._definitions._refs.get(id(code))
        if ref is None:
            return self.inline(code, None)
        if self._definitions._current.get(ref.name) is code and look_up(ref.name) is code:
            return NotImplemented
        return byvalue.resolve, (ref.module, ref.qualname, ref.fingerprint)


def _install(name: Name, found: Any, ours: dict[int, Ref]) -> None:
    """Let a module of this process have what was defined for it, so that plain pickle and type hints find it too.

    Nothing is replaced but what came here the same way.
    """
    module_name, qualname = name
    module = sys.modules.get(module_name)
    if module is None:
        module = sys.modules[module_name] = types.ModuleType(module_name, "Definitions that came over the log.")
    if "." in qualname:
        return
    present = getattr(module, qualname, None)
    if present is None or id(present) in ours:
        setattr(module, qualname, found)
