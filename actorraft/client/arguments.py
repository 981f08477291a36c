"""What callers hand in, looked at before anything is sent: each refusal names the argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, Literal, get_args

from actorraft.errors import UsageError
from actorraft.futures import WrongArguments, check_timeout

Consistency = Literal["linearizable", "lease", "stale"]  # of a read
To = Literal["leader", "any"] | int  # who serves it

INDEX_MAX = 1 << 62
FOR_EVER_S = 1e9  # what no clock or lock refuses
CONSISTENCIES: tuple[str, ...] = get_args(Consistency)


def bounded(timeout: Any) -> float:
    """Check the timeout of what cannot be waited for for ever, and return it as `check_timeout` does."""
    checked = check_timeout(timeout)
    return FOR_EVER_S if checked is None else min(checked, FOR_EVER_S)


def check_read(consistency: Any, to: Any) -> None:
    """Check how and where a read is served.

    Raises:
        UsageError: there is no such way.
    """
    if consistency not in CONSISTENCIES:
        raise UsageError(f"consistency is one of {', '.join(CONSISTENCIES)}, not {consistency!r}")
    if to not in ("leader", "any") and type(to) is not int:
        raise UsageError(f'to is "leader", "any" or a node\'s id, not {to!r}')


def check_index(index: Any, name: str) -> int | None:
    """Return an index of the log, None for none.

    Raises:
        WrongArguments: it is no whole number, or one that no log has.
    """
    if index is None or (type(index) is int and index < INDEX_MAX):
        return None if index is None else max(index, -1)
    raise WrongArguments(f"{name} is an index of the log or None, not {index!r}")


def check_endpoints(endpoints: Any) -> dict[int, str]:
    """Return node id -> endpoint, also of a mapping whose keys have been through JSON, which has no numbers for keys.

    Raises:
        UsageError: it is no such mapping.
    """
    if not isinstance(endpoints, Mapping) or not endpoints:
        raise UsageError(
            f"endpoints is a mapping from node id to endpoint, as cluster.endpoints gives, not {endpoints!r}"
        )
    checked: dict[int, str] = {}
    for key, endpoint in endpoints.items():
        node_id = int(key) if type(key) is str and key.isdecimal() else key
        if type(node_id) is not int or node_id < 0:
            raise UsageError(f"a node's id is a whole number from 0 up, not {key!r}")
        if not isinstance(endpoint, str):
            raise UsageError(f"the endpoint of node {node_id} is a string, not {endpoint!r}")
        if checked.setdefault(node_id, endpoint) != endpoint:
            raise UsageError(f"endpoints names node {node_id} twice: {checked[node_id]} and {endpoint}")
    return checked


def check_seeds(endpoints: Any) -> tuple[str, ...]:
    """Return clients' endpoints of a cluster, of which it is not said which node is where; "host:port" is tcp.

    Raises:
        UsageError: these are none.
    """
    seeds = tuple(endpoints) if isinstance(endpoints, Sequence | Set) else ()
    if not seeds or not all(isinstance(each, str) and each for each in seeds):
        raise UsageError(
            "endpoints is a mapping from node id to endpoint, a list of endpoints, or a client's folder, not "
            f"{endpoints!r}"
        )
    return tuple(dict.fromkeys(each if "://" in each else f"tcp://{each}" for each in seeds))


def seconds(timeout: float | None) -> str:
    """A time for an error's text."""
    return "no time" if timeout is None else f"{timeout:.3g} s"
