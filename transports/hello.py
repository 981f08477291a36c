"""The introduction with which every connection begins, and the few other words that transports say to each other.

Whoever dials says hello: who it is, in which life, with which folder, which versions of the wire it speaks, how much
it takes in one frame, and what its owner has to say; whoever listens answers with the same, or says why not. The
dialler draws a tag for each connection, and every frame of it begins with that tag. libzmq reconnects by itself and may
keep what is queued: a frame from an earlier connection carries another tag, and counts nothing on this one.

Wire:       [magic, 8 bytes][word, 1][tag, 8][body]. The body of HELLO and WELCOME is `_BODY`, the storage id and the
            payload; what follows is for later versions, and ignored. REFUSED: the reason, in UTF-8. AGAIN: the listener
            does not know this tag (any more). KEEP: nothing; says that the line is there. This much is the same in all
            versions of the wire, so that two that have none in common can say so.
            No frame of an owner begins with the magic: its first byte is the one that msgpack never writes.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

MAGIC: Final = b"\xc1ActRaft"
WIRE_VERSIONS: Final = (3, 3)  # the oldest and the newest that this code speaks

HELLO: Final = 1
WELCOME: Final = 2
REFUSED: Final = 3
AGAIN: Final = 4
KEEP: Final = 5

TAG_BYTES: Final = 8
PAYLOAD_BYTES_MAX: Final = 48 << 10
WORD_BYTES_MAX: Final = 60 << 10  # longer ones are not looked at
NOBODY: Final = -1  # the node id of a client
ANY_CLUSTER: Final = bytes(8)  # a client that has not been told which cluster it is to find

_HEAD = struct.Struct(f"<8sB{TAG_BYTES}s")
_BODY = struct.Struct("<BB8si8sQBI")  # versions, cluster id, node id, incarnation, receives at most, lengths


class Introduction(NamedTuple):
    """What one end of a connection says of itself; on tcp its key has proven that it is who it says.

    Attributes:
        node_id: NOBODY for a client.
        incarnation: 8 random bytes, new for each life of the process.
        versions: of the wire, the oldest and the newest it speaks.
        receive_bytes_max: it takes no longer frame.
        payload: its owner's own words, for the owner at the other end.
    """

    node_id: int
    cluster_id: bytes
    incarnation: bytes
    storage_id: str = ""
    versions: tuple[int, int] = WIRE_VERSIONS
    receive_bytes_max: int = 1 << 63
    payload: bytes = b""


def say(word: int, tag: bytes, body: bytes = b"") -> bytes:
    """Make one word."""
    return _HEAD.pack(MAGIC, word, tag) + body


def hear(data: bytes) -> tuple[int, bytes, bytes]:
    """Return (word, tag, body).

    Raises:
        ValueError: it is none.
    """
    if not _HEAD.size <= len(data) <= WORD_BYTES_MAX:
        raise ValueError(f"a word of {len(data)} bytes")
    magic, word, tag = _HEAD.unpack_from(data)
    if magic != MAGIC:
        raise ValueError("no word of ours")
    return word, tag, data[_HEAD.size :]


def encode(introduction: Introduction) -> bytes:
    """Make the body of HELLO and WELCOME."""
    node_id, cluster_id, incarnation, storage_id, versions, receive_bytes_max, payload = introduction
    name = storage_id.encode()
    return (
        _BODY.pack(*versions, cluster_id, node_id, incarnation, receive_bytes_max, len(name), len(payload))
        + name
        + payload
    )


def decode(body: bytes) -> Introduction:
    """Return what was said.

    Raises:
        ValueError: it cannot be read.
    """
    if len(body) < _BODY.size:
        raise ValueError(f"an introduction of {len(body)} bytes")
    oldest, newest, cluster_id, node_id, incarnation, receive_bytes_max, name, payload = _BODY.unpack_from(body)
    end = _BODY.size + name
    if len(body) < end + payload:
        raise ValueError("an introduction that is cut off")
    storage_id = body[_BODY.size : end].decode()
    return Introduction(
        node_id,
        cluster_id,
        incarnation,
        storage_id,
        (oldest, newest),
        receive_bytes_max,
        body[end : end + payload],
    )


def agree(ours: tuple[int, int], theirs: tuple[int, int]) -> int | None:
    """Return the newest version of the wire that both speak; None if there is none."""
    version = min(ours[1], theirs[1])
    return version if version >= max(ours[0], theirs[0]) else None
