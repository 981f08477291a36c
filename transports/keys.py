"""Keys: who a process is on tcp, and whom it hears. One pair a node and one a client, made with CURVE.

A key is an identity, an address only a hint: whoever proves a member's key is that member. Secrets live in files of
mode 0600 and in this module's values, which never print them; a public key is named to people by its fingerprint.

Shape:      a public key is 40 characters of Z85, as libzmq and its tools write it. `members` maps a node id to the
            keys that prove it, the preferred one first: while a key is rotated there are two.
Source:     CurveZMQ (RFC 26 of ZeroMQ); Z85 (RFC 32), which has no quotes or backslashes, so it stands in TOML as is.
Not here:   who may speak at this moment, and the proof: curve.py.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import struct
import threading
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, TypeGuard

import zmq
from zmq.utils import z85

from actorraft.errors import UsageError
from actorraft.loggers import guarded_logger

logger = guarded_logger("actorraft.transports")

KEY_CHARS: Final = 40
ROLES: Final = ("read", "write", "admin", "join")
SECRET_FILE: Final = "secret.key"
CLIENT_FILE: Final = "client.toml"
SECRET_BYTES_MAX: Final = 1024  # a file that is longer is something else


def fingerprint(public: str) -> str:
    """Name a public key to people: short, and the same everywhere."""
    return hashlib.sha256(public.encode()).hexdigest()[:12]


def check_public(public: object) -> str:
    """Return a public key that has the form of one.

    Raises:
        UsageError: it has not.
    """
    if _is_public(public):
        return public
    raise UsageError(f"a public key has {KEY_CHARS} characters of Z85, not {public!r}")


def _is_public(public: object) -> TypeGuard[str]:
    return isinstance(public, str) and len(public) == KEY_CHARS and _is_z85(public)


@functools.lru_cache(4096)
def _is_z85(text: str) -> bool:
    """Whether libzmq takes it; a link would find out too late. Remembered: all keys are looked at when one changes."""
    try:
        z85.decode(text.encode())
    except (ValueError, KeyError, struct.error):  # a letter that Z85 has not, or five of them that are too much
        return False
    return True


@dataclass(frozen=True)
class KeyPair:
    """One key pair; only its public half is ever shown."""

    public: str
    secret: str = field(repr=False)

    @classmethod
    def generate(cls) -> Self:
        """Make a new pair from the system's randomness."""
        public, secret = zmq.curve_keypair()
        return cls(public.decode(), secret.decode())

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> Self:
        """Read a secret key's file; the public half follows from it.

        Raises:
            UsageError: there is none, it is not one, or others may read it.
        """
        try:
            with open(file, "rb") as opened:
                found = os.fstat(opened.fileno())
                if found.st_uid not in (os.geteuid(), 0) or found.st_mode & 0o077:
                    raise UsageError(
                        f"{file} holds a secret key and can be read by others (mode {found.st_mode & 0o777:04o}, "
                        f"user {found.st_uid}): chmod 600, or make a new key if others had it"
                    )
                secret = opened.read(SECRET_BYTES_MAX).strip()
        except OSError as error:
            raise UsageError(f"the secret key {file} cannot be read: {error.strerror}") from error
        try:
            public = zmq.curve_public(secret)
        except (ValueError, zmq.ZMQError):
            raise UsageError(f"{file} is no secret key") from None
        return cls(public.decode(), secret.decode())

    @classmethod
    def of_secret(cls, secret: str) -> Self:
        """Return the pair of a secret key. Raises UsageError if it is none."""
        try:
            return cls(zmq.curve_public(secret.encode()).decode(), secret)
        except (ValueError, zmq.ZMQError):
            raise UsageError("this is no secret key") from None

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write the secret key to a new file that only this user can read.

        Raises:
            UsageError: the file exists; a key is never overwritten.
        """
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise UsageError(f"{file} exists: a secret key is never overwritten") from None
        with _whole_or_not(Path(file)), open(descriptor, "w", encoding="utf-8") as opened:
            opened.write(self.secret + "\n")
            opened.flush()
            os.fsync(opened.fileno())


class Guest(NamedTuple):
    """A client that may speak: what it is called, and what it may do ("read", "write" or "admin")."""

    name: str
    role: str


@dataclass(frozen=True)
class Keys:
    """What one process knows of keys: its own pair, and whose it believes.

    Attributes:
        own: this process's pair.
        members: node id -> public keys that prove it, the preferred one first.
        clients: public key -> who that is; nodes alone need it.
    """

    own: KeyPair
    members: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    clients: Mapping[str, Guest] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for publics in self.members.values():
            for public in publics:
                check_public(public)
        for public, guest in self.clients.items():
            check_public(public)
            if guest.role not in ROLES:
                raise UsageError(f"a client's role is one of {', '.join(ROLES)}, not {guest.role!r}")

    def trusting(self, members: Mapping[int, tuple[str, ...]], clients: Mapping[str, Guest] | None = None) -> Keys:
        """Return the same process with other members, and other clients if they are given: as a cluster says it.

        A cluster's log keeps what an older leader took for a key, and that must end nobody: what is none is left out.
        """
        believed = {
            node_id: tuple(key for key in publics if _proves(f"node {node_id}", key))
            for node_id, publics in members.items()
        }
        guests = self.clients
        if clients is not None:
            guests = {key: guest for key, guest in clients.items() if _proves(f"guest {guest.name!r}", key)}
        return replace(self, members={one: keys for one, keys in believed.items() if keys}, clients=guests)


@functools.lru_cache(4096)  # said once
def _proves(name: str, public: str) -> bool:
    if _is_public(public):
        return True
    logger.warning("what the cluster has as the key of %s is none (%r), and is left out", name, public)
    return False


@dataclass(frozen=True)
class ClientFolder:
    """What one client needs to reach a cluster over tcp: `client.toml` and `secret.key`, in a folder of mode 0700.

    Attributes:
        cluster_id: hexadecimal.
        endpoints: node id -> client endpoint.
        keys: the client's own, and the members'.
    """

    cluster_id: str
    endpoints: Mapping[int, str]
    keys: Keys
    cluster_name: str = ""
    name: str = "client"
    role: str = "admin"

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the folder: a new one, or one that this client has already; then only its client.toml changes."""
        path = Path(folder)
        path.mkdir(mode=0o700, exist_ok=True)
        if not (path / SECRET_FILE).exists():
            self.keys.own.save(path / SECRET_FILE)
        lines = [
            "[cluster]",
            f"name = {_text(self.cluster_name)}",
            f"id = {_text(self.cluster_id)}",
            "",
            "[client]",
            f"name = {_text(self.name)}",
            f"role = {_text(self.role)}",
            f"public_key = {_text(self.keys.own.public)}",
        ]
        for node_id, endpoint in sorted(self.endpoints.items()):
            publics = self.keys.members.get(node_id, ())
            lines += ["", f"[members.{node_id}]", f"client = {json.dumps(endpoint)}"]
            if publics:
                lines.append(f"public_key = {json.dumps(publics[0])}")
            if publics[1:]:
                lines.append(f"former_keys = {json.dumps(publics[1:])}")
        aside = path / f".{CLIENT_FILE}.{os.getpid()}"
        with _whole_or_not(aside):
            aside.write_text("\n".join(lines) + "\n", "utf-8")
            aside.replace(path / CLIENT_FILE)  # whole or not at all: others read it while members come and go

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read a client's folder.

        Raises:
            UsageError: it is not one, or others may read its secret.
        """
        path = Path(folder)
        try:
            said: dict[str, Any] = tomllib.loads((path / CLIENT_FILE).read_text("utf-8-sig"))
        except OSError as error:
            raise UsageError(f"{path} is no client's folder: {CLIENT_FILE}: {error.strerror}") from error
        except ValueError as error:
            raise UsageError(f"{path / CLIENT_FILE} cannot be read: {error}") from error
        try:
            members = {int(node_id): member for node_id, member in said["members"].items()}
            client, cluster_id = said.get("client", {}), str(said["cluster"]["id"])
            if re.fullmatch("[0-9a-f]{16}", cluster_id) is None:
                raise UsageError(f"{path / CLIENT_FILE}: [cluster] id is 16 hexadecimal digits, not {cluster_id!r}")
            if not members:
                raise UsageError(f"{path / CLIENT_FILE}: [members] names nobody")
            own = KeyPair.load(path / SECRET_FILE)
            publics = {
                node_id: (member["public_key"], *member.get("former_keys", ()))
                for node_id, member in members.items()
                if "public_key" in member
            }
            with naming(path / CLIENT_FILE):
                keys = Keys(own, publics)
            return cls(
                cluster_id=cluster_id,
                cluster_name=str(said["cluster"].get("name", "")),
                endpoints={node_id: _tcp(member["client"]) for node_id, member in members.items()},
                keys=keys,
                name=str(client.get("name", "client")),
                role=str(client.get("role", "admin")),
            )
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"{path / CLIENT_FILE} lacks or misspells {error}") from error


class RunKeys:
    """The keys of a cluster over tcp with one owner: a pair a node, and one for the clients of whoever owns it.

    They never leave this machine: a node gets its own by its parent's pipe, and a client in another process of the same
    user finds its own in a folder. They are made anew for each run, unless the next one is to be at the same addresses:
    a client goes on then, if it knows the keys that it finds there. Every method may be called from any thread.

    Args:
        folder: where clients of other processes find theirs; made by the first `publish`.
        kept: where the nodes' pairs outlive the run, in a directory that only this user can enter; None: nowhere.

    Raises:
        UsageError: a key that was kept cannot be read, or written.
    """

    def __init__(self, folder: Path, node_ids: Iterable[int], kept: Path | None = None) -> None:
        self.folder = folder
        self._kept = kept
        self._lock = threading.Lock()
        self._nodes = {node_id: self._pair(node_id) for node_id in node_ids}
        secret = folder / SECRET_FILE
        self._client = KeyPair.load(secret) if secret.exists() else KeyPair.generate()

    def members(self) -> dict[int, tuple[str, ...]]:
        """Return node id -> the public keys that prove it."""
        with self._lock:
            return {node_id: (pair.public,) for node_id, pair in self._nodes.items()}

    def of_node(self, node_id: int) -> Keys:
        """Return what a node is told at its start; a node that is new gets a pair."""
        with self._lock:
            own = self._nodes.get(node_id)
            if own is None:
                own = self._nodes[node_id] = self._pair(node_id)
        return Keys(own, self.members(), {self._client.public: Guest("owner", "admin")})

    def of_client(self) -> Keys:
        """Return what a client needs."""
        return Keys(self._client, self.members())

    def forget(self, node_id: int) -> None:
        """Believe a node no more that is no member."""
        with self._lock:
            self._nodes.pop(node_id, None)
            if self._kept is not None:
                (self._kept / f"node-{node_id}.key").unlink(missing_ok=True)

    def _pair(self, node_id: int) -> KeyPair:
        if self._kept is None:
            return KeyPair.generate()
        file = self._kept / f"node-{node_id}.key"
        if file.exists():
            return KeyPair.load(file)
        pair = KeyPair.generate()
        try:
            self._kept.mkdir(mode=0o700, exist_ok=True)
            pair.save(file)
        except OSError as error:
            raise UsageError(f"{file} cannot be written: {error.strerror}") from error
        return pair

    def publish(self, cluster_id: str, name: str, endpoints: Mapping[int, str]) -> None:
        """Write the clients' folder anew."""
        ClientFolder(cluster_id, endpoints, self.of_client(), cluster_name=name, name="owner").save(self.folder)


@contextlib.contextmanager
def naming(file: Path) -> Iterator[None]:
    """Say in which file it stands what is refused."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None


@contextlib.contextmanager
def _whole_or_not(file: Path) -> Iterator[None]:
    """Leave no file behind that could not be written to its end; and name it."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = error.filename or str(file)
        raise


def _text(value: str) -> str:
    """Return it as TOML, which takes JSON's strings, but no halves of a character, and no DEL as it is."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _tcp(address: str) -> str:
    return address if "://" in address else f"tcp://{address}"
