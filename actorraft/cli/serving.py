"""`serve`: one node of a cluster in the foreground, for a machine's service manager."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from actorraft.cli.output import USED_WRONGLY, errors, fail, say
from actorraft.node.folder import NodeFolder, read_folder
from actorraft.node.process import run_node
from actorraft.node.standalone import Foreground, hash_seed_of, overrides_of, plan

HASH_SEED: Final = "PYTHONHASHSEED"


def register(app: typer.Typer) -> None:
    """Add the subcommand."""
    app.command()(serve)


def serve(
    folder: Annotated[Path | None, typer.Argument(help="The node's folder, as `actorraft init` wrote it.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where its data is; by default in the folder.")] = None,
    listen: Annotated[str, typer.Option(help="HOST:PORT to bind for other nodes; clients get the next port.")] = "",
    advertise: Annotated[str, typer.Option(help="HOST:PORT that other nodes dial; by default what is bound.")] = "",
    http: Annotated[str, typer.Option(help="HOST:PORT for health and metrics.")] = "",
    join: Annotated[str, typer.Option(help="A token, - (standard input) or @FILE: become a new member.")] = "",
    learner: Annotated[bool, typer.Option("--learner", help="Stay a learner, which does not vote.")] = False,
) -> None:
    """Serve one node until SIGTERM or SIGINT: then it hands leadership over, closes and exits with 0.

    The same line serves the first start and every later one.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    with errors():
        if join:
            from actorraft.cli.joining import join_cluster

            folder = join_cluster(join, folder or data_dir, listen=listen, advertise=advertise, learner=learner)
            data_dir = None
        if folder is None:
            raise fail("name the node's folder, or --join TOKEN with --data-dir", USED_WRONGLY)
        read = read_folder(folder, overrides=overrides_of(data_dir, listen, advertise, http))
        _with_hash_seed(read)
        spec = plan(folder, read)
    context = Foreground(read, say)
    run_node(context, spec)  # type: ignore[arg-type]
    if context.again:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _with_hash_seed(folder: NodeFolder) -> None:
    """Run under the hash seed of the cluster, so that sets iterate alike: an interpreter takes it as it starts."""
    seed = str(hash_seed_of(folder))
    if os.environ.get(HASH_SEED) != seed:
        os.environ[HASH_SEED] = seed
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
