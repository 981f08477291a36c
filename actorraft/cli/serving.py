"""`serve`: one node of a cluster in the foreground, for a machine's service manager."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from actorraft.cli.output import USED_WRONGLY, errors, fail, say, unread
from actorraft.errors import UsageError
from actorraft.node import logs
from actorraft.node.backups import Schedule
from actorraft.node.folder import NodeFolder, read_folder
from actorraft.node.process import run_node
from actorraft.node.standalone import Foreground, ends, hash_seed_of, overrides_of, plan

HASH_SEED: Final = "PYTHONHASHSEED"
UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class LogFormat(StrEnum):
    """How records are written."""

    text = "text"
    json = "json"


def register(app: typer.Typer) -> None:
    """Add the subcommand."""
    app.command()(serve)


def serve(
    folder: Annotated[Path | None, typer.Argument(help="The node's folder, as `actorraft init` wrote it.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where its data is; by default in the folder.")] = None,
    listen: Annotated[str, typer.Option(help="HOST:PORT to bind for other nodes; clients get the next port.")] = "",
    advertise: Annotated[str, typer.Option(help="HOST:PORT that other nodes dial; by default what is bound.")] = "",
    http: Annotated[str, typer.Option(help="HOST:PORT for health and metrics.")] = "",
    actors: Annotated[
        bool, typer.Option("--actors", help="Let administrators reach public actors here, at the port after clients'.")
    ] = False,
    join: Annotated[str, typer.Option(help="A token, - (standard input) or @FILE: become a new member.")] = "",
    learner: Annotated[bool, typer.Option("--learner", help="Stay a learner, which does not vote.")] = False,
    log_format: Annotated[LogFormat, typer.Option(help="How records are written to standard error.")] = LogFormat.text,
    log_level: Annotated[
        list[str] | None, typer.Option(help="LEVEL, or LOGGER=LEVEL; may be given again.", metavar="[LOGGER=]LEVEL")
    ] = None,
    backup_every: Annotated[str, typer.Option(help="Write a backup so often: 90s, 30m, 1h, 1d.")] = "",
    backup_dir: Annotated[Path | None, typer.Option(help="Where backups are written.")] = None,
    backup_keep: Annotated[int, typer.Option(help="How many backups of this node stay.", min=1)] = 24,
) -> None:
    """Serve one node until SIGTERM, SIGINT or SIGHUP: then it hands leadership over, closes and exits with 0.

    The same line serves the first start and every later one.
    """
    asks_to_leave = ends()
    for number in asks_to_leave:  # until the node has its own; a machine that joins may wait long
        signal.signal(number, _end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, asks_to_leave)
    with errors():
        if join:
            from actorraft.cluster.joining import join_cluster

            folder = join_cluster(join, folder or data_dir, listen=listen, advertise=advertise, learner=learner)
            data_dir = None
        if folder is None:
            raise fail("name the node's folder, or --join TOKEN with --data-dir", USED_WRONGLY)
        read = read_folder(folder, overrides=overrides_of(data_dir, listen, advertise, http, actors))
        logs.configure(log_format, log_level or (), read.node.id)
        _with_hash_seed(read)
        spec = replace(plan(folder, read), backups=_schedule(backup_every, backup_dir, backup_keep))
        context = Foreground(read, _say)
        run_node(context, spec)  # type: ignore[arg-type]
    if context.again:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _say(line: str) -> None:
    """Print a line, if that can be; a node serves all the same."""
    try:
        say(line)
    except OSError as error:
        logging.getLogger("actorraft").warning("standard output takes nothing (%s): %s", error.strerror, line)
        unread()


def _end(*_: object) -> None:
    """End well: nothing has begun yet, and what was begun of joining is gone on with by the same line."""
    raise SystemExit(0)


def _schedule(every: str, directory: Path | None, keep: int) -> Schedule | None:
    """Return when and where backups are written; None: never."""
    if not every and directory is None:
        return None
    if not every or directory is None:
        raise fail("--backup-every and --backup-dir go together: when, and where to", USED_WRONGLY)
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", every)
    if found is None:
        raise fail(f"--backup-every is a number and a unit, as in 90s, 30m, 1h or 1d; not {every}", USED_WRONGLY)
    return Schedule(every_s=float(found[1]) * UNITS_S[found[2]], directory=directory.absolute(), keep=keep)


def _with_hash_seed(folder: NodeFolder) -> None:
    """Run under the hash seed of the cluster, so that sets iterate alike: an interpreter takes it as it starts."""
    if sys.flags.ignore_environment:
        raise UsageError(
            "python -E and -I hide PYTHONHASHSEED, by which sets iterate alike on all nodes: serve without"
        )
    seed = str(hash_seed_of(folder))
    if os.environ.get(HASH_SEED) != seed:
        os.environ[HASH_SEED] = seed
        signal.pthread_sigmask(signal.SIG_BLOCK, ends())  # they wait for `serve`, where they end this well
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
