"""Actor frameworks under the load of benchmarks.actors: one driver for each, run in a process of its own.

    python -m benchmarks.others.actor_systems thespian 1.0

Each says what it measured as lines of JSON. A framework that is not installed says what to install and ends with 3. All
messages are 200 bytes, unless said otherwise; a pipeline has four arrays under way, after a first one, for which its
processes import NumPy, and four that find what memory there is.

Differs:    Pykka's actors are threads of one process, and its messages are references: it has no process to cross.
            Thespian's ask takes one at a time, so for several outstanding ones its driver tells and listens.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

MESSAGE: Final = b"x" * 200
SIZES: Final = {"1 KB": 1 << 10, "1 MB": 1 << 20, "10 MB": 10 << 20}
UNDER_WAY: Final = 4
FIRST_ONES: Final = (1, UNDER_WAY)  # of a pipeline, not counted
INSTALL: Final = {"thespian": "thespian", "xoscar": "xoscar numpy", "ray": "ray numpy", "pykka": "pykka"}


def say(what: str, value: float, unit: str) -> None:
    """Print a row."""
    print(json.dumps({"what": what, "value": round(value, 3), "unit": unit}), flush=True)


def median_us(act: Callable[[], Any], seconds: float) -> float:
    """Return the median time of doing something over and over."""
    times: list[float] = []
    for _ in range(20):
        act()
    until_s = time.perf_counter() + seconds
    while (began_s := time.perf_counter()) < until_s or not times:
        act()
        times.append(time.perf_counter() - began_s)
    times.sort()
    return times[len(times) // 2] * 1e6


def with_outstanding(ask: Callable[[], Any], result: Callable[[Any], Any], outstanding: int, seconds: float) -> float:
    """Return asks a second, with so many on their way."""
    waiting = deque(ask() for _ in range(outstanding))
    count, began_s = 0, time.perf_counter()
    while time.perf_counter() - began_s < seconds:
        for _ in range(min(outstanding, 64)):
            result(waiting.popleft())
            waiting.append(ask())
            count += 1
    took_s = time.perf_counter() - began_s
    for each in waiting:
        result(each)
    return count / took_s


def per_s(act: Callable[[int], Any], count: int, seconds: float) -> float:
    """Return how often a second; `act` does it `count` times."""
    done, began_s = 0, time.perf_counter()
    while time.perf_counter() - began_s < seconds:
        act(count)
        done += count
    return done / (time.perf_counter() - began_s)


def arrays() -> dict[str, Any]:
    """Return the arrays to send."""
    import numpy

    return {name: numpy.ones(size, dtype="uint8") for name, size in SIZES.items()}


def _asked(ref: Any, message: Any) -> Any:
    return ref.ask(message).result()


def _got(get: Callable[[Any], Any], remote: Callable[[Any], Any], value: Any) -> Any:
    return get(remote(value))


# --- ActorRaft --------------------------------------------------------------------------------------------------------


def run_actorraft(seconds: float) -> None:
    """ActorRaft."""
    from concurrent.futures import ThreadPoolExecutor

    from actorraft import Actor, ActorOptions, ActorRef, context, spawn
    from actorraft.cluster.replicated_actor import ReplicatedActorRef

    class Echo(Actor):
        def receive(self, message: Any) -> Any:
            return message if type(message) is bytes else len(message)

    class Stage(Actor):
        def __init__(self, further: ActorRef[Any] | None) -> None:
            self.further = further

        def receive(self, message: Any) -> Any:
            return self.further.ask(message, None) if self.further is not None else len(message)

    echo = spawn(Echo)
    say("ask p50", median_us(lambda: echo.ask(MESSAGE).result(), seconds), "us")
    for outstanding in (64, 1000):
        rate = with_outstanding(lambda: echo.ask(MESSAGE), lambda future: future.result(), outstanding, seconds)
        say(f"asks, {outstanding} outstanding", rate, "/s")

    def tell(count: int) -> None:
        for _ in range(count):
            echo.tell(MESSAGE)
        echo.ask(MESSAGE).result()

    say("tells", per_s(tell, 5000, seconds), "/s")
    made = arrays()
    for name, array in made.items():
        say(f"ask with {name}", median_us(partial(_asked, echo, array), seconds / 2), "us")
    third = spawn(Stage, None)
    first = spawn(Stage, spawn(Stage, third))
    for count in FIRST_ONES:
        for one in [first.ask(made["10 MB"], None) for _ in range(count)]:
            one.result()
    rate = with_outstanding(lambda: first.ask(made["10 MB"], None), lambda one: one.result(), UNDER_WAY, 2 * seconds)
    say("10 MB through three actors", rate, "/s")
    began_s = time.perf_counter()
    spawn(Echo)
    say("spawn", (time.perf_counter() - began_s) * 1e3, "ms")
    began_s = time.perf_counter()
    with ThreadPoolExecutor(16) as starting:
        many = list(starting.map(lambda _: spawn(Echo), range(100)))
    for ref in many:
        ref.ask(MESSAGE, 60.0).result()
    say("100 actors", time.perf_counter() - began_s, "s")
    for ref in many:
        ref.kill()

    class Sender(Actor):
        def receive(self, message: Any) -> Any:
            return message

        def pass_on(self, other: ActorRef[Any]) -> None:
            self.tell(other, time.time())

    class Taker(Actor):
        def receive(self, message: float) -> None:
            context().publish("took", time.time() - message)

    sender, taker = ActorOptions(replicas=3).spawn(Sender), ActorOptions(replicas=3).spawn(Taker)
    assert isinstance(sender, ReplicatedActorRef)
    assert isinstance(taker, ReplicatedActorRef)
    commit_us = median_us(lambda: sender.ask(MESSAGE).result(), seconds)
    say("commit of a replicated actor p50", commit_us, "us")
    took = iter(taker.cluster.watch("took"))
    times: list[float] = []
    for _ in range(300):
        sender.proxy().pass_on(taker)
        times.append(next(took).event * 1e6)
    say("message between replicated actors p50", sorted(times)[150], "us")


# --- Others -----------------------------------------------------------------------------------------------------------


def run_pykka(seconds: float) -> None:
    """Pykka: threads of this process."""
    import pykka

    class Echo(pykka.ThreadingActor):  # type: ignore[misc, unused-ignore]  # it may not be installed
        def on_receive(self, message: Any) -> Any:
            return message

    echo = Echo.start()
    say("ask p50", median_us(lambda: echo.ask(MESSAGE), seconds), "us")
    for outstanding in (64, 1000):
        rate = with_outstanding(lambda: echo.ask(MESSAGE, block=False), lambda one: one.get(), outstanding, seconds)
        say(f"asks, {outstanding} outstanding", rate, "/s")

    def tell(count: int) -> None:
        for _ in range(count):
            echo.tell(MESSAGE)
        echo.ask(MESSAGE)

    say("tells", per_s(tell, 5000, seconds), "/s")
    began_s = time.perf_counter()
    many = [Echo.start() for _ in range(100)]
    for ref in many:
        ref.ask(MESSAGE)
    say("100 actors", time.perf_counter() - began_s, "s")
    pykka.ActorRegistry.stop_all()


def run_thespian(seconds: float) -> None:
    """Thespian, with a process for each actor."""
    from thespian.actors import ActorSystem

    from benchmarks.others.thespian_actors import Echo

    system = ActorSystem("multiprocTCPBase", logDefs={"version": 1})
    try:
        echo = system.createActor(Echo)
        say("ask p50", median_us(lambda: system.ask(echo, MESSAGE, 10), seconds), "us")
        for outstanding in (64, 1000):
            rate = with_outstanding(
                lambda: system.tell(echo, MESSAGE), lambda _: system.listen(10), outstanding, seconds
            )
            say(f"asks, {outstanding} outstanding", rate, "/s")

        def tell(count: int) -> None:
            for _ in range(count):
                system.tell(echo, 0)  # is not answered
            system.ask(echo, MESSAGE, 60)

        say("tells", per_s(tell, 500, seconds), "/s")
        for name, array in arrays().items():
            say(f"ask with {name}", median_us(partial(system.ask, echo, array, 60), seconds / 2), "us")
        began_s = time.perf_counter()
        many = [system.createActor(Echo) for _ in range(100)]
        for each in many:
            system.ask(each, MESSAGE, 60)
        say("100 actors", time.perf_counter() - began_s, "s")
    finally:
        system.shutdown()


def run_xoscar(seconds: float) -> None:
    """Xoscar: a pool of one process beside this one."""
    asyncio.run(_xoscar(seconds))


async def _median_us(act: Callable[[], Awaitable[Any]], seconds: float) -> float:
    times: list[float] = []
    for _ in range(20):
        await act()
    until_s = time.perf_counter() + seconds
    while (began_s := time.perf_counter()) < until_s or not times:
        await act()
        times.append(time.perf_counter() - began_s)
    times.sort()
    return times[len(times) // 2] * 1e6


async def _with_outstanding(act: Callable[[], Awaitable[Any]], outstanding: int, seconds: float) -> float:
    count, began_s = 0, time.perf_counter()

    async def one_after_another() -> None:
        nonlocal count
        while time.perf_counter() - began_s < seconds:
            await act()
            count += 1

    await asyncio.gather(*(one_after_another() for _ in range(outstanding)))
    return count / (time.perf_counter() - began_s)


async def _xoscar(seconds: float) -> None:
    import xoscar

    from benchmarks.others.xoscar_actors import Echo, Stage

    pool = await xoscar.create_actor_pool("127.0.0.1", n_process=4)
    addresses = list(pool.sub_processes)
    async with pool:
        echo = await xoscar.create_actor(Echo, address=addresses[0])
        say("ask p50", await _median_us(lambda: echo.echo(MESSAGE), seconds), "us")
        for outstanding in (64, 1000):
            rate = await _with_outstanding(lambda: echo.echo(MESSAGE), outstanding, seconds)
            say(f"asks, {outstanding} outstanding", rate, "/s")
        done, began_s = 0, time.perf_counter()
        while time.perf_counter() - began_s < seconds:
            for _ in range(500):
                await echo.echo.tell(MESSAGE)
            await echo.echo(MESSAGE)
            done += 500
        say("tells", done / (time.perf_counter() - began_s), "/s")
        made = arrays()
        for name, array in made.items():
            say(f"ask with {name}", await _median_us(partial(echo.length, array), seconds / 2), "us")
        third = await xoscar.create_actor(Stage, None, address=addresses[2])
        second = await xoscar.create_actor(Stage, third, address=addresses[1])
        first = await xoscar.create_actor(Stage, second, address=addresses[0])
        for count in FIRST_ONES:
            await asyncio.gather(*(first.work(made["10 MB"]) for _ in range(count)))
        rate = await _with_outstanding(lambda: first.work(made["10 MB"]), UNDER_WAY, 2 * seconds)
        say("10 MB through three actors", rate, "/s")


def run_ray(seconds: float) -> None:
    """Ray, on this machine alone."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    ray.init(num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, object_store_memory=512 << 20)

    class Echoing:
        def echo(self, message: Any) -> Any:
            return message

        def length(self, message: Any) -> int:
            return len(message)

        def work(self, message: Any) -> Any:
            return message + 0  # an array of its own, as one that crosses a mailbox is

    Echo: Any = ray.remote(num_cpus=0)(Echoing)  # noqa: N806
    echo = Echo.remote()
    ray.get(echo.echo.remote(MESSAGE))
    say("ask p50", median_us(lambda: ray.get(echo.echo.remote(MESSAGE)), seconds), "us")
    for outstanding in (64, 1000):
        say(
            f"asks, {outstanding} outstanding",
            with_outstanding(lambda: echo.echo.remote(MESSAGE), ray.get, outstanding, seconds),
            "/s",
        )

    def tell(count: int) -> None:
        for _ in range(count):
            echo.length.remote(MESSAGE)
        ray.get(echo.echo.remote(MESSAGE))

    say("tells", per_s(tell, 500, seconds), "/s")
    made = arrays()
    for name, array in made.items():
        say(f"ask with {name}", median_us(partial(_got, ray.get, echo.length.remote, array), seconds / 2), "us")
    first, second, third = (Echo.remote() for _ in range(3))
    ray.get([each.echo.remote(1) for each in (first, second, third)])

    def through() -> Any:
        return third.length.remote(second.echo.remote(first.echo.remote(ray.put(made["10 MB"]))))

    for count in FIRST_ONES:
        ray.get([through() for _ in range(count)])
    say("10 MB through three actors", with_outstanding(through, ray.get, UNDER_WAY, 2 * seconds), "/s")
    began_s = time.perf_counter()
    many = [Echo.remote() for _ in range(100)]
    ray.get([each.echo.remote(1) for each in many], timeout=120)
    say("100 actors", time.perf_counter() - began_s, "s")
    ray.shutdown()


SYSTEMS: Final[dict[str, Callable[[float], None]]] = {
    "actorraft": run_actorraft,
    "thespian": run_thespian,
    "xoscar": run_xoscar,
    "ray": run_ray,
    "pykka": run_pykka,
}


def main() -> None:
    """Run one."""
    name, seconds = sys.argv[1], float(sys.argv[2])
    try:
        SYSTEMS[name](seconds)
    except ModuleNotFoundError as error:
        print(f"{name} is not installed ({error.name}): pip install {INSTALL.get(name, name)}", file=sys.stderr)
        sys.exit(3)


if __name__ == "__main__":
    main()
