"""Modules of commands are read once in a cluster's run: what one node has loaded, all load, also those started later.

Classes and functions of commands go by name, and a node imports their module when it meets the first of them. Edited
and reloaded in the caller meanwhile (a notebook's %autoreload), the file is another one by the time that a node is
started again: it would apply the same log by other code than its peers. So the first node that imports such a module
keeps a copy of its source, in the run's own directory, and loads that; the others load the copy. A warning says that
the file has changed since. The machine's own module is not pinned: changed code of the machine is the log's affair
(node/rules.py), and so is what is imported at a node's start. A new run, or a machine of other code, begins anew.

Invariant:  what is loaded is what is kept: a module is compiled from the copy, never from the file beside it.
Not here:   modules of installed packages and of the library, which are not edited while they run.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import logging
import os
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Final

logger = logging.getLogger("actorraft")

_INSTALLED: Final = tuple({sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_OWN: Final = str(Path(__file__).parents[2] / "actorraft")


class _PinnedLoader(SourceFileLoader):
    """Loads a module from a copy of its source, under the name of the file."""

    def __init__(self, fullname: str, path: str, copy: Path) -> None:
        super().__init__(fullname, path)
        self._copy = copy

    def get_data(self, path: str) -> bytes:
        return self._copy.read_bytes() if path == self.path else super().get_data(path)

    def get_code(self, fullname: str) -> object:  # type: ignore[override]  # a code object; the stub says so too narrowly
        return compile(self.get_data(self.path), self.path, "exec", dont_inherit=True)


class Pins(importlib.abc.MetaPathFinder):
    """Keeps and finds the modules of commands, in a folder that a cluster's nodes share.

    Args:
        folder: made when the first is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._keeping = False

    def install(self) -> None:
        """Find modules here first, from now on."""
        sys.meta_path.insert(0, self)

    @contextlib.contextmanager
    def keeping(self) -> Iterator[None]:
        """What is imported inside is of a command."""
        before, self._keeping = self._keeping, True
        try:
            yield
        finally:
            self._keeping = before

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As a finder of modules does."""
        if not self._keeping:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or type(spec.loader) is not SourceFileLoader or not spec.origin:
            return None
        origin = os.path.abspath(spec.origin)
        if origin.startswith((*(f"{place}{os.sep}" for place in _INSTALLED), _OWN + os.sep)):
            return None
        try:
            copy = self._keep(fullname, Path(origin))
        except OSError as error:
            logger.warning(
                "the source of %s cannot be kept, so a node started later may load another: %s", origin, error
            )
            return None
        spec.loader = _PinnedLoader(fullname, spec.origin, copy)
        spec.cached = None
        return spec

    def _keep(self, name: str, file: Path) -> Path:
        """Return the copy that all nodes load; make it if this is the first."""
        copy, source = self._folder / f"{name}.py", file.read_bytes()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mine = self._folder / f"{name}.{os.getpid()}"
        mine.write_bytes(source)
        try:
            os.link(mine, copy)  # one of them is the first
        except FileExistsError:
            if copy.read_bytes() != source:
                logger.warning(
                    "%s has changed since the nodes of this cluster loaded it: they go on with what they have. To use "
                    "the new code, close the cluster and spawn it again",
                    file,
                )
        finally:
            mine.unlink()
        return copy
