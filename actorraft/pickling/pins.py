"""Modules of commands are read once in a cluster's run: what one node has loaded, all load, also those started later.

Classes and functions of commands go by name, and a node imports their module when it meets the first of them. Edited
and reloaded in the caller meanwhile (a notebook's %autoreload), the file is another one by the time that a node is
started again: it would apply the same log by other code than its peers. So the first node that imports such a module
keeps a copy of its source, in the run's own directory, and loads that; the others load the copy. A warning says that
the file has changed or gone since. So it is with what the body of a command imports. The machine's own module is not
pinned: changed code of the machine is the log's affair (node/rules.py), and so is what is imported at a node's start. A
new run, or a machine of other code, begins anew.

Invariant:  what is loaded is what is kept: a module is compiled from the copy, never from the file beside it.
Not here:   modules of installed packages and of the library, which are not edited while they run.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import json
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Final, NamedTuple

from actorraft.loggers import guarded_logger

logger = guarded_logger("actorraft")

_INSTALLED: Final = tuple({sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_OWN: Final = str(Path(__file__).parents[2] / "actorraft")


class _Kept(NamedTuple):
    """A copy, in one file: where it was found, and whether as a package, in the first line; then the source."""

    origin: str
    is_package: bool
    source: bytes


class _PinnedLoader(SourceFileLoader):
    """Loads a module from a copy of its source, under the name of the file."""

    def __init__(self, fullname: str, path: str, source: bytes) -> None:
        super().__init__(fullname, path)
        self._source = source

    def get_data(self, path: str) -> bytes:
        return self._source if path == self.path else super().get_data(path)

    def get_code(self, fullname: str) -> object:  # type: ignore[override]  # a code object; the stub says so too narrowly
        return compile(self.get_data(self.path), self.path, "exec", dont_inherit=True)


class Pins(importlib.abc.MetaPathFinder):
    """Keeps and finds the modules of commands, in a folder that a cluster's nodes share.

    Args:
        folder: made when the first is kept.
        applying: whether this thread runs a command: what its body imports is of it, too. Asked per import.
    """

    def __init__(self, folder: Path, applying: Callable[[], bool] = lambda: False) -> None:
        self._folder = folder
        self._applying = applying
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
        """As a finder of modules does; the copy goes before what lies beside it, which may have gone since."""
        if not (self._keeping or self._applying()):
            return None
        try:
            kept = self._kept(fullname) or self._keep(fullname, PathFinder.find_spec(fullname, path, target))
        except OSError as error:
            logger.warning(
                "the source of %s cannot be kept, so a node started later may load another: %s", fullname, error
            )
            return None
        if kept is None:
            return None
        return spec_from_file_location(
            fullname,
            kept.origin,
            loader=_PinnedLoader(fullname, kept.origin, kept.source),
            submodule_search_locations=[os.path.dirname(kept.origin)] if kept.is_package else None,
        )

    def _kept(self, name: str) -> _Kept | None:
        """Return the copy that all nodes load, if there is one."""
        try:
            head, source = (self._folder / f"{name}.kept").read_bytes().split(b"\n", 1)
        except FileNotFoundError:
            return None
        origin, is_package = json.loads(head)
        kept = _Kept(origin, is_package, source)
        try:
            changed = Path(kept.origin).read_bytes() != source
        except OSError:
            changed = True
        if changed:
            logger.warning(
                "%s has changed, or is gone, since the nodes of this cluster loaded it: they go on with what they "
                "have. To use the new code, close the cluster and spawn it again",
                kept.origin,
            )
        return kept

    def _keep(self, name: str, spec: ModuleSpec | None) -> _Kept | None:
        """Make the copy, unless another node is first; None: this is no module that is edited."""
        if spec is None or type(spec.loader) is not SourceFileLoader or not spec.origin:
            return None
        origin = os.path.abspath(spec.origin)
        if origin.startswith((*(f"{place}{os.sep}" for place in _INSTALLED), _OWN + os.sep)):
            return None
        head = json.dumps([origin, spec.submodule_search_locations is not None]).encode()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mine = self._folder / f"{name}.{os.getpid()}"
        mine.write_bytes(head + b"\n" + Path(origin).read_bytes())
        try:
            with contextlib.suppress(FileExistsError):
                os.link(mine, self._folder / f"{name}.kept")  # one of them is the first
        finally:
            mine.unlink()
        return self._kept(name)
