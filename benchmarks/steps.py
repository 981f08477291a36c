"""Where the microseconds go: `python -m benchmarks.steps`.

Each step that a command takes between the caller and its result, by itself in one process, on frames of many commands:
what the CPU does for it, without sockets, waiting and the other processes. Times are the best of several.
"""

from __future__ import annotations

import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from actorraft import codec
from actorraft.futures import ResultFuture, resolve_many
from actorraft.node.executor import Executor
from actorraft.node.host import MachineHost
from actorraft.node.work import Apply
from actorraft.pickling.encoder import Encoder, encode_factory
from actorraft.raft.messages import AppendEntries, LogEntry
from actorraft.storage.disk import DiskStorage
from benchmarks import screen
from benchmarks.machines import Put
from statemachines.kv import KVStore

KEY, VALUE = "key-000000000005", b"v" * 128


def best_us(step: Callable[[], object], commands: int) -> float:
    """Return microseconds of one command, of a step that handles so many at once."""
    number = max(1, 20_000 // commands)
    return min(timeit.repeat(step, number=number, repeat=7)) / number / commands * 1e6


def applying(machine: Callable[..., Any], command: bytes, count: int) -> Callable[[], object]:
    """Return a step that applies one frame after another, each new to its session."""
    executor = Executor(
        MachineHost.from_factory(encode_factory(machine, (), {}), 0),
        session_expiry_s=3600.0,
        timer=time.perf_counter,
    )
    executor.run(Apply(0, [LogEntry(1, codec.stamp(1.0, codec.encode(codec.Register(7))))]))
    body = codec.join_body([command] * count)
    done = 0

    def step() -> None:
        nonlocal done
        first = done * count
        frame = codec.encode(codec.Commands(0, first, first, count, body))
        done += 1
        executor.run(Apply(done, [LogEntry(1, codec.stamp(1.0, frame))]))

    return step


def writing(directory: Path, frame: bytes) -> Callable[[], object]:
    """Return a step that writes an entry, without a sync."""
    storage = DiskStorage(directory, durability="os")
    storage.recover()
    index = 0

    def step() -> None:
        nonlocal index
        storage.persist(None, index, [LogEntry(1, frame)])
        index += 1

    return step


def main(
    commands: Annotated[int, typer.Option(min=1, help="Commands in a frame.")] = 256,
) -> None:
    """Measure the CPU that each step takes for one command."""
    encoder = Encoder(lambda definition: None)
    call = encoder.encode_call("set", (KEY, VALUE), {})
    encoder.encode_command(Put(KEY, VALUE))  # the first of its kind goes another way
    calls = [call] * commands
    body = codec.join_body(calls)
    frame = codec.stamp(1.0, codec.encode(codec.Commands(0, 0, 0, commands, body)))
    append = AppendEntries(0, 1, 1, 5, 1, [LogEntry(1, frame)], 5, 1)
    wire = codec.encode_message(append)
    results = codec.Results(0, 0, [True] * commands)
    answer = codec.encode(results)
    futures = [ResultFuture[Any]() for _ in range(commands)]

    def pack() -> bytes:
        return codec.encode(codec.Commands(0, 0, 0, commands, codec.join_body(calls)))

    def resolve() -> None:
        made = [ResultFuture[Any]() for _ in futures]
        resolve_many([(future, True) for future in made])
        for future in made:
            future.result()

    with tempfile.TemporaryDirectory(prefix="actorraft-steps-") as directory:
        steps = [
            ("client", "a call to bytes", lambda: encoder.encode_call("set", (KEY, VALUE), {}), 1),
            ("client", "or a command object to bytes", lambda: encoder.encode_command(Put(KEY, VALUE)), 1),
            ("client", "a future: made, resolved, looked at", resolve, commands),
            ("client", "commands to a frame", pack, commands),
            ("leader", "a frame to an entry", lambda: codec.stamp(1.0, frame[codec.STAMP_BYTES:]), commands),
            ("leader", "AppendEntries to bytes, for each follower", lambda: codec.encode_message(append), commands),
            ("follower", "and back", lambda: codec.decode_message(wire), commands),
            ("each node", "an entry into the log, not synced", writing(Path(directory) / "log", frame), commands),
            ("each node", "a call applied: session, machine, result", applying(KVStore, call, commands), commands),
            ("each node", "or a command object applied",
             applying(dict, encoder.encode_command(Put(KEY, VALUE)), commands), commands),
            ("leader", "results to a frame", lambda: codec.encode(results), commands),
            ("client", "and back", lambda: codec.decode_reply(answer), commands),
        ]  # fmt: skip
        rows = [(where, what, f"{best_us(step, count):.3f}") for where, what, step, count in steps]
    screen.table(f"CPU of one command, in frames of {commands}", ["where", "step", "µs"], rows)


if __name__ == "__main__":
    typer.run(main)
