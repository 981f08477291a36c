"""A user's logging is a guest: a filter or a handler that raises ends no thread of the library, and no call."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from collections.abc import Iterator

import pytest

from actorraft import ReplicatedStateMachine
from actorraft.loggers import guarded_logger
from tests.cluster.helpers import eventually, follower_of

ERRORS = [ValueError, SystemExit, GeneratorExit, MemoryError]


class RaisingFilter(logging.Filter):
    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error

    def filter(self, record: logging.LogRecord) -> bool:
        raise self.error


class RaisingHandler(logging.Handler):
    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error
        self.seen = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.seen += 1
        raise self.error


@pytest.fixture(params=ERRORS, ids=lambda error: error.__name__)
def handler(request: pytest.FixtureRequest) -> Iterator[RaisingHandler]:
    handler = RaisingHandler(request.param)
    logging.getLogger("actorraft").addHandler(handler)
    yield handler
    logging.getLogger("actorraft").removeHandler(handler)


def test_where_stderr_is_closed_as_well_nothing_is_said_and_it_goes_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    ours = guarded_logger("actorraft.of_this_test")
    handler = logging.StreamHandler(closed)
    ours.addHandler(handler)
    ours.error("something")
    ours.removeHandler(handler)


@pytest.mark.parametrize("error", ERRORS)
def test_what_a_filter_raises_is_said_and_goes_no_further(
    error: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    ours = guarded_logger("actorraft.of_this_test")
    raising = RaisingFilter(error)
    ours.addFilter(raising)
    ours.error("something")
    ours.removeFilter(raising)
    assert error.__name__ in capsys.readouterr().err
    ours.error("something else")
    assert not capsys.readouterr().err


def test_a_logger_that_a_user_has_set_up_is_the_same_and_a_class_of_the_users_stays() -> None:
    class Mine(logging.Logger):
        pass

    before = logging.getLogger("actorraft.set_up_before")
    logging.Logger.manager.loggerDict["actorraft.of_mine"] = mine = Mine("actorraft.of_mine")
    assert guarded_logger("actorraft.set_up_before") is before
    assert guarded_logger("actorraft.of_mine") is mine
    assert type(mine) is Mine


def test_ctrl_c_while_something_is_logged_is_not_lost() -> None:
    ours = guarded_logger("actorraft.of_this_test")
    raising = RaisingFilter(KeyboardInterrupt)
    ours.addFilter(raising)
    with pytest.raises(KeyboardInterrupt):
        ours.error("something")
    ours.removeFilter(raising)


@pytest.mark.cluster
def test_a_node_that_dies_is_started_again_and_calls_go_on_whatever_the_users_handler_raises(
    handler: RaisingHandler,
) -> None:
    with ReplicatedStateMachine(dict).spawn(3) as cluster:
        victim = follower_of(cluster)
        dead = cluster.nodes[victim].pid or 0
        os.kill(dead, signal.SIGKILL)
        eventually(lambda: cluster.nodes[victim].alive and cluster.nodes[victim].pid != dead, what="its restart")
        assert handler.seen
        cluster.execute(lambda state: state.update(n=2))
        assert cluster.query(dict) == {"n": 2}
