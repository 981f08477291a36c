"""What happened, kept as it happened and put into words only when somebody reads it."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Iterator, MutableSequence
from typing import Any

import msgspec

from actorraft import codec
from actorraft.node.driver import ClientEvent, ConnectEvent, DisconnectEvent, MessageEvent
from actorraft.raft.messages import AppendEntries, InstallSnapshot, Message

TAIL = 60  # lines shown of a run that failed
Line = tuple[int, int, Any]  # microseconds, node (-1: the world), an event or words


class Trace:
    """The last events of a run, or all of them."""

    def __init__(self, *, keep_all: bool = False) -> None:
        self._lines: MutableSequence[Line] = [] if keep_all else deque(maxlen=TAIL)
        self.append = self._lines.append
        self.extend = self._lines.extend

    def tail(self) -> list[str]:
        """Return the last lines, in words."""
        return [words(line) for line in list(self._lines)[-TAIL:]]

    def all(self) -> Iterator[str]:
        """Yield every line, in words."""
        return (words(line) for line in self._lines)

    @staticmethod
    def where(error: BaseException) -> str:
        """Say where an error of the code under test came from."""
        frames = reversed(traceback.extract_tb(error.__traceback__)[-4:])
        places = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]
        return f"{said(error)} ({' < '.join(places)})"


def said(error: BaseException) -> str:
    """Put an error into words, as far as it lets one."""
    try:
        return f"{type(error).__name__}: {error}"
    except BaseException:  # a guest's
        return type(error).__name__


def words(line: Line) -> str:
    """Put one line of the trace into words."""
    at_us, node_id, what = line
    who = f"node {node_id}" if node_id >= 0 else "world "
    if isinstance(what, MessageEvent):
        text = message_words(what.message)
    elif isinstance(what, ClientEvent):
        text = f"<- client {what.client.address} {request_words(what.frame)}"
    elif isinstance(what, DisconnectEvent):
        text = f"lost its connection to node {what.peer_id}"
    elif isinstance(what, ConnectEvent):
        text = f"has a connection to node {what.peer_id}"
    else:
        text = str(what)
    return f"{at_us / 1e6:11.6f}  {who}  {text}"


def message_words(message: Message) -> str:
    """Put a Raft message into words: its type, where it comes from, its fields."""
    fields = dict(zip(message._fields[2:], message[2:], strict=True))
    if isinstance(message, AppendEntries):
        entries = message.entries
        fields["entries"] = f"{len(entries)} of terms {[entry.term for entry in entries]}" if entries else "none"
    if isinstance(message, InstallSnapshot):
        fields["data"] = f"{len(message.data)} bytes"
        fields["configuration"] = sorted(message.configuration.members)
    inside = " ".join(f"{name}={value}" for name, value in fields.items())
    return f"<- node {message.source} {type(message).__name__} {inside}"


def request_words(frame: codec.Body) -> str:
    """Put a client's frame into words."""
    request = codec.decode_request(frame)
    if isinstance(request, codec.Commands):
        return (
            f"Commands {request.client_id}/{request.first_sequence}+{request.count} {codec.decode_body(request.body)}"
        )
    if isinstance(request, codec.Query):
        request = msgspec.structs.replace(
            request, body=bytes(request.body)
        )  # a view says where it lies, not what it is
    return str(request)
