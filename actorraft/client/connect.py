"""Ways to a client, over ZeroMQ.

An endpoint is what a channel connects to; over tcp, `#` and the path of a folder with a client's keys follow.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

from actorraft.client.arguments import check_endpoints, check_seeds
from actorraft.client.client import Client
from actorraft.client.thread import ClientThread
from actorraft.futures import check_timeout, running_loop

if TYPE_CHECKING:
    from actorraft.ports import Channel
    from transports.keys import Keys

M = TypeVar("M")


Folder = str | os.PathLike[str]
Endpoints = Mapping[int, str] | Sequence[str] | Folder  # of one cluster; one that lives is enough


@overload
def connect(
    endpoints: Endpoints, machine: Callable[..., M], *, keys: Folder | None = None, timeout: float | None = 5.0
) -> Client[M]: ...
@overload
def connect(
    endpoints: Endpoints, machine: None = None, *, keys: Folder | None = None, timeout: float | None = 5.0
) -> Client[Any]: ...
def connect(
    endpoints: Endpoints,
    machine: Callable[..., M] | None = None,
    *,
    keys: Folder | None = None,
    timeout: float | None = 5.0,
) -> Client[M]:
    """Reach a running cluster.

    Args:
        endpoints: `cluster.endpoints`, also after a way through JSON; a client's folder, which names them; or a list
            of clients' endpoints, of which one that answers is enough.
        machine: the machine's class, for `proxy()`.
        keys: a client's folder, where `endpoints` is none and names none.
        timeout: seconds to find a leader; None waits for ever.

    Returns:
        A client with a session of its own; close it, or use it in a `with` block.

    Raises:
        UsageError: these are no endpoints, the folder is none, or tcp is to be used without one.
        Unavailable: no leader was found in time.
    """
    timeout = check_timeout(timeout)
    client = open_client(endpoints, machine, keys)
    try:
        client.wait_for_leader(timeout)
    except BaseException:
        client.close()
        raise
    return client


@overload
async def connect_async(
    endpoints: Endpoints, machine: Callable[..., M], *, keys: Folder | None = None, timeout: float | None = 5.0
) -> Client[M]: ...
@overload
async def connect_async(
    endpoints: Endpoints, machine: None = None, *, keys: Folder | None = None, timeout: float | None = 5.0
) -> Client[Any]: ...
async def connect_async(
    endpoints: Endpoints,
    machine: Callable[..., M] | None = None,
    *,
    keys: Folder | None = None,
    timeout: float | None = 5.0,
) -> Client[M]:
    """As `connect`, from a coroutine; the event loop goes on meanwhile. Returns and raises the same.

    Cancelled, it leaves nothing behind.
    """
    timeout = check_timeout(timeout)
    running_loop("connect_async", "connect, endpoints, machine")
    client = await asyncio.to_thread(open_client, endpoints, machine, keys)
    try:
        await asyncio.to_thread(client.wait_for_leader, timeout)
    except BaseException:
        client.close()
        raise
    return client


def open_client(endpoints: Endpoints, machine: Callable[..., M] | None, keys: Folder | None = None) -> Client[M]:
    """Make a client over ZeroMQ, and wait for nobody."""
    return Client(open_thread(endpoints, keys), machine)


def open_thread(endpoints: Endpoints, keys: Folder | None = None) -> ClientThread:
    """Open a session over ZeroMQ; see `connect`."""
    from transports.keys import ClientFolder

    folder = os.fspath(keys or "")
    if isinstance(endpoints, str | os.PathLike):
        folder, endpoints = os.fspath(endpoints), ClientFolder.load(endpoints).endpoints
    seeds = () if isinstance(endpoints, Mapping) else check_seeds(endpoints)
    plain: dict[int, str] = {}
    for node_id, endpoint in ({} if seeds else check_endpoints(endpoints)).items():
        plain[node_id], _, named = endpoint.partition("#")
        folder = folder or named
    found = ClientFolder.load(folder) if folder else None
    if found is None:
        plain |= _numbered(seeds, {})
        return ClientThread(plain, lambda: zeromq_channel(None), learns=True)
    plain |= _numbered(seeds, found.endpoints)
    own = found.keys if found.keys.members else None  # a cluster that was founded without keys, on the loopback
    if own is not None and seeds:  # whoever answers there proves the key of some member
        anybody = tuple(dict.fromkeys(key for keys in own.members.values() for key in keys))
        own = own.trusting({node_id: anybody for node_id in plain if node_id < 0} | dict(own.members))
    cluster_id = bytes.fromhex(found.cluster_id)
    return ClientThread(plain, lambda: zeromq_channel(own, cluster_id, keyless=own is None), folder=folder, learns=True)


def _numbered(seeds: Sequence[str], known: Mapping[int, str]) -> dict[int, str]:
    """Return node id -> endpoint; a negative number where nobody knows yet which node is there."""
    node_ids = {endpoint: node_id for node_id, endpoint in known.items()}
    return {node_ids.get(endpoint, -1 - number): endpoint for number, endpoint in enumerate(seeds)}


def zeromq_channel(keys: Keys | None, cluster_id: bytes = b"", *, keyless: bool = False) -> Channel:
    """Make a channel over ZeroMQ: the one place in the caller's process that names a transport.

    Args:
        keyless: the cluster says that it does without keys; then it is reached on the loopback only.
    """
    from transports.zeromq import ZeroMQClientChannel

    return ZeroMQClientChannel(keys=keys, cluster_id=cluster_id, plaintext_on_loopback=keyless)
