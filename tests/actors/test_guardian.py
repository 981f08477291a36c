"""Nothing that a child starts outlives it: however it is started, and however the child ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actorraft import ActorOptions
from actorraft.actors.actor import Actor
from actorraft.actors.ref import ActorRef
from actorraft.actors.system import close_system
from tests.cluster.helpers import eventually, is_gone

pytestmark = pytest.mark.cluster

WAYS = (
    "program", "shell in the background", "fork", "forked twice", "daemon", "daemon without environment",
    "daemon that ignores signals", "multiprocessing", "spawned", "stopped daemon", "started by a thread",
    "descendant of a descendant",
)  # fmt: skip


class Starter(Actor):
    """Starts things that would go on for ever."""

    def start(self, way: str, mark: str) -> int:
        """Start one; return the id of the process that lasts."""
        sleep = [sys.executable, "-c", f"import time; time.sleep(600)  # {mark}"]
        if way == "program":
            return subprocess.Popen(sleep).pid
        if way == "shell in the background":
            return int(subprocess.check_output("sleep 600 >/dev/null 2>&1 & echo $!", shell=True))
        if way == "daemon without environment":
            return self._last(
                f"import os, subprocess, sys\nprint(subprocess.Popen({sleep}, env={{}}, start_new_session=True, stdout=subprocess.DEVNULL).pid)"
            )
        if way == "daemon that ignores signals":
            return self._daemon("import signal; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]")
        if way == "stopped daemon":
            pid = self._daemon("")
            os.kill(pid, signal.SIGSTOP)
            return pid
        if way == "daemon":
            return self._daemon("")
        if way == "descendant of a descendant":
            return self._last(
                "import subprocess\nprint(subprocess.check_output(['sh', '-c', 'setsid sh -c \"sleep 600 >/dev/null 2>&1 & echo \\\\$!\"'], text=True))"
            )
        if way == "multiprocessing":
            import multiprocessing

            process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
            process.start()
            return process.pid or 0
        if way == "spawned":
            return os.posix_spawn(sys.executable, sleep, {})
        if way == "started by a thread":
            import threading

            pids: list[int] = []
            thread = threading.Thread(target=lambda: pids.append(subprocess.Popen(sleep).pid))
            thread.start()
            thread.join()
            return pids[0]
        pid = os.fork()
        if pid == 0:
            if way == "forked twice":
                os.setsid()
                if os.fork():
                    os._exit(0)
                Path(f"/tmp/actorraft-test-{mark}").write_text(str(os.getpid()))
            time.sleep(600)
            os._exit(0)
        if way == "forked twice":
            os.waitpid(pid, 0)
            file = Path(f"/tmp/actorraft-test-{mark}")
            pid = int(eventually(lambda: file.exists() and file.read_text()))
            file.unlink()
        return pid

    def _daemon(self, first: str) -> int:
        return self._last(
            "import os, sys, time\n"
            "if os.fork():\n    os._exit(0)\n"
            "os.setsid()\n"
            "pid = os.fork()\n"
            "if pid:\n    print(pid, flush=True); os._exit(0)\n"
            f"{first}\n"
            "os.close(1); time.sleep(600)\n"
        )

    def _last(self, program: str) -> int:
        return int(subprocess.check_output([sys.executable, "-c", program], text=True))


@pytest.fixture
def starter() -> Iterator[ActorRef]:
    ref = ActorOptions(supervision=None).spawn(Starter)
    yield ref
    close_system()


def end(ref: ActorRef, how: str) -> None:
    pid = ref.pid or 0
    if how == "stopped":
        ref.stop()
    elif how == "killed":
        ref.kill()
    elif how == "killed from outside":
        os.kill(pid, signal.SIGKILL)
    elif how == "terminated":
        os.kill(pid, signal.SIGTERM)
    elif how == "its parent is killed while it is paused":
        os.kill(pid, signal.SIGSTOP)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("how", ["stopped", "killed", "killed from outside", "terminated"])
def test_what_an_actor_started_ends_with_it(starter: ActorRef, way: str, how: str) -> None:
    started = starter.proxy(timeout=30.0).start(way, uuid.uuid4().hex)
    assert not is_gone(started)
    end(starter, how)
    eventually(lambda: is_gone(started), what=f"{way} ends with an actor that is {how}")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("paused", [False, True])
def test_what_an_actor_started_ends_when_its_owner_is_killed(way: str, paused: bool) -> None:
    program = (
        "import sys\nfrom actorraft import spawn\nfrom tests.actors.test_guardian import Starter\n"
        f"ref = spawn(Starter)\nprint(ref.pid, ref.proxy(timeout=30.0).start({way!r}, {uuid.uuid4().hex!r}), flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        actor, started = map(int, owner.stdout.readline().split())
        if paused:
            os.kill(actor, signal.SIGSTOP)
        owner.kill()
    eventually(lambda: is_gone(actor) and is_gone(started), what=f"{way} ends with its actor's owner")


@pytest.mark.parametrize("who", ["guardian", "group"])
def test_an_actor_ends_with_its_guardian(starter: ActorRef, who: str) -> None:
    pid = starter.pid or 0
    guardian = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    assert guardian != os.getpid()
    os.kill(guardian, signal.SIGKILL)
    eventually(lambda: is_gone(pid) and not starter.is_alive())


def test_an_orphan_that_ends_leaves_no_zombie(starter: ActorRef) -> None:
    started = starter.proxy(timeout=30.0).start("daemon", uuid.uuid4().hex)
    os.kill(started, signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{started}").exists())
    assert starter.is_alive()


def test_a_child_that_is_stopped_while_it_starts_does_not_survive_its_parent(tmp_path: Path) -> None:
    program = (
        "import logging, os, pathlib, signal, sys, time\n"
        "from actorraft.actors.process import ActorProcess\n"
        f"process = ActorProcess(time.sleep, (600,), name='child', run_dir=pathlib.Path({str(tmp_path)!r}), logger=logging.getLogger('x'))\n"
        "process.start()\n"
        "os.kill(process._popen.pid, signal.SIGSTOP)\n"
        "print(process._popen.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        child = int(owner.stdout.readline())
        owner.kill()
    eventually(lambda: is_gone(child))


@pytest.mark.parametrize("what", ["ignored", "waited for by a handler", "waited for by a thread"])
def test_how_a_child_ended_is_known_whoever_waits_for_children(what: str) -> None:
    setting: dict[str, Any] = {
        "ignored": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
        "waited for by a handler": (
            "def reap(*_):\n    try:\n        while os.waitpid(-1, os.WNOHANG)[0]: pass\n    except OSError: pass\n"
            "signal.signal(signal.SIGCHLD, reap)"
        ),
        "waited for by a thread": (
            "def reap():\n    while True:\n        try: os.waitpid(-1, 0)\n        except OSError: time.sleep(0.001)\n"
            "threading.Thread(target=reap, daemon=True).start()"
        ),
    }
    program = (
        "import os, queue, signal, threading, time\nfrom actorraft import ActorOptions\n"
        "from tests.actors.test_guardian import Starter\n"
        f"{setting[what]}\n"
        "exits = queue.Queue()\nref = ActorOptions(supervision=None).spawn(Starter)\nref.watch(exits.put)\n"
        "os.kill(ref.pid, signal.SIGKILL)\nexit = exits.get(timeout=30)\nprint(exit.code, exit.signal)\n"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True, timeout=60).split() == [
        "None",
        "SIGKILL",
    ]
