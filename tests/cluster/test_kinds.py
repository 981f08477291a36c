"""Classes of a script's own: there and back, in a second client of the same script, and after a restart of everything."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.helpers import SCRIPTS, run

pytestmark = pytest.mark.cluster

SCRIPT = SCRIPTS / "kinds.py"


@pytest.mark.parametrize("how", ["file", "stdin"])
def test_every_kind_of_class_from_main_survives_and_is_shared_by_name(how: str, tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    command, stdin = ([str(SCRIPT)], None) if how == "file" else (["-"], SCRIPT.read_text())
    assert run(*command, "first", data, str(SCRIPT), stdin=stdin) == "done\n"
    assert run(*command, "second", data, stdin=stdin) == "done\n"
