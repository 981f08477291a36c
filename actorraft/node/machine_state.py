"""What of a machine is its state: how a snapshot takes it and puts it back, and how replicas compare it.

A machine's own `snapshot` and `restore`, if its class has them; else its attributes; else the object as a whole. Where
the attributes are taken, `restore` starts from an instance that the constructor has made: what the snapshot does not
know stays as the constructor made it (a newer class has more attributes), and what had been deleted when it was taken
is deleted.

Source:     docs/decisions/0023.
Invariant:  whatever user code raises here leaves as HookFailed, which names the class and the place. What `write` of a
            snapshot raises, the disk's, leaves as it is.
Shape:      ARM2, size of the head, head, then 1 and a pickle for each chunk, then 0. The head: version, way, whether
            there are chunks, definitions, attributes of the constructor's that are gone, attributes of the class that
            commands changed (a pickle, or nothing). ARM1, of 0.1.0, has the first four, and a version that means
            nothing.
Threads:    one thread at a time.
"""

from __future__ import annotations

import collections
import contextlib
import io
import itertools
import struct
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final

import msgspec

from actorraft.errors import UsageError
from actorraft.loggers import guarded_logger
from actorraft.machine import (
    NO_HOOKS,
    Hooks,
    StateMachine,
    attribute_names,
    bound,
    default_state,
    machine_version,
    restore_default,
)
from actorraft.node.class_attributes import ClassAttributes
from actorraft.node.guest import HookFailed, failed
from actorraft.pickling import canonical
from actorraft.pickling.definitions import Definitions
from actorraft.pickling.exceptions import name as class_name
from actorraft.pickling.exceptions import summary

logger = guarded_logger("actorraft")

SAMPLE_BYTES: Final = 1 << 19  # of the state, for comparing replicas: about 6 ms
PART_BYTES: Final = 1 << 15  # of each attribute, likewise
KNOWN_MAX: Final = 64  # attributes that are compared so
PROBE_BYTES: Final = 1 << 20  # of a fresh state, to see whether it can be pickled at all
PARTS_MAX: Final = 10_000  # looked at for whatever is to be named
DEPTH_MAX: Final = 6
_HEAD: Final = struct.Struct("<4sI")
_MAGIC: Final = b"ARM2"
_MAGIC_0: Final = b"ARM1"  # of 0.1.0

_encode = msgspec.msgpack.Encoder().encode


class NotRestorable(HookFailed):
    """These bytes are no state for this machine: of newer code, of another Python, cut short."""


class MachineState:
    """The state of the machine that a host serves."""

    def __init__(self, definitions: Definitions) -> None:
        self._definitions = definitions
        self._hooks = NO_HOOKS
        self._holds_objects = False  # whatever its class defines, it only holds state
        self._fresh_type: type = object
        self._fresh_names: frozenset[str] = frozenset()  # attributes that the constructor made
        self._fresh_digest = b""  # of the first such machine of this process
        self._first = b""  # a pickle of the first machine's state, before any command, unless that is large
        self._no_state: frozenset[str] = frozenset()  # attributes that do not pickle, where the state is its snapshot's
        self._class: ClassAttributes | None = None
        self._told: dict[str, str] = {}  # what was found out about an error, by its text
        self._sets_named = False
        self.rules: int | None = None  # the version by which commands are applied; None: the class's own

    def built(self, machine: Any, holds_objects: bool) -> None:
        """Take note of a machine fresh from its constructor."""
        cls = self._fresh_type = type(machine)
        self._holds_objects = holds_objects
        if holds_objects:
            return
        try:
            self._fresh_names = attribute_names(machine)
            digest = self._sample_of(machine)
            if self._class is None:
                self._class = ClassAttributes(cls, self._definitions)
        except BaseException as error:
            logger.warning("%s", failed(machine, "__getstate__", error))
            return
        if not self._fresh_digest:
            self._fresh_digest = digest
        elif digest != self._fresh_digest:
            logger.warning(
                "%s.__init__ made another state than before, of the same arguments: it must not read clocks, files, "
                "random numbers or the environment, for each node builds its own", class_name(cls),
            )  # fmt: skip

    def serve(self, machine: Any, hooks: Hooks, holds_objects: bool) -> None:
        """Be about this machine from now on."""
        self._machine, self._hooks, self._holds_objects = machine, hooks, holds_objects
        self._definitions.machine = machine

    @property
    def version(self) -> int:
        """The version of the machine's class."""
        return machine_version(type(self._machine))

    # --- Taking it ---

    def why_unpicklable(self) -> str:
        """Return why no snapshot can be made of a fresh machine, naming the attribute; "" if one can.

        Its own `snapshot` is not asked: that is for when one is due.
        """
        own = self._way() == "own"
        way = "attributes" if own else self._way()
        probe = _Probe()
        try:
            self._definitions.dump(self._state(way), probe, self._itself(way))
            self._first = b"".join(probe)
        except _Enough:
            pass
        except HookFailed as error:
            return "" if own else str(error)
        except BaseException as error:
            if not own:
                return str(self._unpicklable(way, self._state(way), error))
            self._leave_out()
        return ""

    def _leave_out(self) -> None:
        """Count as state no attribute that does not pickle: a thread or a lock is another one in each process."""
        try:
            attributes = default_state(self._machine)
            if type(attributes) is dict:
                self._no_state = frozenset(name for name, each in attributes.items() if self._cannot_be_pickled(each))
                self._fresh_digest = self._sample_of(self._machine)
        except BaseException as error:
            logger.warning("%s", failed(self._machine, "__getstate__", error))

    def _sample_of(self, machine: Any) -> bytes:
        """Return a digest of the first SAMPLE_BYTES of a machine, whatever hooks it has."""
        state = machine if issubclass(type(machine), _BUILTIN_STATE) else default_state(machine)
        if self._no_state and type(state) is dict:
            state = {name: each for name, each in state.items() if name not in self._no_state}
        walk = canonical.Sample(SAMPLE_BYTES)
        walk.take((state,))
        return walk.result()

    def write(self, write: Callable[[bytes], Any]) -> None:
        """Write all of it.

        Raises:
            HookFailed: user code raised, or what it gave cannot be pickled.
            Exception: whatever `write` raised.
        """
        way = self._way()
        state = self._state(way)
        chunked = way == "own" and _is_iterator(state)
        self._name_sets()
        write(self._head(way, chunked))
        sink = _Sink(write)
        for chunk in self._drawn(state, "snapshot") if chunked else (state,):
            sink.write(b"\x01")
            self._dump(way, chunk, sink)
        write(b"\x00")

    @property
    def serves_while_copied(self) -> bool:
        """Whether `pieces` can be drawn while commands go on."""
        return self._hooks.snapshot_while_serving is not None and self._way() == "own"

    def pieces(self) -> Iterator[bytes]:
        """Yield what `write` writes, as it is when the first piece is drawn.

        Raises:
            HookFailed: while iterating, as `write` does.
        """
        chunks = self._call("snapshot_while_serving", self._hooks.snapshot_while_serving)
        self._name_sets()
        yield self._head("own", True)
        for chunk in self._drawn(chunks, "snapshot_while_serving"):
            written = _Written((b"\x01",))
            self._dump("own", chunk, written)
            yield b"".join(written)
        yield b"\x00"

    def _way(self) -> str:
        """Say how the state is taken: by the machine's "own" methods, its "attributes", or the "whole" object."""
        kind = type(self._machine)
        hooks = self._hooks
        if hooks.snapshot is not None and hooks.restore is not None and not _is_default(hooks):
            return "own"
        if self._holds_objects or issubclass(kind, _BUILTIN_STATE):
            return "whole"  # its items are state as well
        pickles_its_own_way = any(
            "__reduce__" in vars(each) or "__reduce_ex__" in vars(each) for each in kind.__mro__[:-1]
        )
        return "whole" if pickles_its_own_way or kind is not self._fresh_type else "attributes"

    def _itself(self, way: str) -> Any:
        """Return what is not a part of the state, wherever that refers to it: the machine, unless it is the state."""
        return None if way == "whole" else self._machine

    def _state(self, way: str) -> Any:
        if way == "own":
            return self._call("snapshot", self._hooks.snapshot)
        if way == "whole":
            return self._machine
        try:
            return default_state(self._machine)
        except BaseException as error:
            raise failed(self._machine, "__getstate__", error) from error

    def _head(self, way: str, chunked: bool) -> bytes:
        gone: list[str] = []
        changed = b""
        if self._class is not None:
            try:
                gone = sorted(self._fresh_names - attribute_names(self._machine)) if way != "whole" else []
                of_class = self._class.changed()
                if of_class:
                    changed = self._definitions.dumps(of_class, for_state=True, machine=self._itself(way))
            except BaseException as error:
                raise failed(self._machine, "__class__", error) from error
        version = self.version if self.rules is None else self.rules
        head = _encode([version, way, chunked, self._definitions.state(), gone, changed])
        return _HEAD.pack(_MAGIC, len(head)) + head

    def _call(self, place: str, hook: Any, *arguments: Any) -> Any:
        try:
            return bound(hook, self._machine)(*arguments)
        except BaseException as error:
            raise failed(self._machine, place, error) from error

    def _drawn(self, chunks: Any, place: str) -> Iterator[Any]:
        """Yield the chunks that a hook gives."""
        try:
            source = iter(chunks)
        except BaseException as error:
            raise failed(self._machine, place, error) from error
        while True:
            try:
                chunk = next(source)
            except StopIteration:
                return
            except BaseException as error:
                raise failed(self._machine, place, error) from error
            yield chunk

    def _dump(self, way: str, value: Any, sink: Any) -> None:
        try:
            self._definitions.dump(value, sink, self._itself(way), holds_it=way == "own")
        except BaseException as error:
            if error is getattr(sink, "refused", None):
                raise
            raise self._unpicklable(way, value, error) from error

    def _unpicklable(self, way: str, value: Any, error: BaseException) -> HookFailed:
        """Say which part of the state cannot be pickled; found out once, for it may take as long as a snapshot."""
        why = summary(error)
        text = self._told.get(why)
        if text is None:
            name = class_name(type(self._machine))
            path = _path_to(value, self._cannot_be_pickled, attributes=way == "attributes")
            what = f"{name}{path}" if way != "own" else f"what {name}.snapshot() gave{f', at {path},' if path else ''}"
            text = f"{what} cannot be pickled: {why}"
            if len(self._told) < PARTS_MAX:
                self._told[why] = text
        return HookFailed(text)

    def _cannot_be_pickled(self, value: Any) -> bool:
        try:
            self._definitions.dump(value, _Nowhere(), self._machine)
        except BaseException:
            return True
        return False

    def _name_sets(self) -> None:
        """Warn once of a set: one that is rebuilt from a snapshot iterates in another order (docs/decisions/0023)."""
        if self._sets_named:
            return
        try:
            path = _path_to_set(self._machine)
        except BaseException:  # a look at user's objects; whatever they raise, this is only a warning
            path = ""
        if path:
            self._sets_named = True
            logger.warning(
                "%s%s is a set: on a node that restores it from a snapshot it iterates in another order than on the "
                "others. Let no command depend on that order (pop(), for, list(), next(iter())): take sorted(...), "
                "min(...), or a dict, which keeps its order; statemachines.testing.check_determinism shows it",
                class_name(type(self._machine)), path,
            )  # fmt: skip

    # --- Putting it back ---

    def begin_anew(self) -> Any:
        """Have the machine that is served, fresh from its constructor, be as the first one was; return what to serve.

        Commands may have changed what all instances share: attributes of the class, a default argument, an object of
        the module.

        Raises:
            HookFailed: it is not that.
        """
        machine = self._machine
        if self._holds_objects:
            return machine
        try:
            if self._class is not None:
                self._class.restore({})
            if self._sample_of(machine) != self._fresh_digest and self._first:
                state = self._definitions.load(io.BytesIO(self._first))
                if self._way() == "whole":
                    machine = state
                else:
                    restore_default(machine, state)
            alike = self._sample_of(machine) == self._fresh_digest
        except BaseException as error:
            raise failed(machine, "__init__", error) from error
        if not alike:
            raise HookFailed(
                f"{class_name(type(machine))}.__init__ makes another state than when this process began: commands "
                "changed what its instances share (a default argument, an object of the module), or it reads what "
                "changes; so the state before the first command cannot be had again"
            )
        return machine

    def read(self, file: BinaryIO) -> Any:
        """Read what `write` wrote into the machine that is served, fresh from its constructor; return what to serve.

        Raises:
            NotRestorable: these bytes are not for this machine.
            HookFailed: user code raised.
            Exception: whatever reading the file raised.
        """
        magic, size = _HEAD.unpack(file.read(_HEAD.size))
        if magic not in (_MAGIC, _MAGIC_0):
            raise NotRestorable("this is no snapshot of a machine")
        version, way, chunked, definitions, *more = msgspec.msgpack.decode(file.read(size))
        gone, changed = more if magic == _MAGIC else ([], b"")
        if magic == _MAGIC and version > self.version:
            raise NotRestorable(
                f"the snapshot was made by version {version} of {class_name(type(self._machine))}, and this node runs "
                f"version {self.version}: start it with the newer code"
            )
        try:
            self._definitions.restore(definitions)
        except UsageError as error:
            raise NotRestorable(str(error)) from error
        chunks = self._chunks(file)
        try:
            if self._class is not None:
                self._class.restore(self._definitions.loads(changed) if changed else {})
            machine = self._take_up(way, chunks if chunked else next(chunks), gone)
        except (NotRestorable, MemoryError, ImportError):
            raise
        except BaseException as error:
            raise failed(self._machine, "restore", error) from error
        for _ in chunks:
            pass  # to the end mark, also if the machine did not read them all
        return machine

    def _chunks(self, file: BinaryIO) -> Iterator[Any]:
        while (mark := file.read(1)) == b"\x01":
            yield self._definitions.load(file)
        if mark != b"\x00":
            raise NotRestorable("the snapshot of the machine ends too early")

    def _take_up(self, way: str, state: Any, gone: list[str]) -> Any:
        machine = self._machine
        if way == "whole":
            return state
        for name in gone:
            if name in attribute_names(machine):
                object.__delattr__(machine, name)
        if way == "own":
            bound(self._hooks.restore, machine)(state)
        else:
            restore_default(machine, state)
        return machine

    # --- Comparing it ---

    def digest(self) -> bytes:
        """Return bytes that are equal on all nodes that have applied the same entries.

        Raises:
            HookFailed: user code raised.
        """
        if self._hooks.digest is not None:
            return self._own_digest()
        state = self._state(self._way())
        chunked = _is_iterator(state)
        try:
            return canonical.digest(list(state) if chunked else state)
        except BaseException as error:
            raise failed(self._machine, "snapshot" if chunked else "__reduce_ex__", error) from error

    def sample(self) -> bytes:
        """Return a digest that is cheap: the machine's own, or one of the first SAMPLE_BYTES of the state.

        Raises:
            HookFailed: user code raised.
        """
        if self._hooks.digest is not None:
            return self._own_digest()
        state = self._state(self._way())
        chunked = _is_iterator(state)
        walk = canonical.Sample(SAMPLE_BYTES)
        try:
            walk.take(state if chunked else (state,))
            if self._class is not None:
                self._class.changed()  # warns
        except BaseException as error:
            raise failed(self._machine, "snapshot" if chunked else "__reduce_ex__", error) from error
        return walk.result()

    def parts(self) -> dict[str, bytes]:
        """Return a digest of each attribute, or of all of it where attributes are not what the state is."""
        machine, way = self._machine, self._way()
        name = class_name(type(machine))
        if way == "own":
            state = self._state(way)
            return {f"what {name}.snapshot() gives": canonical.digest(list(state) if _is_iterator(state) else state)}
        if way == "whole":
            return {name: canonical.digest(machine)}
        return {
            f"{name}.{each}": canonical.digest(object.__getattribute__(machine, each))
            for each in sorted(attribute_names(machine))
        }

    def known_parts(self) -> dict[str, bytes]:
        """Return a digest of the first PART_BYTES of each attribute, to compare with nodes whose class has others too.

        Nothing where the state is not the attributes, or one cannot be read.
        """
        parts: dict[str, bytes] = {}
        if self._way() != "attributes":
            return parts
        for name in sorted(attribute_names(self._machine))[:KNOWN_MAX]:
            walk = canonical.Sample(PART_BYTES)
            with contextlib.suppress(BaseException):  # user code; what can be read is compared
                walk.take((object.__getattribute__(self._machine, name),))
                parts[name] = walk.result()
        return parts

    def _own_digest(self) -> bytes:
        made = self._call("digest", self._hooks.digest)
        kind = type(made)
        try:
            if issubclass(kind, bytes | bytearray | memoryview):
                return bytes(made)
            return made.encode("utf-8", "surrogatepass") if kind is str else canonical.digest(made)
        except BaseException as error:
            raise failed(self._machine, "digest", error) from error


_BUILTIN_STATE = (dict, list, tuple, set, frozenset, str, bytes, bytearray, int, float, complex)


def _is_iterator(value: Any) -> bool:
    return issubclass(type(value), Iterator)


def _is_default(hooks: Hooks) -> bool:
    own = vars(StateMachine)
    return hooks.snapshot is own["snapshot"] and hooks.restore is own["restore"]


# --- Where bytes go ---------------------------------------------------------------------------------------------------


class _Sink:
    """As much of a file as a pickler needs; remembers that it was the file, and not user code, that raised."""

    def __init__(self, write: Callable[[bytes], Any]) -> None:
        self._write = write
        self.refused: BaseException | None = None

    def write(self, data: bytes) -> None:
        try:
            self._write(data)
        except BaseException as error:
            self.refused = error
            raise


class _Written(list[bytes]):
    """What a pickler wrote, to be joined: a large value of bytes is there itself, not copied into a growing buffer."""

    def write(self, data: bytes) -> None:
        self.append(data if type(data) is bytes else bytes(data))  # anything else may change, or end with the pickler


class _Nowhere:
    def write(self, data: bytes) -> None:
        pass


class _Enough(Exception):
    """As much was pickled as was asked for."""


class _Probe(_Written):
    left = PROBE_BYTES

    def write(self, data: bytes) -> None:
        self.left -= memoryview(data).nbytes  # a large array comes as a buffer that has no length
        if self.left < 0:
            raise _Enough
        super().write(data)


# --- Naming a part of a state -----------------------------------------------------------------------------------------


def _parts(value: Any, attributes: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a value with how to write the way to them; `attributes`: a dict's items are attributes."""
    kind = type(value)
    if kind in canonical.SCALARS:
        return
    if issubclass(kind, dict):
        for key, part in dict.items(value):
            yield f".{key}" if attributes else f"[{repr(key)[:40]}]", part
    elif issubclass(kind, list | tuple | collections.deque):
        for position, part in enumerate(value):
            yield f"[{position}]", part
    elif issubclass(kind, set | frozenset):
        for part in value:
            yield "{...}", part
    for name in sorted(attribute_names(value)):
        yield f".{name}", object.__getattribute__(value, name)


def _path_to(value: Any, fails: Callable[[Any], bool], attributes: bool = False) -> str:
    """Return the way to the innermost part for which `fails` holds; "" if it is the value itself, as far as seen."""
    path = ""
    try:
        for _ in range(DEPTH_MAX):
            for where, part in itertools.islice(_parts(value, attributes), PARTS_MAX):
                if fails(part):
                    path, value, attributes = path + where, part, False
                    break
            else:
                break
    except BaseException:  # user code; what was found so far is good enough
        pass
    return path


def _path_to_set(machine: Any) -> str:
    """Return the way to a set of several members in a state, nearest first; "" if there is none as far as seen."""
    waiting = collections.deque([("", machine, 0)])
    seen: set[int] = set()
    for _ in range(PARTS_MAX):
        if not waiting:
            break
        path, value, depth = waiting.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if issubclass(type(value), set | frozenset) and len(value) > 1:
            return path or " itself"
        if depth < DEPTH_MAX and not issubclass(type(value), type):
            room = PARTS_MAX - len(waiting)
            waiting.extend((path + where, part, depth + 1) for where, part in itertools.islice(_parts(value), room))
    return ""
