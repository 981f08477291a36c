"""The trials in short: each promise once, in seconds. The long ones are run by name."""

from __future__ import annotations

import pytest

from tests.nemesis import disks, namespaces
from tests.soak import heal, kill_all, one_link, power_cut, rolling_upgrade

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]


def test_killing_every_node_at_once_loses_nothing(seed):
    report = kill_all.run(rounds=3, nodes=5, durability="os", seed=seed)

    assert report.rounds == 3
    assert report.sound, report


@pytest.mark.skipif(disks.why_not() is not None, reason=str(disks.why_not()))
def test_a_power_cut_loses_nothing_that_was_synced(seed):
    report = power_cut.run(cuts=2, nodes=3, durability="fsync", seed=seed)

    assert report.cuts == 2
    assert report.acknowledged > 0
    assert not report.harmed, report


@pytest.mark.skipif(disks.why_not() is not None, reason=str(disks.why_not()))
def test_a_power_cut_takes_what_was_never_synced(seed):
    report = power_cut.run(cuts=1, nodes=3, durability="os", seed=seed)

    assert 0 < report.lost <= report.acknowledged


def test_a_leader_cut_from_one_follower_goes_on_leading():
    report = one_link.run(seconds=4.0, nodes=5)

    assert report.succeeded > 100
    assert report.sound, report


@pytest.mark.parametrize("in_namespaces", [False, True], ids=["frames dropped", "packets dropped"])
def test_all_nodes_are_equal_soon_after_a_heal(in_namespaces):
    if in_namespaces and (reason := namespaces.why_not()):
        pytest.skip(reason)
    report = heal.run(seconds=3.0, nodes=5, in_namespaces=in_namespaces)

    assert report.acknowledged > 100
    assert report.equal_s is not None
    assert report.lost == 0


@pytest.mark.skipif(rolling_upgrade.why_not() is not None, reason=str(rolling_upgrade.why_not()))
def test_an_upgrade_of_library_and_class_rolls_through_the_nodes_under_load_and_then_not_back():
    report = rolling_upgrade.run(nodes=3, writers=2, lines=20)

    assert report.went_back
    assert report.refused
    assert report.sound, report
