"""Which classes and functions another interpreter can import by name, and which it cannot.

`__main__`, a script read from standard input, a notebook, a module made by hand or loaded from a file that is not where
its name says (pytest's importlib mode): none of these can be imported by a fresh interpreter, although they are in
`sys.modules` here. So the question is not "is it in sys.modules" but "would the import system find the same file".

Shape:      a name is (module, qualified name).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

import cloudpickle.cloudpickle as cloudpickle  # type: ignore[import-untyped]

Name = tuple[str, str]

BY_VALUE_MODULES: set[str] = cloudpickle._PICKLE_BY_VALUE_MODULES  # those that the user has registered


def name_of(code: Any) -> Name:
    """Return the name of a class or function, as it says itself."""
    return str(getattr(code, "__module__", None) or "__main__"), str(code.__qualname__)


def look_up(name: Name) -> Any:
    """Return what has this name in a module that is loaded here; None if nothing has."""
    found: Any = sys.modules.get(name[0])
    for part in name[1].split("."):
        found = getattr(found, part, None)
        if found is None:
            return None
    return found


def is_importable(code: Any) -> bool:
    """Tell whether a fresh interpreter finds this very class or function under its name."""
    name = name_of(code)
    return look_up(name) is code and module_is_importable(name[0])


_importable: dict[str, tuple[Any, bool]] = {}  # module name -> (the module asked about, the answer)


def module_is_importable(name: str) -> bool:
    """Tell whether a fresh interpreter with the same `sys.path` would load the same module under this name.

    What the user has registered with `cloudpickle.register_pickle_by_value`, itself or a package around it, is taken
    not to be: that is what registering says.
    """
    if BY_VALUE_MODULES and is_registered(name):
        return False
    module = sys.modules.get(name)
    known = _importable.get(name)
    if known is None or known[0] is not module:
        known = _importable[name] = (module, _find(name, module))
    return known[1]


def is_registered(name: str) -> bool:
    """Tell whether a module, or a package around it, is to be sent by value by the user's wish."""
    while name and name not in BY_VALUE_MODULES:
        name = name.rpartition(".")[0]
    return bool(name)


def can_be_found(name: str) -> bool:
    """Tell whether this interpreter would find a module of this name, if it is asked to import it."""
    return name in sys.modules or _fresh_spec(name) is not None


def _find(name: str, module: Any) -> bool:
    if name in ("__main__", "__mp_main__") or module is None:
        return False
    if name in sys.builtin_module_names:
        return True
    loaded: ModuleSpec | None = getattr(module, "__spec__", None)
    if loaded is None:
        return False
    if loaded.origin in ("built-in", "frozen"):
        return True
    fresh = _fresh_spec(name)
    if fresh is not None:
        return _same_place(loaded, fresh)
    return _found_by_others(name, loaded)


def _fresh_spec(name: str) -> ModuleSpec | None:
    """Search `sys.path` for a module as if nothing were loaded yet."""
    parent, _, _ = name.rpartition(".")
    path: Sequence[str] | None = None
    if parent:
        above = _fresh_spec(parent)
        if above is None or above.submodule_search_locations is None:
            return None
        path = list(above.submodule_search_locations)
        above_module = sys.modules.get(parent)  # a package may extend its own path when it is imported
        path += [each for each in getattr(above_module, "__path__", ()) if each not in path]
    try:
        return PathFinder.find_spec(name, path)
    except (ImportError, ValueError, AttributeError):
        return None


def _same_place(loaded: ModuleSpec, fresh: ModuleSpec) -> bool:
    if loaded.origin is None or fresh.origin is None:
        return loaded.origin is fresh.origin
    return os.path.realpath(loaded.origin) == os.path.realpath(fresh.origin)


def _found_by_others(name: str, loaded: ModuleSpec) -> bool:
    """Judge a module that is not on `sys.path`: an editable install, or one that its importable parent provides."""
    for finder in sys.meta_path:
        home = getattr(finder, "__module__", None) or type(finder).__module__
        if home.startswith("__editable__"):
            found = finder.find_spec(name, None, None)
            return found is not None and _same_place(loaded, found)
    parent = name.rpartition(".")[0]
    if not parent or loaded.has_location:
        return False
    return module_is_importable(parent)
