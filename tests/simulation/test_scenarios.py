"""Figures 7 and 8 of the paper, played on."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from actorraft.simulation import scenarios
from actorraft.simulation.scenarios import (
    FIGURE_7_LOGS,
    electable_in_figure_7,
    figure_7,
    figure_8,
    play_figure_7,
    play_figure_8d,
    play_figure_8e,
    print_logs,
    terms_of,
)


def test_figure_7_has_the_logs_of_the_paper_and_a_leader_of_term_8() -> None:
    sim = figure_7()

    assert [tuple(terms_of(sim, node_id)) for node_id in range(7)] == list(FIGURE_7_LOGS)
    assert sim.nodes[0].is_leader()
    assert sim.nodes[0].server.current_term == 8


def test_figure_7_ends_with_all_logs_equal_to_the_leaders() -> None:
    sim = figure_7()
    play_figure_7(sim)

    assert [terms_of(sim, node_id) for node_id in range(7)] == [[*FIGURE_7_LOGS[0], 8]] * 7


def test_in_figure_7_only_a_c_and_d_could_have_won_instead() -> None:
    assert electable_in_figure_7() == {1, 3, 4}


def test_figure_8_shows_an_entry_on_a_majority_that_is_overwritten() -> None:
    sim = figure_8()
    play_figure_8d(sim)

    assert [terms_of(sim, node_id)[1] for node_id in range(5)] == [3] * 5


def test_figure_8_shows_that_an_own_term_commit_keeps_the_entry_for_good() -> None:
    sim = figure_8()
    play_figure_8e(sim)

    assert [terms_of(sim, node_id)[:3] for node_id in range(5)] == [[1, 2, 4]] * 5


def test_the_picture_shows_terms_roles_and_what_is_committed() -> None:
    out = StringIO()
    sim = figure_8()
    print_logs(sim, title="state (c)", console=Console(file=out, width=100))

    lines = out.getvalue().splitlines()
    assert lines[0] == "state (c)"
    assert lines[2].split() == ["0", "leader", "1", "2", "4", "term", "4"]
    assert lines[6].split() == ["4", "down", "[", "1]", "3", ".", "term", "3"]


def test_the_module_shows_both_figures(capsys) -> None:  # type: ignore[no-untyped-def]
    scenarios.main()

    assert "Figure 8 (c)" in capsys.readouterr().out
