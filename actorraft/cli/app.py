"""The table of contents of the command line: which subcommand is defined where."""

from __future__ import annotations

import typer

import actorraft
from actorraft.cli import backing_up, calling, clients, folders, founding, keys, kubernetes, members, serving, watching
from actorraft.cli.output import fail, unread

app = typer.Typer(
    name="actorraft",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Replicated actors over Raft: found a cluster, serve its nodes, watch it, mend it.",
    epilog="Commands that ask a cluster find it by --client FOLDER or ACTORRAFT_CLIENT.",
)
founding.register(app)
serving.register(app)
members.register(app)
clients.register(app)
keys.register(app)
calling.register(app)
watching.register(app)
backing_up.register(app)
kubernetes.register(app)
folders.register(app)


@app.callback(invoke_without_command=True)
def options(version: bool = typer.Option(False, "--version", help="Print the version and leave.")) -> None:
    """Replicated actors over Raft: found a cluster, serve its nodes, watch it, mend it."""
    if version:
        print(f"actorraft {actorraft.__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; ends the process."""
    try:
        app()
    except OSError as error:  # of printing; of all others a command tells itself
        unread()
        raise SystemExit(fail(f"standard output takes nothing: {error.strerror}").exit_code) from None
