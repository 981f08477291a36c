"""Where a copy of the state may be written: what is no file stays what it is."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from actorraft.errors import UsageError
from actorraft.storage.portable import PortableInfo, check_portable, write_portable

INFO = PortableInfo(machine="m:M", term=1, index=2)


@pytest.mark.parametrize("path", [5, None, "a\0b", "/tmp/\ud800", "/nowhere/at/all", "/proc/1/x", "", "."])
def test_a_path_that_no_file_can_have_is_refused_by_name(path: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        write_portable(path, INFO, [b"state"])
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_replaced_by_one(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "there")
    with pytest.raises(UsageError, match="what is there is no file"):
        write_portable(tmp_path / "there", INFO, [b"state"])
    assert not stat.S_ISREG((tmp_path / "there").lstat().st_mode)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="pipe"):
        check_portable(tmp_path / "pipe", "m:M")


def test_a_relative_path_in_a_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone").mkdir()
    os.chdir("gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UsageError, match="the working directory of this process is gone"):
        write_portable("copy", INFO, [b"state"])
    os.chdir(tmp_path)
