"""Raft's messages over ZeroMQ: a RaftNet, and under one name what cluster, node and client use.

Source:     mailbox.py (a node's mailbox, a client's channel), sockets.py (links), curve.py and keys.py (who may speak).
Threads:    a RaftNet has one of its own, which owns its mailbox.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from actorraft import codec
from actorraft.errors import UsageError
from actorraft.loggers import guarded_logger
from actorraft.ports import Kinds
from actorraft.raft.messages import Message
from transports import RaftNet
from transports.endpoints import split
from transports.keys import Keys
from transports.mailbox import ZeroMQClientChannel, ZeroMQMailbox

__all__ = ["ZeroMQClientChannel", "ZeroMQMailbox", "ZeroMQRaftNet"]

logger = guarded_logger("actorraft.transports")

OUTGOING_MAX: Final = 10_000  # messages that a RaftNet's thread has not taken yet
EARLY_MAX: Final = 1000  # messages for a peer that was never there yet


class ZeroMQRaftNet(RaftNet):
    """A RaftNet over ZeroMQ: a mailbox of its own, in a thread of its own.

    Args:
        address: this node's id.
        peers: node id -> endpoint (tcp://127.0.0.1:5555, or ipc:// in a directory of mode 0700); the node's own entry
            says where it listens, and must be there unless `endpoint` says so.
        endpoint: where this node listens.
        keys: this node's own and its peers', for tcp. Without them tcp is for the loopback only, and guarded only by a
            number made from `peers`, which keeps clusters apart but no attacker out: for tests and teaching.
    """

    def __init__(
        self,
        address: int,
        peers: Mapping[int, str],
        *,
        endpoint: str | None = None,
        keys: Keys | None = None,
        message_bytes_max: int = 16 << 20,
    ) -> None:
        super().__init__(address, peers)
        self._endpoint = endpoint or dict(peers).get(address)
        if self._endpoint is None:
            raise UsageError(f"where does node {address} listen? peers has no entry for it, and no endpoint is given")
        members = sorted({**self.peers, address: self._endpoint}.items())
        name = hashlib.sha256(repr(members).encode()).digest()
        if keys is None and any(split(each)[0] == "tcp" for _, each in members):
            logger.warning("node %d: tcp without keys: any local user can send it messages", address)
        self._keys = keys
        self._cluster_id = name[:8]
        self._message_bytes_max = message_bytes_max
        self._outgoing: deque[Message] = deque()
        self._early: dict[int, list[Message]] = {peer_id: [] for peer_id in self.peers}  # for who was never there yet
        self._mailbox: ZeroMQMailbox | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Bind, connect, and start the thread. Idempotent."""
        if self._mailbox is not None or self._ended.is_set():
            return
        assert self._endpoint is not None
        mailbox = ZeroMQMailbox(
            self.address,
            incarnation=os.urandom(8),
            cluster_id=self._cluster_id,
            peer_endpoint=self._endpoint,
            client_endpoint=None,
            keys=self._keys,
            frame_bytes_max=self._message_bytes_max,
            plaintext_on_loopback=self._keys is None,
        )
        try:
            mailbox.set_peers(self.peers)
        except BaseException:
            mailbox.close()
            raise
        self._mailbox = mailbox
        self._thread = threading.Thread(target=self._run, args=(mailbox,), name=f"raftnet-{self.address}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close the sockets and end the thread. Idempotent."""
        super().stop()
        if self._mailbox is not None and self._thread is not None:
            self._mailbox.wake()
            if self._thread is not threading.current_thread():
                self._thread.join()

    def send(self, msg: Message) -> None:
        """Send to `msg.dest`, never blocking; a message to itself arrives at once."""
        if msg.dest == self.address:
            self.deliver(msg)
        elif len(self._outgoing) >= OUTGOING_MAX:
            self.dropped["outgoing queue full"] += 1
        else:
            self._outgoing.append(msg)
            if self._mailbox is not None:
                self._mailbox.wake()

    def _run(self, mailbox: ZeroMQMailbox) -> None:
        while not self._ended.is_set():
            while self._outgoing:
                message = self._outgoing.popleft()
                early = self._early.get(message.dest)
                if early is None:
                    self._send_now(mailbox, message)
                elif len(early) < EARLY_MAX:
                    early.append(message)
                else:
                    self.dropped["not sent"] += 1
            for kind, sender, frame in mailbox.wait(1.0):
                if kind == Kinds.PEER:
                    self._on_frame(sender, frame)
                elif kind == Kinds.CONNECTED:
                    for message in self._early.pop(sender, ()):
                        self._send_now(mailbox, message)
        mailbox.close()

    def _send_now(self, mailbox: ZeroMQMailbox, message: Message) -> None:
        if not mailbox.send_peer(message.dest, codec.encode_message(message)):
            self.dropped["not sent"] += 1

    def _on_frame(self, sender: int, frame: bytes | memoryview) -> None:
        try:
            message: Any = codec.decode_message(frame)
        except ValueError:
            self.dropped["malformed"] += 1
            return
        if message.source != sender or message.dest != self.address:
            self.dropped["misaddressed"] += 1
            return
        self.deliver(message)
