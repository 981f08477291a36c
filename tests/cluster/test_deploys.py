"""New code, old data: who may apply what, and what is refused; with real processes and a module that is edited."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import actorraft

pytestmark = pytest.mark.cluster

SHOP = """
from actorraft import StateMachine, command, query, context
class Shop(StateMachine):
    {version}
    def __init__(self): self.sales = 0
    @command
    def buy(self, n): self.sales += {sum}; return self.sales
    {more}
"""
# An upgrade that rolls: commands of version 1 are applied as they were while version 2 is on its way.
VERSION_2 = {
    "version": "machine_version = 2",
    "sum": "n * 10 if context().machine_version >= 2 else n",
    "more": "def migrate(self, from_version): self.moved = [*getattr(self, 'moved', []), from_version]",
}
VERSION_1 = {"version": "machine_version = 1", "sum": "n", "more": ""}
OPEN = """
import json, sys, time
sys.dont_write_bytecode = True
sys.path[:0] = [{root!r}, {home!r}]
from pathlib import Path
from actorraft import ReplicatedStateMachine, Supervision, StartError, ActorRaftError, Unavailable
from shop import Shop

def write(source): (Path({home!r}) / "shop.py").write_text(source)
def states(cluster): return [cluster.query(lambda shop: vars(shop), to=node_id) for node_id in cluster.nodes]
def until(ask):
    deadline = time.monotonic() + 60
    while True:
        try:
            if ask(): return
        except ActorRaftError: pass
        assert time.monotonic() < deadline, ask
        time.sleep(0.05)
def said(value): print(json.dumps(value), flush=True)
data = {data!r}
"""


def shop(home: Path, **parts: str) -> str:
    source = SHOP.format(**{"version": "", "sum": "n", "more": "", **parts})
    (home / "shop.py").write_text(source)
    return source


def run(home: Path, script: str) -> list[Any]:
    root = str(Path(actorraft.__file__).parent.parent)
    head = OPEN.format(root=root, home=str(home), data=str(home / "data"))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", head + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=110,
        cwd=home,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


BUY = "with ReplicatedStateMachine(Shop).spawn(data_dir=data) as c: said(c.proxy(timeout=60).buy(1))"

KILLED = """
with ReplicatedStateMachine(Shop).spawn(3, data_dir=data) as cluster:
    said([cluster.proxy(timeout=60).buy(1) for _ in range(5)])
    for node in cluster.nodes.values(): node.kill()
"""


def test_changed_code_does_not_compute_anew_what_other_code_has_acknowledged(tmp_path: Path) -> None:
    shop(tmp_path)
    assert run(tmp_path, KILLED) == [[1, 2, 3, 4, 5]]
    shop(tmp_path, sum="n * 10")
    [refused] = run(
        tmp_path,
        """
        try: ReplicatedStateMachine(Shop).spawn(data_dir=data, timeout=20, supervision=None)
        except StartError as error: said(str(error))
        """,
    )
    for words in ("Shop", "from index", "start the old code once", "raise machine_version"):
        assert words in refused
    shop(tmp_path)  # the way out
    assert run(tmp_path, BUY) == [6]
    shop(tmp_path, sum="n * 10")
    assert run(tmp_path, BUY) == [16]


def test_what_is_to_be_computed_anew_begins_from_one_state_on_all_nodes_and_stays_so(tmp_path: Path) -> None:
    shop(tmp_path)
    run(
        tmp_path,
        """
        from actorraft import RaftConfig
        config = RaftConfig(snapshot_after_entries=40, trailing_entries=10)
        with ReplicatedStateMachine(Shop).spawn(3, data_dir=data, config=config) as cluster:
            paused = next(node_id for node_id in cluster.nodes if node_id != cluster.leader())
            cluster.nodes[paused].pause()
            for _ in range(90): cluster.proxy(timeout=60).buy(1)
            for node in cluster.nodes.values(): node.kill()
        """,
    )
    shop(tmp_path, sum="n * 10")
    new = """
        with ReplicatedStateMachine(Shop).spawn(data_dir=data{more}) as cluster:
            bank = cluster.proxy(timeout=60)
            bought = bank.buy(1)
            until(lambda: all(state == {{"sales": bought}} for state in states(cluster)))
            said(bought)
            for node in cluster.nodes.values(): node.kill()
        """
    [anew] = run(tmp_path, new.format(more=", replay_with_new_code=True"))
    assert 100 < anew < 900 + 10  # a part of it is older than the newest snapshot, and stays what it was
    assert (anew - 10 - 90) % 9 == 0
    assert run(tmp_path, new.format(more="")) == [anew + 10]  # the log says so from now on


def test_an_edit_that_changes_nothing_is_no_reason_to_refuse(tmp_path: Path) -> None:
    source = shop(tmp_path)
    run(tmp_path, KILLED)
    (tmp_path / "shop.py").write_text("# A comment.\n\n" + source.replace("self, n)", "self, n: int) -> int"))
    assert run(tmp_path, BUY) == [6]


def test_a_higher_version_replays_by_the_old_rules_and_migrates_once_a_step_on_every_node(tmp_path: Path) -> None:
    shop(tmp_path)
    run(tmp_path, KILLED)
    shop(tmp_path, **VERSION_2)
    [then, states] = run(
        tmp_path,
        """
        with ReplicatedStateMachine(Shop).spawn(data_dir=data) as cluster:
            said(cluster.proxy(timeout=60).buy(1))
            until(lambda: len({str(state) for state in states(cluster)}) == 1)
            said(states(cluster))
        """,
    )
    assert (then, states) == (15, [{"sales": 15, "moved": [0, 1]}] * 3)


def test_a_version_rolls_through_the_nodes_and_takes_effect_when_all_have_it(tmp_path: Path) -> None:
    shop(tmp_path, **VERSION_1)
    newer = SHOP.format(**VERSION_2)
    values = run(
        tmp_path,
        f"""
        with ReplicatedStateMachine(Shop).spawn(3, data_dir=data) as cluster:
            bank = cluster.proxy(timeout=60)
            got = [bank.buy(1)]
            write({newer!r})
            for number, node in enumerate(list(cluster.nodes.values())):
                node.restart()
                if number < 2: got += [bank.buy(1), bank.buy(1)]
            until(lambda: all("moved" in state for state in states(cluster)))
            said(got)
            said(bank.buy(1))
            said(states(cluster))
        """,
    )
    assert values == [[1, 2, 3, 4, 5], 15, [{"sales": 15, "moved": [1]}] * 3]


def test_what_older_code_applied_is_not_replayed_by_newer_code_that_does_not_know_those_rules_any_more(
    tmp_path: Path,
) -> None:
    shop(tmp_path, **VERSION_1)
    forgot = "n * 10 if context().machine_version >= 2 else n if n != 1 else 1000"
    newer = SHOP.format(**VERSION_2 | {"sum": forgot})
    values = run(
        tmp_path,
        f"""
        with ReplicatedStateMachine(Shop).spawn(3, data_dir=data) as cluster:
            bank = cluster.proxy(timeout=60)
            for _ in range(5): last = bank.buy(1)
            write({newer!r})
            for node in list(cluster.nodes.values()):
                node.kill()  # leaves no snapshot
                bank.buy(2)
                node.restart()
                last = bank.buy(2)
                until(lambda: all(state["sales"] == last for state in states(cluster)))
            until(lambda: all("moved" in state for state in states(cluster)))
            said(last)
            said(states(cluster))
        """,
    )
    last, states = values
    assert last in (17, 35)  # the last one is perhaps of the new rules
    assert states == [{"sales": last, "moved": [1]}] * 3


def test_newer_code_that_gives_other_results_by_the_old_rules_goes_no_further_and_takes_no_effect(
    tmp_path: Path,
) -> None:
    shop(tmp_path, **VERSION_1)
    field = "self.sales, self.refunds = 0, 0"
    newer = SHOP.format(**VERSION_2).replace("self.sales = 0", field)
    wrong = newer.replace("else n;", "else n + 1;")
    values = run(
        tmp_path,
        f"""
        from actorraft import Supervision
        with ReplicatedStateMachine(Shop).spawn(3, data_dir=data) as cluster:
            bank = cluster.proxy(timeout=60)
            bank.buy(1)
            write({wrong!r})
            new = next(node_id for node_id in cluster.nodes if node_id != cluster.leader())
            cluster.nodes[new].restart()
            told = []
            until(lambda: bank.buy(1) and "newer" in str(told.append(cluster.status()[new].error) or told[-1]))
            said(told[-1])
            bought = bank.buy(1)
            write({newer!r})
            cluster.nodes[new].restart()
            until(lambda: states(cluster)[new]["sales"] == bought)
            for node_id in cluster.nodes:
                if node_id != new: cluster.nodes[node_id].restart()
            until(lambda: all("moved" in state for state in states(cluster)))
            said(bank.buy(1) - bought)
            said([row.error for row in cluster.status(timeout=20)])
        """,
    )
    assert "Shop" not in values[0]
    assert "sales" in values[0] or "returned" in values[0]
    assert values[1:] == [10, [None] * 3]


def refused_at_the_first_new_node(path: Path, meanwhile: str) -> list[Any]:
    """Change what buying does, but no version, and start one node with that: whatever is done until it ends.

    Returns:
        What `meanwhile` said; then why the node has ended, and what buying once more returned.
    """
    shop(path)
    changed = SHOP.format(version="", sum="n * 10", more="")
    return run(
        path,
        f"""
        with ReplicatedStateMachine(Shop).spawn(3, data_dir=data, supervision=None) as cluster:
            bank = cluster.proxy(timeout=60)
            bank.buy(1)
            write({changed!r})
            new = next(node_id for node_id in cluster.nodes if node_id != cluster.leader())
            try: cluster.nodes[new].restart()  # a clean end: nothing is to be replayed
            except StartError: pass
            {meanwhile}
            until(lambda: not cluster.nodes[new].alive)
            said(cluster.status()[new].error)
            said(bank.buy(1))
        """,
    )


def test_changed_code_of_the_same_version_is_refused_at_the_first_new_node_though_nobody_sends_anything(
    tmp_path: Path,
) -> None:
    error, bought = refused_at_the_first_new_node(tmp_path, "pass")
    assert "raise machine_version" in error
    assert bought == 2


def test_changed_code_of_the_same_version_is_refused_at_the_first_new_node_while_the_old_ones_serve(
    tmp_path: Path,
) -> None:
    served, error, bought = refused_at_the_first_new_node(tmp_path, "said([bank.buy(1), bank.buy(1)])")
    assert served == [2, 3]
    assert "raise machine_version" in error
    assert bought == 4


def test_a_migration_that_raises_leaves_state_and_version_as_they_were_on_every_node(tmp_path: Path) -> None:
    shop(tmp_path)
    run(tmp_path, KILLED)
    fails = VERSION_2 | {
        "version": "machine_version = 1",
        "more": "def migrate(self, v): self.sales = 99; raise OSError",
    }
    shop(tmp_path, **fails)
    [then, states, errors] = run(
        tmp_path,
        """
        with ReplicatedStateMachine(Shop).spawn(data_dir=data) as cluster:
            said(cluster.proxy(timeout=60).buy(1))
            until(lambda: all("migrate" in str(row.error) for row in cluster.status()))
            said(states(cluster))
            said([row.error for row in cluster.status(timeout=20)])
        """,
    )
    assert (then, states) == (6, [{"sales": 6}] * 3)
    assert all("Shop" in error for error in errors)
    shop(tmp_path)  # a step back, for it never came into force
    assert run(tmp_path, BUY) == [7]


def test_a_renamed_or_moved_class_opens_its_data_once_it_says_what_it_was_called(tmp_path: Path) -> None:
    shop(tmp_path)
    run(tmp_path, KILLED)
    (tmp_path / "store.py").write_text(SHOP.format(version="", sum="n", more="").replace("class Shop", "class Store"))
    values = run(
        tmp_path,
        """
        from actorraft import UsageError
        from store import Store
        try: ReplicatedStateMachine(Store).spawn(data_dir=data)
        except UsageError as error: said(str(error))
        with ReplicatedStateMachine(Shop).spawn(data_dir=data) as cluster:
            cluster.export_snapshot(Path(data).parent / "copy")
        for formerly in ("shop:Shop", None):
            with ReplicatedStateMachine(Store).spawn(data_dir=data, formerly=formerly) as cluster:
                said(cluster.proxy(timeout=60).buy(1))
        with ReplicatedStateMachine(Store).spawn(from_snapshot=Path(data).parent / "copy", formerly="shop:Shop") as one:
            said(one.proxy(timeout=60).buy(1))
        """,
    )
    assert "formerly='shop:Shop'" in values[0]
    assert values[1:] == [6, 7, 6]


def test_a_class_with_a_name_of_its_own_may_be_called_and_lie_as_it_likes(tmp_path: Path) -> None:
    source = SHOP.format(version="machine_name = 'the shop'", sum="n", more="")
    (tmp_path / "shop.py").write_text(source)
    run(tmp_path, KILLED.replace("node.kill()", "pass"))
    (tmp_path / "store.py").write_text(source.replace("class Shop", "class Store"))
    script = """
        from store import Store
        with ReplicatedStateMachine(Store).spawn(data_dir=data) as cluster: said(cluster.proxy(timeout=60).buy(1))
    """
    assert run(tmp_path, script) == [6]


def test_a_module_of_commands_that_is_edited_meanwhile_is_not_loaded_by_a_node_that_is_started_again(
    tmp_path: Path,
) -> None:
    orders = "class Add:\n    def apply(self, state): state['n'] = state.get('n', 0) + {0}; return state['n']\n"
    orders += "def double(state): state['n'] *= {0} + 1; return state['n']\n"
    (tmp_path / "shop.py").write_text("class Shop: pass\n")
    (tmp_path / "orders.py").write_text(orders.format(1))
    values = run(
        tmp_path,
        f"""
        import importlib, logging, orders
        warned = []
        handler = logging.Handler()
        handler.emit = lambda record: warned.append(record.getMessage())
        logging.getLogger("actorraft").addHandler(handler)
        with ReplicatedStateMachine(dict).spawn(3) as cluster:
            got = [cluster.execute(orders.Add()), cluster.execute(orders.double)]
            (Path({str(tmp_path)!r}) / "orders.py").write_text({orders.format(1000)!r})
            importlib.invalidate_caches()
            importlib.reload(orders)
            got.append(cluster.execute(orders.Add()))
            again = next(node_id for node_id in cluster.nodes if node_id != cluster.leader())
            cluster.nodes[again].restart()
            got.append(cluster.execute(orders.double))
            read = lambda: [cluster.query(dict.copy, to=node_id) for node_id in cluster.nodes]
            until(lambda: all(state == {{"n": got[-1]}} for state in read()))
            said(got)
            until(lambda: any("orders.py has changed" in text for text in warned))
        """,
    )
    assert values == [[1, 2, 3, 6]]
