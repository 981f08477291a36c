"""Commands that are made up for a user's machine, by the annotations of its `@command` methods.

A seed of `python -m actorraft.simulation --machine bank:Bank` draws them. Few names and small numbers, so that commands
meet on the same keys; now and then a value at an edge. What a command raises is a result as any other.
"""

from __future__ import annotations

import enum
import inspect
import types
import typing
from collections import abc
from collections.abc import Callable
from random import Random
from typing import Any

from actorraft.errors import UsageError
from actorraft.machine import methods_of

NAMES = ("ann", "bob", "cy", "dee", "")
INTS = (0, 1, 2, 3, 5, 10, 100, -1, 1 << 40)
FLOATS = (0.0, 1.0, 0.5, 2.5, -1.0, 1e9)
LENGTHS = (0, 1, 1, 2, 3)

_LISTS = (abc.Sequence, abc.Iterable, abc.Collection)

Draw = Callable[[Random], Any]  # a command: (method, *arguments), or an object as `cluster.execute` takes it


def drawing_of(machine: Any) -> Draw:
    """Return what draws calls of a machine's commands, by their annotations.

    Raises:
        UsageError: it has no commands as methods, or an argument's annotation says too little.
    """
    if not isinstance(machine, type) or methods_of(machine).row != "methods":
        raise UsageError(
            f"{getattr(machine, '__qualname__', machine)} has no @command methods to draw calls of: say which commands "
            "to send, --commands module:function, with a function that takes a random.Random and returns one"
        )
    makers = {name: _arguments(name, function) for name, function in methods_of(machine).commands.items()}

    def draw(rng: Random) -> Any:
        name = rng.choice(sorted(makers))
        return (name, *(make(rng) for make in makers[name]))

    return draw


def _arguments(name: str, function: Callable[..., Any]) -> list[Draw]:
    try:
        hints = typing.get_type_hints(function)
    except Exception as error:
        raise UsageError(f"the annotations of {name} cannot be read: {error}") from error
    makers = []
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.KEYWORD_ONLY):
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
                raise UsageError(
                    f"{name}: {parameter.name} goes by keyword; say which commands to send, with --commands"
                )
            continue
        make = maker_of(hints.get(parameter.name, Any))
        if make is None:
            if parameter.default is not parameter.empty:
                break  # it, and what follows, stay at their defaults
            raise UsageError(
                f"{name}: no value can be made up for {parameter.name}: {hints.get(parameter.name)}; say which "
                "commands to send, --commands module:function"
            )
        makers.append(make)
    return makers


def maker_of(hint: Any) -> Draw | None:
    """Return what draws values of a type; None if it is not known how."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    plain: dict[Any, Draw] = {
        str: lambda rng: rng.choice(NAMES),
        int: lambda rng: rng.choice(INTS),
        float: lambda rng: rng.choice(FLOATS),
        bool: lambda rng: rng.random() < 0.5,
        bytes: lambda rng: rng.choice(NAMES).encode(),
        type(None): lambda rng: None,
        Any: lambda rng: rng.choice((*NAMES, *INTS, None)),
        object: lambda rng: rng.choice((*NAMES, *INTS, None)),
    }
    if hint in plain:
        return plain[hint]
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        members = list(hint)
        return lambda rng: rng.choice(members)
    if origin is typing.Literal:
        return lambda rng: rng.choice(arguments)
    if origin in (typing.Union, types.UnionType):
        return _one_of([maker_of(each) for each in arguments])
    return _several(hint, origin, [maker_of(each) for each in arguments if each is not ...], ... in arguments)


def _one_of(makers: list[Draw | None]) -> Draw | None:
    known = [make for make in makers if make is not None]
    return (lambda rng: rng.choice(known)(rng)) if known else None


def _several(hint: Any, origin: Any, makers: list[Draw | None], endless: bool) -> Draw | None:
    """Draw what holds several values."""
    if None in makers:
        return None
    known = [make for make in makers if make is not None]
    kind = origin or hint
    kind = {abc.Mapping: dict, abc.Set: set}.get(kind, list if kind in _LISTS else kind)
    if kind in (list, set, frozenset) or (kind is tuple and (endless or not known)):
        one = known[0] if known else maker_of(Any)
        assert one is not None
        return lambda rng: kind(one(rng) for _ in range(rng.choice(LENGTHS)))
    if kind is tuple:
        return lambda rng: tuple(make(rng) for make in known)
    if kind is dict:
        key, value = known if len(known) == 2 else (maker_of(str), maker_of(Any))
        assert key is not None
        assert value is not None
        return lambda rng: {key(rng): value(rng) for _ in range(rng.choice(LENGTHS))}
    return None
