"""Hosts for each test; skipped, with the reason, where namespaces cannot be made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.machines.hosts import Hosts, hosts
from tests.nemesis.namespaces import why_not


@pytest.fixture(scope="session")
def _namespaces() -> None:
    reason = why_not()
    if reason is not None:
        pytest.skip(f"no network namespaces: {reason}")


@pytest.fixture
def net(tmp_path: Path, _namespaces: None) -> Iterator[Hosts]:
    """Four hosts and the client's."""
    with hosts(tmp_path, 4) as made:
        yield made
