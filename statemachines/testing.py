"""For tests of machines: `check_determinism` shows whether a machine does the same on every node.

from statemachines.testing import check_determinism

def test_the_bank_is_deterministic():
    check_determinism(Bank, [("deposit", "ann", 5), ("withdraw", "ann", 2)])
"""

from __future__ import annotations

from actorraft.determinism import NotDeterministic, check_determinism

__all__ = ["NotDeterministic", "check_determinism"]
