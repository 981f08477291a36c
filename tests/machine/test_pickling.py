"""What a caller's commands become, what is refused before anything is sent, and definitions as they change."""

from __future__ import annotations

import functools
import gc
import io
import pickle
import sys
import threading
import types
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from actorraft import CommandObjects, ResultLost, StateMachine, UnknownType, UsageError, command
from actorraft.client.proxy import make_proxy
from actorraft.node.host import MachineHost, MachineStopped
from actorraft.pickling.byvalue import fingerprint_of, local_code
from actorraft.pickling.definitions import Definitions
from actorraft.pickling.encoder import Encoder, encode_factory, machine_name
from actorraft.pickling.formats import DEFINITION, FLAT, OBJECT
from actorraft.pickling.results import decode_result
from tests.machine.local import Local, through_a_frame
from tests.machine.remote import Node


@dataclass
class Put:
    key: str
    value: Any

    def apply(self, state: dict[str, Any]) -> Any:
        state[self.key] = self.value
        return self.value


def fake_module(name: str, source: str) -> types.ModuleType:
    """Make a module that no other interpreter can import, as a notebook's `__main__` is."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(source, name, "exec", dont_inherit=True), vars(module))
    return module


@pytest.fixture
def notebook() -> Any:
    yield functools.partial(fake_module, "notebook_of_a_test")
    sys.modules.pop("notebook_of_a_test", None)


@pytest.fixture
def sent() -> tuple[Encoder, list[bytes]]:
    definitions: list[bytes] = []
    return Encoder(definitions.append), definitions


# --- Formats ---------------------------------------------------------------------------------------------------------


def test_a_call_with_plain_scalars_is_plain_msgpack(sent: tuple[Encoder, list[bytes]]) -> None:
    args = ("k", b"v", None, True, 1.5, -(1 << 63), (1 << 64) - 1)
    assert msgspec.msgpack.decode(sent[0].encode_call("set", args, {})) == ["set", *args]


@pytest.mark.parametrize(
    ("args", "kwargs"), [(((1, 2),), {}), (("k",), {"v": 1}), ((1 << 64,), {}), (("\ud800",), {}), ((Put("k", 1),), {})]
)
def test_any_other_call_is_a_pickle(sent: tuple[Encoder, list[bytes]], args: Any, kwargs: Any) -> None:
    value = msgspec.msgpack.decode(sent[0].encode_call("set", args, kwargs))
    assert value.code == 1
    assert pickle.loads(value.data) == ("set", args, kwargs)


def test_a_command_of_an_importable_class_goes_by_name(sent: tuple[Encoder, list[bytes]]) -> None:
    encoder, definitions = sent
    encoded = encoder.encode_command(Put("k", 1))
    assert pickle.loads(msgspec.msgpack.decode(encoded).data) == Put("k", 1)
    assert definitions == []
    assert len(encoded) < 100


# --- What is refused -------------------------------------------------------------------------------------------------


class Tally(dict[str, int]):
    pass


class Boxed:
    def __init__(self, inside: Any) -> None:
        self.inside = inside

    def __getstate__(self) -> Any:
        return {"inside": [self.inside]}


def sent_and_rebuilt(encoded: bytes) -> tuple[int, Any]:
    """How a command object travels, and what a node makes of it."""
    value = msgspec.msgpack.decode(encoded)
    definitions = Definitions()
    return value.code, definitions.rebuild(value.data) if value.code == FLAT else definitions.loads(value.data)


class Restored:
    def __init__(self, note: str) -> None:
        self.note = note

    def __setstate__(self, state: Any) -> None:
        self.note = "restored"


def test_flat_command_objects_go_as_plain_data_and_others_never_do(sent: tuple[Encoder, list[bytes]]) -> None:
    """The second of a kind may take the short way; what comes out is the same as from the first."""
    encoder, _ = sent
    tally = Tally(a=1)
    tally.note = "kept"  # type: ignore[attr-defined]
    for value in (Put("k", b"v"), Put("k", 1.5), Put("k", None), tally, Boxed(3), Restored("as made")):
        _, first = sent_and_rebuilt(encoder.encode_command(value))
        code, second = sent_and_rebuilt(encoder.encode_command(value))
        assert code == (FLAT if type(value) is Put else OBJECT)
        assert type(first) is type(second) is type(value)
        assert vars(first) == vars(second)
        assert first == second or not isinstance(value, Put | Tally)
    for odd in (1 << 70, "\ud800", [1], Put("inner", 1)):  # no plain data: a pickle
        assert sent_and_rebuilt(encoder.encode_command(Put("k", odd))) == (OBJECT, Put("k", odd))
    code, by_value = sent_and_rebuilt(encoder.encode_command(Put("k", lambda: 7)))
    assert code == OBJECT
    assert by_value.value() == 7


def test_a_flat_object_whose_class_nobody_has_is_an_unknown_type() -> None:
    data = msgspec.msgpack.encode(("tests.machine.test_pickling", "Gone", {"a": 1}))
    with pytest.raises(UnknownType, match=r"tests\.machine\.test_pickling:Gone"):
        Definitions().rebuild(data)


@pytest.mark.parametrize(
    "attributes", [b"\x91" * 100_000 + b"\xc0", b"\x81\xa1a" + b"\x91" * 100_000 + b"\xc0", b"\xc0"]
)
def test_forged_attributes_of_any_depth_are_a_result_and_stop_no_node(attributes: bytes) -> None:
    forged = msgspec.msgpack.Ext(FLAT, b"\x93\xa8builtins\xa6object" + attributes)
    machine = Local(dict)
    with pytest.raises((UsageError, msgspec.ValidationError)):
        machine.apply(msgspec.msgpack.encode(forged))
    assert machine.host.machine == {}


def test_a_class_that_was_redefined_is_not_taken_for_the_one_that_was_flat(
    sent: tuple[Encoder, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, _ = sent
    put = Put("k", 1)
    assert [msgspec.msgpack.decode(encoder.encode_command(put)).code for _ in range(2)] == [OBJECT, FLAT]
    monkeypatch.setattr(sys.modules[Put.__module__], "Put", type("Put", (), {}))
    assert msgspec.msgpack.decode(encoder.encode_command(put)).code == OBJECT


def test_what_cannot_be_pickled_is_named_with_the_reason(sent: tuple[Encoder, list[bytes]]) -> None:
    encoder, _ = sent
    lock = threading.Lock()
    with pytest.raises(UsageError, match=r"cannot send a Put\.value\['x'\]\[1\]: cannot pickle '_thread\.lock' object"):
        encoder.encode_command(Put("k", {"x": [1, lock]}))
    with pytest.raises(UsageError, match=r"\(its variable lock\): cannot pickle"):
        encoder.encode_command(lambda state: lock)
    with pytest.raises(UsageError, match=r"cannot send a tuple\[1\]\[0\]"):
        encoder.encode_call("set", (lock,), {})
    assert encoder.encode_call("set", ("k",), {}) == msgspec.msgpack.encode(["set", "k"])
    assert encoder.encode_command(Put("k", 1)) == Encoder(lambda _: None).encode_command(Put("k", 1))


def test_code_that_mentions_a_client_or_its_proxy_says_which_name_it_is(notebook: Any) -> None:
    class Client:
        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.me = self

        def submit_call(self, *_: Any) -> Any: ...
        def query_call(self, *_: Any) -> Any: ...
        def wait(self, *_: Any) -> Any: ...

    module = notebook("class Uses:\n    def apply(self, state): return client, proxy\n")
    module.client, module.proxy = Client(), None
    encoder = Encoder(lambda _: None)
    with pytest.raises(UsageError, match=r"Uses\.apply \(its global client\)\.lock: cannot pickle '_thread\.lock'"):
        encoder.encode_command(module.Uses())
    module.client, module.proxy = None, make_proxy(Client(), Counting)
    with pytest.raises(UsageError, match=r"\(its global proxy\): a proxy belongs to its client"):
        encoder.encode_command(module.Uses())


class Counting(StateMachine):
    @command
    def count(self) -> int:
        return 1


def test_a_user_error_while_pickling_is_a_usage_error(sent: tuple[Encoder, list[bytes]]) -> None:
    with pytest.raises(UsageError, match="not today") as caught:
        sent[0].encode_command(Stubborn())
    assert isinstance(caught.value.__cause__, RuntimeError)


class Stubborn:
    def __reduce__(self) -> Any:
        raise RuntimeError("not today")


def test_a_local_msgspec_struct_is_refused_with_the_way_out(sent: tuple[Encoder, list[bytes]]) -> None:
    class Packed(msgspec.Struct):
        value: int

    with pytest.raises(UsageError, match="put it in a module"):
        sent[0].encode_command(Packed(5))
    with pytest.raises(UsageError, match="put it in a module"):
        sent[0].encode_command(lambda state: Packed)


def test_an_instance_is_no_machine() -> None:
    class Bank(StateMachine): ...

    with pytest.raises(UsageError, match=r"give the class, not an instance: ReplicatedStateMachine\(.*Bank, ...\)"):
        encode_factory(Bank(), (), {})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"cannot send a tuple\[1\]\[0\]: cannot pickle '_thread.lock'"):
        encode_factory(dict, (threading.Lock(),), {})


def test_a_machine_has_a_name() -> None:
    assert machine_name(Put) == "tests.machine.test_pickling:Put"
    assert machine_name(functools.partial(Put, "k")) == machine_name(Put)
    assert machine_name(CommandObjects, (Put,)) == machine_name(Put)


def test_a_machine_can_be_built_by_a_function_with_arguments() -> None:
    host = MachineHost.from_factory(encode_factory(functools.partial(dict, a=1), (), {"b": 2}))
    assert host.machine == {"a": 1, "b": 2}
    prefix = "x"
    host = MachineHost.from_factory(encode_factory(lambda name: {prefix: name}, ("n",), {}))
    assert host.machine == {"x": "n"}


# --- Definitions -----------------------------------------------------------------------------------------------------

COMMAND = """
from dataclasses import dataclass
STEP = {step}
class Base:
    pass
@dataclass
class Add(Base):
    number: int
    def apply(self, state):
        state.append(self.number + STEP)
        return self
"""


def test_a_class_is_defined_once_and_named_after_that(notebook: Any) -> None:
    module = notebook(COMMAND.format(step=1))
    with Node(list) as node:
        first = node.execute(module.Add(1))
        assert type(first) is module.Add
        for number in range(5):
            node.execute(module.Add(number))
        assert len(node.definitions) == 1
        assert len(node.encoder.encode_command(module.Add(1))) < 100
        assert node.query(list) == [2, 1, 2, 3, 4, 5]


def test_a_changed_class_replaces_the_old_one_from_there_on(notebook: Any) -> None:
    with Node(list) as node:
        before = notebook(COMMAND.format(step=1))
        node.execute(before.Add(1))
        after = notebook(COMMAND.format(step=10))
        assert type(node.execute(after.Add(1))) is after.Add
        assert node.query(list) == [2, 11]
        assert len(node.definitions) == 2
        node.execute(before.Add(1))  # an instance of the old class, still in a variable
        node.execute(after.Add(1))
        assert node.query(list) == [2, 11, 2, 11]


def test_an_equal_redefinition_keeps_the_class_of_the_nodes(notebook: Any) -> None:
    with Node(list) as node:
        first = notebook(COMMAND.format(step=1))
        node.execute(first.Add(1))
        node.execute(keep_in(first.Add(5)))
        second = notebook(COMMAND.format(step=1))
        assert second.Add is not first.Add
        assert fingerprint_of(first.Add) == fingerprint_of(second.Add)
        assert node.execute(functools.partial(is_of, second.Add))


def keep_in(value: Any) -> Any:
    return lambda state: state.append(value)


def is_of(kind: type, state: list[Any]) -> bool:
    return type(state[-1]) is kind


def test_a_class_put_back_in_its_place_is_current_again(notebook: Any) -> None:
    with Node(list) as node:
        first = notebook(COMMAND.format(step=1))
        node.execute(first.Add(1))
        second = notebook(COMMAND.format(step=10))
        node.execute(second.Add(1))
        sys.modules["notebook_of_a_test"] = first
        node.execute(first.Add(1))
        assert node.query(list) == [2, 11, 2]


def test_old_and_new_versions_live_on_in_a_snapshot(notebook: Any, tmp_path: Any) -> None:
    path = str(tmp_path / "snapshot")
    with Node(list) as node:
        old = notebook(COMMAND.format(step=1)).Add(5)
        node.execute(keep_in(old))
        new = notebook(COMMAND.format(step=10)).Add(5)
        node.execute(new)
        node.snapshot(path)
        expected = [5 + 1, 5 + 10]
        with Node(list, restore_from=path) as other:
            assert other.digest() == node.digest()
            for each in (node, other):
                assert each.execute(apply_the_first) == expected


def apply_the_first(state: list[Any]) -> list[Any]:
    numbers: list[Any] = []
    state[0].apply(numbers)
    return [*numbers, state[1]]


def test_classes_of_one_name_from_one_function_stay_apart() -> None:
    def make(step: int) -> Any:
        class Add:
            def apply(self, state: list[int]) -> Any:
                state.append(step)
                return self

        return Add

    one, two = make(1), make(2)
    with Node(list) as node:
        for _ in range(2):
            assert type(node.execute(one())) is one
            assert type(node.execute(two())) is two
        assert node.query(list) == [1, 2, 1, 2]
        assert len(node.definitions) == 2


def test_a_local_function_sees_the_globals_of_its_importable_module() -> None:
    def apply(state: list[Any]) -> Any:
        return Put("k", len(state))

    with Node(list) as node:
        assert node.execute(apply) == Put("k", 0)


def test_another_session_is_told_first_of_all_that_what_lives_here_rests_on(notebook: Any) -> None:
    module = notebook(COMMAND.format(step=1))

    def make(step: int) -> Any:
        class Add(module.Add):  # type: ignore[misc]
            def apply(self, state: list[int]) -> Any:
                return step, super().apply(state)

        return Add

    kinds = [make(step) for step in range(5)]
    with Node(list) as node, Node(list) as another:
        for kind in kinds:
            node.execute(kind(1))
        del kinds[1:3], kind
        gc.collect()
        module = notebook(COMMAND.format(step=2))  # what the others rest on is not what its name means any more
        node.execute(module.Add(1))

        for definition in node.encoder.definitions:
            another.ask("apply", definition)
        for living in (*kinds, module.Add):
            another.ask("apply", node.encoder.encode_command(living(1)))
        assert another.query(list) == [2, 2, 2, 3]
        assert (len(node.definitions), len(node.encoder.definitions)) == (6, 4)


def test_a_definition_goes_ahead_of_what_needs_it_from_every_thread(notebook: Any) -> None:
    module = notebook(COMMAND.format(step=1))
    order: list[Any] = []
    encoder = Encoder(lambda encoded: order.append("definition"))
    barrier = threading.Barrier(4)

    def send() -> None:
        barrier.wait()
        for number in range(50):
            encoder.encode_command(module.Add(number))
            order.append("command")

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order[0] == "definition"
    assert order.count("definition") == 1
    assert order.count("command") == 200


def test_pickling_inside_of_pickling_does_not_mix() -> None:
    encoder = Encoder(lambda _: None)

    class Nested:
        def __reduce__(self) -> Any:
            return Put, ("k", encoder.encode_command(Put("inner", 1)))

    outer = pickle.loads(msgspec.msgpack.decode(encoder.encode_command(Nested())).data)
    assert sent_and_rebuilt(outer.value) == (OBJECT, Put("inner", 1))


def test_nothing_is_taken_for_sent_that_could_not_be(notebook: Any) -> None:
    module = notebook(COMMAND.format(step=1))
    calls: list[bytes] = []

    def on_definition(encoded: bytes) -> None:
        calls.append(encoded)
        if len(calls) == 1:
            raise UsageError("this client is closed")

    encoder = Encoder(on_definition)
    with pytest.raises(UsageError, match="closed"):
        encoder.encode_command(module.Add(1))
    encoder.encode_command(module.Add(1))
    assert len(calls) == 2


def test_a_definition_that_fails_is_a_result_and_says_later_why(notebook: Any) -> None:
    module = notebook(
        "def refuse(): raise ValueError('no children')\n"
        "class Odd:\n    def __reduce__(self): return refuse, ()\n"
        "class Child:\n    odd = Odd()"  # it can be taken apart here, and cannot be made on the nodes
    )
    local = Local(list)
    payload = None

    def keep(encoded: bytes) -> None:
        nonlocal payload
        payload = encoded

    Encoder(keep).encode_command(module.Child())
    assert payload is not None
    with Node(list) as node:
        answer = node.ask("apply", payload)
        with pytest.raises(ValueError, match="no children"):
            decode_result(answer)
        named = pickle.dumps(module.Child())
        with pytest.raises(UnknownType, match=r"notebook_of_a_test:Child \(ValueError: no children\)"):
            decode_result(node.ask("apply", msgspec.msgpack.encode(msgspec.msgpack.Ext(2, named))))
        assert node.execute(len) == 0
    assert local.definitions == []


# --- Python versions -------------------------------------------------------------------------------------------------


def other_python(encoded: bytes) -> bytes:
    """Make a definition say that it comes from the next Python."""
    _, _, refs, body = msgspec.msgpack.decode(msgspec.msgpack.decode(encoded).data)
    payload = msgspec.msgpack.encode([sys.version_info[0], sys.version_info[1] + 1, refs, body])
    return msgspec.msgpack.encode(msgspec.msgpack.Ext(DEFINITION, payload))


def test_code_of_another_python_is_refused_unread(notebook: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = notebook(COMMAND.format(step=1))
    definitions: list[bytes] = []
    named = Encoder(definitions.append).encode_command(module.Add(1))
    local = Local(list)
    here = f"Python {sys.version_info[0]}.{sys.version_info[1]}"
    with pytest.raises(UsageError, match=rf"code from Python 3\.\d+, and this is {here}"):
        local.apply(other_python(definitions[0]))
    assert local.host._definitions.state()[0] == []
    local_code.clear()
    sys.modules.pop("notebook_of_a_test")
    with pytest.raises(UnknownType, match=rf"notebook_of_a_test:Add \(UsageError: .* this is {here}"):
        local.apply(named)
    closure = bytearray(msgspec.msgpack.decode(Encoder(lambda _: None).encode_command(lambda state: 5)).data)
    assert closure[0] == 0
    closure[2] += 1
    with pytest.raises(UsageError, match="a command holds code from Python"):
        local.apply(msgspec.msgpack.encode(msgspec.msgpack.Ext(2, bytes(closure))))
    with pytest.raises(ResultLost, match="holds code from Python"):
        decode_result(msgspec.msgpack.Ext(2, bytes(closure)))


def test_a_snapshot_with_code_of_another_python_is_refused(notebook: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = notebook(COMMAND.format(step=1))
    local = Local(list)
    local.execute(module.Add(1))
    snapshot = local.snapshot()
    monkeypatch.setattr("actorraft.pickling.formats._PYTHON", (3, 99))
    with pytest.raises(MachineStopped, match=r"code from Python 3\.\d+, and this is Python 3\.99"):
        Local(list).restore(snapshot)


# --- Results ---------------------------------------------------------------------------------------------------------


def test_a_result_of_a_class_that_is_not_here_names_it() -> None:
    data = pickle.dumps(Put("k", 1)).replace(b"Put", b"Pot")
    with pytest.raises(UnknownType, match=r"tests\.machine\.test_pickling:Pot"):
        decode_result(msgspec.msgpack.Ext(2, data))


def test_a_result_that_cannot_be_rebuilt_is_lost() -> None:
    with pytest.raises(ResultLost, match="cannot be rebuilt here: RuntimeError: not here"):
        decode_result(msgspec.msgpack.Ext(2, pickle.dumps(Fragile())))


class Fragile:
    def __reduce__(self) -> Any:
        return fail, ()


def fail() -> None:
    raise RuntimeError("not here")


def test_monkeypatches_and_class_attributes_of_the_caller_stay(notebook: Any) -> None:
    module = notebook(COMMAND.format(step=1))
    with Node(list) as node:
        first = node.execute(module.Add(1))
        module.Add.colour = "blue"
        module.Add.__repr__ = lambda self: "patched"
        again = node.execute(module.Add(1))
        assert (again.colour, repr(again), repr(first)) == ("blue", "patched", "patched")


# --- Fingerprints and state ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("def f(): return 1", "\n\ndef f(): return 1", True),
        ("def f(): return 1", "def f(): return 2", False),
        ("def f(x=1): return x", "def f(x=2): return x", False),
        ("N = 1\ndef f(): return N", "N = 2\ndef f(): return N", False),
        ("N = 1\ndef f(): return 1", "N = 2\ndef f(): return 1", True),
        ("def g(): return 1\ndef f(): return g()", "def g(): return 2\ndef f(): return g()", False),
        ("def f(): return lambda: 1", "def f(): return lambda: 2", False),
        ("def f(x): return x in {'a', 'b', 'c'}", "def f(x): return x in {'c', 'b', 'a'}", True),
        ("class f: x = 1", "class f: x = 2", False),
        ("class f:\n def m(self): return f", "class f:\n def m(self): return f", True),
        ("class B: x = 1\nclass f(B): pass", "class B: x = 2\nclass f(B): pass", False),
        ("class f: __slots__ = ('a',)", "class f: __slots__ = ('b',)", False),
        ("class f:\n p = property(lambda s: 1)", "class f:\n p = property(lambda s: 2)", False),
        ("import enum\nclass f(enum.Enum): A = 1", "import enum\nclass f(enum.Enum): A = 2", False),
    ],
)
def test_a_fingerprint_says_what_code_rests_on(notebook: Any, one: str, other: str, equal: bool) -> None:
    first = fingerprint_of(notebook(one).f)
    assert (fingerprint_of(notebook(other).f) == first) is equal


LAZY = """
import enum, functools
class Lazy:
    @functools.cached_property
    def inherited(self): return [self.name]
class Colour(Lazy, enum.Enum):
    def __new__(cls, value, label):
        made = object.__new__(cls)
        made._value_, made.label = value, label
        return made
    RED = 1, {label!r}
    GREEN = 2, "g"
    @functools.cached_property
    def own(self): return [self.label]
"""


def test_what_members_of_an_enum_work_out_when_they_are_used_is_not_in_its_fingerprint(notebook: Any) -> None:
    colour = notebook(LAZY.format(label="r")).Colour
    before = fingerprint_of(colour)
    assert (colour.RED.own, colour.GREEN.inherited) == (["r"], ["GREEN"])
    assert {"own", "label"} <= vars(colour.RED).keys()
    assert fingerprint_of(colour) == before
    assert fingerprint_of(notebook(LAZY.format(label="other")).Colour) != before


def test_definitions_are_restored_to_what_they_were(notebook: Any) -> None:
    definitions = Definitions()
    module = notebook(COMMAND.format(step=1))
    Encoder(lambda encoded: definitions.define(msgspec.msgpack.decode(encoded).data)).encode_command(module.Add(1))
    state = through_a_frame(definitions.state())
    other = Definitions()
    other.restore(state)
    assert other.state() == definitions.state()
    data = pickle.dumps(module.Add(3))
    assert definitions.loads(data) == other.loads(data) == module.Add(3)
    assert other.load(io.BytesIO(data)) == module.Add(3)


def test_a_machine_of_a_module_that_cannot_be_imported_runs_elsewhere(notebook: Any) -> None:
    module = notebook(
        "from actorraft import StateMachine, command, query\n"
        "class Helper:\n    pass\n"
        "class Counter(StateMachine):\n"
        "    def __init__(self, start=0):\n        self.number, self.helper = start, Helper()\n"
        "    @command\n    def add(self, n=1):\n        self.number += n\n        return self.number\n"
        "    @query\n    def get(self):\n        return self.helper\n"
    )
    with Node(module.Counter, start=5) as node:
        assert node.call("add", 2) == 7
        assert type(node.execute(lambda counter: counter.helper)) is module.Helper


def test_a_machine_class_inside_a_function_runs_elsewhere() -> None:
    class Counter(StateMachine):
        number = 0

        @command
        def add(self, n: int) -> int:
            self.number += n
            return self.number

    with Node(Counter) as node:
        assert [node.call("add", n) for n in (1, 2)] == [1, 3]


# --- Values that do as they like while they are taken apart ------------------------------------------------------------


class Problem:
    """Raises when it is pickled, as often as it is told."""

    def __init__(self, problem: BaseException, times: int = 1 << 30) -> None:
        self.problem, self.times = problem, times

    def __reduce__(self) -> Any:
        self.times -= 1
        if self.times >= 0:
            raise self.problem
        return Problem, (ValueError(), 0)


class Odd(BaseException):
    def __str__(self) -> str:
        raise SystemExit("str")


@pytest.mark.parametrize("problem", [SystemExit(3), GeneratorExit(), StopIteration(), MemoryError(), Odd()])
@pytest.mark.parametrize("inside", [lambda each: each, lambda each: [{"a": each}], lambda each: lambda state: each])
def test_whatever_an_argument_raises_while_it_is_pickled_is_a_usage_error(
    sent: tuple[Encoder, list[bytes]], problem: BaseException, inside: Any
) -> None:
    for encode in (sent[0].encode_command, lambda value: sent[0].encode_call("put", (value,), {})):
        with pytest.raises(UsageError, match="cannot send") as caught:
            encode(inside(Problem(problem)))
        assert caught.value.__cause__ is problem


def test_ctrl_c_and_a_signal_handlers_exit_while_pickling_go_on_their_way(sent: tuple[Encoder, list[bytes]]) -> None:
    with pytest.raises(KeyboardInterrupt):
        sent[0].encode_command(Problem(KeyboardInterrupt()))
    with pytest.raises(SystemExit):  # it came once: not of the value, which can be pickled
        sent[0].encode_command(Problem(SystemExit(), times=1))


class HostileRepr:
    def __repr__(self) -> str:
        raise SystemExit("repr")

    def __getattribute__(self, name: str) -> Any:
        raise SystemExit(name)


def test_a_value_that_cannot_even_be_looked_at_is_refused_by_its_type(sent: tuple[Encoder, list[bytes]]) -> None:
    for value in (HostileRepr(), [HostileRepr()], {HostileRepr: threading.Lock()}):
        with pytest.raises(UsageError, match="cannot send a"):
            sent[0].encode_command(value)
