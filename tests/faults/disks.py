"""Disks that refuse: in a node's process, what the store asks of the operating system fails where a file says so.

The file `node-<id>` in the folder named by ACTORRAFT_TEST_DISKS has lines of operation, folder and errno, as in
`sync_data log EIO`. It is read at each operation, so a disk can be broken and mended while its node runs.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actorraft.storage.files import Files

VARIABLE = "ACTORRAFT_TEST_DISKS"
OPERATIONS = ("write", "sync_data", "sync", "create", "rename", "sync_directory")


def listen() -> None:
    """Have every store of this process obey the files."""
    for operation in OPERATIONS:
        made = getattr(Files, operation)
        if not hasattr(made, "obeys"):
            setattr(Files, operation, _obeying(operation, made))


def _obeying(operation: str, made: Callable[..., Any]) -> Callable[..., Any]:
    def obeying(self: Files, target: Any, *rest: Any) -> Any:
        folder = os.environ.get(VARIABLE)
        if folder is not None:
            path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else str(target)
            _refuse(folder, operation, path)
        return made(self, target, *rest)

    obeying.obeys = True  # type: ignore[attr-defined]
    return obeying


def _refuse(folder: str, operation: str, path: str) -> None:
    found = re.search(r"/(node-\d+)/(log|snapshots)\b", path)
    if found is None or path.endswith("/mark"):
        return
    try:
        orders = Path(folder, found[1]).read_text().splitlines()
    except FileNotFoundError:
        return
    for order in orders:
        what, where, name = order.split()
        if (what, where) == (operation, found[2]):
            number = getattr(errno, name)
            raise OSError(number, os.strerror(number), path)


class Disks:
    """The test's side: break and mend the disks of nodes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def break_(self, node_id: int, *orders: str) -> None:
        """Have these fail from now on, each given as operation, folder, errno."""
        aside = self.folder / "aside"
        aside.write_text("\n".join(orders))
        aside.rename(self.folder / f"node-{node_id}")

    def mend(self, node_id: int) -> None:
        """Let everything succeed again."""
        (self.folder / f"node-{node_id}").unlink(missing_ok=True)
