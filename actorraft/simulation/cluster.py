"""A user's machine in the seeded world: a cluster in one process and in virtual time, whose faults a seed decides.

    cluster = SimCluster(Bank, nodes=3, seed=7)
    bank = cluster.proxy()
    bank.deposit("ann", 10)     # meanwhile nodes crash, links break, disks stall
    cluster.check()             # all is mended: every replica must be equal, and equal to the log applied anew

Everything but the machine is the production code that a seed of `python -m actorraft.simulation` runs, judged after
every event by the same checker; what user code makes of it comes out as it would on a cluster. A wait costs no time:
it plays the world on until the call has ended.

Threads:    one. Nothing here happens but in a call of its user's.
Not here:   commands that are made up (commands.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from typing import Any, Generic, NamedTuple, TypeVar, cast

from actorraft.client.arguments import Consistency, To, check_read
from actorraft.client.failures import Failure
from actorraft.client.proxy import make_proxy
from actorraft.client.reads import QueryCall
from actorraft.errors import OutcomeUnknown
from actorraft.futures import ResultFuture, check_timeout
from actorraft.node.host import MachineHost
from actorraft.pickling.encoder import Encoder, encode_factory
from actorraft.pickling.results import decode_value
from actorraft.simulation import replayed
from actorraft.simulation.faults import KINDS_OF_STRANGERS, Nemesis
from actorraft.simulation.invariants import InvariantViolation
from actorraft.simulation.node import SimNode
from actorraft.simulation.profile import Profile
from actorraft.simulation.workload import Operator, Station
from actorraft.simulation.world import World

M = TypeVar("M")
T = TypeVar("T")

FOREVER_S = 3600.0  # of virtual time: who waits for longer waits for something that does not come
CONVERGE_S = 30.0  # within this after the mending everybody must be equal
STEP_US = 1_000  # how often a wait looks whether it is over


class SimFuture(ResultFuture[T]):
    """The outcome of a simulated call: to wait for it plays the world on."""

    play_on: Callable[[Callable[[], bool]], None]

    def result(self, timeout: float | None = None) -> T:
        """Return the result, or raise what the call ended with; it ends by its own timeout, in virtual time."""
        self.play_on(self.done)
        return super().result(0.0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the call ended with, None if with a result; it ends by its own timeout, in virtual time."""
        self.play_on(self.done)
        return super().exception(0.0)


class SimSession(Station):
    """A session of a user's."""

    def __init__(self, cluster: SimCluster[Any], number: int) -> None:
        self.cluster = cluster
        super().__init__(cluster.world, number, self.make_future)

    def make_future(self) -> SimFuture[Any]:
        """Make what a call, or `OutcomeUnknown.resolve`, waits for."""
        future: SimFuture[Any] = SimFuture()
        future.play_on = self.cluster.play_on
        return future

    def deadline_s(self, timeout: float | None) -> float:
        """Return when a call that begins now has to have ended."""
        return self.timeline.now_us * 1e-6 + (FOREVER_S if timeout is None else timeout)

    def _succeed(self, future: Any, value: Any) -> None:
        try:
            future.set_result(decode_value(value))
        except BaseException as error:  # the command's own, whatever it is
            future.set_exception(error)

    def _fail(self, failure: Failure) -> None:
        future, error, later = failure
        if later is not None and isinstance(error, OutcomeUnknown):
            error.known_by(later)
        if future is not None:
            future.set_exception(error)


class SimClientOf(Generic[M]):
    """A client of a simulated cluster: the calls of `actorraft.Client`, in virtual time."""

    def __init__(self, cluster: SimCluster[M], number: int) -> None:
        self._cluster = cluster
        self._session = SimSession(cluster, number)
        self._encoder = Encoder(self._on_definition)
        cluster.clients.append(self._session)
        cluster.world.hearers.append(self._session)

    def _on_definition(self, encoded: bytes) -> None:
        self._submit(encoded, None)

    def _submit(self, encoded: bytes, timeout: float | None) -> ResultFuture[Any]:
        future = self._session.make_future()
        self._session.session.submit([(encoded, future, self._session.deadline_s(timeout))])
        self._session.turn()
        return future

    def _query(self, encoded: bytes, consistency: str, to: str | int, timeout: float | None) -> ResultFuture[Any]:
        future = self._session.make_future()
        call = QueryCall(encoded, future, self._session.deadline_s(timeout), consistency, to)
        self._session.session.query(call)
        self._session.turn()
        return future

    def submit(self, command: Any, *, timeout: float | None = 5.0) -> ResultFuture[Any]:
        """Send a command; return a future of its result. As Client.submit; `timeout` is in virtual seconds."""
        return self._submit(self._encoder.encode_command(command), check_timeout(timeout))

    def execute(self, command: Any, *, timeout: float | None = 5.0) -> Any:
        """Send a command, wait, and return its result; raises as Client.execute does."""
        return self.submit(command, timeout=timeout).result()

    def query(
        self,
        request: Any,
        *,
        consistency: Consistency = "linearizable",
        to: To = "leader",
        timeout: float | None = 5.0,
    ) -> Any:
        """Read without logging, and return the answer; raises as Client.query does."""
        check_read(consistency, to)
        return self._query(self._encoder.encode_command(request), consistency, to, check_timeout(timeout)).result()

    def proxy(self, *, timeout: float | None = 5.0, consistency: Consistency = "linearizable", to: To = "leader") -> M:
        """Return an object with the machine's commands and queries as methods, as Client.proxy does."""
        check_read(consistency, to)
        return cast(M, make_proxy(self, self._cluster.machine, check_timeout(timeout), consistency, to))

    def submit_call(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None
    ) -> ResultFuture[Any]:
        """Send a command by its method's name; return the future. For proxies."""
        return self._submit(self._encoder.encode_call(method, args, kwargs), timeout)

    def query_call(
        self,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        consistency: Consistency,
        to: To,
        timeout: float | None,
    ) -> ResultFuture[Any]:
        """Send a read by its method's name; return the future. For proxies."""
        return self._query(self._encoder.encode_call(method, args, kwargs), consistency, to, timeout)

    def wait(self, future: Any, instead: str = "") -> Any:
        """Wait for a call of a proxy's, and return its result."""
        return future.result()


class SimCluster(SimClientOf[M]):
    """A simulated cluster of a user's machine, and a client of it.

    Args:
        machine: the class, as ReplicatedStateMachine takes it.
        nodes: how many.
        seed: of everything: the same seed and the same calls give the same run.
        args, kwargs: of the machine's constructor.
        faults: whether anything goes wrong; False: only time passes.
        faults_every_s: mean virtual seconds between two faults; None: as the seed has it, 0.03 to 0.3.

    Attributes:
        faults: kind -> how often it happened so far.
        now_s: virtual seconds since the beginning.
    """

    def __init__(
        self,
        machine: Callable[..., M],
        nodes: int = 3,
        seed: int = 0,
        *,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        faults: bool = True,
        faults_every_s: float | None = None,
    ) -> None:
        self.machine = machine
        self.seed = seed
        self.faults: Counter[str] = Counter()
        factory = encode_factory(machine, args, kwargs or {})
        self._make_host = lambda: MachineHost.from_factory(factory, 1)
        MachineHost.from_factory(factory, 1)  # what is wrong with it is said here, and not as the end of a node
        self.world = World(
            seed,
            num_nodes=nodes,
            profile=_profile(seed, faults_every_s),
            trace_all=False,
            crashed=self._crashed,
            make_host=self._make_host,
        )
        self.timeline = self.world.timeline
        self.clients: list[Station] = []
        self.operator = Operator(self.world)
        self.nemesis = Nemesis(self)
        self._judged = False
        super().__init__(self, 0)
        for node in list(self.world.nodes.values()):
            self.world.boot(node)
        if faults:
            self.nemesis.begin()

    def _crashed(self, node: SimNode) -> None:
        self.faults["crash"] += 1
        self.nemesis.crashed(node)

    @property
    def now_s(self) -> float:
        """Return virtual seconds since the beginning."""
        return self.timeline.now_us * 1e-6

    def client(self) -> SimClientOf[M]:
        """Open one more session, and return it: what two clients send is in no order."""
        return SimClientOf(self, len(self.clients))

    # --- Time ---

    def play_on(self, done: Callable[[], bool]) -> None:
        """Play the world on until `done()`.

        Raises:
            InvariantViolation: it broke a promise on the way; the text names the seed.
            TimeoutError: an hour of virtual time has passed.
        """
        with self._named():
            end_us = self.timeline.now_us + int(FOREVER_S * 1e6)
            while not done():
                if self.timeline.now_us > end_us:
                    raise TimeoutError(f"seed {self.seed}: {FOREVER_S:.0f} s of virtual time, and it has not ended")
                self.timeline.run(until_us=self.timeline.now_us + STEP_US)

    def sleep(self, seconds: float) -> None:
        """Let virtual time pass. Raises as `play_on` does."""
        with self._named():
            self.timeline.run(until_us=self.timeline.now_us + int(seconds * 1e6))

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Say of what breaks the rules which seed it was, and what came last."""
        try:
            yield
        except InvariantViolation as error:
            self._judged = True  # nothing after this means anything
            error.add_note(f"seed {self.seed}, {self.now_s:.3f} s of virtual time; the last events:")
            for line in list(self.world.trace.tail())[-12:]:
                error.add_note(f"  {line}")
            raise

    # --- The end ---

    def check(self) -> None:
        """Mend everything, and compare: within 30 virtual seconds all replicas must be equal.

        Each is compared with the others, with a machine that applies the same log in one go, and with one that is
        restored from a snapshot on the way. Idempotent; the fixture `sim_cluster` calls it after the test.

        Raises:
            InvariantViolation: they are not equal; it names the nodes and what of the state differs. Most often the
                machine is not deterministic: `statemachines.testing.check_determinism` looks closer.
        """
        if self._judged:
            return
        self._judged = True
        with self._named():
            self.nemesis.mend()
            end_us = self.timeline.now_us + int(CONVERGE_S * 1e6)
            while (unfinished := self._unfinished()) is not None:
                if self.timeline.now_us > end_us:
                    raise InvariantViolation("convergence", f"{CONVERGE_S:.0f} s after the mending, {unfinished}")
                self.timeline.run(until_us=self.timeline.now_us + 50_000)
            self._compare()

    def _unfinished(self) -> str | None:
        leader = self.world.leader()
        if leader is None or leader.server is None:
            return "nobody leads"
        configuration = leader.server.configuration
        self.nemesis.retire_strangers(configuration.members)
        for node_id in sorted(configuration.members):
            node = self.world.nodes[node_id]
            if node.server is None:
                return f"node {node_id} is down"
            if node.server.last_applied != leader.server.log.last_index or node.server.leader_id != leader.node_id:
                return f"node {node_id} has applied {node.server.last_applied} of {leader.server.log.last_index}"
        return None

    def _compare(self) -> None:
        leader = self.world.leader()
        assert leader is not None
        assert leader.server is not None
        members = [self.world.nodes[node_id] for node_id in sorted(leader.server.configuration.members)]
        first = members[0]
        for node in members[1:]:
            names = _differing(first, node)
            if names:
                raise InvariantViolation(
                    "equal replicas", f"nodes {first.node_id} and {node.node_id} differ: {', '.join(names)}"
                )
        assert first.executor is not None
        replayed.judge(
            first.node_id,
            first.executor,
            self.world.checker.committed,
            self.world.profile,
            Random(self.seed),
            make_host=self._make_host,
        )


def _profile(seed: int, every_s: float | None) -> Profile:
    """Return what a seed chooses of what may happen to a machine that is not ours."""
    profile = Profile.draw(Random(seed))
    kinds = tuple(kind for kind in profile.kinds if kind not in KINDS_OF_STRANGERS) or ("crash", "partition")
    every_us = profile.every_us if every_s is None else max(1, int(every_s * 1e6))
    config = replace(profile.config, session_expiry_s=3600.0)
    return replace(profile, kinds=kinds, every_us=every_us, config=config, guest=False, holds=False, versions=False)


def _differing(one: SimNode, other: SimNode) -> Sequence[str]:
    """Return the names of what of two machines' states differs."""
    mine, theirs = (cast(Any, node.executor).host.parts() for node in (one, other))
    return sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))


# --- Many seeds, with commands that are made up ---


class MachineOutcome(NamedTuple):
    """What one seed was like; `violation` is None if all was well."""

    seed: int
    simulated_s: float
    commands: int  # sent
    ended: dict[str, int]  # how they ended: "returned", or the name of what was raised -> how many
    faults: dict[str, int]
    violation: str | None
    notes: tuple[str, ...]


def run_machine(
    machine: Callable[..., Any],
    draw: Callable[[Random], Any],
    *,
    seed: int = 0,
    nodes: int = 3,
    commands: int = 200,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
) -> MachineOutcome:
    """Send a machine commands from two clients while a seed's faults happen, then compare the replicas.

    Args:
        machine: the class, as ReplicatedStateMachine takes it.
        draw: makes up a command: a tuple of a method's name and arguments, or an object as `execute` takes it.
        commands: how many.

    Returns:
        What became of it; a violation is a part of that, and not raised.

    Raises:
        UsageError: the machine cannot be made, or a command cannot be sent.
    """
    cluster = SimCluster(machine, nodes, seed, args=args, kwargs=kwargs)
    rng = Random(seed)
    clients: list[SimClientOf[Any]] = [cluster, cluster.client()]
    futures: list[ResultFuture[Any]] = []
    violation: str | None = None
    notes: Sequence[str] = ()
    try:
        for _ in range(commands):
            futures.append(_send(rng.choice(clients), draw(rng)))
            if rng.random() < 0.5:
                cluster.sleep(rng.expovariate(1 / 0.02))
        cluster.play_on(lambda: all(future.done() for future in futures))
        cluster.check()
    except InvariantViolation as error:
        violation, notes = str(error), error.__notes__
    ended = Counter(
        "returned" if error is None else type(error).__name__
        for error in (future.exception() for future in futures if future.done())
    )
    return MachineOutcome(seed, cluster.now_s, len(futures), dict(ended), dict(cluster.faults), violation, tuple(notes))


def _send(client: SimClientOf[Any], command: Any) -> ResultFuture[Any]:
    if type(command) is tuple and command and isinstance(command[0], str):
        return client.submit_call(command[0], command[1:], {}, 5.0)
    return client.submit(command)
