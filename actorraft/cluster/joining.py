"""`serve --join TOKEN`: a new machine becomes a member, with a key of its own that never travels.

A token holds a one-time client key and where the cluster is. Shown to the leader, it binds this machine's public key
and storage id to the next node id, in the log; the same machine may ask again after a crash, another may not.

Shape:      a token is base64url of JSON: `k` secret key, `c` cluster id, `m` [[endpoint, public key], …].
Source:     docs/trust.md.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from actorraft.client.administration import ask_leader
from actorraft.client.connect import zeromq_channel
from actorraft.client.requests import NodeRefused
from actorraft.client.thread import ClientThread
from actorraft.errors import UsageError
from actorraft.loggers import guarded_logger
from actorraft.node import admission
from actorraft.node.folder import (
    NODE_FILE,
    SECRET_FILE,
    ClusterPart,
    MemberPart,
    NodeFolder,
    NodePart,
    read_folder,
    write_folder,
)
from actorraft.steady import monotonic
from actorraft.storage.directory import draw_storage_id
from actorraft.storage.files import Files

logger = guarded_logger("actorraft")

JOIN_S: Final = 60.0
AGAIN_S: Final = 0.1
REFUSED_S: Final = 5.0  # how long all members may refuse a token's key: one that lags does not know a new token yet


def make_token(secret: str, cluster_id: str, members: list[tuple[str, str]]) -> str:
    """Return the text of a token."""
    said = json.dumps({"k": secret, "c": cluster_id, "m": members}, separators=(",", ":"))
    return base64.urlsafe_b64encode(said.encode()).decode().rstrip("=")


def create_token(
    folder: str | os.PathLike[str], thread: ClientThread, ttl_s: float, learner: bool, timeout: float
) -> str:
    """Have the cluster take one more machine; return the text of a token.

    Args:
        folder: an administrator's, whose session `thread` is.

    Raises:
        UsageError: the cluster has no keys.
    """
    from transports.keys import ClientFolder, KeyPair

    pair = KeyPair.generate()
    known = ask_leader(thread, "roster", {}, timeout)
    members = [(f"tcp://{at}", key) for _, _, at, key, _ in known["members"] if at and key]
    if not members:
        raise UsageError("this cluster was founded without keys, and a token is one: no machine joins it")
    ask_leader(thread, "create_token", {"public_key": pair.public, "ttl_s": ttl_s, "learner": learner}, timeout)
    return make_token(pair.secret, ClientFolder.load(folder).cluster_id, members)


def read_token(word: str) -> dict[str, Any]:
    """Read a token: the text itself, - for standard input, or @FILE.

    Raises:
        UsageError: it is none.
    """
    try:
        if word == "-":
            text = sys.stdin.readline() if sys.stdin is not None else ""
        elif word.startswith("@"):
            text = Path(word[1:]).read_text("utf-8")
        else:
            text = word
        text = text.strip()
        said = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        bytes.fromhex(said["c"])
        return {"k": str(said["k"]), "c": str(said["c"]), "m": [(str(at), str(key)) for at, key in said["m"]]}
    except OSError as error:
        raise UsageError(f"the token cannot be read from {word.removeprefix('@')}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError):
        raise UsageError("this is no token: actorraft token create prints one") from None


def join_cluster(word: str, directory: Path | None, *, listen: str, advertise: str, learner: bool) -> Path:
    """Become a member, and write this node's folder; one that is a member already just goes on.

    Args:
        directory: where the folder, with the data in it, is to be.

    Returns:
        The folder, for every later start.
    """
    from transports.endpoints import check_dialled, next_port
    from transports.keys import KeyPair, Keys

    if directory is None:
        raise UsageError("--join needs --data-dir: where this node's folder is to be")
    if (directory / NODE_FILE).exists():
        _warn_of_another_cluster(word, directory)
        return directory
    if not listen:
        raise UsageError("--join needs --listen HOST:PORT, and --advertise HOST:PORT where others dial something else")
    peer = check_dialled(advertise or listen)
    addresses = {"peer": peer, "client": next_port(peer)}
    next_port(listen)  # before anybody is asked for anything
    token = read_token(word)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    secret, identity = directory / SECRET_FILE, directory / "storage-id"
    if not secret.exists():
        KeyPair.generate().save(secret)
    if not identity.exists():
        Files().replace(identity, draw_storage_id().encode())  # whole or not at all
    own, storage_id = KeyPair.load(secret), identity.read_text("utf-8").strip()
    shown = KeyPair.of_secret(token["k"])
    seeds = {-1 - number: at for number, (at, _) in enumerate(token["m"])}  # which node is where, the cluster says
    keys = Keys(shown, {-1 - number: (key,) for number, (_, key) in enumerate(token["m"])})
    thread = ClientThread(seeds, lambda: zeromq_channel(keys, bytes.fromhex(token["c"])), learns=True)
    try:
        asked = {"public_key": own.public, "storage_id": storage_id, "learner": learner, **addresses}
        _wait_for_a_leader(thread, seeds.keys())
        told = _ask_to_join(thread, asked)
    finally:
        thread.close()
    _write(directory, told, token["c"], storage_id, listen=listen, peer=peer)
    identity.unlink()
    return directory


def _warn_of_another_cluster(word: str, directory: Path) -> None:
    """Say so if a token is for another cluster than the folder: it may be the old one, or a new one is meant."""
    if word == "-":
        return
    with contextlib.suppress(UsageError):  # it may be gone, since it was used
        meant, own = read_token(word)["c"], read_folder(directory)
        if meant != own.cluster.id:
            logger.warning(
                "the token is for cluster %s, and %s is the folder of node %d of cluster %s, which goes on; to join "
                "the other one, name a new directory",
                meant,
                directory,
                own.node.id,
                own.cluster.id,
            )


def _wait_for_a_leader(thread: ClientThread, seeds: Collection[int]) -> None:
    """Wait for somebody to show the token to.

    Raises:
        UsageError: nobody lets its key in.
    """
    now_s = since_s = monotonic()
    until_s = now_s + JOIN_S
    while thread.leader is None and now_s < until_s:
        if not thread.refusals.keys() >= set(seeds):
            since_s = now_s
        elif now_s >= since_s + REFUSED_S:
            raise UsageError(
                "nobody lets the key of this token in: it was used already, its time is over, or the cluster is "
                "another one by now. actorraft token create prints a new one"
            )
        time.sleep(0.02)
        now_s = monotonic()


def _ask_to_join(thread: ClientThread, asked: dict[str, Any]) -> Any:
    """Ask until it is this machine's turn: others may be joining at this moment, one after the other.

    Raises:
        Unavailable: it is refused, or it was nobody's turn in time.
    """
    until_s = monotonic() + JOIN_S
    while True:
        try:
            return ask_leader(thread, "join", asked, JOIN_S)
        except NodeRefused as error:
            if monotonic() >= until_s or not str(error).startswith(admission.NOT_NOW):
                raise
        time.sleep(AGAIN_S)


def _write(directory: Path, told: dict[str, Any], cluster_id: str, storage_id: str, *, listen: str, peer: str) -> None:
    from transports.endpoints import next_port

    settings = {name: json.loads(value) for name, value in told["settings"].items() if name not in ("args", "kwargs")}
    numbers = {name: settings[name] for name in ("session_expiry_s", "frame_bytes_max") if name in settings}
    folder = NodeFolder(
        cluster=ClusterPart(
            name=settings["name"],
            id=cluster_id,
            machine=settings["machine"],
            args=told["settings"]["args"],
            kwargs=told["settings"]["kwargs"],
            durability=settings["durability"],
            profile=settings["profile"],
            seed=settings.get("seed", ""),
        ),
        node=NodePart(
            id=told["node_id"],
            storage_id=storage_id,
            listen=listen,
            advertise=peer,
            client_advertise=next_port(peer),
        ),
        raft=numbers,
        members={
            node_id: MemberPart(peer=at, client=client, public_key=key, storage_id=known)
            for node_id, at, client, key, known in told["members"]
            if node_id != told["node_id"]
        },
    )
    write_folder(directory, folder, first_start=True)
