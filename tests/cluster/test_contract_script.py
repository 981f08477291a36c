"""The script of the contract runs wherever Python runs: a file, standard input, a thread, a loop, the REPL, pytest."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.cluster.helpers import SCRIPTS, Spawn, run, running
from tests.cluster.machines import Ledger

pytestmark = pytest.mark.cluster

CONTRACT = (SCRIPTS / "contract.py").read_text()
SMALL = CONTRACT.replace("spawn(5)", "spawn(3)")


def indented(text: str) -> str:
    return textwrap.indent(text, "    ")


def test_the_script_runs_unguarded_from_a_file() -> None:
    assert run(str(SCRIPTS / "contract.py")) == "done\n"


def test_the_script_runs_from_standard_input() -> None:
    assert run("-", stdin=SMALL) == "done\n"


def test_the_script_runs_in_a_thread_that_ends() -> None:
    threaded = f"import threading\ndef main():\n{indented(SMALL)}\nthread = threading.Thread(target=main)\nthread.start()\nthread.join()\n"
    assert run("-", stdin=threaded) == "done\n"


def test_the_script_runs_twice_in_one_process() -> None:
    assert run("-", stdin=SMALL + SMALL) == "done\ndone\n"


def test_two_clusters_side_by_side_in_one_process_do_not_meet(raft_cluster: Spawn) -> None:
    one, other = raft_cluster(Ledger, nodes=1), raft_cluster(Ledger, nodes=1)
    one.proxy().append("who", "one")
    other.proxy().append("who", "other")
    assert one.proxy().get("who") == ["one"]
    assert other.proxy().get("who") == ["other"]


def test_the_script_runs_in_a_running_loop_and_the_loop_goes_on() -> None:
    script = SMALL.partition("cluster = ")[0] + textwrap.dedent(
        """
        import asyncio
        async def main():
            beats = 0
            async def beat():
                nonlocal beats
                while True:
                    await asyncio.sleep(0.01)
                    beats += 1
            heart = asyncio.create_task(beat())
            cluster = await ReplicatedStateMachine(Bank, currency="USD").spawn_async(3)
            assert beats > 3, beats
            bank = cluster.proxy()
            assert await bank.deposit.aio("ann", 1) == 1
            assert await asyncio.gather(*(bank.deposit.aio("ann", 1) for _ in range(100))) == list(range(2, 102))
            assert await bank.balance.aio("ann") == 101
            assert await cluster.submit(lambda bank: bank.accounts["ann"]) == 101
            cluster.close()
            heart.cancel()
        asyncio.run(main())
        print("done")
        """
    )
    assert run("-", stdin=script) == "done\n"


def test_the_script_runs_at_the_prompt() -> None:
    typed = SMALL.replace("\n\n    @", "\n    @")  # a blank line ends a block at the prompt
    with running("-q", "-i", stdin=typed) as script:
        code, said, errors = script.finish()
        assert (code, said) == (0, "done\n"), errors
        assert "Error" not in errors
        assert (script.processes(), script.left_files()) == ([], [])


def test_the_script_runs_in_pytest_with_importlib_mode(tmp_path: Path) -> None:
    test = SMALL.partition("cluster = ")
    (tmp_path / "test_bank.py").write_text(
        f"{test[0]}\ndef test_bank():\n{indented(test[1] + test[2])}\n"
        "def test_bank_by_the_fixture(raft_cluster):\n"
        '    assert raft_cluster(ReplicatedStateMachine(Bank, "USD"), nodes=1).proxy().deposit("bob", 1) == 1\n'
    )
    said = run("-m", "pytest", "-q", "--import-mode=importlib", "-p", "no:cacheprovider", str(tmp_path), cwd=tmp_path)
    assert "2 passed" in said


def test_a_module_that_spawns_while_nodes_import_it_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "unguarded.py").write_text(SMALL)
    with running("-c", "import sys; sys.path.insert(0, '.'); import unguarded", cwd=tmp_path) as script:
        code, _, errors = script.finish()
        assert code == 1
        assert "UsageError: spawn() ran while a node process imports the module unguarded" in errors
        assert '`if __name__ == "__main__":`' in errors
        assert (script.processes(), script.left_files()) == ([], [])


def test_a_guarded_module_runs_with_m(tmp_path: Path) -> None:
    before, _, after = SMALL.partition("cluster = ")
    (tmp_path / "guarded.py").write_text(f'{before}\nif __name__ == "__main__":\n{indented("cluster = " + after)}')
    assert run("-m", "guarded", cwd=tmp_path) == "done\n"
