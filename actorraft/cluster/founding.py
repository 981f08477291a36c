"""Founding a cluster over many machines: a folder for each node and one for clients, before anything starts.

Ids, storage ids, keys and addresses are drawn once, here, and agree therefore. A folder holds what one node needs and
no other's secret; the members that it names are what the cluster begins with.

Source:     docs/deployment.md.
Not here:   reading a folder (node/folder.py, transports/keys.py) and starting a node (node/standalone.py).
"""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from actorraft.errors import UsageError
from actorraft.node.folder import (
    SECRET_FILE,
    SEED_FILE,
    ClientPart,
    ClusterPart,
    Durability,
    MemberPart,
    NodeFolder,
    NodePart,
    Profile,
    write_folder,
)
from actorraft.raft.config import RaftConfig, deciding
from actorraft.storage.directory import draw_storage_id
from actorraft.storage.files import FILE_MODE
from actorraft.storage.portable import PortableInfo, read_portable

CLIENT_FOLDER: Final = "client"


def found(
    directory: str | os.PathLike[str],
    machine: str,
    addresses: Sequence[str],
    *,
    args: Sequence[Any] | None = None,
    kwargs: dict[str, Any] | None = None,
    name: str = "",
    durability: Durability = "fsync",
    profile: Profile = "lan",
    keys: bool = True,
    backup: Path | None = None,
) -> str:
    """Write the folders of a new cluster: DIRECTORY/node-0, node-1, … and DIRECTORY/client.

    Args:
        machine: "module:Class", importable wherever the nodes run.
        addresses: one "host:port" a node, what other nodes dial; clients dial the port after it.
        keys: False only where every address is on the loopback.
        backup: what the cluster begins with; then machine and arguments may be left empty, and are the backup's.

    Returns:
        The cluster's id, 16 hexadecimal digits.

    Raises:
        UsageError: the directory exists, an address or name cannot be, or the backup is another machine's; nothing is
            left behind.
    """
    from transports.keys import ClientFolder, KeyPair, Keys

    path = Path(directory).absolute()
    if path.exists():
        raise UsageError(f"{path} exists: a cluster is founded once, in a new directory")
    raft: dict[str, Any] = {}
    backup_crc = ""
    if backup is not None:
        info, crc = read_portable(backup)
        backup_crc = f"{crc:08x}"
        machine, args, kwargs, raft = _as_backed_up(backup, info, machine, args, kwargs)
    module, separator, qualname = machine.partition(":")
    if not separator or not module or not qualname:
        raise UsageError(f"the machine is named module:Class, not {machine!r}")
    if not (name + machine).isprintable():  # it is printed in rows and lines, and written as text
        raise UsageError(f"a name is text that can be printed, not {name or machine!r}")
    places = [_place(address) for address in addresses]
    _check_places(addresses, places, keys)
    pairs = [KeyPair.generate() if keys else None for _ in places]
    cluster = ClusterPart(
        name=name or qualname.rpartition(".")[2].lower(),
        id=os.urandom(8).hex(),
        machine=machine,
        args=json.dumps(list(args or ())),
        kwargs=json.dumps(kwargs or {}),
        durability=durability,
        profile=profile,
        backup=backup_crc,
    )
    members = {
        node_id: MemberPart(
            peer=join_address(host, port),
            client=join_address(host, port + 1),
            storage_id=draw_storage_id(),
            public_key=pair.public if pair is not None else "",
        )
        for node_id, ((host, port), pair) in enumerate(zip(places, pairs, strict=True))
    }
    client = KeyPair.generate()
    clients = {"admin": ClientPart(public_key=client.public)} if keys else {}
    try:
        path.mkdir(mode=0o700, parents=True)
        for node_id, ((host, port), pair) in enumerate(zip(places, pairs, strict=True)):
            node = NodePart(
                id=node_id,
                storage_id=members[node_id].storage_id,
                listen=join_address(_listen_host(host), port),
                client_listen=join_address(_listen_host(host), port + 1),
                advertise=members[node_id].peer,
                client_advertise=members[node_id].client,
            )
            folder = path / f"node-{node_id}"
            said = NodeFolder(cluster=cluster, node=node, raft=raft, members=members, clients=clients)
            write_folder(folder, said, first_start=True)
            if backup is not None:
                shutil.copyfile(backup, folder / SEED_FILE)
                (folder / SEED_FILE).chmod(FILE_MODE)
            if pair is not None:
                pair.save(folder / SECRET_FILE)
        ClientFolder(
            cluster_id=cluster.id,
            cluster_name=cluster.name,
            name="admin",
            endpoints={node_id: f"tcp://{member.client}" for node_id, member in members.items()},
            keys=Keys(client, {node_id: (pair.public,) for node_id, pair in enumerate(pairs) if pair is not None}),
        ).save(path / CLIENT_FOLDER)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return cluster.id


def _as_backed_up(
    path: Path, info: PortableInfo, machine: str, args: Sequence[Any] | None, kwargs: dict[str, Any] | None
) -> tuple[str, Sequence[Any] | None, dict[str, Any] | None, dict[str, Any]]:
    """Return machine, args, kwargs and numbers of Raft as the state was made with; what is said here must agree."""
    settings = {name: json.loads(value) for name, value in info.settings.items()}
    made_by: dict[str, Any] = {"machine": info.machine, "args": settings.get("args"), "kwargs": settings.get("kwargs")}
    for name, said in (("machine", machine or None), ("args", args), ("kwargs", kwargs)):
        known = made_by[name]
        if said is None:
            continue
        if known and (list(said) if name == "args" else said) != known:
            raise UsageError(
                f"{path} is the state of {name} {json.dumps(known)}, and this says {json.dumps(said)}: what decides "
                "the state goes on as it was"
            )
        made_by[name] = said
    if not made_by["machine"]:
        raise UsageError(f"{path} does not say whose state it is: --machine MODULE:CLASS")
    numbers = {name: settings[name] for name in deciding(RaftConfig()) if name in settings}
    return made_by["machine"], made_by["args"], made_by["kwargs"], numbers


def join_address(host: str, port: int) -> str:
    """Return host:port, with brackets about a number of IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _place(address: str) -> tuple[str, int]:
    from transports.endpoints import check_dialled, host_and_port

    host, port = host_and_port(address)
    if not 0 < port < 65535:
        raise UsageError(f"{address}: clients dial the port after this one, so it is from 1 to 65534")
    check_dialled(address)
    return host, port


def _check_places(addresses: Sequence[str], places: Sequence[tuple[str, int]], keys: bool) -> None:
    if not places:
        raise UsageError("a cluster has at least one node: --nodes HOST:PORT,…")
    taken = [(_canonical(host), port + more) for host, port in places for more in (0, 1)]
    for place in taken:
        if taken.count(place) > 1:
            raise UsageError(
                f"{join_address(*place)} would be used twice: each node takes its port and the one after it"
            )
    from transports.endpoints import is_loopback

    for address, (host, _) in zip(addresses, places, strict=True):
        if not keys and not is_loopback(host):
            raise UsageError(f"{address} is not on the loopback: without keys anybody there could read and forge")


def _canonical(host: str) -> str:
    """Spell a host in one way, that two spellings are not taken for two hosts."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return "127.0.0.1" if host == "localhost" else host.lower()


def _listen_host(host: str) -> str:
    """A number is bound as it is; a name may mean another number on its own machine, so all of that are bound."""
    if host == "localhost":
        return "127.0.0.1"
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "0.0.0.0"
    return host
