"""Public actors on other machines, reached through a node of a cluster there.

    ref = actor_ref("jobs", through="bank/client")

The folder is a client's: it says where the nodes are, proves theirs, and holds this process's key. A link to a node
for each actor takes the place of the link to its socket; all else is as on one machine (post.py).

Invariant:  the node passes on what comes behind an OPEN, until it says that the actor's link is lost; what comes then
            and before the next OPEN it drops. So what this process counts as lost goes nowhere, and a link to an actor
            begins with what it must know.
Source:     docs/decisions/0045; actorraft/node/gateway.py is the other end.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec

from actorraft import futures
from actorraft.actors.post import LINK_BYTES_MAX, UNREACHABLE_S, Box, Post, unknown_exit
from actorraft.actors.records import Address, Standing
from actorraft.actors.ref import ActorRef
from actorraft.actors.system import NAME_CHARS_MAX, system
from actorraft.actors.wire import OPEN, TOLD, Opening
from actorraft.errors import Unavailable, UsageError
from actorraft.ports import Kinds
from actorraft.steady import monotonic

if TYPE_CHECKING:
    from transports.keys import ClientFolder
    from transports.zeromq import ZeroMQClientChannel

FIND_S: Final = 5.0  # how long nodes may take to say whether they know an actor
SCHEME: Final = "node://"  # of a remote actor's endpoint: node://CLUSTER/NODE, then the path of its mailbox there

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[int, list[tuple[int, bool, bytes]]]).decode
_standing = msgspec.msgpack.Decoder(Standing).decode


def opening(name: str, endpoint: str, sender: bytes) -> bytes:
    """Return the frame that says to a node which actor is meant."""
    return _encode([(OPEN, 0, _encode(Opening(name, endpoint, sender)))])


def look(
    folder: ClientFolder, name: str, endpoint: str = "", nodes: Iterable[int] | None = None, timeout_s: float = FIND_S
) -> tuple[int, Standing]:
    """Ask nodes how a public actor of their machines stands.

    Args:
        endpoint: only the one that has its mailbox there.
        nodes: which nodes; None: all.

    Returns:
        The node that knows it, and what it says.

    Raises:
        UsageError: none knows it; or the key may not reach actors.
        Unavailable: none knows it, of those that answered in time.
    """
    from transports.zeromq import ZeroMQClientChannel

    asked = set(nodes if nodes is not None else folder.endpoints)
    channel = ZeroMQClientChannel(keys=folder.keys, message_bytes_max=1 << 20)
    until_s = monotonic() + timeout_s
    refused = ""
    try:
        channel.set_endpoints({node_id: _at(folder, node_id) for node_id in asked})
        while asked and (left_s := until_s - monotonic()) > 0:
            for kind, node_id, frame in channel.wait(left_s):
                if kind == Kinds.CONNECTED:
                    channel.send(node_id, opening(name, "", os.urandom(8)))
                elif kind == Kinds.FRAME and (said := _said(frame)) is not None:
                    asked.discard(node_id)
                    refused = said.refused or refused
                    if said.endpoint and endpoint in ("", said.endpoint):
                        return node_id, said
        refusals = dict(channel.refusals)
    finally:
        channel.close()
    if refused:
        raise UsageError(f"{name} is not reached: {refused}")
    if not asked:
        raise UsageError(f"there is no public actor named {name!r} on the machines of these nodes")
    silent = ", ".join(f"node {node_id} ({refusals.get(node_id, 'no answer')})" for node_id in sorted(asked))
    raise Unavailable(
        f"no node that answered within {timeout_s:g} s knows a public actor named {name!r}; silent: {silent}. A node "
        "answers for actors at the port after its clients', if it was started with --actors"
    )


def _said(frame: bytes | memoryview) -> Standing | None:
    try:
        _, [(number, _, data)] = _decode(frame)
        return _standing(data) if number == TOLD else None
    except (msgspec.DecodeError, ValueError):  # of a version that is not ours
        return None


def remote_ref(name: Any, through: str | os.PathLike[str]) -> RemoteActorRef:
    """Return the address of a public actor on the machine of a node; see `actor_ref`."""
    if futures.must_not_wait():
        raise UsageError("a replicated actor is given such a ref in a message: each replica would ask for it")
    if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARS_MAX:
        raise UsageError(f"an actor's name has 1 to {NAME_CHARS_MAX} letters, digits, - and _, not {name!r}")
    path = str(Path(through).absolute())
    folder = _load(path)
    if not folder.keys.members:
        raise UsageError(f"the cluster of {path} has no keys, and actors are reached over machines only with keys")
    node_id, said = look(folder, name)
    endpoint = f"{SCHEME}{folder.cluster_id}/{node_id}{said.endpoint.removeprefix('ipc://')}"
    return RemoteActorRef(name, endpoint, said.mailbox_max, said.mailbox_bytes_max, path)


def _load(path: str) -> ClientFolder:
    from transports.keys import ClientFolder

    return ClientFolder.load(path)


def _at(folder: ClientFolder, node_id: int) -> str:
    """Return where a node answers for the actors of its machine."""
    from transports.endpoints import next_port

    return next_port(folder.endpoints[node_id])


def _place(endpoint: str) -> tuple[str, int, str]:
    """Return (cluster id, node id, the mailbox on that node's machine)."""
    cluster_id, node_id, path = endpoint.removeprefix(SCHEME).split("/", 2)
    return cluster_id, int(node_id), f"ipc:///{path}"


class RemoteActorRef(ActorRef[Any]):
    """The address of an actor on another machine; made by `actor_ref(name, through=folder)`.

    It can be pickled, and works wherever that folder is; it does not hold the folder's secret.

    Attributes:
        folder: of the client as whom the actor is reached.
    """

    __slots__ = ("folder",)

    def __init__(self, name: str, endpoint: str, mailbox_max: int, mailbox_bytes_max: int, folder: str) -> None:
        super().__init__(name, endpoint, mailbox_max, mailbox_bytes_max)
        self.folder = folder

    def is_alive(self) -> bool:
        """Ask the node whether the actor's process is there; False if that cannot be found out within 5 s.

        Raises:
            UsageError: there is no such folder here.
        """
        cluster_id, node_id, mailbox = _place(self.endpoint)
        folder = _load(self.folder)
        if folder.cluster_id != cluster_id or node_id not in folder.endpoints:
            return False
        try:
            return look(folder, self.name, mailbox, [node_id])[1].alive
        except (UsageError, Unavailable):
            return False

    def kill(self) -> None:
        """Raise UsageError: what is done to its process is done on its machine; `stop` reaches it."""
        self._refuse("kill")

    def restart(self) -> None:
        """Raise UsageError, as `kill` does."""
        self._refuse("restart")

    def logs(self, lines: int = 100) -> list[str]:
        """Raise UsageError, as `kill` does."""
        self._refuse("logs")

    @property
    def pid(self) -> int | None:
        """Return None: it is a process of another machine."""
        return None

    def _refuse(self, what: str) -> NoReturn:
        raise UsageError(f"{self.name} is on another machine: {what} is for who is there. From here: tell, ask, stop")

    def _post_and_box(self) -> tuple[Post, Box]:
        post = system().post_through(self.folder, partial(RemotePost, self.folder))
        box = post.box(Address(self.name, self.endpoint, self.mailbox_max, self.mailbox_bytes_max))
        self._box = (post, box)
        return self._box

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.endpoint, self.mailbox_max, self.mailbox_bytes_max, self.folder)


class RemoteBox(Box):
    """What waits for one actor on another machine, and what its node has told of it."""

    local = False
    told: Standing | None = Standing()  # None: it is gone
    heard = False  # whether that came from the node
    linked_to_node = False
    opened = False  # the node knows whom this link is for, or is about to

    def record(self) -> Standing | None:
        """Return what its node has told last."""
        return self.told


class RemotePost(Post):
    """The sending side to the actors that are reached through one client's folder.

    Raises:
        UsageError: it is no client's folder, or its cluster has no keys.
    """

    def __init__(self, folder: str, who: tuple[Any, ...] | None) -> None:
        self._path = folder
        self._folder = _load(folder)
        self._sender = os.urandom(8)
        self._at: dict[str, str] = {}  # where the node of each actor is, by the actor's endpoint
        super().__init__(who)

    def _open_channel(self) -> ZeroMQClientChannel:
        from transports.zeromq import ZeroMQClientChannel

        return ZeroMQClientChannel(keys=self._folder.keys, message_bytes_max=LINK_BYTES_MAX)

    def _make_box(self, address: Address) -> Box:
        return RemoteBox(address, self._define)

    def _link(self) -> None:
        """Have a link to its node for each actor that there is a box for. The folder says where and who nodes are."""
        with contextlib.suppress(UsageError):  # as it was, then
            self._folder = _load(self._path)  # members move and change their keys
        folder, keys = self._folder, {}
        self._at.clear()
        boxes = list(self._boxes.values())
        for box in boxes:
            cluster_id, node_id, _ = _place(box.endpoint)
            if cluster_id != folder.cluster_id or node_id not in folder.endpoints:
                self._end(box, f"is at node {node_id} of cluster {cluster_id}, which {self._path} does not know")
                continue
            try:
                self._at[box.endpoint] = _at(folder, node_id)
            except UsageError as error:  # there is no port after the clients'
                self._end(box, f"is not reached: {error}")
                continue
            keys[box.endpoint] = folder.keys.members.get(node_id, ())
        self._channel.set_keys(keys)
        self._channel.set_endpoints(self._at)
        for box in boxes:
            box.linked = True
            if not box.connected and box.dead is None:
                self._unquiet.add(box.endpoint)

    def _on_link(self, box: Box) -> None:
        assert isinstance(box, RemoteBox)
        box.linked_to_node = True
        self._open(box)

    def _open(self, box: RemoteBox) -> None:
        _, _, mailbox = _place(box.endpoint)
        box.opened = self._channel.send(box.endpoint, opening(box.name, mailbox, self._sender))

    def _on_broken_link(self, box: Box) -> None:
        assert isinstance(box, RemoteBox)
        box.linked_to_node = box.opened = False
        if box.told is not None:
            box.told = box.told._replace(alive=False, due=True)
        _, node_id, _ = _place(box.endpoint)
        self._on_lost(box, f"is not reached any more: the link to node {node_id} broke")

    def _on_word(self, box: Box, number: int, data: bytes) -> None:
        if number != TOLD:
            super()._on_word(box, number, data)
            return
        assert isinstance(box, RemoteBox)
        try:
            said = _standing(data)
        except msgspec.DecodeError:
            self._channel.drop(f"a word of a node about {box.name} that does not decode")
            return
        if said.refused:
            self._bury(box, f"is not reached: {said.refused}")
            return
        with self._lock:  # `watch` looks at both
            if not box.heard and said.endpoint and not said.dead:
                box.heard = True
                if box.exits_told >= 0:  # somebody watches: what was before it is not news
                    box.exits_told = said.exits
            box.told = said if said.endpoint else None
        if said.up and not box.connected:
            self._on_reached(box)
        elif not said.up and box.connected:
            self._on_lost(box)
            self._open(box)  # behind all that has left for the life that is gone

    def _look_after(self, box: Box) -> None:
        assert isinstance(box, RemoteBox)
        if box.linked_to_node and not box.opened:  # its queue was full
            self._open(box)
        super()._look_after(box)

    def _bury(self, box: Box, why: str) -> None:
        assert isinstance(box, RemoteBox)
        _, node_id, _ = _place(box.endpoint)
        if not box.linked_to_node:
            reason = self._channel.refusals.get(box.endpoint, "no answer")
            why = f"{why}, nor could node {node_id} ({reason}) for {UNREACHABLE_S:.0f} s"
        if box.told is not None and not box.told.dead:  # nobody will ever tell of an exit
            self._tell_exit(box, unknown_exit(box, f"{box.name} {why}: nobody here knows whether it lives"))
        self._at.pop(box.endpoint, None)  # before anybody hears of it: the next box for that actor begins with a link
        self._channel.set_endpoints(self._at)
        super()._bury(box, why)
