"""The examples of docs/upgrades.md do what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from actorraft.node.executor import Executor
from actorraft.node.host import MachineHost
from actorraft.testing import context

PAGE = (Path(__file__).parent.parent.parent / "docs" / "upgrades.md").read_text()


def example() -> type[Any]:
    [source] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(source, names)
    shop: type[Any] = names["Shop"]
    return shop


def test_commands_go_by_the_version_that_rules_and_migrate_takes_the_step() -> None:
    shop = example()()
    with context(machine_version=1):
        assert shop.buy(2) == 2
    shop.migrate(1)
    with context(machine_version=2):
        assert shop.buy(2) == 40


def test_the_machine_of_the_page_can_be_hosted() -> None:
    assert Executor(MachineHost(example()), session_expiry_s=60.0).host.version == 2
