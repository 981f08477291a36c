"""The notebooks of examples/ run from their first cell to their last, and show what a reader is told to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


def run(path: Path) -> dict[str, list[Any]]:
    """Execute it; return (source -> outputs) of its cells."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    NotebookClient(notebook, timeout=100, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    return {cell.source: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def shown(outputs: list[Any]) -> str:
    return "".join(str(output.get("data", output.get("text", ""))) for output in outputs)


@pytest.mark.cluster
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Proactor event loop", "ignore::ResourceWarning")
def test_a_notebook_runs_and_shows_tables(path: Path) -> None:
    cells = run(path)
    everything = "".join(shown(outputs) for outputs in cells.values())

    assert "<table>" in everything or "<table " in everything
    assert not [output for outputs in cells.values() for output in outputs if output.get("name") == "stderr"]
    if path.stem == "replicate_a_class":
        assert "(100, 1000)" in everything
        assert "<th>commit index</th>" in shown(cells["cluster.status()"])
        assert "<td>leader</td>" in shown(cells["events"])
        assert "<td>exit</td>" in shown(cells["events"])


def test_there_are_three_and_they_hold_no_output() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["raft_step_by_step", "replicate_a_class", "replicate_a_dataframe"]
    for path in NOTEBOOKS:
        assert not [cell for cell in nbformat.read(path, as_version=4).cells if cell.get("outputs")]
