"""Pickling that takes importable classes and functions by name and, where it must, others by value.

cloudpickle does the hard part, functions and their globals. Classes are reduced here, for cloudpickle 3.1 rebuilds
them wrongly: slotted ones without their slots, enums without aliases or what their constructors set, sentinels of
dataclasses as strangers. A class is built in two steps, so that it may mention itself: `begin_class` makes it empty,
`finish_class` fills it.

Shape:      a Ref says what a class or function is called in the whole cluster: module, qualified name, fingerprint,
            and whether it is what its module has under that name (then plain pickle names it as well).
            The functions that a pickle calls (`resolve`, `begin_*`, `finish_*`) are those of a client; on a node
            definitions.py puts its own in their place.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import enum
import functools
import importlib
import io
import math
import operator
import pickle
import sys
import threading
import types
import typing
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import cloudpickle.cloudpickle as cp  # type: ignore[import-untyped]

from actorraft.errors import UnknownType
from actorraft.pickling.canonical import Walk
from actorraft.pickling.names import Name, is_importable, look_up, module_is_importable, name_of

PROTOCOL: Final = 5
HEAP_TYPE: Final = 1 << 9


class Ref(NamedTuple):
    """The name of a class or function that the nodes cannot import, and a fingerprint of what it is."""

    module: str
    qualname: str
    fingerprint: bytes
    plain: bool

    @property
    def name(self) -> Name:
        return self.module, self.qualname


# --- The pickler ------------------------------------------------------------------------------------------------------


class CodePickler(pickle.Pickler):
    """A pickler that asks `local` about each class and function that a fresh interpreter cannot import.

    Args:
        file: where the bytes go.
        instances: types whose instances need no thought; shared by picklers of one owner and filled as they go.
        plain: classes that go by name; likewise.
        on_buffer: as pickle's buffer_callback.
    """

    def __init__(self, file: Any, instances: set[type], plain: set[Any], on_buffer: Any = None) -> None:
        super().__init__(file, PROTOCOL, buffer_callback=on_buffer)
        self.instances = instances
        self.plain = plain
        self.by_value = False  # whether code objects went in: then only the same Python minor version can read it
        self._globals: dict[int, dict[str, Any]] = {}

    def forget(self) -> None:
        """Be ready for another pickle."""
        self.clear_memo()
        self.by_value = False
        self._globals = {}

    def reducer_override(self, obj: Any) -> Any:
        """Called by C for every object that is no plain builtin; the first two lines are the hot path."""
        kind = type(obj)
        if kind in self.instances or (kind is type and obj in self.plain):
            return NotImplemented
        special = SPECIAL.get(kind)
        if special is not None:
            self.by_value = self.by_value or kind is types.CodeType
            return special(obj)
        if issubclass(kind, type):
            return self._class(obj)
        if kind is types.FunctionType:
            if is_importable(obj):
                return NotImplemented
            return self.local(obj) if obj.__code__ is not _DISPATCH else _dispatch(obj)
        if "<locals>" not in kind.__qualname__:  # of such a class there may be a new one with every call
            self.instances.add(kind)
        return NotImplemented

    def local(self, code: Any) -> Any:
        """Say how a class or function goes that is not importable: NotImplemented for by plain name, or a reduction."""
        raise NotImplementedError

    def _class(self, cls: Any) -> Any:
        if not cls.__flags__ & HEAP_TYPE:
            alias = cp._BUILTIN_TYPE_NAMES.get(cls)
            return NotImplemented if alias is None or cls in _KNOWN_TO_PICKLE else (getattr, (types, alias))
        if not is_importable(cls):
            return self.local(cls)
        if type(cls) is type:
            self.plain.add(cls)
        return NotImplemented

    def inline(self, code: Any, ref: Ref | None) -> Any:
        """Reduce a class or function by value."""
        self.by_value = True
        if isinstance(code, type):
            return reduce_enum(code, ref) if issubclass(code, enum.Enum) else reduce_class(code, ref)
        return self._function(code, ref)

    def _function(self, function: types.FunctionType, ref: Ref | None) -> Any:
        own = function.__globals__
        home = own.get("__name__")
        state, slots = cp._function_getstate(function)
        around: Any
        if isinstance(home, str) and vars(sys.modules.get(home, types)) is own and module_is_importable(home):
            around = home  # a local function of a module that the nodes can import: its globals are that module's
            slots["__globals__"] = {}
        else:
            around = self._globals.get(id(own))
            if around is None:
                around = {key: own[key] for key in ("__name__", "__package__", "__file__") if key in own}
                self._globals[id(own)] = around
        cells = None if function.__closure__ is None else tuple(cp._make_empty_cell() for _ in function.__closure__)
        return begin_function, (ref, function.__code__, around, cells), (state, slots), None, None, finish_function


_KNOWN_TO_PICKLE = (type(None), type(NotImplemented), type(...))  # pickle has its own way with these
_ENUM_INTERNALS = frozenset(
    (
        *("_generate_next_value_", "_member_names_", "_member_map_", "_value2member_map_", "_hashable_values_"),
        *("_unhashable_values_", "_unhashable_values_map_", "_member_type_", "_value_repr_", "_flag_mask_"),
        *("_all_bits_", "_singles_mask_", "_inverted_", "_boundary_", "__new__", "__reduce_ex__"),
    )
)
_NOT_STATE = frozenset(
    (
        *("__dict__", "__weakref__", "__module__", "__qualname__", "__slots__", "_abc_impl"),
        *("__firstlineno__", "__static_attributes__", "__annotate_func__", "__annotations_cache__"),
        *("__slotnames__", "__pydantic_setattr_handlers__"),  # caches, filled by use
    )
)


def class_attributes(cls: type) -> dict[str, Any]:
    """Return what a class defines itself, without what making it brings along (slots, caches)."""
    return {
        name: value.meant if type(value) is ClassOfInstance else value
        for name, value in vars(cls).items()
        if name not in _NOT_STATE and not (isinstance(value, types.MemberDescriptorType) and value.__objclass__ is cls)
    }


class ClassOfInstance:
    """In the place of a `__class__` that a class defines for its instances: set later, it would be the class's own."""

    meant: Any = None

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else self.meant.__get__(instance, owner)

    def __set__(self, instance: Any, value: Any) -> None:
        self.meant.__set__(instance, value)


def reduce_class(cls: type, ref: Ref | None) -> Any:
    """Reduce a class to its kind, name and bases first, then all it defines."""
    own = vars(cls)
    namespace: dict[str, Any] = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    if "__slots__" in own:
        slots = own["__slots__"]
        members = [name for name, value in own.items() if isinstance(value, types.MemberDescriptorType)]
        namespace["__slots__"] = slots if isinstance(slots, str | tuple | list | dict) else tuple(members)
    if "__orig_bases__" in own:
        namespace["__orig_bases__"] = own["__orig_bases__"]
    if "__class__" in own:
        namespace["__class__"] = None
    registered: list[Any] = []
    if isinstance(cls, abc.ABCMeta):
        found = [reference() for reference in abc._get_dump(cls)[0]]  # type: ignore[attr-defined]
        registered = sorted((each for each in found if each is not None), key=name_of)
    state = class_attributes(cls), registered
    return begin_class, (ref, type(cls), cls.__name__, cls.__bases__, namespace), state, None, None, finish_class


def reduce_enum(cls: type[enum.Enum], ref: Ref | None) -> Any:
    """Reduce an enum: members by what they are made of, aliases too; then methods and what constructors set."""
    data_type = cls._member_type_  # type: ignore[attr-defined]
    members = {
        name: (None if data_type is object else _data(data_type, member), member._value_)
        for name, member in cls.__members__.items()
    }
    extras = {
        member.name: {key: value for key, value in vars(member).items() if key not in _MEMBER_INTERNALS}
        for member in cls
    }
    attributes = {
        name: value
        for name, value in class_attributes(cls).items()
        if name not in members and name not in _ENUM_INTERNALS and name != "__new_member__"
    }
    boundary = getattr(cls, "_boundary_", None)
    arguments = ref, type(cls), cls.__name__, cls.__bases__, cls.__module__, cls.__qualname__, members, boundary
    return begin_enum, arguments, (attributes, [extras]), None, None, finish_class


_MEMBER_INTERNALS = frozenset(("_name_", "__objclass__", "_sort_order_", "_value_"))
_NOT_OF_A_MEMBER = _MEMBER_INTERNALS | _ENUM_INTERNALS


def _data(data_type: Any, member: Any) -> Any:
    """Return what an enum member is besides a member: the int of an IntEnum's."""
    return data_type(member) if data_type in (int, str, float, bytes, complex, tuple, frozenset) else member._value_


# --- Building, in the process that reads ------------------------------------------------------------------------------


def build_class(meta: Any, name: str, bases: tuple[Any, ...], namespace: dict[str, Any]) -> Any:
    """Make a class that has nothing yet but its layout.

    Its metaclass and the `__init_subclass__` of its bases are asked first, for they may keep a register outside of it.
    They may want arguments that are gone, or refuse a class with nothing in it: then it is made without them, and what
    they did is in its attributes.
    """
    if "__class__" in namespace:
        namespace = {**namespace, "__class__": ClassOfInstance()}
    try:
        return types.new_class(name, bases, {"metaclass": meta}, lambda body: body.update(namespace))
    except Exception:
        builder: Any = abc.ABCMeta if issubclass(meta, abc.ABCMeta) else type
        with _silent(bases):
            return builder.__new__(meta, name, bases, dict(namespace))


_hooks = threading.Lock()


@contextlib.contextmanager
def _silent(bases: tuple[Any, ...]) -> Iterator[None]:
    """Keep the `__init_subclass__` of these bases from running: the first base that can have one is given an idle one.

    (One in a base of our own before them would be there for good: `__bases__` cannot be assigned for every layout.)
    """
    first = next((each for each in bases if each.__flags__ & HEAP_TYPE), None)
    if first is None:
        yield
        return
    with _hooks:
        before = vars(first).get("__init_subclass__")
        type.__setattr__(first, "__init_subclass__", classmethod(lambda cls, **_: None))
        try:
            yield
        finally:
            if before is None:
                type.__delattr__(first, "__init_subclass__")
            else:
                type.__setattr__(first, "__init_subclass__", before)


def build_enum(meta: Any, name: str, bases: tuple[Any, ...], namespace: dict[str, str], members: Any, how: Any) -> Any:
    """Make an enum with all its members, without running its own `__new__` and `__init__`."""
    body = meta.__prepare__(name, bases)

    def new(cls: Any, data: Any, value: Any) -> Any:
        made = object.__new__(cls) if cls._member_type_ is object else cls._member_type_.__new__(cls, data)
        made._value_ = value
        return made

    body["__new__"] = new
    body["__init__"] = lambda self, data, value: None
    for key, value in namespace.items():
        body[key] = value
    for key, value in members.items():
        body[key] = value
    made = meta(name, bases, body) if how is None else meta(name, bases, body, boundary=how)
    type.__delattr__(made, "__init__")
    return made


def fill_class(cls: Any, attributes: dict[str, Any], more: list[Any]) -> None:
    """Give a class made by `build_class` or `build_enum` what it defines."""
    for name, value in attributes.items():
        if name == "__class__":
            vars(cls)[name].meant = value
        else:
            type.__setattr__(cls, name, value)
    if issubclass(cls, enum.Enum):
        for name, extras in more[0].items():
            vars(cls._member_map_[name]).update(extras)
        return
    for subclass in more:
        cls.register(subclass)


def build_function(code: types.CodeType, around: str | dict[str, Any], cells: Any) -> types.FunctionType:
    """Make a function whose globals and cells are still to come."""
    if isinstance(around, str):
        around = vars(importlib.import_module(around))
    return types.FunctionType(code, around, code.co_name, None, cells)


def begin_class(ref: Ref | None, *arguments: Any) -> Any:
    """Begin a class that came by value to a client."""
    return build_class(*arguments)


def begin_enum(
    ref: Ref | None, meta: Any, name: str, bases: Any, module: str, qualname: str, members: Any, how: Any
) -> Any:
    """Begin an enum that came by value to a client."""
    return build_enum(meta, name, bases, {"__module__": module, "__qualname__": qualname}, members, how)


def finish_class(cls: Any, state: Any) -> None:
    """Finish what `begin_class` or `begin_enum` began."""
    fill_class(cls, *state)


def begin_function(ref: Ref | None, *arguments: Any) -> Any:
    """Begin a function that came by value to a client."""
    return build_function(*arguments)


def finish_function(function: Any, state: Any) -> None:
    """Finish what `begin_function` began."""
    cp._function_setstate(function, state)


local_code: weakref.WeakValueDictionary[bytes, Any] = weakref.WeakValueDictionary()  # fingerprint -> sent from here


def resolve(module: str, qualname: str, fingerprint: bytes) -> Any:
    """Return this process's own class or function for one that is named in a pickle.

    Raises:
        UnknownType: it has none.
    """
    found = local_code.get(fingerprint)
    if found is None:
        found = look_up((module, qualname))
    if found is None:
        raise UnknownType(f"there is no {module}:{qualname} here")
    return found


def revive(module: str, qualname: str, fingerprint: bytes, payloads: list[bytes]) -> Any:
    """Return this process's own class or function for one in a state that nodes no longer keep."""
    return resolve(module, qualname, fingerprint)


def itself() -> Any:
    """Return the machine whose state is being read; what a state says of its own machine is a call of this.

    Raises:
        UnknownType: no state is, here.
    """
    raise UnknownType("this is a part of a machine's state, which is read only where the machine is")


# --- What pickle does not know or gets wrong --------------------------------------------------------------------------


def _cached_property(value: Any) -> Any:
    return remake_cached_property, (value.func, value.attrname)


def remake_cached_property(function: Any, name: str | None) -> Any:
    """Make a cached_property anew: before Python 3.12 it holds a lock, which no pickle takes."""
    made: functools.cached_property[Any] = functools.cached_property(function)
    if name is not None:
        made.attrname = name
    return made


_dispatcher: Any = functools.singledispatch(id)
_DISPATCH: Final = _dispatcher.__code__  # of every function that singledispatch makes
_OF_DISPATCH: Final = frozenset(vars(_dispatcher))


def _dispatch(value: Any) -> Any:
    return (
        begin_dispatch,
        (value.__name__,),
        (dict(value.registry), _own_attributes(value)),
        None,
        None,
        finish_dispatch,
    )


def begin_dispatch(name: str) -> Any:
    """Begin a function of `functools.singledispatch`; its cache holds weak references, which no pickle takes."""

    def nobody(_: Any) -> None: ...

    nobody.__name__ = name
    return functools.singledispatch(nobody)


def finish_dispatch(made: Any, state: Any) -> None:
    """Give it its implementations, which may mention it."""
    registry, attributes = state
    for kind, function in registry.items():
        made.register(kind, function)
    functools.update_wrapper(made, registry[object])
    vars(made).update(attributes)


def _own_attributes(value: Any) -> dict[str, Any]:
    return {name: each for name, each in vars(value).items() if name not in _OF_DISPATCH}


def _new_type(value: Any) -> Any:
    if is_importable(value):
        return str(value.__qualname__)
    return remake_new_type, (value.__module__, value.__qualname__, value.__supertype__)


def remake_new_type(module: str, qualname: str, supertype: Any) -> Any:
    """Make a NewType anew, or take the one of that name and supertype that this process has."""
    known = look_up((module, qualname))
    if type(known) is typing.NewType and known.__supertype__ is supertype:
        return known
    made = typing.NewType(qualname, supertype)  # type: ignore[misc]
    made.__module__ = module
    return made


def _type_parameter(value: Any) -> Any:
    if look_up((value.__module__, value.__name__)) is value and module_is_importable(value.__module__):
        return str(value.__name__)
    options = ("bound", "covariant", "contravariant") if type(value) is typing.ParamSpec else ()
    kept = {option: getattr(value, f"__{option}__") for option in options}
    return remake_type_parameter, (type(value), value.__name__, kept, cp._get_or_create_tracker_id(value))


def remake_type_parameter(kind: Any, name: str, options: dict[str, Any], number: str) -> Any:
    """Make a ParamSpec or TypeVarTuple anew, once in this process: generics tell their parameters by identity."""
    return cp._lookup_class_or_track(number, kind(name, **options))


def _lru_cache(value: Any) -> Any:
    if is_importable(value):
        return str(value.__qualname__)
    options = value.cache_parameters()
    return remake_lru_cache, (value.__wrapped__, options["maxsize"], options["typed"])


def remake_lru_cache(function: Any, maxsize: int | None, typed: bool) -> Any:
    """Make an empty cache around a function."""
    return functools.lru_cache(maxsize, typed)(function)


def _module(value: types.ModuleType) -> Any:
    return importlib.import_module, (value.__name__,)


def _global(name: str) -> Callable[[Any], str]:
    return lambda _: name


SPECIAL: Final[dict[type, Callable[[Any], Any]]] = {
    **{kind: reduce for kind, reduce in cp.Pickler._dispatch_table.items() if kind is not io.TextIOWrapper},
    type(dataclasses.MISSING): _global("MISSING"),
    type(dataclasses.KW_ONLY): _global("KW_ONLY"),
    type(dataclasses._HAS_DEFAULT_FACTORY): _global("_HAS_DEFAULT_FACTORY"),  # type: ignore[attr-defined]
    functools.cached_property: _cached_property,
    type(functools.lru_cache(lambda: None)): _lru_cache,
    typing.NewType: _new_type,
    typing.ParamSpec: _type_parameter,
    typing.TypeVarTuple: _type_parameter,
    types.ModuleType: _module,
}
del SPECIAL[types.MethodType]  # pickle's own way asks the object for it by name, which is shorter


def reduce_method(method: types.MethodType) -> Any:
    """Reduce a bound method to its parts: inside a class that is being built, its name means nothing yet."""
    return types.MethodType, (method.__func__, method.__self__)


# --- Fingerprints -----------------------------------------------------------------------------------------------------


class Fingerprint(Walk):
    """A walk into code: equal for the same source in two processes, different if anything it rests on differs.

    Lines and file names do not count, nor the order of anything that has none.
    """

    depth_max = math.inf

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[int, int] = {}

    def code(self, code: Any) -> None:
        """Take in a class or function: its name if it is importable, else all it consists of."""
        self._mark("code", *name_of(code))
        if id(code) in self._seen:
            self._mark("seen", self._seen[id(code)])
            return
        self._seen[id(code)] = len(self._seen)
        if isinstance(code, type):
            if code.__flags__ & HEAP_TYPE and not is_importable(code):
                self._local_class(code)
        elif isinstance(code, types.FunctionType) and not is_importable(code):
            self._local_function(code)

    def _local_class(self, cls: type) -> None:
        self.value(type(cls))
        self.value(cls.__bases__)
        self._mark(sorted(name for name, value in vars(cls).items() if isinstance(value, types.MemberDescriptorType)))
        if issubclass(cls, enum.Enum):
            not_counted = _NOT_OF_A_MEMBER | _cached_by_use(cls)
            for name, member in cls.__members__.items():
                self._mark("member", name)
                self.value(member._value_)
                extras = sorted(each for each in vars(member).items() if each[0] not in not_counted)
                if extras:
                    self.value(extras)
        attributes = class_attributes(cls)
        if issubclass(cls, enum.Enum):
            attributes.pop("__new_member__", None)  # ours, in one that was built here; what it does, its members say
        names = sorted(name for name in attributes if not name.startswith(_VOLATILE) and name not in _ENUM_INTERNALS)
        for name in names:
            self._mark("attribute", name)
            self.value(attributes[name])

    def _local_function(self, function: types.FunctionType) -> None:
        if function.__code__.co_filename.startswith("<attrs generated"):
            return  # follows from the attributes; and its `__hash__` holds a number of this very process
        if function.__code__ is _DISPATCH:
            self.unordered(function.registry.items())  # type: ignore[attr-defined]
            return
        self._code_object(function.__code__)
        for part in (function.__defaults__, function.__kwdefaults__, vars(function)):
            self.value(part)
        own = function.__globals__
        for name in sorted(cp._extract_code_globals(function.__code__)):
            if name in own:
                self._mark("global", name)
                self.value(own[name])
        for cell in function.__closure__ or ():
            try:
                self.value(cell.cell_contents)
            except ValueError:
                self._mark("empty cell")

    def _code_object(self, code: types.CodeType) -> None:
        self._mark(code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags, code.co_code)
        self._mark(code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code_object(constant)
            else:
                self.value(constant)

    def _object(self, kind: type, value: Any) -> None:
        if kind is types.CodeType:
            self._code_object(value)
        elif isinstance(value, property):
            self.value((value.fget, value.fset, value.fdel))
        elif isinstance(value, classmethod | staticmethod):
            self.value(kind)
            self.value(value.__func__)
        elif kind in (functools.cached_property, type(functools.lru_cache(lambda: None))):
            self.value(value.func if kind is functools.cached_property else value.__wrapped__)
        elif kind is types.MappingProxyType:
            self.value(dict(value))
        elif kind is types.MethodType:
            self.value((value.__func__, value.__self__))
        elif kind.__name__ == "Decorator" and kind.__module__.startswith("pydantic."):
            self.value((value.cls_var_name, value.info))  # the rest names the class by its address
        elif kind is typing.TypeVar:
            self._mark("typevar", value.__name__)
            self.value((value.__bound__, value.__constraints__))
        elif kind in (typing.ParamSpec, typing.TypeVarTuple):
            self._mark("typevar", value.__name__)
        elif kind is typing.NewType:
            self._mark("new type", value.__qualname__)
            self.value(value.__supertype__)
        elif kind in _OPAQUE:
            self._mark("opaque", kind.__name__)
        else:
            super()._object(kind, value)


def _cached_by_use(cls: type) -> frozenset[str]:
    """Return under which names instances keep what they have worked out: it follows from the rest, once it is asked."""
    attributes = ((name, value) for base in cls.__mro__ for name, value in vars(base).items())
    return frozenset(name for name, value in attributes if isinstance(value, functools.cached_property))


_VOLATILE = ("__pydantic_core", "__pydantic_validator", "__pydantic_serializer", "__pydantic_parent", "_abc_")
_OPAQUE = (operator.attrgetter, weakref.ref, types.GetSetDescriptorType, types.MemberDescriptorType)


def fingerprint_of(code: Any) -> bytes:
    """Return 16 bytes that say what a class or function consists of."""
    walk = Fingerprint()
    walk.code(code)
    return walk.result()
