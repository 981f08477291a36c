"""A wheel and an sdist, built and tried outside the checkout; with each supported Python that this machine has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, blocks_of

PACKAGES = ("actorraft", "transports", "statemachines", "parameter_server")
PYTHONS = ("3.12", "3.13")


def run(line: Sequence[str | Path], cwd: Path, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in line],
        cwd=cwd,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Build from a copy of the packages, so that nothing else of this checkout helps; return (wheel, sdist)."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    for name in (*PACKAGES, "README.md", "LICENSE", "pyproject.toml", "setup.cfg"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            source.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    made = []
    for kind in ("wheel", "sdist"):  # each in a process of its own, as builders do
        build = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
        made.append(folder / run([sys.executable, "-c", build, folder], source).split()[-1])
    return made[0], made[1]


@pytest.mark.long
def test_both_hold_the_packages_and_nothing_else(built: tuple[Path, Path]) -> None:
    wheel, sdist = built
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)
    assert all(f"{package}/py.typed" in names for package in PACKAGES)
    with tarfile.open(sdist) as archive_:
        held = {name.partition("/")[2] for name in archive_.getnames()}
    assert {"pyproject.toml", "setup.cfg", "README.md", "LICENSE", "actorraft/__init__.py"} <= held
    assert not [name for name in held if name.startswith("tests/")]


def first_example(directory: Path) -> Path:
    block = blocks_of(ROOT / "README.md")[0]
    file = directory / "example.py"
    file.write_text(f"import actorraft\n{block.code}print(actorraft.__file__)\n")
    return file


@pytest.mark.cluster
def test_the_readmes_example_and_the_command_line_run_from_the_wheel_alone(
    built: tuple[Path, Path], tmp_path: Path
) -> None:
    wheel, _ = built
    installed = tmp_path / "installed"
    run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", installed, wheel], tmp_path)
    said = run([sys.executable, first_example(tmp_path)], tmp_path, PYTHONPATH=str(installed))
    assert said.splitlines()[-1].startswith(str(installed))
    line = [sys.executable, "-m", "actorraft", "init", "bank", "--machine", "statemachines.kv:KVStore", "--nodes"]
    run([*line, "127.0.0.1:7100,127.0.0.1:7102,127.0.0.1:7104"], tmp_path, PYTHONPATH=str(installed))
    assert (tmp_path / "bank" / "client" / "client.toml").exists()


def interpreter(version: str) -> str | None:
    """Return a Python of this version: as pyenv keeps it, or on the path."""
    kept = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    for python in (*map(str, reversed(kept)), shutil.which(f"python{version}")):
        if python is not None and subprocess.run([python, "-c", ""], check=False, capture_output=True).returncode == 0:
            return python
    return None


def install(wheel: Path, folder: Path, version: str) -> Path:
    """Install the wheel and what it needs for another Python; return that Python, in an environment of its own."""
    python = interpreter(version)
    if python is None:
        pytest.skip(f"this machine has no Python {version}")
    run([python, "-m", "venv", "--without-pip", folder], folder.parent)
    own = folder / "bin" / "python"
    try:  # by the pip that there is, which is what takes longest to install
        run([sys.executable, "-m", "pip", "--python", own, "install", "-q", "--no-compile", wheel], folder.parent)
    except AssertionError as error:
        pytest.skip(f"what it needs cannot be installed for Python {version}: {str(error)[-200:]}")
    return own


@pytest.mark.cluster
@pytest.mark.timeout(400)
@pytest.mark.parametrize("version", PYTHONS)
def test_the_readmes_example_runs_with_another_python(built: tuple[Path, Path], tmp_path: Path, version: str) -> None:
    own = install(built[0], tmp_path / "venv", version)
    assert run([own, first_example(tmp_path)], tmp_path).splitlines()[-1].startswith(str(tmp_path / "venv"))


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("version", PYTHONS)
def test_another_python_simulates_it_too(built: tuple[Path, Path], tmp_path: Path, version: str) -> None:
    own = install(built[0], tmp_path / "venv", version)
    run([own, "-m", "actorraft.simulation", "--seeds", "4", "--workers", "1"], tmp_path)
    run([own, "-m", "actorraft.simulation", "--machine", "statemachines.kv:KVStore", "--seeds", "5"], tmp_path)
