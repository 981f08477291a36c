"""`exec` and `query`: one call of the machine, from a shell. Arguments are JSON, and so is what is printed.

They travel as plain data, so a client of any role may ask for what its role allows, and no class is needed here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from actorraft.cli.output import USED_WRONGLY, Format, Output, errors, fail, print_json, say
from actorraft.cli.reaching import ClientFolder, Timeout, cluster
from actorraft.client import administration
from actorraft.client.arguments import check_read
from actorraft.client.thread import ClientThread
from actorraft.futures import ResultFuture
from actorraft.steady import monotonic

Method = Annotated[str, typer.Argument(help="Of the machine.")]
Values = Annotated[list[str] | None, typer.Argument(help="Its arguments, each in JSON: '\"ann\"' 10", metavar="JSON…")]


def register(app: typer.Typer) -> None:
    """Add the subcommands."""
    negative = {"ignore_unknown_options": True}  # so that -1 is an argument
    app.command(name="exec", context_settings=negative)(execute)
    app.command(context_settings=negative)(query)
    app.command()(snapshot)


def execute(method: Method, values: Values = None, client: ClientFolder = None, timeout: Timeout = 5.0) -> None:
    """Run a command of the machine, through the log; print its result in JSON."""
    encoded = _encode(method, values)
    _print(client, timeout, lambda thread: thread.submit(encoded, timeout))


def query(
    method: Method,
    values: Values = None,
    consistency: Annotated[str, typer.Option(help="linearizable, lease or stale.")] = "linearizable",
    to: Annotated[str, typer.Option(help="leader, any, or a node's id.")] = "leader",
    client: ClientFolder = None,
    timeout: Timeout = 5.0,
) -> None:
    """Ask the machine; nothing is logged. Prints the answer in JSON."""
    encoded, where = _encode(method, values), int(to) if to.isdecimal() else to
    with errors():
        check_read(consistency, where)

    def ask(thread: ClientThread) -> ResultFuture[Any]:
        if isinstance(where, int):
            administration.check_node(thread, where, timeout)
        return thread.query(encoded, consistency, where, None, timeout)

    _print(client, timeout, ask)


def snapshot(client: ClientFolder = None, timeout: Timeout = 60.0, output: Output = Format.table) -> None:
    """Compact the log now, on every member that can be reached."""
    with cluster(client) as thread:
        thread.learn(administration.wait_for_leader(thread, timeout), timeout)  # the folder may not know them all
        taken = administration.take_snapshot(thread, timeout)
    if output is Format.json:
        print_json(taken)
        return
    for node_id, index in sorted(taken.items()):
        say(f"node {node_id}: up to index {index}")


def _encode(method: str, values: list[str] | None) -> bytes:
    arguments = []
    for value in values or []:
        try:
            arguments.append(json.loads(value))
        except (ValueError, RecursionError):
            if value.startswith("-"):
                raise fail(f"there is no option {value}; --help shows which there are", USED_WRONGLY) from None
            shown = value if len(value) < 100 else f"{value[:100]}…"
            raise fail(f"{shown} is not JSON; text stands in quotes of its own: '\"{shown}\"'", USED_WRONGLY) from None
    try:
        return msgspec.msgpack.encode([method, *arguments])
    except (ValueError, OverflowError, RecursionError) as error:
        raise fail(f"this cannot be sent as plain data: {error}", USED_WRONGLY) from None


def _print(client: Path | None, timeout: float, ask: Callable[[ClientThread], ResultFuture[Any]]) -> None:
    with cluster(client) as thread:
        until_s = monotonic() + timeout
        administration.wait_for_leader(thread, timeout)
        try:
            value = ask(thread).result(max(0.1, until_s - monotonic()) + 1.0)
        except Exception as error:
            told = "" if str(error).startswith(type(error).__name__) else f"{type(error).__name__}: "
            raise fail(f"{told}{error}") from None
    print_json(value)
