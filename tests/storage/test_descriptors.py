"""A lack of descriptors is not a broken disk: the store has some of its own, and waits where it has none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FILL = """
import os, resource, sys, threading
from pathlib import Path
from actorraft import descriptors
from actorraft.descriptors import open_file, raise_limit
from actorraft.storage.files import Files

path = Path(sys.argv[1])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

def fill():
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    taken = []
    try:
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        return taken
"""


def run(script: str, directory: Path) -> str:
    words = [sys.executable, "-c", FILL + script, str(directory)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_store_opens_files_where_nobody_else_can(tmp_path: Path) -> None:
    script = """
taken = fill()
Files().replace(path / "one", b"kept")
try:
    os.open(path / "one", os.O_RDONLY)
except OSError as error:
    print(error.strerror)
print(os.pread(Files().open(path / "one"), 10, 0))
"""
    assert run(script, tmp_path).splitlines() == ["Too many open files", "b'kept'"]


def test_where_none_is_reserved_it_waits_and_then_says_what_is_missing(tmp_path: Path) -> None:
    script = """
taken = fill()
descriptors.RESERVED = 0
threading.Timer(0.2, lambda: os.close(taken.pop())).start()
taken.append(open_file(path / "one", os.O_CREAT | os.O_RDWR))
descriptors.PATIENCE_S = 0.1
try:
    open_file(path / "two", os.O_CREAT | os.O_RDWR)
except OSError as error:
    print(error.strerror)
"""
    assert "no descriptor is left, and the disk is not asked" in run(script, tmp_path)


def test_a_node_takes_what_the_system_gives_and_leaves_the_store_its_share(tmp_path: Path) -> None:
    script = """
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 1000))
raise_limit()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    assert run(script, tmp_path).split() == ["936", "1000"]
