"""A node's folder on its machine: `node.toml`, its secret key, and the mark that it has not begun yet.

`actorraft init` writes one for each node, so that ids, storage ids, keys and addresses agree before anything starts;
`actorraft serve` reads it at every start. Once a node has data, who the members are comes from its log, and those of
the file are only seeds: places to look first.

Shape:      [cluster] name, id, machine, args, kwargs, durability, profile, seed, backup   what all nodes have alike
            [node] id, listen, client_listen, advertise, client_advertise, data_dir, storage_id, actors
            [http] listen      [raft] any field of RaftConfig      [members.N] peer, client, public_key, storage_id
            [clients.NAME] public_key, role                              who may speak to it from the first
            `args` and `kwargs` are JSON. ACTORRAFT_NODE__LISTEN=… and the like go before the file.
Source:     docs/deployment.md; docs/decisions/0020 for the mark.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final, Literal, get_args

import msgspec

from actorraft.errors import UsageError
from actorraft.raft.config import RaftConfig
from actorraft.storage.files import Files

NODE_FILE: Final = "node.toml"
SECRET_FILE: Final = "secret.key"
FIRST_START: Final = "first-start"
SEED_FILE: Final = "seed.backup"  # the state that the cluster begins with, if it was founded from a backup
ENVIRONMENT: Final = "ACTORRAFT_"
PROFILES: Final = {"local": RaftConfig.local, "lan": RaftConfig.lan, "wan": RaftConfig.wan}

Durability = Literal["fsync", "os"]
Profile = Literal["local", "lan", "wan"]


class ClusterPart(msgspec.Struct, kw_only=True, frozen=True):
    """What all nodes of the cluster have alike."""

    name: str
    id: str  # 16 hexadecimal digits
    machine: str  # module:Class
    args: str = "[]"
    kwargs: str = "{}"
    durability: Durability = "fsync"
    profile: Profile = "lan"
    seed: str = ""  # of the machine's dice and of hashes; "": the id, which a recovered cluster has anew
    backup: str = ""  # the CRC of the backup that all founders begin with, in hexadecimal; "": it begins with nothing


class NodePart(msgspec.Struct, kw_only=True, frozen=True):
    """What this node is. Addresses are host:port; what is advertised is what others dial."""

    id: int
    storage_id: str
    listen: str
    client_listen: str = ""  # "": the port after `listen`'s
    advertise: str = ""  # "": as bound
    client_advertise: str = ""
    data_dir: str = ""  # "": `data` in the folder
    actors: bool = False  # reach public actors of this machine, at the port after the clients'


class HttpPart(msgspec.Struct, kw_only=True, frozen=True):
    """Where health and metrics are served; "": nowhere."""

    listen: str = ""


class MemberPart(msgspec.Struct, kw_only=True, frozen=True):
    """A member that the cluster began with."""

    peer: str
    client: str
    storage_id: str
    public_key: str = ""


class ClientPart(msgspec.Struct, kw_only=True, frozen=True):
    """A client that the cluster knows from the first."""

    public_key: str
    role: str = "admin"


class NodeFolder(msgspec.Struct, kw_only=True, frozen=True):
    """What `node.toml` says. `members` is empty at a node that joined later."""

    cluster: ClusterPart
    node: NodePart
    http: HttpPart = HttpPart()
    raft: dict[str, Any] = {}
    members: dict[int, MemberPart] = {}
    clients: dict[str, ClientPart] = {}

    def config(self) -> RaftConfig:
        """Return the profile's numbers, with those of [raft] in their place.

        Raises:
            UsageError: they cannot be.
        """
        numbers = asdict(PROFILES[self.cluster.profile]()) | self.raft
        try:
            return msgspec.convert(numbers, RaftConfig, strict=False)
        except (msgspec.ValidationError, ValueError) as error:
            raise UsageError(f"[raft] of {NODE_FILE}: {error}") from error


def read_folder(
    path: str | os.PathLike[str],
    *,
    environment: Mapping[str, str] = os.environ,
    overrides: Mapping[str, str] | None = None,
) -> NodeFolder:
    """Read a node's folder.

    Args:
        environment: ACTORRAFT_PART__KEY of it goes before the file.
        overrides: "part.key" -> value; goes before both.

    Raises:
        UsageError: it is no such folder, or a key or value is wrong; the message names the nearest that is right.
    """
    file = Path(path) / NODE_FILE
    try:
        said: dict[str, Any] = tomllib.loads(file.read_text("utf-8-sig"))
    except OSError as error:
        raise UsageError(
            f"{path} is no node's folder: {NODE_FILE}: {error.strerror}; actorraft init makes one"
        ) from None
    except ValueError as error:
        raise UsageError(f"{file} cannot be read: {error}") from None
    for variable, value in environment.items():
        part, separator, key = variable.removeprefix(ENVIRONMENT).lower().partition("__")
        if variable.startswith(ENVIRONMENT) and separator:
            _put(said, part, key, value, variable)
    for name, value in (overrides or {}).items():
        part, _, key = name.partition(".")
        _put(said, part, key, value, name)
    _check_keys(said, str(file))
    try:
        folder = msgspec.convert(said, NodeFolder, strict=False, str_keys=True)
    except msgspec.ValidationError as error:
        known = (", ".join(get_args(kind)) for name, kind in _CHOICES.items() if f"$.{name}`" in str(error))
        raise UsageError(f"{file}: {error}" + "".join(f"; it is one of {each}" for each in known)) from None
    _check_ids(folder, str(file))
    return folder


def _check_ids(folder: NodeFolder, file: str) -> None:
    """Refuse what nobody types and a copy may have cut off, before anything is made of it."""
    for name, value, form, words in (
        ("[cluster] id", folder.cluster.id, r"[0-9a-f]{16}", "16 hexadecimal digits"),
        ("[cluster] seed", folder.cluster.seed, r"[0-9]{0,20}", "a whole number, or empty"),
        ("[node] storage_id", folder.node.storage_id, r"[0-9a-f]{32}", "32 hexadecimal digits"),
    ):
        if re.fullmatch(form, value) is None:
            raise UsageError(f"{file}: {name} is {words}, not {value!r}: put back what actorraft init wrote")
    for node_id, member in folder.members.items():
        if (node_id == folder.node.id) != (member.storage_id == folder.node.storage_id):
            raise UsageError(
                f"{file}: by [members] node {node_id} has the storage id {member.storage_id}, and by [node] node "
                f"{folder.node.id} has {folder.node.storage_id}: put back what actorraft init wrote"
            )
    if any(node_id < 0 for node_id in (folder.node.id, *folder.members)):
        raise UsageError(f"{file}: ids of nodes are numbers from 0")


def _put(said: dict[str, Any], part: str, key: str, value: str, source: str) -> None:
    """Put a value that came as text in its place."""
    if part not in _PARTS:
        raise UsageError(f"{source}: there is no part [{part}]{_nearest(part, _PARTS)}")
    if key not in _PARTS[part]:
        raise UsageError(f"{source}: [{part}] has no {key}{_nearest(key, _PARTS[part])}")
    said.setdefault(part, {})[key] = value


def _check_keys(said: Mapping[str, Any], file: str) -> None:
    """Refuse what nobody would read: a slip of the pen must not be a silent default."""
    for part, content in said.items():
        if part in _TABLES:
            rows = content.values() if isinstance(content, dict) else ()
            known, tables = _TABLES[part], [each for each in rows if isinstance(each, dict)]
        elif part in _PARTS:
            known, tables = _PARTS[part], [content] if isinstance(content, dict) else []
        else:
            raise UsageError(f"{file}: there is no part [{part}]{_nearest(part, (*_PARTS, *_TABLES))}")
        for key in (key for table in tables for key in table):
            if key not in known:
                raise UsageError(f"{file}: [{part}] has no {key!r}{_nearest(key, known)}")


def _nearest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(sorted(known))}"


_CHOICES: Final = {"cluster.durability": Durability, "cluster.profile": Profile}


def _names(kind: type[msgspec.Struct]) -> tuple[str, ...]:
    return kind.__struct_fields__


_TABLES: Final = {"members": _names(MemberPart), "clients": _names(ClientPart)}
_PARTS: Final[dict[str, tuple[str, ...]]] = {
    "cluster": _names(ClusterPart),
    "node": _names(NodePart),
    "http": _names(HttpPart),
    "raft": tuple(field.name for field in fields(RaftConfig)),
}


def write_folder(path: Path, folder: NodeFolder, *, first_start: bool) -> None:
    """Write `node.toml` into a folder of mode 0700, and the mark of a node that has not begun.

    Raises:
        UsageError: the folder cannot be written.
    """
    lines = ["# One node of a cluster, for: actorraft serve THIS_FOLDER [--data-dir DIR]"]
    for name in ("cluster", "node", "http"):
        lines += ["", f"[{name}]", *_lines(getattr(folder, name))]
    lines += ["", "[raft]", *(f"{name} = {json.dumps(value)}" for name, value in sorted(folder.raft.items()))]
    for node_id, member in sorted(folder.members.items()):
        lines += ["", f"[members.{node_id}]", *_lines(member)]
    for name, client in sorted(folder.clients.items()):
        lines += ["", f"[clients.{json.dumps(name)}]", *_lines(client)]
    files = Files()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if first_start:  # first: who finds a folder without the mark takes its node for one that has begun
            files.replace(path / FIRST_START, b"This node has never begun; serve removes this before its first vote.\n")
        files.replace(path / NODE_FILE, ("\n".join(lines) + "\n").encode())
        files.sync_directory(path.parent)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error


def _lines(part: msgspec.Struct) -> list[str]:
    values = {name: json.dumps(getattr(part, name), ensure_ascii=False) for name in part.__struct_fields__}
    return [f"{name} = {text}".replace("\x7f", "\\u007f") for name, text in values.items()]  # JSON has it, TOML not


def take_first_start(path: Path) -> bool:
    """Remove the mark that this node has never begun, for good; return whether it was there and is gone.

    False also where the folder cannot be written: then nothing tells a first start from a lost disk.
    """
    mark = path / FIRST_START
    try:
        mark.unlink()
        Files().sync_directory(path)
    except OSError:
        return False
    return True
