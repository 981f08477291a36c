"""What a command has imported once, all nodes of the run have: from a copy, whatever became of the file."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actorraft import StateMachine, command
from actorraft.machine import CommandContext
from actorraft.node.host import MachineHost
from actorraft.pickling.pins import Pins


class Importing(StateMachine):
    """Imports a module once it is asked to."""

    @command
    def look_up(self, module: str) -> int:
        return int(importlib.import_module(module).NUMBER)


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of modules; what is imported from there is forgotten at the end, and so are new finders."""
    folder = tmp_path / "sources"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield folder
    forget()


def forget() -> None:
    """As in a process that was started just now."""
    for name in [name for name in sys.modules if name.startswith("of_a_command")]:
        del sys.modules[name]
    importlib.invalidate_caches()


def test_a_node_started_later_loads_a_module_whose_file_was_renamed_meanwhile(sources: Path, tmp_path: Path) -> None:
    file = sources / "of_a_command.py"
    file.write_text("NUMBER = 1\n")
    pins = Pins(tmp_path / "kept")
    pins.install()
    with pins.keeping():
        importlib.import_module("of_a_command")
    file.rename(sources / "renamed.py")
    forget()

    with pins.keeping():
        found = importlib.import_module("of_a_command")

    assert (1, str(file)) == (found.NUMBER, found.__file__)


def test_a_package_that_was_moved_is_loaded_with_what_it_imports_of_itself(sources: Path, tmp_path: Path) -> None:
    package = sources / "of_a_command"
    package.mkdir()
    (package / "__init__.py").write_text("from .numbers import NUMBER\n")
    (package / "numbers.py").write_text("NUMBER = 7\n")
    pins = Pins(tmp_path / "kept")
    pins.install()
    with pins.keeping():
        importlib.import_module("of_a_command")
    package.rename(sources / "moved")
    forget()

    with pins.keeping():
        assert importlib.import_module("of_a_command").NUMBER == 7


def test_what_has_changed_is_loaded_as_it_was_and_named(
    sources: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = sources / "of_a_command.py"
    file.write_text("NUMBER = 1\n")
    pins = Pins(tmp_path / "kept")
    pins.install()
    with pins.keeping():
        importlib.import_module("of_a_command")
    assert not caplog.records
    file.write_text("NUMBER = 2\n")
    forget()

    with pins.keeping():
        assert importlib.import_module("of_a_command").NUMBER == 1

    assert f"{file} has changed" in caplog.text


def test_a_module_that_the_body_of_a_command_imports_is_kept_as_well(sources: Path, tmp_path: Path) -> None:
    (sources / "of_a_command.py").write_text("NUMBER = 1\n")
    asked: list[Any] = [["look_up", "of_a_command"]]
    first = MachineHost(Importing)
    first.keep_modules(tmp_path / "kept")
    assert [1] == first.apply_in_order(asked, CommandContext(0))
    (sources / "of_a_command.py").write_text("NUMBER = 2\n")
    forget()

    assert [1] == first.apply_in_order(asked, CommandContext(0))
    forget()
    assert importlib.import_module("of_a_command").NUMBER == 2, "only commands are given what is kept"
