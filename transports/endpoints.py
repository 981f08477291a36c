"""Where a socket may be bound and connected: the checks that come before any socket exists.

ipc is safe because of its directory: sockets live where only this user can enter, and whoever binds or connects looks
first. Any local user can reach a tcp port, also one of the loopback, so tcp needs keys (keys.py); what does without
says so in the name of an option.

Source:     the mode of a Unix socket's own file is not honoured by every system; its directory's always is. `sun_path`
            holds 107 bytes and a NUL.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import stat
from pathlib import Path
from typing import Final

from actorraft.errors import UsageError
from actorraft.loggers import guarded_logger

logger = guarded_logger("actorraft.transports")

IPC_PATH_BYTES_MAX: Final = 107


def check_bind(
    endpoint: str, *, keys: bool = False, plaintext_on_loopback: bool = False, plaintext_off_loopback: bool = False
) -> str:
    """Return `endpoint`, ready to be bound.

    Args:
        keys: whether what passes there is encrypted, and both ends are proven.
        plaintext_on_loopback: do without keys where every user of this machine can read and forge what passes.
        plaintext_off_loopback: do without keys where everybody on the network can.

    Raises:
        UsageError: it must not be bound; says why and what to do.
    """
    scheme, rest = split(endpoint)
    if scheme == "tcp":
        _check_tcp(endpoint, rest, "bound", keys, plaintext_on_loopback, plaintext_off_loopback)
    else:
        _check_ipc(endpoint, rest)
        _refuse_live_socket(endpoint, rest)
    return endpoint


def check_connect(
    endpoint: str, *, keys: bool = False, plaintext_on_loopback: bool = False, plaintext_off_loopback: bool = False
) -> str:
    """Return `endpoint`, ready to be connected to; the arguments are those of `check_bind`.

    Raises:
        UsageError: it must not be connected to; says why and what to do.
    """
    scheme, rest = split(endpoint)
    if scheme == "tcp":
        _check_tcp(endpoint, rest, "connected to", keys, plaintext_on_loopback, plaintext_off_loopback)
    else:
        _check_ipc(endpoint, rest)
    return endpoint


_HOST = re.compile(r"[^\s/@#,]+")  # a number or a name; which of these there is, whoever resolves it says
_PORT = re.compile(r"[0-9]{1,5}")


def split(endpoint: str) -> tuple[str, str]:
    """Return (scheme, the rest); the scheme is "tcp" or "ipc"."""
    scheme, separator, rest = str(endpoint).partition("://")
    if not separator or scheme not in ("tcp", "ipc") or not rest:
        raise UsageError(f"an endpoint looks like tcp://127.0.0.1:5555 or ipc:///run/dir/name, not {endpoint!r}")
    return scheme, rest


def host_and_port(endpoint: str) -> tuple[str, int]:
    """Return the host (without brackets) and the port of a tcp endpoint; "host:port" alone will do."""
    rest = endpoint.removeprefix("tcp://")
    host, separator, port = rest.rpartition(":")
    if not separator or not _HOST.fullmatch(host) or not _PORT.fullmatch(port) or int(port) > 65535:
        raise UsageError(f"a tcp endpoint looks like tcp://127.0.0.1:5555, or host:5555, not {endpoint!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_wildcard(host: str) -> bool:
    """Whether `host` means every address of a machine: to be bound, and not to be dialled."""
    try:
        return host == "*" or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def check_dialled(address: str) -> str:
    """Return a host:port that others are to dial.

    Raises:
        UsageError: nobody could.
    """
    host, port = host_and_port(address)
    if is_wildcard(host) or not port:
        raise UsageError(
            f"nobody can dial {address}: what others reach this node by is one address of it, and a port that is known "
            "before (what is bound here, --listen, may be another: --advertise says the former)"
        )
    return address


def is_loopback(host: str) -> bool:
    """Whether `host` is an address that never leaves this machine. A name other than localhost is not trusted to be."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def join(host: str, port: int | str) -> str:
    """Return the tcp endpoint of an address, in brackets where it needs them."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def next_port(address: str) -> str:
    """Return the address of the port after this one; of port 0, which the system chooses, the same.

    Raises:
        UsageError: it is no address, or there is no port after it.
    """
    port = host_and_port(address)[1]
    if port == 65535:
        raise UsageError(f"{address}: the port after this one is used too, so it is at most 65534")
    return f"{address.rpartition(':')[0]}:{port + 1 if port else 0}"


def _check_tcp(endpoint: str, rest: str, verb: str, keys: bool, on_loopback: bool, off_loopback: bool) -> None:
    host, port = (rest.rpartition(":")[0], 0) if rest.endswith(":*") else host_and_port(rest)
    del port
    if keys:
        return
    if is_loopback(host):
        if not (on_loopback or off_loopback):
            raise UsageError(f"{endpoint} is not {verb}: every user of this machine can reach it, so tcp needs keys")
        return
    if not off_loopback:
        raise UsageError(
            f"{endpoint} is not {verb}: it is not on the loopback, and without keys anybody on the network could read "
            "and forge what passes"
        )
    logger.warning("%s is %s in plain text: whoever is on this network can read and forge what passes", endpoint, verb)


def _check_ipc(endpoint: str, path: str) -> None:
    if not path.startswith("/"):
        raise UsageError(f"{endpoint} is not an absolute path (abstract names are open to every user of this machine)")
    length = len(os.fsencode(path))
    if length > IPC_PATH_BYTES_MAX:
        raise UsageError(
            f"the path of {endpoint} has {length} bytes, and a socket's path at most {IPC_PATH_BYTES_MAX}: "
            "use a shorter directory, for example by setting TMPDIR"
        )
    directory = Path(path).parent
    try:
        found = directory.lstat()
    except OSError as error:
        raise UsageError(f"{directory}, the directory of {endpoint}, cannot be used: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise UsageError(f"{directory}, the directory of {endpoint}, is not a directory")
    if found.st_uid != os.geteuid():
        raise UsageError(
            f"{directory}, the directory of {endpoint}, belongs to user {found.st_uid}: a socket there is not safe"
        )
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        raise UsageError(
            f"{directory}, the directory of {endpoint}, has mode {mode:04o}: other users could reach a socket there. "
            "Use a directory of mode 0700, such as tempfile.mkdtemp() makes"
        )


def _refuse_live_socket(endpoint: str, path: str) -> None:
    """libzmq takes over a path that somebody listens on, without a word; a dead one may be taken over."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        if probe.connect_ex(path) == 0:
            raise UsageError(f"{endpoint} is in use: another process listens there")
