"""What the machine side costs by itself: `python -m tests.machine.bench` prints processor time, best of some rounds."""

from __future__ import annotations

import pickle
import time
import timeit
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from actorraft import StateMachine, command
from actorraft.client.proxy import make_proxy
from actorraft.machine import CommandContext
from actorraft.node.host import MachineHost
from actorraft.pickling import canonical
from actorraft.pickling.encoder import Encoder
from actorraft.pickling.results import decode_result

CALLS = 20_000
ROUNDS = 9


class Store(StateMachine):
    def __init__(self) -> None:
        self.items: dict[str, str] = {}

    @command
    def set(self, key: str, value: str) -> bool:
        self.items[key] = value
        return True


@dataclass
class Set:
    key: str
    value: str
    number: int = 5

    def apply(self, state: Any) -> None:
        state[self.key] = self.value


class Nowhere:
    """A client that sends nothing."""

    def submit_call(self, method: str, args: Any, kwargs: Any, timeout: float | None) -> Any:
        return args

    def query_call(self, *call: Any) -> Any:
        return call

    def wait(self, future: Any, instead: str = "") -> Any:
        return future


def show(name: str, call: Callable[[], Any]) -> None:
    best = min(timeit.repeat(call, timer=time.thread_time, number=CALLS, repeat=ROUNDS)) / CALLS * 1e6
    print(f"{name:60s} {best:7.3f} µs")


def main() -> None:
    definitions: list[bytes] = []
    encoder = Encoder(definitions.append)
    store, state, context = MachineHost(Store), MachineHost(dict), CommandContext()
    call, command_object = ["set", "k", "v"], Set("k", "v")
    encoded = encoder.encode_command(command_object)
    for definition in definitions:
        assert state.apply(msgspec.msgpack.decode(definition), context) is None
    ext = msgspec.msgpack.decode(encoded)
    assert state.apply(ext, context) is None
    assert store.apply(call, context) is True
    method = Store().set.__call__
    proxy = make_proxy(Nowhere(), Store)
    large = {f"key {number}": number for number in range(1_000)}
    result = state.encode_value(command_object)
    show("encode_call with two scalars", lambda: encoder.encode_call("set", ("k", "v"), {}))
    show("apply of a call with two scalars", lambda: store.apply(call, context))
    show("  the method by itself", lambda: method("k", "v"))
    show("encode_command of a small object", lambda: encoder.encode_command(command_object))
    show("  pickle.dumps by itself", lambda: pickle.dumps(command_object, 5))
    show("apply of a small object", lambda: state.apply(ext, context))
    show("  pickle.loads by itself", lambda: pickle.loads(ext.data))
    show("encode_value of a small object (a result)", lambda: state.encode_value(command_object))
    show("decode_result of a small object", lambda: decode_result(result))
    show("a proxy's submit, without a client", lambda: proxy.set.submit("k", "v"))
    show("digest of a thousand items, each", lambda: canonical.digest(large))


if __name__ == "__main__":
    main()
