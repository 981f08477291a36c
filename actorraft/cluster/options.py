"""What may be asked of a spawn: each option is looked at before anything is made, and refused by its name."""

from __future__ import annotations

import inspect
import ipaddress
import os
from collections.abc import Sequence
from typing import Any, Final

from actorraft.errors import UsageError
from actorraft.machine import hooks_of, methods_of

_HOOKS: Final = ("snapshot", "restore", "apply_many", "digest", "wake_at", "machine_version")  # of a machine


def check_timeout(timeout: Any) -> float:
    """Return seconds. Raises UsageError if they are none, or never end."""
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout != timeout:
        raise UsageError(f"timeout is a number of seconds, not {timeout!r}")
    if not 0 < timeout < 1e9:
        raise UsageError(f"timeout is a number of seconds above 0, not {timeout!r}")
    return float(timeout)


def check_one_of(name: str, value: Any, allowed: Sequence[str | None]) -> None:
    """Raise UsageError if a value is none of those."""
    if not (value is None or isinstance(value, str)) or value not in allowed:
        named = " or ".join(f'"{one}"' for one in allowed if one is not None)
        raise UsageError(f"{name} is {named}, not {value!r}")


def check_a(name: str, value: Any, kind: type) -> None:
    """Raise UsageError if a value is neither None nor of a kind."""
    if value is not None and not isinstance(value, kind):
        raise UsageError(f"{name} is a {kind.__name__}, not {value!r}")


def check_path(name: str, path: Any) -> str | None:
    """Return a path as text. Raises UsageError if no file can have that name."""
    if path is None:
        return None
    if not isinstance(path, str | os.PathLike):
        raise UsageError(f"{name} is a path, not {path!r}")
    text = os.fspath(path)
    if not isinstance(text, str) or not text or "\0" in text or not _can_be_encoded(text):
        raise UsageError(
            f"{name} is no path that a file can have (it is empty, bytes, or holds a NUL or half a surrogate): {text!r}"
        )
    if not os.path.isabs(text):
        try:
            text = os.path.abspath(text)
        except OSError as error:
            raise UsageError(
                f"{name} is relative ({text!r}), and the working directory of this process is gone: give an absolute "
                "path, or os.chdir() first"
            ) from error
    return text


def _can_be_encoded(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def check_listen(listen: Any) -> tuple[tuple[str, str], ...]:
    """Return (endpoint for peers, for clients) of each node; clients have the next port.

    Raises:
        UsageError: an address is none, is not of this machine alone, or is given twice.
    """
    if isinstance(listen, str) or not isinstance(listen, Sequence) or not listen:
        raise UsageError(f"listen is a list of host:port, one a node, not {listen!r}")
    taken: dict[tuple[str, int], str] = {}
    endpoints = []
    for address in listen:
        host, port = _host_and_port(address)
        for number in (port, port + 1):
            if (host, number) in taken:
                raise UsageError(
                    f"listen: {address} needs port {number}, as {taken[host, number]} does: each node has its port and "
                    "the next one, for clients"
                )
            taken[host, number] = str(address)
        shown = f"[{host}]" if ":" in host else host
        endpoints.append((f"tcp://{shown}:{port}", f"tcp://{shown}:{port + 1}"))
    return tuple(endpoints)


def check_http(http: Any) -> tuple[str, ...]:
    """Return where each node serves its health and metrics.

    Raises:
        UsageError: an address is none.
    """
    if isinstance(http, str) or not isinstance(http, Sequence) or not http:
        raise UsageError(f"http is a list of host:port, one a node, not {http!r}")
    for address in http:
        host, _, port = str(address).rpartition(":")
        if not isinstance(address, str) or not host or not (port.isascii() and port.isdecimal()):
            raise UsageError(f'http: an address looks like "127.0.0.1:7190", not {address!r}')
    return tuple(http)


def _host_and_port(address: Any) -> tuple[str, int]:
    host, _, port = str(address).removeprefix("tcp://").rpartition(":")
    if not isinstance(address, str) or not (port.isascii() and port.isdecimal()) or not 0 < int(port) < 65535:
        raise UsageError(
            f'listen: an address looks like "127.0.0.1:7100", with a port from 1 to 65534, not {address!r}'
        )
    host = host.removeprefix("[").removesuffix("]")
    if host == "localhost":
        host = "127.0.0.1"
    try:
        here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = False
    if not here:
        raise UsageError(
            f"listen: {address} is no address of the loopback, and what leaves this machine needs keys: "
            "serve each node on its machine (`actorraft init`, `actorraft serve`), or listen at 127.0.0.1"
        )
    return host, int(port)


def check_kind(machine: Any) -> None:
    """See whether a class can be a machine, and one that happens to have an `apply` was meant as one.

    Raises:
        UsageError: it cannot be; says how to have it replicated all the same.
    """
    if not isinstance(machine, type):
        return
    row = methods_of(machine).row
    if row != "objects":
        hooks_of(machine)
    if inspect.isabstract(machine) or vars(machine).get("_is_protocol") is True:
        lacks = ", ".join(sorted(vars(machine).get("__abstractmethods__", ())))
        why = f" (it has no {lacks} of its own)" if lacks else ", as any Protocol"
        raise UsageError(f"{machine.__qualname__} is abstract{why}: replicate a class that can be made")
    if row != "apply":
        return
    function = inspect.getattr_static(machine, "apply", None)
    if not inspect.isfunction(function) or any(hasattr(machine, hook) for hook in _HOOKS):
        return
    try:
        parameters = list(inspect.signature(function).parameters.values())[1:]
    except (TypeError, ValueError):
        return
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    if len(parameters) == 1 and (positional or parameters[0].kind is parameters[0].VAR_POSITIONAL):
        return
    name, takes = machine.__qualname__, ", ".join(one.name for one in parameters)
    raise UsageError(
        f"ReplicatedStateMachine(CommandObjects, {name}) replicates such an object, and sends it commands: "
        f"{name}.apply takes ({takes}), so it is not the apply(self, command) of a machine"
    )
