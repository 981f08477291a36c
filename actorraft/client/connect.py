"""Ways to a client, over ZeroMQ.

An endpoint is what a channel connects to; over tcp, `#` and the path of the cluster's token file follow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from actorraft.client.arguments import check_endpoints, check_timeout
from actorraft.client.client import Client
from actorraft.client.thread import ClientThread
from actorraft.errors import UsageError

if TYPE_CHECKING:
    from actorraft.ports import Channel

M = TypeVar("M")


@overload
def connect(endpoints: Mapping[int, str], machine: Callable[..., M], *, timeout: float | None = 5.0) -> Client[M]: ...
@overload
def connect(endpoints: Mapping[int, str], machine: None = None, *, timeout: float | None = 5.0) -> Client[Any]: ...
def connect(
    endpoints: Mapping[int, str], machine: Callable[..., M] | None = None, *, timeout: float | None = 5.0
) -> Client[M]:
    """Reach a running cluster.

    Args:
        endpoints: `cluster.endpoints`, also after a way through JSON; a tcp endpoint ends in `#` and the path of the
            cluster's token file.
        machine: the machine's class, for `proxy()`.
        timeout: seconds to find a leader; None waits for ever.

    Raises:
        UsageError: these are no endpoints, or the token file cannot be read.
        Unavailable: no leader was found in time.
    """
    timeout = check_timeout(timeout)
    client = open_client(endpoints, machine)
    try:
        client.wait_for_leader(timeout)
    except BaseException:
        client.close()
        raise
    return client


async def connect_async(
    endpoints: Mapping[int, str], machine: Callable[..., M] | None = None, *, timeout: float | None = 5.0
) -> Client[M]:
    """`connect`, from a coroutine: the event loop goes on meanwhile. Cancelled, it leaves nothing behind."""
    timeout = check_timeout(timeout)
    client = await asyncio.to_thread(open_client, endpoints, machine)
    try:
        await asyncio.to_thread(client.wait_for_leader, timeout)
    except BaseException:
        client.close()
        raise
    return client


def open_client(endpoints: Mapping[int, str], machine: Callable[..., M] | None) -> Client[M]:
    """Make a client over ZeroMQ, and wait for nobody."""
    return Client(open_thread(endpoints), machine)


def open_thread(endpoints: Mapping[int, str]) -> ClientThread:
    """Open a session over ZeroMQ; see `connect`."""
    plain: dict[int, str] = {}
    token_file = ""
    for node_id, endpoint in check_endpoints(endpoints).items():
        plain[node_id], _, named = endpoint.partition("#")
        token_file = named or token_file
    token = _read_token(token_file) if token_file else None
    return ClientThread(plain, lambda: zeromq_channel(token), token_file=token_file)


def zeromq_channel(token: bytes | None) -> Channel:
    """Make a channel over ZeroMQ: the one place in the caller's process that names a transport."""
    from transports.zeromq import ZeroMQClientChannel

    return ZeroMQClientChannel(token=token)


def _read_token(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise UsageError(f"the cluster's token file {path!r} cannot be read: {error}") from error
