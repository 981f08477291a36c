"""Classes of a script reach a node, its state and the caller again, of whatever kind and however it was started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPTS = Path(__file__).parent / "scripts"


def run(script: str, *arguments: str, how: str, hash_seed: str = "random") -> None:
    """Run a script as a user would: `python script.py ...` or `python - ... < script.py`."""
    path = SCRIPTS / script
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": hash_seed}
    with path.open() as source:
        done = subprocess.run(
            [sys.executable, str(path) if how == "file" else "-", *arguments],
            stdin=source if how == "stdin" else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=environment,
            cwd=ROOT,
            timeout=100,
        )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.mark.parametrize("how", ["file", "stdin"])
def test_every_kind_of_class_goes_there_and_back_and_is_found_again_by_a_second_run(how: str, tmp_path: Path) -> None:
    snapshot = str(tmp_path / "snapshot")
    run("kinds.py", "first", snapshot, how=how, hash_seed="1")
    run("kinds.py", "second", snapshot, how=how, hash_seed="2")


@pytest.mark.parametrize("how", ["file", "stdin"])
def test_less_usual_kinds_of_class_do_there_what_they_do_here_and_keep_their_fingerprints(
    how: str, tmp_path: Path
) -> None:
    prints = str(tmp_path / "prints")
    run("more_kinds.py", prints, how=how, hash_seed="1")
    run("more_kinds.py", prints, how=how, hash_seed="2")


@pytest.mark.parametrize("mode", ["prepend", "append", "importlib"])
def test_classes_of_a_test_file_are_found_in_every_import_mode_of_pytest(mode: str, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "test_users.py").write_text((SCRIPTS / "in_pytest.py").read_text())
    options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, f"--import-mode={mode}", f"--rootdir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_changed_script_replaces_its_classes_and_finds_the_old_state(tmp_path: Path) -> None:
    snapshot = str(tmp_path / "snapshot")
    for step in (1, 2):
        changed = tmp_path / f"script_{step}.py"
        changed.write_text(CHANGING.format(step=step))
        done = subprocess.run(
            [sys.executable, str(changed), snapshot],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            timeout=100,
        )
        assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


CHANGING = """
import os, sys
from dataclasses import dataclass
from tests.machine.remote import Node

@dataclass(frozen=True)
class Kept:
    value: int

class Add:
    def apply(self, state):
        state.append(Kept({step}))
        return [each.value for each in state], len(set(map(type, state)))

path = sys.argv[1]
with Node(list, restore_from=path if os.path.exists(path) else None) as node:
    assert node.execute(Add()) == (list(range(1, {step} + 1)), 1)
    node.snapshot(path)
print("done")
"""
