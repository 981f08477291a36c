"""`verify`, `show`, `skip` and `recover`: what is done with folders while nothing runs, here under one name."""

from __future__ import annotations

import typer

from actorraft.storage import __main__ as storage


def register(app: typer.Typer) -> None:
    """Add the subcommands."""
    app.command(name="verify")(storage.verify_command)
    app.command(name="show")(storage.show_command)
    app.command(name="skip")(storage.skip_command)
    app.command(name="recover")(storage.recover_command)
