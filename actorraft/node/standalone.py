"""A node that is started by itself on its machine: from its folder to what its process is told.

The same steps serve the first start and every later one: read the folder, look at the data directory, decide whether
what is there may vote (docs/decisions/0020), and run the node as any other.

Invariant:  a node whose disk was empty is on probation until the core says that it has begun; a mark in the data
            directory says so across crashes. The folder's own mark is gone, for good, before the first vote.
Source:     docs/deployment.md; docs/decisions/0028.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from actorraft.actors import bootstrap
from actorraft.errors import UsageError
from actorraft.loggers import guarded_logger
from actorraft.node.addresses import Announcement
from actorraft.node.folder import FIRST_START, SECRET_FILE, SEED_FILE, NodeFolder, take_first_start
from actorraft.node.folder import NODE_FILE as FOLDER_FILE
from actorraft.node.process import ON_PROBATION, REMOVED
from actorraft.node.service_manager import ServiceManager
from actorraft.node.spec import NodeSpec
from actorraft.pickling import exceptions
from actorraft.pickling.encoder import encode_factory
from actorraft.pickling.fingerprint import fingerprint_of
from actorraft.raft import roster
from actorraft.raft.config import RaftConfig, deciding
from actorraft.raft.messages import ClientKey, Configuration, EntryId, Member
from actorraft.raft.probation import NO_SEED, Probation
from actorraft.storage.directory import NODE_FILE as DATA_FILE
from actorraft.storage.directory import NodeDirectory, NodeInfo, prepare_directory, unseal
from actorraft.storage.files import Files
from actorraft.storage.portable import read_portable

if TYPE_CHECKING:
    from transports.keys import Keys

logger = guarded_logger("actorraft")

TRY_ANEW_S: Final = 60.0  # of wall time, until a command that ended this process is tried once more
DECIDING: Final = ("machine", "args", "kwargs", "seed", *deciding(RaftConfig()))  # replicated state


def load_machine(name: str) -> Callable[..., Any]:
    """Import the machine that is named as module:Class, as every node does: a spawn on the way there is refused.

    Raises:
        UsageError: it cannot be imported here.
    """
    module_name, _, qualname = name.partition(":")
    with contextlib.suppress(OSError):  # the directory that this was started in is gone
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
    try:
        with bootstrap.as_in_child():
            found: Any = importlib.import_module(module_name)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"the machine {name} cannot be imported here: {error}. Install its package, or start in its directory"
        ) from error
    except (Exception, SystemExit) as error:  # its module is a program, and may end as it likes
        raise UsageError(f"the machine {name} cannot be imported here: {exceptions.summary(error)}") from error
    if not callable(found):
        raise UsageError(f"the machine {name} is no class")
    return found  # type: ignore[no-any-return]


def hash_seed_of(folder: NodeFolder) -> int:
    """Return the PYTHONHASHSEED of every node of the cluster, so that sets iterate alike."""
    return seed_of(folder) % (1 << 32)


def seed_of(folder: NodeFolder) -> int:
    """Return the seed of everything that looks random in the machine, and is equal on every node."""
    return int(folder.cluster.seed) if folder.cluster.seed else int(folder.cluster.id, 16)


def overrides_of(
    data_dir: str | os.PathLike[str] | None, listen: str, advertise: str, http: str, actors: bool = False
) -> dict[str, str]:
    """Return what options of a start put in the place of the folder's: "part.key" -> value.

    To listen at every address says nothing about which of them others dial: then that stays as it was.
    """
    from transports.endpoints import host_and_port, is_wildcard, next_port

    named = {"node.data_dir": os.fspath(data_dir) if data_dir is not None else "", "http.listen": http}
    if listen and not advertise and not is_wildcard(host_and_port(listen)[0]):
        advertise = listen
    if actors:
        named["node.actors"] = "true"
    if listen:
        named |= {"node.listen": listen, "node.client_listen": next_port(listen)}
    if advertise:
        named |= {"node.advertise": advertise, "node.client_advertise": next_port(advertise)}
    return {name: value for name, value in named.items() if value}


def settings_of(folder: NodeFolder, config: RaftConfig) -> dict[str, str]:
    """Return what the cluster keeps as its own, as JSON by name."""
    part = folder.cluster
    named = {name: getattr(part, name) for name in ("name", "machine", "durability", "profile")}
    return {name: json.dumps(value) for name, value in named.items()} | {
        **deciding(config),
        "args": part.args,
        "kwargs": part.kwargs,
        "seed": json.dumps(str(seed_of(folder))),
    }


def first_configuration(folder: NodeFolder, config: RaftConfig) -> Configuration:
    """Return what the cluster begins with; nobody at a node that joined later, to which `members` are only seeds."""
    if folder.node.id not in folder.members:
        return Configuration()
    members = folder.members
    return roster.settle(
        Configuration(
            voters=frozenset(members),
            next_node_id=max(members) + 1,
            storage_ids=tuple(sorted((node_id, each.storage_id) for node_id, each in members.items())),
            roster=tuple(
                Member(node_id, each.public_key, each.peer, each.client) for node_id, each in sorted(members.items())
            ),
            clients=tuple(ClientKey(name, each.public_key, each.role) for name, each in sorted(folder.clients.items())),
        ),
        settings_of(folder, config),
    )


def plan(path: Path, folder: NodeFolder, machine: Callable[..., Any] | None = None) -> NodeSpec:
    """Look at a node's folder and data, and say what its process is to do.

    Args:
        machine: the class; None: the one that the folder names.

    Raises:
        UsageError: it cannot be served, and why.
    """
    from transports.endpoints import next_port

    config = folder.config()
    node, cluster = folder.node, folder.cluster
    _check_addresses(folder, str(path / FOLDER_FILE))
    listen, client_listen = node.listen, node.client_listen or next_port(node.listen)
    advertise = node.advertise or listen, node.client_advertise or client_listen
    keys = _keys(path, folder)
    actors = _actors_at(client_listen, keys) if node.actors else ""
    machine = machine or load_machine(cluster.machine)  # before anything is written
    factory = encode_factory(machine, *arguments_of(folder))
    data_dir = Path(node.data_dir or path / "data").absolute()
    probation = prepare_data(path, data_dir, folder)
    seeded = probation is not None and bool(cluster.backup) and node.id in folder.members
    members = folder.members.items()
    return NodeSpec(
        node_id=node.id,
        cluster_id=bytes.fromhex(cluster.id),
        factory=factory,
        machine_seed=seed_of(folder),
        directory=data_dir,
        durability=cluster.durability,
        keeps_data=True,
        from_snapshot=path.absolute() / SEED_FILE if seeded else None,
        configuration=first_configuration(folder, config),
        storage_id=node.storage_id,
        peer_endpoint=f"tcp://{listen}",
        client_endpoint=f"tcp://{client_listen}",
        keys=keys,
        config=config,
        run=run_of(machine),
        advertise=advertise,
        seeds={node_id: Announcement(0, each.peer, each.client) for node_id, each in members},
        probation=probation,
        hands_over=True,
        http=folder.http.listen,
        settings={name: value for name, value in settings_of(folder, config).items() if name in DECIDING},
        key_file=path.absolute() / SECRET_FILE if keys is not None else None,
        actors=actors,
    )


def _check_addresses(folder: NodeFolder, file: str) -> None:
    """Refuse addresses that cannot be, before anything is written."""
    from transports.endpoints import check_dialled, host_and_port

    node = folder.node
    bound = {"node.listen": node.listen, "node.client_listen": node.client_listen, "http.listen": folder.http.listen}
    dialled = {
        "node.advertise": node.advertise or node.listen,
        "node.client_advertise": node.client_advertise or node.client_listen,
    }
    for node_id, each in folder.members.items():
        dialled |= {f"members.{node_id}.peer": each.peer, f"members.{node_id}.client": each.client}
    for check, addresses in ((host_and_port, bound), (check_dialled, dialled)):
        for name, address in addresses.items():
            try:
                if address or name not in _BY_DEFAULT:
                    check(address)
            except UsageError as error:
                raise UsageError(f"{file}: {name}: {error}") from None


_BY_DEFAULT: Final = ("node.client_listen", "node.client_advertise", "http.listen")  # may be empty


def run_of(machine: Callable[..., Any]) -> int:
    """Return which run of the cluster this start counts as: in another one, what ended the process is tried once more.

    Whoever mends the code starts it again, and so does an init system, at once and for ever: so other code is another
    run, and so is a later minute.
    """
    return crc32(f"{fingerprint_of(machine)} {int(time.time() // TRY_ANEW_S)}".encode())


def prepare_data(path: Path, data_dir: Path, folder: NodeFolder) -> Probation | None:
    """Make the data directory at the first start; return whether what is there may vote (None: it may).

    Raises:
        UsageError: there is no data, and this id was begun before.
    """
    directory = prepare_directory(data_dir)
    mark = directory / ON_PROBATION
    if (directory / REMOVED).exists():
        raise UsageError(
            f"node {folder.node.id} was removed from the cluster, for good: {directory} may go. This machine may join "
            "anew: actorraft token create, and here actorraft serve --join TOKEN --data-dir NEW_DIRECTORY"
        )
    if (directory / DATA_FILE).exists():
        if not mark.exists():
            return None
        marked = mark.read_text("utf-8") == "first start"
        own = (unseal(directory / DATA_FILE) or {}).get("storage_id") == folder.node.storage_id
        if marked and own and (path / FIRST_START).exists():
            marked = take_first_start(path)  # the start before this one ended before it could
        return Probation(marked=marked, seed=_seed(path, folder))
    node, founded_with = folder.node, _seed(path, folder)
    if not (path / FIRST_START).exists():
        raise UsageError(
            f"{directory} is empty, and node {node.id} has begun before: what it had acknowledged is gone, so it must "
            f"not come back under its old id. Put the data back; or replace the member: actorraft members remove "
            f"{node.id}, actorraft token create, and here actorraft serve --join TOKEN --data-dir NEW_DIRECTORY"
        )
    files = Files()
    marked = os.access(path, os.W_OK)
    files.replace(mark, b"first start" if marked else b"unknown")
    store = NodeDirectory(directory, node_id=node.id, cluster_id=folder.cluster.id)
    store.store(NodeInfo(storage_id=node.storage_id, node_id=node.id, cluster_id=folder.cluster.id))
    store.close()
    if marked and not take_first_start(path):
        files.replace(mark, b"unknown")
        marked = False
    return Probation(marked=marked, seed=founded_with)


def _seed(path: Path, folder: NodeFolder) -> EntryId:
    """Return the last entry of the state that every founder begins with.

    Raises:
        UsageError: it is not here, or another one: founders that differ from the first would make two histories.
    """
    if not folder.cluster.backup or folder.node.id not in folder.members:
        return NO_SEED
    info, crc = read_portable(path / SEED_FILE)
    if f"{crc:08x}" != folder.cluster.backup:
        raise UsageError(f"{path / SEED_FILE} is not the backup that this cluster was founded from; copy that one here")
    return EntryId(info.term, info.index)


def arguments_of(folder: NodeFolder) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of the machine's constructor.

    Raises:
        UsageError: they are no JSON.
    """
    try:
        args, kwargs = json.loads(folder.cluster.args), json.loads(folder.cluster.kwargs)
    except ValueError as error:
        raise UsageError(f"[cluster] args and kwargs are JSON: {error}") from None
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise UsageError("[cluster] args is a list and kwargs an object, in JSON")
    return tuple(args), kwargs


def _keys(path: Path, folder: NodeFolder) -> Keys | None:
    from transports.endpoints import host_and_port, is_loopback
    from transports.keys import Guest, KeyPair, Keys, naming

    secret = path / SECRET_FILE
    if secret.exists():
        members = {node_id: (each.public_key,) for node_id, each in folder.members.items() if each.public_key}
        clients = {each.public_key: Guest(name, each.role) for name, each in folder.clients.items()}
        own = KeyPair.load(secret)
        with naming(path / FOLDER_FILE):
            return Keys(own, members, clients)
    if folder.clients or any(each.public_key for each in folder.members.values()):
        raise UsageError(f"{secret} is missing, and the others know this node by its key: put it back")
    if not is_loopback(host_and_port(folder.node.listen)[0]):
        raise UsageError(f"{secret} is missing, and {folder.node.listen} is not on the loopback: put the key back")
    return None


def _actors_at(client_listen: str, keys: Keys | None) -> str:
    """Return where actors of this machine are reached.

    Raises:
        UsageError: they must not be, or nobody would find them.
    """
    from transports.endpoints import host_and_port, next_port

    if keys is None:
        raise UsageError("actors are reached by who has proven an administrator's key, and this node has no keys")
    if not host_and_port(client_listen)[1]:
        raise UsageError("actors are reached at the port after the clients': listen at one that is not 0")
    return f"tcp://{next_port(client_listen)}"


def ends() -> list[signal.Signals]:
    """Return the signals that ask a node in the foreground to leave.

    SIGHUP, too: its terminal is gone, or the line to the machine; where it is ignored, as under nohup, it stays so.
    """
    hang_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, signal.SIGINT, *hang_up]


class Foreground:
    """What a node in the foreground has instead of a parent: signals, and a line on its output when it serves.

    The first of the signals that end it (`ends`) asks it to leave; a second one ends it at once.
    """

    def __init__(self, folder: NodeFolder, say: Callable[[str], None]) -> None:
        self.stop_requested = False
        self.manager = ServiceManager()
        self.again = False  # it leaves to begin anew at once, with another key
        self._folder = folder
        self._say = say
        self._bound: tuple[str, str] = ("", "")
        self._on_stop: list[Callable[[], Any]] = []
        self._orders: queue.SimpleQueue[None] = queue.SimpleQueue()  # nobody gives any
        for number in ends():
            signal.signal(number, self._ask_to_stop)

    def report(self, value: Any) -> None:
        """Hear what the node has to say."""
        verb, said = value
        if verb == "bound":
            self._bound = said
        elif verb == "ready":
            peer, client = self._bound
            node, cluster = self._folder.node, self._folder.cluster
            self._say(f'node {node.id} of "{cluster.name}" serves at {client}, to other nodes at {peer}')

    def receive(self, timeout_s: float | None) -> Any:
        """Wait for an order that never comes."""
        try:
            return self._orders.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def loaded(self) -> None:
        """There is nobody to whom anything must be flushed."""

    def on_stop(self, callback: Callable[[], Any]) -> None:
        """Have `callback` called when this process is asked to leave."""
        self._on_stop.append(callback)
        if self.stop_requested:
            callback()

    def begin_anew(self) -> None:
        """Leave as if asked to, and begin again in the same process."""
        self.again = True
        self._leave()

    def _ask_to_stop(self, number: int, _: object) -> None:
        if self.stop_requested:
            os._exit(128 + number)
        self._leave()

    def _leave(self) -> None:
        self.stop_requested = True
        for callback in self._on_stop:
            callback()
