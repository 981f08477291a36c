"""Fixtures and options for all tests: a seeded generator, and what is asked for by name."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("default", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=0, help="the seed of every random choice a test makes by itself")
    parser.addoption("--rewrite-scenarios", action="store_true", help="write down what happens now, to be reviewed")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The run's seed; a failure prints it with the test's arguments."""
    value = request.config.getoption("--seed")
    assert isinstance(value, int)
    return value


@pytest.fixture
def rng(seed: int) -> random.Random:
    """A generator of its own for each test, the same in every run with the same --seed."""
    return random.Random(seed)


@pytest.fixture(autouse=True)
def _log_level_stays() -> Iterator[None]:
    """Give each test the log level it began with back: the simulator's runner silences the library for its process."""
    logger = logging.getLogger("actorraft")
    before = logger.level
    yield
    logger.setLevel(before)


@pytest.fixture(autouse=True)
def _log_level_of_its_own() -> Iterator[None]:
    """Command lines that a test runs in this process choose their log level; the next test has its own."""
    logger = logging.getLogger("actorraft")
    level = logger.level
    yield
    logger.setLevel(level)
