"""No answer breaks its client's link: what is too large is lost by name, and everything else arrives."""

from __future__ import annotations

from typing import Any

import pytest

from actorraft import codec
from tests.node.helpers import Node

MAX = 10_000


@pytest.fixture(autouse=True)
def _small_links(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "ANSWER_BYTES_MAX", MAX)


def sent(reply: codec.Reply) -> Any:
    frame = codec.encode_reply(reply)
    assert len(frame) <= MAX
    return codec.decode_reply(frame)


@pytest.mark.parametrize("sizes", [(20_000,), (20_000, 10, 20_000), (10, 20_000, 10), (MAX - 70, 10), (10,) * 3_000])
def test_reads_are_answered_in_order_as_far_as_they_fit_and_at_least_one(sizes: tuple[int, ...]) -> None:
    values = [b"x" * size for size in sizes]
    answered: list[Any] = []
    while len(answered) < len(values):
        part = sent(codec.Answers(1, values[len(answered) :])).values
        assert part
        answered += part
    for value, answer in zip(values, answered, strict=True):
        assert answer == (value if len(value) < MAX - 64 else codec.LOST)


@pytest.mark.parametrize("sizes", [(20_000,), (20_000, 10, 10), (6_000, 6_000, 10), (5_000, 1, 9_000, 1), (100,) * 150])
def test_of_results_the_largest_are_lost_and_the_others_arrive(sizes: tuple[int, ...]) -> None:
    results = sent(codec.Results(3, 7, [b"x" * size for size in sizes], 11))
    assert (3, 7, 11, len(sizes)) == (results.client_id, results.first_sequence, results.index, len(results.values))
    lost = [size for size, value in zip(sizes, results.values, strict=True) if value == codec.LOST]
    kept = [size for size, value in zip(sizes, results.values, strict=True) if value == b"x" * size]
    assert len(lost) + len(kept) == len(sizes)
    assert max(kept, default=0) <= min(lost, default=MAX)


@pytest.mark.parametrize(
    "reply",
    [codec.AdminReply(1, "", "x" * 20_000), codec.Published(1, 5, ["x" * 20_000]), codec.Published(1, 5, [1] * 20_000)],
)
def test_other_answers_become_an_error_that_says_so(reply: codec.Reply) -> None:
    assert "too large" in sent(reply).error


def test_after_a_result_that_is_too_large_a_node_answers_as_before() -> None:
    class Large:
        def apply(self, size: int) -> str:
            return "x" * size

        def query(self, size: int) -> str:
            return "x" * size

    assert Large().apply(3) == Large().query(3)
    node = Node().lead()
    node.call("emit", MAX)
    node.read("reader", 1, count=5_000)
    assert 5_000 > len(node.clients.of("reader", codec.Answers)[0].values) > 1_000
