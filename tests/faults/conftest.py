"""Fixtures: disks that can be broken, and small ones of their own for a node."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.disks import VARIABLE, Disks


@pytest.fixture
def disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disks:
    """Disks of nodes, to be broken and mended. To be asked for before the cluster starts."""
    folder = tmp_path / "disks"
    folder.mkdir()
    monkeypatch.setenv(VARIABLE, str(folder))
    return Disks(folder)


@pytest.fixture
def small_disk() -> Iterator[Callable[[Path, int], None]]:
    """Mounts a file system of so many megabytes at a path, for the time of the test."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    mounted: list[Path] = []

    def mount(path: Path, megabytes: int) -> None:
        path.mkdir(parents=True, mode=0o700)
        options = f"size={megabytes}m,mode=0700"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "actorraft-test", path], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        mounted.append(path)

    yield mount
    for path in mounted:
        subprocess.run(["umount", "-l", path], check=False)
