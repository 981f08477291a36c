"""`events` and `top`: what happens in a cluster, as lines and as a live screen.

Every member is asked again and again, each for what it knows first-hand (node/journal.py) and how it is; one that does
not answer is news, too. Nothing is asked of the leader alone, so both go on through its death.
"""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Final, NamedTuple

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from actorraft.cli.output import Format, Output, as_json, fail, unread
from actorraft.cli.reaching import ClientFolder, cluster, nobody_answers
from actorraft.client import administration
from actorraft.client.status import MemberStatus
from actorraft.client.thread import ClientThread
from actorraft.errors import ActorRaftError
from actorraft.steady import monotonic

ASK_S: Final = 1.0
Every = Annotated[float, typer.Option("--every", "-n", help="Seconds between two looks.", min=0.1)]
STATES: Final = {"leader": "green", "follower": "", "candidate": "yellow"}


class Happened(NamedTuple):
    """One thing that happened; `node_id` says who says so, or of whom it is said."""

    time_s: float
    node_id: int
    kind: str
    detail: str
    term: int | None


def register(app: typer.Typer) -> None:
    """Add the subcommands."""
    app.command()(events)
    app.command()(top)


def events(
    recent: Annotated[bool, typer.Option("--recent", help="First what members still remember.")] = False,
    every: Every = 0.5,
    seconds: Annotated[float | None, typer.Option(help="End after so long; by default it goes on.")] = None,
    client: ClientFolder = None,
    output: Output = Format.table,
) -> None:
    """Print what happens, a line each, until Ctrl-C: leaders, members, links, snapshots, disks, who is down."""
    with cluster(client) as thread, _until_interrupted():
        feed = Feed(thread)
        news = feed.ask()
        if not feed.anybody:
            raise fail(nobody_answers(thread))
        for happened in news if recent else ():
            _print(happened, output)
        until_s = math.inf if seconds is None else monotonic() + seconds
        while monotonic() < until_s:
            time.sleep(every)
            for happened in feed.ask():
                _print(happened, output)


def _print(happened: Happened, output: Format) -> None:
    if output is Format.json:
        print(as_json(happened._asdict()), flush=True)
        return
    print(_line(happened), flush=True)


def _line(happened: Happened) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(happened.time_s))
    return f"{at}  node {happened.node_id:<3} {happened.kind:<11} {happened.detail}"


class Feed:
    """What members have to tell since they were asked last.

    Attributes:
        anybody: whether any answered the last time.
    """

    def __init__(self, thread: ClientThread) -> None:
        self._thread = thread
        self._heard: dict[int, tuple[str, int]] = {}  # node id -> its process, and the last event of it
        self._silent: set[int] = set()
        self.anybody = False

    def ask(self) -> list[Happened]:
        """Ask all; return what is new, by time."""
        asked = {
            node_id: self._thread.admin(node_id, "events", dict(zip(("run", "after"), heard, strict=True)), ASK_S)
            for node_id in sorted(self._thread.endpoints)
            for heard in (self._heard.get(node_id, ("", -1)),)
        }
        found: list[Happened] = []
        silent = set()
        for node_id, future in asked.items():
            try:
                said = future.result()
            except ActorRaftError as error:
                silent.add(node_id)
                if node_id not in self._silent:
                    found.append(Happened(time.time(), node_id, "down", f"does not answer: {error}", None))
                continue
            if node_id in self._silent:
                found.append(Happened(time.time(), node_id, "up", "answers again", None))
            for serial, time_s, kind, detail, term in said["events"]:
                found.append(Happened(time_s, node_id, kind, detail, term))
                self._heard[node_id] = (said["run"], serial)
        self._silent = silent
        self.anybody = len(silent) < len(asked)
        return sorted(found)


class Look(NamedTuple):
    """How all members were at one time."""

    time_s: float  # of the monotonic clock
    rows: list[MemberStatus]
    said: dict[int, dict[str, Any]]  # what each said, in full


def look(thread: ClientThread) -> Look:
    """Ask all members how they are."""
    said: dict[int, dict[str, Any]] = {}

    def make_row(node_id: int, words: dict[str, Any], error: str | None) -> MemberStatus:
        said[node_id] = words
        return administration.member_status(thread.endpoints, node_id, words, error)

    rows = administration.status(thread, ASK_S, make_row)
    return Look(monotonic(), rows, said)


def top(
    every: Every = 1.0,
    count: Annotated[int | None, typer.Option(help="Looks, after which it ends; by default it goes on.", min=1)] = None,
    client: ClientFolder = None,
    output: Output = Format.table,
) -> None:
    """Show how the cluster is on a live screen, until Ctrl-C: members, rates, latencies, lag, elections, slow commands.

    Where the output is no terminal, a plain picture each time; with -o json, a line.
    """
    with cluster(client) as thread, _until_interrupted():
        feed, happened = Feed(thread), deque[Happened](maxlen=100)
        before = look(thread)
        if not any(row.alive for row in before.rows):
            raise fail(nobody_answers(thread))
        screen = output is Format.table and sys.stdout.isatty()
        console = Console()
        with Live(console=console, screen=True, auto_refresh=False) if screen else contextlib.nullcontext() as live:
            looks = 0
            while count is None or looks < count:
                if looks:
                    time.sleep(every)
                now = look(thread)
                happened.extend(feed.ask())
                looks += 1
                if output is Format.json:
                    print(as_json(numbers(before, now)), flush=True)
                elif live is not None:
                    live.update(picture(before, now, happened, console.height), refresh=True)
                else:
                    console.print(picture(before, now, happened, 1_000))
                before = now


def numbers(before: Look, now: Look) -> dict[str, Any]:
    """Return what the screen shows, as plain data."""
    passed_s = max(1e-3, now.time_s - before.time_s)
    rows = []
    for row in now.rows:
        was = before.said.get(row.id, {}).get("metrics")
        is_ = now.said.get(row.id, {}).get("metrics")
        rows.append(
            {
                **asdict(row),
                "endpoint": row.endpoint.partition("#")[0],
                "writes_per_s": _rate(was, is_, "commands", passed_s),
                "reads_per_s": _rate(was, is_, "reads", passed_s),
                "commit_ms": _median_ms(was, is_, "commit"),
                "sync_ms": _median_ms(was, is_, "sync"),
                "elections": is_["leader_changes"] if is_ else None,
                "slow": now.said.get(row.id, {}).get("slow", []),
            }
        )
    return {"members": rows}


def _rate(was: Any, is_: Any, name: str, passed_s: float) -> float | None:
    if not was or not is_:
        return None
    answered: int = is_[name].get("answered", 0) - was[name].get("answered", 0)
    return round(max(0, answered) / passed_s, 1)


def _median_ms(was: Any, is_: Any, name: str) -> float | None:
    """Return the median of what came since, to the histogram's bucket; None: nothing came."""
    if not was or not is_:
        return None
    bounds, counts, above, _ = is_[name]
    grown = [now - then for now, then in zip([*counts, above], [*was[name][1], was[name][2]], strict=True)]
    total, so_far = sum(grown), 0
    if total <= 0 or min(grown) < 0:
        return None
    for bound, count in zip([*bounds, float("inf")], grown, strict=True):
        so_far += count
        if so_far * 2 >= total:
            return round(float(bound) * 1000, 2)
    return None


def picture(before: Look, now: Look, happened: Sequence[Happened], height: int) -> RenderableType:
    """Draw the screen, in 80 columns and `height` lines."""
    told = numbers(before, now)["members"]
    leader = next((row for row in told if row["state"] == "leader" and row["alive"]), None)
    led = f"leader {leader['id']}, term {leader['term']}" if leader else "NO LEADER"
    head = Text(f"actorraft top  {time.strftime('%H:%M:%S')}  {led}", style="bold" if leader else "bold red")
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for name in ("id", "state", "applied", "lag", "writes/s", "reads/s", "commit", "sync", "elect", "free", "up"):
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    for row in told:
        if not row["alive"]:
            table.add_row(str(row["id"]), Text("down", style="red"), *["-"] * 9)
            continue
        free = row["disk"].get("free_bytes")
        table.add_row(
            str(row["id"]),
            Text(row["state"], style=STATES.get(row["state"], "")),
            str(row["last_applied"]),
            str(row["lag_entries"]),
            _number(row["writes_per_s"]),
            _number(row["reads_per_s"]),
            _milliseconds(row["commit_ms"]),
            _milliseconds(row["sync_ms"]),
            str(row["elections"]),
            "-" if free is None else f"{free / (1 << 30):.1f}G",
            _duration(row["uptime_s"]),
        )
    notes = [_cut(f"node {row['id']}: {row['error']}") for row in told if row["error"] and row["alive"]]
    slow = [
        _cut(f"node {row['id']}: {one['took_ms']:.0f} ms at index {one['index']}: {one['method']}")
        for row in told
        for one in row["slow"][-2:]
    ]
    parts: list[RenderableType] = [head, Text(), table]
    left = height - 3 - len(told) - 1
    for title, lines in (("Wrong", notes), ("Slow commands", slow), ("Events", [_cut(_line(one)) for one in happened])):
        room = max(0, left - 2)
        if lines and room:
            shown = lines[-room:] if title == "Events" else lines[: min(room, 4)]
            parts += [Text(), Text(title, style="bold"), *(Text(line) for line in shown)]
            left -= 2 + len(shown)
    return Group(*parts)


def _cut(line: str) -> str:
    return line if len(line) <= 79 else line[:78] + "…"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:g}ms"


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


@contextlib.contextmanager
def _until_interrupted() -> Iterator[None]:
    """End well at Ctrl-C and SIGTERM, with what was drawn taken back; and where nobody reads any more."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        return
    except BrokenPipeError:
        unread()
    finally:
        signal.signal(signal.SIGTERM, before)
