"""The courier of a replicated actor: a thread beside the node that leads, which sends what lies in the outbox.

Each node has one, and it does nothing while another node leads. What a receiver has told of an effect becomes a command
of the actor's own cluster, which takes the effect out of the outbox on every replica, and hands over the answer.

Two nodes may take themselves for the leader for a moment, and both send: the receiver takes it once all the same.

Threads:    the courier's own, from the first time that its node leads; `lead` is called from the node's loop, and what
            comes back is put down by the threads of clients and of the post.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from actorraft.actors.effects import Deliveries, Effect, Key, told_error
from actorraft.actors.records import Address, down_file, read_record, record_file
from actorraft.actors.system import join_system
from actorraft.errors import ActorDead, ActorRaftError, Busy, MailboxFull, OutcomeUnknown, Unavailable
from actorraft.loggers import guarded_logger
from actorraft.steady import monotonic

if TYPE_CHECKING:
    from concurrent.futures import Future

    from actorraft.actors.ref import ActorRef
    from actorraft.cluster.replicated_actor import ReplicatedActor

logger = guarded_logger("actorraft")

AGAIN_S: Final = 0.05  # when to try again with a receiver that cannot take anything now
SETTLE_S: Final = 0.02  # so long it may stay unsettled that a tell was taken
IDLE_S: Final = 1.0
LAST_S: Final = 5.0  # how long a stopped actor may take to send what it owes
GRACE_S: Final = 0.5  # so long those who wait for a stopped actor's last answers may take to hear them

_NOT_NOW: Final = (Busy, MailboxFull, OutcomeUnknown, Unavailable)

changed = threading.Event()  # there may be something to do for the courier of this process


class Courier:
    """Sends what the machine of this node owes others, while the node leads."""

    def __init__(self, machine: Callable[[], ReplicatedActor]) -> None:
        self._machine = machine  # another one after each restore
        self._ref = machine().ref
        self._deliveries = Deliveries()
        self._leads = self._began = self._again = False
        self._stopped_s: float | None = None  # since when it leads a stopped actor
        self._said = ""  # the last error that was logged
        self._settle_s: float | None = None  # when to settle what may wait until then
        self._lock = threading.Lock()  # of what others put down
        self._ended: list[tuple[Key, ActorRef[Any], Future[Any]]] = []
        self._settled: list[Future[Any]] = []
        self._thread: threading.Thread | None = None

    def lead(self, leads: bool) -> None:
        """The node leads from now on, or does not."""
        if leads and not self._leads:
            self._began = True
        self._leads = leads
        if leads and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="actorraft-courier", daemon=True)
            self._thread.start()
        changed.set()

    # --- The courier's own thread ---

    def _run(self) -> None:
        ref = self._ref
        address = Address(ref.name, ref.endpoint, ref.mailbox_max, ref.mailbox_bytes_max)
        joined = False
        while True:
            try:
                if not joined:
                    join_system(str(record_file(ref.endpoint).parent), address)
                    joined = True
                changed.wait(self._wait_s())
                changed.clear()
                self._round()
            except BaseException as error:
                self._began = True  # whatever that left half done: all is sent again, and taken once
                self._met(error)
                time.sleep(IDLE_S)

    def _wait_s(self) -> float:
        if self._settle_s is not None:
            return max(0.0, self._settle_s - monotonic())
        return AGAIN_S if self._again or self._stopped_s is not None else IDLE_S

    def _round(self) -> None:
        deliveries, machine = self._deliveries, self._machine()
        self._again = False
        with self._lock:
            ended, self._ended = self._ended, []
            settled, self._settled = self._settled, []
        for key, ref, future in ended:
            try:
                self._on_end(key, ref, future)
            except BaseException as error:
                self._met(error)
                self._later(key)
        for future in settled:
            try:
                self._on_settled(future.exception())
            except BaseException as error:
                self._settle_again(error)
        if not self._leads:
            self._stopped_s = self._settle_s = None
            return
        if self._began:
            self._began = False
            deliveries.begin()
        for ref, effect in deliveries.to_send(machine.outbox, self._ref):
            self._send(ref, effect)
        if not self._again:
            self._settle()
        if machine.stopped:
            self._end_if_done(machine)

    def _send(self, ref: ActorRef[Any], effect: Effect) -> None:
        from actorraft.cluster.replicated_actor import EFFECT, ReplicatedActorRef, link_to

        key = effect.stream, effect.number
        try:
            if isinstance(ref, ReplicatedActorRef):
                future = link_to(ref).send((EFFECT, effect), None, bounded=False)
            else:
                future = ref.ask(effect, None)
        except _NOT_NOW:
            self._later(key)
        except (
            ActorRaftError,
            KeyboardInterrupt,
        ) as error:  # it is gone; or the message cannot be sent, or raised that
            self._deliveries.told(key, told_error(error))
        except BaseException as error:  # there is too little of something, just now
            self._met(error)
            self._later(key)
        else:
            future.add_done_callback(partial(self._put_down, key, ref))

    def _put_down(self, key: Key, ref: ActorRef[Any], future: Future[Any]) -> None:
        """In the thread of a client or of the post."""
        with self._lock:
            self._ended.append((key, ref, future))
        changed.set()

    def _on_end(self, key: Key, ref: ActorRef[Any], future: Future[Any]) -> None:
        error = future.exception()
        if error is None:
            well, value = future.result()
            self._deliveries.told(key, (well, value))
        elif isinstance(error, _NOT_NOW) or (isinstance(error, ActorDead) and _lives(ref)):
            self._later(key)
        else:
            self._deliveries.told(key, told_error(error))

    def _later(self, key: Key) -> None:
        self._deliveries.send_again(key)
        self._again = True

    def _settle(self) -> None:
        from actorraft.cluster.replicated_actor import SETTLE, link_to

        deliveries = self._deliveries
        now_s = monotonic()
        if self._settle_s is None and deliveries.owes:
            self._settle_s = now_s + SETTLE_S
        told = deliveries.to_settle(all_of_it=self._settle_s is not None and now_s >= self._settle_s)
        if not told:
            return
        self._settle_s = None
        try:
            future = link_to(self._ref).send((SETTLE, told), None, bounded=False)
        except (ActorRaftError, KeyboardInterrupt) as error:
            self._on_settled(error)
        except BaseException as error:
            self._settle_again(error)
        else:
            future.add_done_callback(self._put_down_settled)

    def _put_down_settled(self, future: Future[Any]) -> None:
        with self._lock:
            self._settled.append(future)
        changed.set()

    def _on_settled(self, error: BaseException | None) -> None:
        self._deliveries.settled(error is None)
        if error is not None:
            self._again = True
            if not isinstance(error, _NOT_NOW):  # an answer cannot be sent on
                self._deliveries.spoil(told_error(error))

    def _settle_again(self, error: BaseException) -> None:
        self._met(error)
        self._deliveries.settled(False)
        self._again = True

    def _met(self, error: BaseException) -> None:
        """Log what should not have happened: once, for it is tried again until it goes well."""
        said = f"{type(error).__name__} in the thread that sends what {self._ref.name} owes; it tries again"
        if said != self._said:
            self._said = said
            logger.error(said, exc_info=error)

    def _end_if_done(self, machine: ReplicatedActor) -> None:
        """Have the owner end all replicas, once others have what a stopped actor sent them."""
        now_s = monotonic()
        if self._stopped_s is None:
            self._stopped_s = now_s
        waited_s = now_s - self._stopped_s
        if waited_s > LAST_S or (waited_s > GRACE_S and not len(machine.outbox)):
            with contextlib.suppress(FileNotFoundError):
                down_file(self._ref.endpoint).touch()


def _lives(ref: ActorRef[Any]) -> bool:
    """Whether an actor that died is started again, or has been."""
    record = read_record(record_file(ref.endpoint), ref.endpoint)
    return record is not None and not record.dead


make_courier = Courier
