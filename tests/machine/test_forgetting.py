"""Definitions that nothing names any more are forgotten: by the client, by the nodes, alike, and by snapshots.

What the state still holds of them stays readable, and of one class with what comes later.
"""

from __future__ import annotations

import gc
import importlib
import sys
import types
from typing import Any

import cloudpickle
import msgspec
import pytest

from actorraft import UnknownType
from actorraft.pickling.encoder import VERSIONS_MAX, Encoder
from actorraft.pickling.formats import DEFINITION
from tests.machine.local import Local, through_a_frame
from tests.machine.remote import Node
from tests.machine.test_pickling import notebook  # noqa: F401 (a fixture)

ADD = """
class Add:
    def __init__(self, key):
        self.key = key
    def __call__(self, state):
        state[self.key] = state.get(self.key, 0) + {step}
        return state[self.key]
"""
ITEM = """
class Item:
    def __init__(self, n):
        self.n = n + {step}
    def __eq__(self, other):
        return type(self) is type(other) and self.n == other.n
class Keep:
    def __init__(self, key, n):
        self.key, self.item = key, Item(n)
    def __call__(self, state):
        state[self.key] = self.item
"""


class Beside:
    """A client, and two nodes of which each is a process of its own."""

    def __init__(self) -> None:
        self.nodes = [Node(dict), Node(dict)]
        self.encoder = Encoder(self.send)
        self.definitions: list[bytes] = []

    def send(self, encoded: bytes) -> Any:
        if msgspec.msgpack.decode(encoded).code == DEFINITION:
            self.definitions.append(encoded)
        answers = [node.ask("apply", encoded) for node in self.nodes]
        assert answers[0] == answers[1]
        return answers[0]

    def execute(self, command: Any) -> Any:
        from actorraft.pickling.results import decode_result

        return decode_result(self.send(self.encoder.encode_command(command)))

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.close()


def held(local: Local) -> int:
    return len(local.host._definitions.state()[0])


def test_a_thousand_redefinitions_leave_one(notebook: Any) -> None:  # noqa: F811
    local = Local(dict)
    for step in range(1000):
        assert local.execute(notebook(ADD.format(step=step)).Add("x")) == sum(range(step + 1))
        if step == 10:
            early = len(local.snapshot())
    assert held(local) == 1
    assert len(local.snapshot()) <= early + 20
    gc.collect()
    assert len(local.encoder._sent) < 20


def test_equal_classes_of_a_function_are_defined_once_and_forgotten_here() -> None:
    sent: list[bytes] = []
    encoder = Encoder(sent.append)

    def handler(number: int) -> None:
        class Local:
            def __call__(self, state: Any) -> int:
                return 1

        encoder.encode_command(Local())

    for number in range(100):
        handler(number)
    gc.collect()
    assert len(sent) == 1
    assert len(encoder._sent) == 0


@pytest.mark.parametrize("alive", [True, False])
def test_each_call_its_own_class_leaves_a_few_on_the_nodes_and_all_of_them_work(alive: bool) -> None:
    local = Local(dict)
    classes = []
    for number in range(100):

        class Touch:
            tenant = number

            def __init__(self) -> None:
                self.extra = [1]

            def __call__(self, state: Any) -> Any:
                state[self.tenant] = self
                return self

        back = local.execute(Touch())
        assert type(back) is Touch
        if alive:
            classes.append(Touch)
        del back
    assert held(local) <= VERSIONS_MAX + 1
    again = Local(dict)
    again.restore(local.snapshot())
    assert again.query(lambda state: sorted(each.tenant for each in state.values())) == list(range(100))
    assert len(local.encoder._sent) < 100


def test_what_the_state_holds_of_a_forgotten_class_is_restored_anywhere_and_stays_of_one_class(
    notebook: Any,  # noqa: F811
    tmp_path: Any,
) -> None:
    path = str(tmp_path / "snapshot")
    with Beside() as both:
        first = notebook(ITEM.format(step=1))
        both.execute(first.Keep("a", 1))
        both.execute(first.Keep("b", 1))
        later = notebook(ITEM.format(step=100))
        both.execute(later.Keep("c", 1))
        both.nodes[0].snapshot(path)
        restored = Node(dict, restore_from=path)
        both.nodes.append(restored)
        ask = "lambda s: (s['a'] == s['b'], type(s['a']) is type(s['b']), type(s['a']) is type(s['c']), s['a'].n, s['c'].n)"
        for node in both.nodes:
            assert node.query(eval(ask)) == (True, True, False, 2, 101)
        notebook(ITEM.format(step=1))

        both.execute(sys.modules["notebook_of_a_test"].Keep("d", 1))  # the first one's equal comes back
        for node in both.nodes:
            assert node.query(lambda s: (type(s["d"]) is type(s["a"]), s["d"] == s["a"])) == (True, True)
        digests = [node.digest() for node in both.nodes]
        assert digests == digests[:1] * 3


def test_a_forgotten_class_rests_on_others_that_are_restored_with_it(notebook: Any, tmp_path: Any) -> None:  # noqa: F811
    path = str(tmp_path / "snapshot")
    source = (
        "import enum\nclass Colour(enum.Enum):\n    RED = {step}\nclass Base:\n    colour = Colour.RED\n"
        "class Item(Base):\n    def __call__(self, state): state.append(self)\n"
    )
    with Node(list) as node:
        module = notebook(source.format(step=1))
        node.encoder.dumps(module.Base)  # defined by itself first
        node.execute(module.Item())
        node.execute(notebook(source.format(step=2)).Item())
        node.snapshot(path)
    with Node(list, restore_from=path) as other:
        assert other.query(lambda state: [each.colour.value for each in state]) == [1, 2]
        assert other.query(lambda state: type(state[0]).__mro__[1] is type(state[1]).__mro__[1]) is False
        other.snapshot(path)
    with Node(list, restore_from=path) as third:
        assert third.query(lambda state: [each.colour.value for each in state]) == [1, 2]


def session(local: Local, client_id: int, module: types.ModuleType, *names: str) -> Encoder:
    """Have a client with a session of its own define some of a module's classes."""
    encoder = Encoder(lambda encoded: define(local, client_id, encoded))
    for name in names:
        encoder.dumps(getattr(module, name))
    return encoder


def define(local: Local, client_id: int, encoded: bytes) -> None:
    local.context.client_id = client_id
    local.apply(encoded)


LOCAL = "def make(n):\n    class Local:\n        number = n\n    return Local\nOne, Two = make(1), make(2)\n"


def test_the_end_of_a_session_lets_go_of_what_only_it_held(notebook: Any) -> None:  # noqa: F811
    local = Local(dict)
    module = notebook(LOCAL)
    first = session(local, 5, module, "One", "Two")
    session(local, 7, module, "Two")
    assert held(local) == 2
    local.host.end_session(5)
    assert held(local) == 1
    local.host.end_session(5)
    local.host.end_session(6)
    assert held(local) == 1
    local.host.end_session(7)
    assert held(local) == 0
    assert first is not None


def test_what_a_name_means_is_kept_when_its_session_ends(notebook: Any) -> None:  # noqa: F811
    local = Local(dict)
    module = notebook(ADD.format(step=1))
    local.context.client_id = 3
    local.execute(module.Add("x"))
    local.host.end_session(3)
    assert held(local) == 1
    assert local.execute(module.Add("x")) == 2


def test_who_holds_what_outlives_a_restore(notebook: Any) -> None:  # noqa: F811
    local = Local(dict)
    module = notebook(LOCAL)
    session(local, 5, module, "One")
    session(local, 6, module, "One", "Two")
    again = Local(dict)
    again.restore(local.snapshot())
    assert through_a_frame(again.host._definitions.state()) == through_a_frame(local.host._definitions.state())
    for one in (local, again):
        one.host.end_session(6)
        assert held(one) == 1
        one.host.end_session(5)
        assert held(one) == 0


def test_a_snapshot_from_before_a_definition_forgets_it_on_a_node_that_knows_it(notebook: Any, tmp_path: Any) -> None:  # noqa: F811
    path = str(tmp_path / "snapshot")
    with Node(dict) as node:
        node.snapshot(path)
        command = notebook(ADD.format(step=1)).Add("x")
        encoded = node.encoder.encode_command(command)
        node.ask("restore", path)
        from actorraft.pickling.results import decode_result

        with pytest.raises(UnknownType, match="Add"):
            decode_result(node.ask("apply", encoded))


RATE = """
rate = {rate}
def helper(): return rate[0] if isinstance(rate, list) else rate
def by_name(state): return helper() * 10
"""


def test_a_global_that_changed_between_two_sends_of_a_function_is_what_it_is_now(notebook: Any) -> None:  # noqa: F811
    module = notebook(RATE.format(rate=1))
    with Node(dict) as node:
        assert node.execute(module.by_name) == 10
        module.rate = 2
        assert node.execute(module.by_name) == 20
        count = len(node.definitions)
        assert node.execute(module.by_name) == 20
        assert len(node.definitions) == count
        module.rate = [3]
        assert node.execute(module.by_name) == 30
        module.rate[0] = 4
        assert node.execute(module.by_name) == 40
        module.helper = lambda: 7
        assert node.execute(module.by_name) == 70


HELPERS = """
class Add:
    def __init__(self, n):
        self.n = n
    def __call__(self, state):
        state.append(self)
        return self
    def told(self):
        return {told}
def count(state):
    return len(state) * {told}
"""


@pytest.mark.parametrize("register", ["helpers_of_a_test", "helpers_package"])
def test_a_module_that_was_registered_for_going_by_value_does_so(
    register: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = register if register == "helpers_of_a_test" else "helpers_package.inner"
    file = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
    file.parent.mkdir(exist_ok=True)
    file.parent.joinpath("__init__.py").touch()
    file.write_text(HELPERS.format(told=1))
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module(name)
    with Node(list) as node:
        by_name = node.execute(module.Add(1))
        assert node.definitions == []
        module.Add.told = lambda self: 2  # as one who edits it would
        file.write_text(HELPERS.format(told=3))
        cloudpickle.register_pickle_by_value(importlib.import_module(register))
        try:
            assert type(node.execute(module.Add(1))) is type(by_name) is module.Add
            assert len(node.definitions) >= 1
            assert node.query(lambda state: [each.told() for each in state]) == [1, 2]
            assert node.execute(module.count) == 2
        finally:
            cloudpickle.unregister_pickle_by_value(importlib.import_module(register))
    for each in [each for each in sys.modules if each.startswith(register)]:
        del sys.modules[each]
