"""Fixtures and options for all tests: a seeded generator, and what is asked for by name."""

from __future__ import annotations

import gc
import logging
import os
import random
from collections.abc import Generator, Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.patience import be_patient

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
    """Give each test the log level it began with back: command lines that it runs in this process choose theirs."""
    logger = logging.getLogger("actorraft")
    before = logger.level
    yield
    logger.setLevel(before)


def pytest_collection_finish() -> None:
    """What was collected lives as long as the run; the collector need not walk all of it again at each test's call."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Real processes share the machine with whatever else runs on it; the fixtures of such tests are patient too."""
    if item.get_closest_marker("cluster") is None:
        return (yield)
    put_back = be_patient()
    try:
        return (yield)
    finally:
        put_back()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Keep what was skipped, and why, for the end of the whole check."""
    file = os.environ.get("ACTORRAFT_SKIPPED")
    if file:
        with open(file, "a") as skipped:
            for report in terminalreporter.stats.get("skipped", []):
                reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
                skipped.write(f"{report.nodeid}: {reason}\n")
