"""`clients` and `keys`: who may speak to the cluster, and by which key each is known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from actorraft.cli.output import Format, Output, errors, print_json, print_rows, say
from actorraft.cli.reaching import ClientFolder, Timeout, ask
from actorraft.errors import UsageError

Role = Literal["read", "write", "admin"]
clients = typer.Typer(no_args_is_help=True, help="List, admit and revoke clients.")


def register(app: typer.Typer) -> None:
    """Add the subcommands."""
    app.add_typer(clients, name="clients")


@clients.command(name="list")
def list_clients(client: ClientFolder = None, timeout: Timeout = 5.0, output: Output = Format.table) -> None:
    """Show who may speak to the cluster."""
    rows = ask(client, "clients", {}, timeout)
    print_rows(
        [{"name": name, "role": role, "public_key": key} for name, key, role in rows],
        ("name", "role", "public_key"),
        output,
    )


@clients.command()
def add(
    name: Annotated[str, typer.Argument(help="What the client is called.")],
    role: Annotated[Role, typer.Option(help="What it may do; read and write send plain data only.")] = "write",
    folder: Annotated[Path | None, typer.Option(help="Where its folder is written; by default ./NAME.")] = None,
    client: ClientFolder = None,
    timeout: Timeout = 5.0,
    output: Output = Format.table,
) -> None:
    """Admit a client: write a folder with a key of its own, and tell the cluster its public half.

    With the folder that it has already: give it another role; its key stays.
    """
    from transports.keys import SECRET_FILE, KeyPair, Keys
    from transports.keys import ClientFolder as Folder

    with errors():
        if not name or not name.isprintable():
            raise UsageError(f"a client's name is text that can be printed, not {name!r}")
        path = folder or Path(name)
        secret = path / SECRET_FILE
        pair = KeyPair.load(secret) if secret.exists() else KeyPair.generate()
        for each, key, _ in ask(client, "clients", {}, timeout):
            if each == name and key != pair.public:
                raise UsageError(
                    f"{name} is a client already, and would be shut out by a new key: choose another name; or first "
                    f"actorraft clients revoke {name}; or, for another role, give its folder: --folder"
                )
            if each != name and key == pair.public:
                raise UsageError(f"{path} is the folder of the client {each}: give {name} one of its own")
        known = ask(client, "roster", {}, timeout)["members"]
        if not any(key for _, _, _, key, _ in known):
            raise UsageError("this cluster was founded without keys: whoever reaches it may do all")
        if any(key == pair.public for _, _, _, key, _ in known):
            raise UsageError(f"{path} is the folder of a node: give {name} one of its own")
        assert client is not None
        own = Folder.load(client)
        Folder(
            cluster_id=own.cluster_id,
            cluster_name=own.cluster_name,
            endpoints={node_id: f"tcp://{at}" for node_id, _, at, _, _ in known if at},
            keys=Keys(pair, {node_id: (key,) for node_id, _, _, key, _ in known if key}),
            name=name,
            role=role,
        ).save(path)
        # Last: where no answer comes, the same line again goes on with the same key.
        ask(client, "admit_client", {"name": name, "public_key": pair.public, "role": role}, timeout)
    if output is Format.json:
        print_json({"name": name, "role": role, "folder": str(path), "public_key": pair.public})
    else:
        say(f"{name} may {role}; its folder is {path}: hand it over, it holds a secret")


@clients.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The client that may speak no more.")],
    client: ClientFolder = None,
    timeout: Timeout = 5.0,
    output: Output = Format.table,
) -> None:
    """Let a client in no more; what it has open is closed."""
    ask(client, "revoke_client", {"name": name}, timeout)
    print_json({"revoked": name}) if output is Format.json else say(f"{name} may speak no more")
