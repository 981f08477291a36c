"""The training example in short: through kills it learns, loses nothing, and draws its picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actorraft.actors.system import close_system
from examples.federated_learning import RULES, plot, train
from examples.learning import MODELS, Model, Task, load, shards

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    close_system()
    yield
    close_system()


@pytest.mark.parametrize(("rule", "model"), [("async", "softmax"), ("mean", "network")])
def test_training_goes_on_through_kills_and_nothing_acknowledged_is_missing(
    rule: str, model: str, tmp_path: Path
) -> None:
    task = Task(workers=3, model=model, rounds=rule == "mean")
    run = train(task, RULES[rule], 90, kills=True, show=lambda run: None)
    assert {what.split()[0] for _, what in run.kills} >= {"leader", "front", "worker", "a"}
    assert run.curve[-1][2] > run.curve[0][2] + 0.2, "it has learned"
    plot({"short": run}, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_shards_are_unlike_each_other_and_hold_every_example_once() -> None:
    labels = load("digits").train_y
    dealt = shards(labels, 4, seed=0)
    assert sorted(np.concatenate(dealt).tolist()) == list(range(len(labels)))
    shares = [np.bincount(labels[part], minlength=10) / len(part) for part in dealt]
    assert max(abs(one - other).max() for one in shares for other in shares) > 0.1


def test_the_second_set_is_as_large_as_said_and_the_large_model_has_a_million_parameters() -> None:
    data: Any = load("mnist")
    assert len(data.train_x) + len(data.test_x) >= 5000
    assert data.train_x.shape[1] >= 500
    assert all(Model(MODELS[each, "million"]).size > 950_000 for each in ("digits", "mnist"))


def test_the_gradient_is_that_of_the_loss() -> None:
    rng = np.random.default_rng(0)
    model = Model([5, 4, 3])
    vector, x = model.start(1), rng.standard_normal((6, 5)).astype(np.float32)
    y = rng.integers(0, 3, 6)
    before = vector.copy()
    model.descend(vector, x, y, 1.0)
    gradient = before - vector
    for place in range(0, model.size, 5):
        losses = []
        for sign in (1, -1):
            moved = before.copy()
            moved[place] += sign * 1e-2
            losses.append(model.descend(moved, x, y, 0.0))
        assert abs((losses[0] - losses[1]) / 2e-2 - gradient[place]) < 2e-2
