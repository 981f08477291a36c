"""Where a cluster lives: its data, locked, and a fresh directory for what belongs to one run only.

Shape:      the run's directory holds sockets, keys and the nodes' output, and the data too if it is not to be kept.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

from actorraft.actors.rundir import RunDir
from actorraft.errors import UsageError
from actorraft.storage.by_value import refuse_code
from actorraft.storage.directory import ClusterDirectory, ClusterInfo, this_python
from actorraft.storage.level import level


class Place:
    """Where a cluster lives: its data (locked), and a fresh directory for this run's sockets, keys and output.

    Raises:
        UsageError: the data directory is in use, cannot be written, or was made for something else.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None,
        machine: str,
        nodes: int | None,
        name: str | None,
        formerly: str | None = None,
    ) -> None:
        self._run = RunDir()
        self.run_dir = self._run.path
        self._directory: ClusterDirectory | None = None
        self.keeps_data = data_dir is not None
        try:
            self._directory = ClusterDirectory(data_dir if data_dir is not None else self.run_dir / "data")
            self.is_new = self._directory.info is None
            if self.is_new:
                self.info = ClusterInfo(
                    cluster_id=os.urandom(8).hex(),
                    machine=machine,
                    node_ids=tuple(range(nodes or 3)),
                    founder_ids=tuple(range(nodes or 3)),
                    hash_seed=int.from_bytes(os.urandom(4), "little"),
                    name=name or machine.rpartition(":")[2].rpartition(".")[2].lower(),
                )
                self._directory.create(self.info)
            else:
                info = self._directory.check(machine, formerly)
                refuse_code(self._directory, info.python)
                self.info = replace(info, python=this_python())
                if nodes is not None and nodes != len(self.info.node_ids):
                    raise UsageError(
                        f"{self._directory.path} holds a cluster of {len(self.info.node_ids)} nodes, not {nodes}"
                    )
                if self._directory.info != self.info:
                    self._directory.update(self.info)  # it is called so, and read by this Python, from here on
                if name is not None:
                    self.info = replace(self.info, name=name)
        except BaseException:
            self.close()
            raise

    def node_path(self, node_id: int) -> Path:
        assert self._directory is not None
        return self._directory.node_path(node_id)

    @property
    def keys_path(self) -> Path:
        """Where keys are that outlive the run."""
        assert self._directory is not None
        return self._directory.path / "keys"

    def storage_ids(self) -> dict[int, str]:
        """Return the random id of each node's directory: who comes with another one is somebody else."""
        assert self._directory is not None
        return self._directory.storage_ids()

    def level(self, durability: str) -> int:
        """Have all nodes begin from the newest snapshot of any; return the index of the first entry after it."""
        assert self._directory is not None
        return level(self._directory, durability)

    def update(self, node_ids: tuple[int, ...]) -> None:
        """Remember who is a member now."""
        assert self._directory is not None
        self.info = replace(self.info, node_ids=node_ids)
        self._directory.update(self.info)

    def remove_node(self, node_id: int) -> None:
        """Remove what is left of a node that is no member any more: its folder, sockets and output."""
        shutil.rmtree(self.node_path(node_id), ignore_errors=True)
        for name in (f"{node_id}.peer", f"{node_id}.client", f"node-{node_id}.out"):
            with contextlib.suppress(OSError):
                (self.run_dir / name).unlink()

    def close(self) -> None:
        """Let go of the data; remove what was for this run only. Idempotent."""
        if self._directory is not None:
            self._directory.close()
        self._run.remove()
