"""The executor: committed entries in, results out. The only place where user code runs and pickles are opened.

It is handed work in log order and does it in that order, in the machine's thread (turns.py; or at once, in the
simulator), and touches no socket and no log. What it holds is exactly the replicated state: the machine, the sessions,
log time and the serial. All of it rides in a snapshot, so a restored node goes on as if it had applied every entry
itself.

Source:     Raft §5.3 (apply in order), §8 (exactly once), §7 (snapshots carry the sessions).
Threads:    `Executor.run` is called by one thread at a time.
Invariant:  after the same entries, the same state on every node, whatever the entries' bytes are.
One idea:   what is replicated, and each step that changes it. Holding at an entry and rebuilding from a snapshot are
            such steps: they are defined by which of the fields here go back and which stay.
"""

from __future__ import annotations

import math
import pickle
import struct
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import chain
from typing import Any, BinaryIO

import msgspec

from actorraft import codec
from actorraft.errors import ActorRaftError, CorruptionError, NoRoom, StorageFailed, UsageError
from actorraft.loggers import guarded_logger
from actorraft.machine import CommandContext
from actorraft.node.digests import EVERY_ENTRIES_MASK, Checked, Checks
from actorraft.node.guest import HookFailed
from actorraft.node.history import History
from actorraft.node.host import MachineHeld, MachineHost, MachineStopped, Refusal, module_of
from actorraft.node.recursion import limit_recursion
from actorraft.node.session_table import Sessions
from actorraft.node.work import (
    BEFORE,
    TOGETHER,
    Answered,
    Applied,
    Apply,
    Done,
    Doubt,
    Hold,
    Read,
    Restore,
    Restored,
    SnapshotFailed,
    SnapshotTaken,
    Stopped,
    TakeDigest,
    TakeSnapshot,
    Tried,
    TryAgain,
    Watch,
    Watched,
    Work,
    by_entry,
    held_up,
)
from actorraft.pickling import exceptions
from actorraft.pickling.results import encode_error
from actorraft.ports import SnapshotWriter
from actorraft.raft.messages import LogEntry
from actorraft.storage.marks import COMMITTED, HELD, HELD_POSITION, RUNNING, Marks
from actorraft.storage.records import entry_checksum
from actorraft.storage.show import describe

logger = guarded_logger("actorraft")
slow_logger = guarded_logger("actorraft.slow")

SLOW_MAX = 20  # slow entries that are remembered
NOT_BEFORE = "; and the state before it cannot be had now"
_HEAD = struct.Struct("<I")


class Skipped(ActorRaftError):
    """An operator had the entry of this command skipped."""


class Executor:
    """Sessions, log time and the user's machine.

    Args:
        host: the machine; nobody else calls it.
        session_expiry_s: seconds of log time after which a silent session is forgotten.
        seed: of `context().random`, the same on every node.
        timer: seconds, for noticing that digests and snapshots of the state are not cheap.
        marks: where it is said what is being applied, for the next life of this process.
        recursion_max: frames that a command may have above `run`, wherever that is called; None: what there is left.
        skips: index -> checksum of entries that an operator has had skipped; grows with what log and snapshots say.
        code: what the machine is; None: whatever the log says of code, this applies it.
        slow_s: an entry whose commands take longer is logged by name; 0: none.

    Attributes:
        slow: the last of these, as plain data; may be read from any thread.
    """

    def __init__(
        self,
        host: MachineHost,
        *,
        session_expiry_s: float,
        seed: int = 0,
        timer: Callable[[], float] | None = None,
        marks: Marks | None = None,
        recursion_max: int | None = None,
        skips: dict[int, int] | None = None,
        code: codec.Code | None = None,
        slow_s: float = 0.0,
    ) -> None:
        self.host = host
        self.slow: deque[dict[str, Any]] = deque(maxlen=SLOW_MAX)
        self._slow_s = slow_s if slow_s > 0 else math.inf
        self.marks = marks if marks is not None else Marks()
        self.hold: Hold | None = None
        self.skips: dict[int, int] = skips if skips is not None else {}
        self._recursion_max = recursion_max
        self._waiting: list[LogEntry] = []  # while it holds: what was handed over, from that entry on
        self._outcomes: dict[int, dict[int, Any]] = {}  # index -> position -> result, decided by a later entry
        self._looks_ahead = True  # such an entry may be further on in what is handed over
        self._timer = timer if timer is not None else lambda: 0.0
        self.checks = Checks(host.sample, timer, host.known_parts)
        self._checked: list[Checked] = []
        self.sessions = Sessions(session_expiry_s)
        self.last_applied = -1
        self.log_time_s = 0.0  # never falls, whatever leaders' clocks do
        self.serial = 0  # of the next command; over the cluster's whole life
        self.published = History()
        self._context = CommandContext(seed)
        self._mine = code
        self.code: codec.Code | None = None  # that rules at `last_applied`, as the log says
        self._code_from = -1  # since this entry
        self._not_migrated = ""  # why a step to that code was not taken, if it was not; equal on every node
        self._replay: codec.Replay | None = None  # by which other code is to be applied, from an entry not yet applied
        self._replay_said: codec.Replay | None = (
            None  # the last that the log says: a state rebuilt goes over to it again
        )
        self._replay_ends = -1  # until this entry, what the log says of code counts no more
        self._doubt = ""  # why newer code must not apply anything by the older's rules any more; until a restart
        self._refuses = False  # commands that are applied by that code
        self._use_code(None)
        self._passed_at: float | None = None  # a `wake_at` that a clock entry has reached and the machine has not moved

    def run(self, work: Work) -> Done:
        """Do one piece of work; never raises for what user code or bytes from outside do."""
        try:
            if type(work) is not Apply:
                self._look()
            match work:
                case Apply():
                    return self._apply(work)
                case Read():
                    return self._read(work)
                case TakeSnapshot():
                    return self._take_snapshot(work.writer)
                case Restore():
                    return self._install(work)
                case Watch():
                    return self._watch(work)
                case TryAgain():
                    return self._try_again(work)
                case Doubt(reason):
                    self._doubt = self._doubt or reason
                    return self._done([])
                case TakeDigest() if self.hold is not None and not self.hold.ready:
                    return Answered(work.client, codec.AdminReply(work.request_id, self.hold.reason, None))
                case TakeDigest():
                    return self._take_digest(work)
        except MachineStopped as stop:
            if isinstance(stop, Refusal):
                self.marks.passed(self.last_applied)  # else it would be taken for an entry that ends its process
            return Stopped(f"at index {self.last_applied + 1}: {stop}")
        except (MemoryError, RecursionError, ImportError) as error:
            return Stopped(f"at index {self.last_applied + 1}: {type(error).__name__}: {error}")

    def _look(self) -> None:
        """What looks at the state from here on is told of the last entry."""
        looking = self.host.looking
        looking.begin_entry(self.last_applied, self._context.term, self.log_time_s)
        looking.serial, looking.position = self.serial, 0

    def _take_digest(self, work: TakeDigest) -> Answered:
        try:
            value = {"last_applied": self.last_applied, "digest": self.host.digest().hex()}
        except HookFailed as error:
            return Answered(work.client, codec.AdminReply(work.request_id, str(error), None))
        return Answered(work.client, codec.AdminReply(work.request_id, "", value))

    def _apply(self, work: Apply) -> Applied:
        """Apply entries in order; a no-op and a configuration mean nothing here but an index."""
        self.marks.words[COMMITTED] = work.first_index + len(work.entries) - 1
        if self.hold is not None:
            return self._wait(work.first_index, work.entries)
        assert work.first_index == self.last_applied + 1, f"applying {work.first_index} after {self.last_applied}"
        if self._looks_ahead:
            self._looks_ahead = False
            self._look_ahead(work.first_index, work.entries)
        if self._recursion_max is not None:
            limit_recursion(self._recursion_max)
        replies: list[tuple[int, codec.Reply]] = []
        try:
            self._apply_entries(work.first_index, work.entries, replies)
        except MachineHeld as held:
            self._hold_at(held, work.entries[self.last_applied + 1 - work.first_index :])
        except MemoryError as error:  # not the user's: whatever was being done for an entry
            ours = MachineHeld(f"MemoryError: {error}", TOGETHER, encode_error(error, pickle.dumps))
            self._hold_at(ours, work.entries[self.last_applied + 1 - work.first_index :])
        self.marks.passed(self.last_applied)
        return self._done(replies)

    def _done(self, replies: list[tuple[int, codec.Reply]]) -> Applied:
        checked: Sequence[Checked] = ()
        if self._checked:
            checked, self._checked = self._checked, []
        events = self._take_events() if self._context.events else []
        return Applied(self.last_applied, replies, self.log_time_s, self._wake_at(), events, checked, self.hold)

    def _apply_entries(
        self, first_index: int, entries: Sequence[LogEntry], replies: list[tuple[int, codec.Reply]]
    ) -> None:
        words = self.marks.words
        if self._doubt and self._is_mixed:
            raise MachineHeld(self._doubt, untouched=True)
        held = words[HELD]
        skips = self.skips
        # What is not so on almost any day: looked at for each entry only where it may be.
        special = bool(skips) or held >= first_index or self._replay is not None
        timer, slow_s = self._timer, self._slow_s
        began_s = timer()
        index = first_index
        for term, item in entries:
            if type(item) is bytes:
                words[RUNNING] = index
                if special and self._is_skipped(index, term, item):
                    reply = self._skip(index, item)
                else:
                    reply = self._apply_item(index, term, item)
                if reply is not None:
                    replies.append((index, reply))
                elif not special:
                    special = bool(skips) or self._replay is not None  # if that was what the entry says
                now_s = timer()
                if now_s - began_s > slow_s:
                    self._note_slow(index, LogEntry(term, item), now_s - began_s)
                began_s = now_s
            self.last_applied = index
            index += 1

    def _is_skipped(self, index: int, term: int, item: bytes) -> bool:
        """Go over to other code where that begins, and hold where this node held; whether this entry is passed over.

        Raises:
            MachineHeld: this node held there, and the cluster has not decided since.
        """
        if self._replay is not None and index >= self._replay.from_index:
            self._begin_replay(index, term, self._replay)
        words = self.marks.words
        if index == words[HELD] and index not in self._outcomes:
            why = "this node held there before its process was started again"
            raise MachineHeld(why, words[HELD_POSITION], untouched=True)
        return index in self.skips and self.skips[index] == entry_checksum(index, LogEntry(term, item))

    def _note_slow(self, index: int, entry: LogEntry, took_s: float) -> None:
        shown = describe(index, entry)
        took_ms = round(took_s * 1000, 1)
        told = {"index": index, "method": shown.method, "took_ms": took_ms}
        self.slow.append(told)
        slow_logger.warning("%s took %.1f ms", shown.words, took_ms, extra={"fields": told})

    # --- Holding (holding.py): the state is only ever that after a whole entry, or known not to be ---

    def _hold_at(self, held: MachineHeld, entries: Sequence[LogEntry]) -> None:
        """Apply nothing further: the entry after the last one that is whole may have changed a part of the state."""
        index = self.last_applied + 1
        self._context.events = [event for event in self._context.events if event[0] < index]
        # A machine that was not touched, and sessions that would be told the same again, are as they were.
        ready = held.untouched and held.position <= 0
        self.hold = Hold(index, held.position, held.result, str(held), held.module, ready)
        self._waiting = list(entries)
        logger.error("this node holds at index %d: %s", index, held)

    def _wait(self, first_index: int, entries: Sequence[LogEntry]) -> Applied:
        """Keep what is handed over, and go on if it says what becomes of the entry that this node holds at."""
        assert self.hold is not None, "it waits only where it holds"
        self._waiting.extend(entries)
        self._look_ahead(first_index, entries)
        if self.hold.ready and self._is_decided(self.hold):
            return self._go_on()
        return self._done([])

    def _look_ahead(self, first_index: int, entries: Sequence[LogEntry]) -> None:
        """Take up what later entries decide of earlier ones, which are not applied yet."""
        for at, (_, item) in enumerate(entries, first_index):
            if type(item) is bytes and codec.is_decision(item):
                try:
                    decision = codec.decode_request(codec.unstamp(item)[1])
                except codec.MalformedFrame:
                    continue
                if type(decision) is codec.Outcome and decision.index > self.last_applied:
                    self._outcomes.setdefault(decision.index, {})[decision.position] = decision.result
                elif type(decision) is codec.Skips:
                    self.skips.update({index: crc for index, crc in decision.skips if index > self.last_applied})
                elif type(decision) is codec.Replay:
                    if decision.from_index > self.last_applied:
                        self._replay = self._replay_said = decision
                    if decision.from_index > self.last_applied or decision.from_index == self._code_from:
                        self._replay_ends = at

    def _is_decided(self, hold: Hold) -> bool:
        return hold.position in self._outcomes.get(hold.index, ()) or hold.index in self.skips

    def _go_on(self) -> Applied:
        """Apply what waits, from the entry on that this node held at."""
        assert self.hold is not None, "it goes on only where it holds"
        assert self.hold.ready, "the state is not that before the entry"
        restored = self.hold.position == BEFORE  # only then a promise about that entry still binds
        self.hold, waiting, self._waiting = None, self._waiting, []
        words = self.marks.words
        if words[HELD] >= 0 and not restored:
            words[HELD] = words[HELD_POSITION] = -1
            self.marks.sync()
        return self._apply(Apply(self.last_applied + 1, waiting))

    def _try_again(self, work: TryAgain) -> Tried | Stopped:
        if self.hold is None or self.hold.index != work.first_index + len(work.entries):
            return Tried(self._done([]), work.apply)  # an installed snapshot was faster
        restored: Restored | None = None
        if not self.hold.ready:
            done = self._rebuild(work)
            if isinstance(done, Stopped):
                return done
            if self.hold.position == BEFORE:
                restored = done
        if self.hold.ready and (work.apply or restored is not None or self._is_decided(self.hold)):
            return Tried(self._go_on(), work.apply, restored)
        return Tried(self._done([]), work.apply)

    def _rebuild(self, work: TryAgain) -> Restored | Stopped | None:
        """Have the state as it was before the entry held at: from the newest snapshot, and the log from there on."""
        assert self.hold is not None, "it is rebuilt only where it holds"
        hold, last_index = self.hold, self.hold.index - 1
        assert work.first_index + len(work.entries) == hold.index, f"{work.first_index} to {hold.index} have a gap"
        # What was published is the same whether it is rebuilt or not; and if that fails midway, it is still whole.
        published, self.published = self.published, History()
        restored: Restored | Stopped | None = None
        try:
            if work.restore is None:
                self._begin_anew()
            else:
                restored = self._restore(work.restore)
                if type(restored) is Stopped:
                    if restored.disk:
                        return restored
                    raise MachineHeld(restored.reason)
                if hold.position == BEFORE:
                    published = self.published
            assert self.last_applied == work.first_index - 1, f"rebuilding from {self.last_applied}"
            if self._replay_said is not None and self._replay_said.from_index > self.last_applied:
                self._replay = self._replay_said
            if self._recursion_max is not None:
                limit_recursion(self._recursion_max)
            self._apply_entries(work.first_index, work.entries, [])
        except (MachineHeld, HookFailed, UsageError, MemoryError, ImportError) as error:
            logger.error("the state before index %d cannot be had: %s", hold.index, error)
            if hold.position == BEFORE:
                hold = hold._replace(reason=str(error))
            else:
                hold = hold._replace(reason=f"{hold.reason.partition(NOT_BEFORE)[0]}{NOT_BEFORE}: {error}")
            restored = None
        else:
            hold = hold._replace(ready=True)
        finally:
            self._take_events()  # whoever watches has seen them
            self.published = published
            self._checked = []
            self.marks.words[RUNNING] = -1
        self.last_applied, self.hold = last_index, hold
        return restored

    def _begin_anew(self) -> None:
        """Be as before the first entry."""
        self.host.begin_anew()
        self._code_from, self._not_migrated = -1, ""
        self._use_code(None)
        self.sessions.restore([])
        self.last_applied, self.log_time_s, self.serial = -1, 0.0, 0
        self.published.clear()
        self.checks.forget()
        self._passed_at = None

    def _skip(self, index: int, item: bytes) -> codec.Reply | None:
        """Pass an entry by, as an operator said: only sessions, log time and serials take note of it."""
        try:
            log_time_s, frame = codec.unstamp(item)
            request = codec.decode_request(frame)
        except codec.MalformedFrame:
            return None
        self.log_time_s = max(self.log_time_s, log_time_s)
        self.sessions.expire(self.log_time_s)
        if type(request) is codec.Clock:
            self.serial += 1
        if type(request) is not codec.Commands:
            return None
        return self._apply_commands(index, 0, request, skipped=True)

    def _skipped(self, index: int, frame: codec.Commands) -> list[Any]:
        self.serial += frame.count
        error = Skipped(f"the entry at index {index} was skipped by an operator; it changed nothing")
        return [encode_error(error, pickle.dumps)] * frame.count

    def _wake_at(self) -> float | None:
        """Return when the machine wants a clock entry; one that it let pass is not asked for again."""
        wake_at = self.host.wake_at
        return None if wake_at is not None and wake_at == self._passed_at else wake_at

    def _take_events(self) -> list[tuple[int, str, Any]]:
        events, self._context.events = self._context.events, []
        self.published.extend(events)
        return events

    def _apply_item(self, index: int, term: int, item: bytes) -> codec.Reply | None:
        try:
            log_time_s, frame = codec.unstamp(item)
            request = codec.decode_request(frame)
        except codec.MalformedFrame:
            logger.error("the entry at index %d is no frame of this version; it changes nothing", index)
            return None
        if log_time_s > self.log_time_s:
            self.log_time_s = log_time_s
        for client_id in self.sessions.expire(self.log_time_s):
            self.host.end_session(client_id)
        if type(request) is codec.Commands:
            return self._apply_commands(index, term, request)
        if type(request) is codec.Register:
            self.sessions.open(index, self.log_time_s)
            return codec.Registered(request.nonce, index)
        if type(request) is codec.CloseSession:
            self.sessions.close(request.client_id)
            self.host.end_session(request.client_id)
        if type(request) is codec.Clock:
            self._apply_clock(index, term)
        if type(request) is codec.Code and index > self._replay_ends:
            self._apply_code(index, term, request)
        if type(request) is codec.Replay and not self._is_computed_by(index, request):
            raise Refusal(
                f"what follows index {request.from_index} was computed anew by other code, and this node has applied "
                "it by the old: its state is not that of the others. Replace it: remove_node(), add_node()"
            )
        if type(request) is codec.Check:
            self._check(index, request)
        if type(request) is codec.Outcome and request.position not in self._outcomes.get(request.index, ()):
            raise Refusal(
                f"the cluster has decided that a command of the entry at index {request.index} failed, and this node "
                "has applied it: its state is not that of the others. Replace it: remove_node(), add_node()"
            )
        if type(request) is codec.Skips:
            self._check_skips(request)
        return None

    def _check(self, index: int, entry: codec.Check) -> None:
        """Compare with the leader; with newer code, go no further at a difference: the older code rules."""
        self._look()
        checked = self.checks.check(index, self.serial, entry, alike=not self._is_mixed)
        if checked.difference and self._is_mixed:
            self._doubt = f"{checked.difference}. Its code is newer, so it applies nothing further as it is"
            raise MachineHeld(self._doubt, untouched=True)
        self._checked.append(checked)

    def _check_skips(self, said: codec.Skips) -> None:
        """Stop where the others have skipped an entry that this node has applied."""
        for index, _ in said.skips:
            if index < self.last_applied and index not in self.skips:
                raise Refusal(
                    f"the cluster skips the entry at index {index}, and this node has applied it: its state is not "
                    "that of the others. Replace it: remove_node(), add_node()"
                )
        self.skips.update(said.skips)

    # --- By which code (rules.py) ---

    def _use_code(self, code: codec.Code | None) -> None:
        """Apply what follows by the rules of that code; None: of data that 0.1.0 made, or of no data yet."""
        self.code, mine = code, self._mine
        if mine is None:
            self._refuses = self._is_mixed = False
            return
        self._is_mixed = code is not None and code != mine
        self._refuses = self._is_mixed and code is not None and code.version >= mine.version
        self._context.machine_version = code.version if code is not None else 0
        self.host.use_rules(self._context.machine_version)

    def _apply_code(self, index: int, term: int, code: codec.Code) -> None:
        """Go over to other code, step by step from version to version."""
        mine = self._mine
        if mine is not None and code.version > mine.version:
            raise MachineHeld(
                f"from there on commands are applied by machine_version {code.version}, and this node runs "
                f"{mine.version}: start it with the newer code",
                untouched=True,
            )
        context = self._context
        context.begin_entry(index, term, self.log_time_s)
        context.position, context.serial = 0, self.serial
        is_new = self.code is None and self.serial == 0
        now = code.version if is_new else self.code.version if self.code is not None else 0
        for version in range(now, code.version) if mine is not None else ():
            context.machine_version = version + 1
            self.host.use_rules(version)  # if it fails, its state is of that version
            try:
                if index in self._outcomes:
                    self._not_migrated = f"no node could take the step from version {version}; it stays there"
                    self.host.did_not_migrate(self._not_migrated)
                else:
                    self._not_migrated = self.host.migrate(version, context)
            except MachineHeld as held:
                held.untouched = held.untouched and version == now  # else it has taken a step already
                raise
            if self._not_migrated:
                self._use_code(codec.Code(version, code.fingerprint))
                return  # on every node alike: by the old rules, then
        self._code_from = index
        self._use_code(code)
        self.checks.forget()

    def _begin_replay(self, index: int, term: int, replay: codec.Replay) -> None:
        """From here on the log is computed anew, by the code that it says at its end."""
        self._apply_code(index, term, codec.Code(replay.version, replay.fingerprint))
        self._replay, self._code_from = None, replay.from_index

    def _is_computed_by(self, index: int, replay: codec.Replay) -> bool:
        """Whether what is here was computed by that code from there on; only the last word of the log counts."""
        if replay.from_index != self._code_from:
            return False
        return index < self._replay_ends or self.code is None or replay.fingerprint == self.code.fingerprint

    def _refuse(self, index: int) -> None:
        """Say why this node does not compute anew what other code has.

        Raises:
            MachineHeld, MachineStopped: always.
        """
        mine, code = self._mine, self.code
        assert mine is not None, "a node that knows no code refuses none"
        assert code is not None, "what no code is known of is applied"
        if code.version > mine.version:
            raise MachineHeld(
                f"commands are applied by machine_version {code.version}, and this node runs {mine.version}: start it "
                "with the newer code",
                untouched=True,
            )
        how = "" if __debug__ else ", without its asserts, as -O has it"
        raise Refusal(
            f"the entries from index {index} on are to be applied by the code of {self.host.class_name} that "
            f"acknowledged them (since index {max(self._code_from, 0)}: {code.fingerprint[:8]}, machine_version "
            f"{code.version}), and this node runs other code ({mine.fingerprint[:8]}, machine_version "
            f"{mine.version}{how}): acknowledged results could change. Either start the old code once and close the "
            "cluster, which leaves nothing to replay; or raise machine_version in the class, whose commands then "
            "ask context().machine_version by which rules they are applied; or have all of them computed anew, results "
            "that were acknowledged included: spawn(..., replay_with_new_code=True)"
        )

    def _apply_clock(self, index: int, term: int) -> None:
        """Tell the machine the time; counts as one command."""
        if self._refuses:
            self._refuse(index)
        context = self._context
        context.begin_entry(index, term, self.log_time_s)
        context.position, context.serial = 0, self.serial
        self.serial += 1
        if index not in self._outcomes:
            self.host.clock(context)
        wake_at = self.host.wake_at
        self._passed_at = wake_at if wake_at is not None and wake_at <= self.log_time_s else None

    def _apply_commands(
        self, index: int, term: int, frame: codec.Commands, *, skipped: bool = False
    ) -> codec.Reply | None:
        client_id, first = frame.client_id, frame.first_sequence
        admission = self.sessions.admit(frame, self.log_time_s)
        if admission.session is not None:
            results = self._skipped(index, frame) if skipped else self._run_commands(index, term, frame)
            if not index & EVERY_ENTRIES_MASK:
                self.checks.note(results)
            self.sessions.record(admission.session, frame, results, index)
            return codec.Results(client_id, first, results, index)
        if admission.repeated is not None:
            return codec.Results(client_id, first, admission.repeated, admission.repeated_index)
        if admission.resume_from is not None:
            return codec.Resume(client_id, first, admission.resume_from)
        if admission.expired:
            return codec.Expired(client_id, first)
        return None

    def _run_commands(self, index: int, term: int, frame: codec.Commands) -> list[Any]:
        try:
            commands = codec.decode_body(frame.body)
        except codec.MalformedFrame:
            commands = []
        if len(commands) != frame.count:
            return [codec.MALFORMED] * frame.count
        if self._refuses:
            self._refuse(index)
        context = self._context
        context.begin_entry(index, term, self.log_time_s)
        context.client_id = frame.client_id
        context.position, context.serial = 0, self.serial
        # A machine that asked for its commands together has the context of the first of them.
        together = self.host.takes_many
        apply = self.host.apply_many if together else self.host.apply_in_order
        try:
            if self._outcomes and index in self._outcomes:
                results = self._run_around(commands, apply, self._outcomes[index])
            else:
                results = apply(commands, context)
        except MachineHeld as held:
            held.position = TOGETHER if together else context.position
            raise
        self.serial += len(commands)
        if None in commands:
            return [codec.GIVEN_UP if one is None else result for one, result in zip(commands, results, strict=True)]
        return results

    def _run_around(
        self, commands: list[Any], apply: Callable[[list[Any], CommandContext], list[Any]], outcomes: dict[int, Any]
    ) -> list[Any]:
        """Run what nothing was decided of; the rest has its result already."""
        if TOGETHER in outcomes:
            return [outcomes[TOGETHER]] * len(commands)
        context, first_serial = self._context, self._context.serial
        results: list[Any] = []
        for position, command in enumerate(commands):
            if position in outcomes:
                results.append(outcomes[position])
                continue
            context.position, context.serial = position, first_serial + position
            results += apply([command], context)
        return results

    def _read(self, work: Read) -> Answered:
        query = work.query
        if self.hold is not None and not (self.hold.ready and query.consistency == "stale"):
            return Answered(work.client, codec.QueryRefused(query.request_id, "not leader", None))
        try:
            requests = codec.decode_body(query.body)
        except codec.MalformedFrame:
            requests = []
        if len(requests) != query.count:
            return Answered(work.client, codec.Answers(query.request_id, [codec.MALFORMED] * min(query.count, 1)))
        return Answered(work.client, codec.Answers(query.request_id, self.host.queries(requests)))

    def _watch(self, work: Watch) -> Watched:
        """Look up what a watch asks for; every node holds the same."""
        watch_id, topic, from_index = work.watch.watch_id, work.watch.topic, work.watch.from_index
        replies: list[codec.Published] = []
        if from_index is not None:
            if from_index < self.published.first_index:
                error = f"what was published before index {self.published.first_index} is no longer held"
                return Watched(work.client, work.watch, [codec.Published(watch_id, -1, [], error)])
            events = self.published.since(from_index, topic)
            replies = [codec.Published(watch_id, index, values) for index, _, values in by_entry(events)]
        replies.append(codec.Published(watch_id, self.last_applied, []))
        return Watched(work.client, work.watch, replies)

    # --- Snapshots (§7): the sessions and the clocks first, then what the machine writes ---

    def _take_snapshot(self, writer: SnapshotWriter) -> SnapshotTaken | SnapshotFailed | Stopped:
        """Write all of it now; commands wait."""
        if self.hold is not None:
            writer.abort()
            return SnapshotFailed(f"this node holds at index {self.hold.index}: {self.hold.reason}")

        def fill(write: Callable[[bytes], Any]) -> None:
            write(self._snapshot_head())
            for piece in self._history_pieces():
                write(piece)
            self.host.snapshot(write)

        began_s = self._timer()
        done = self.write_snapshot(writer, fill)
        return held_up(done, self._timer() - began_s)

    def pieces(self) -> Generator[bytes, None, None]:
        """Yield what a snapshot holds, for a host that `serves_while_copied`: commands may run between two pieces.

        It is of the moment when the first piece was drawn.
        """
        head, history, pieces = self._snapshot_head(), self._history_pieces(), self.host.pieces()
        first = next(pieces)  # of this moment, as the two before it
        yield head
        yield from history
        yield first
        yield from pieces

    def _snapshot_head(self) -> bytes:
        first_index = self.published.first_index
        skips = [[index, crc] for index, crc in sorted(self.skips.items()) if index <= self.last_applied]
        code: list[Any] | None = None
        if self.code is not None:
            code = [self.code.version, self.code.fingerprint, self._code_from, self._not_migrated]
        state = [self.last_applied, self.log_time_s, self.serial, self.sessions.state(), [], skips, first_index, code]
        head = codec.encode(state)
        return _HEAD.pack(len(head)) + head

    def _history_pieces(self) -> Iterator[bytes]:
        """Return an iterator over what is held for watches, as it is now; behind it stands a piece of no bytes."""
        encoded = map(msgspec.msgpack.encode, self.published.pieces())
        return (_HEAD.pack(len(piece)) + piece for piece in chain(encoded, (b"",)))

    def _restore_history(self, file: BinaryIO, events: list[Any], first_index: int | None) -> None:
        """Read what `_history_pieces` wrote; in 0.1.0 it was all in the head, and no `first_index` beside it."""
        if first_index is not None:
            while size := _HEAD.unpack(file.read(_HEAD.size))[0]:
                events += msgspec.msgpack.decode(file.read(size))
        self.published.restore([(index, topic, event) for index, topic, event in events], first_index)

    def write_snapshot(
        self, writer: SnapshotWriter, fill: Callable[[Callable[[bytes], Any]], None]
    ) -> SnapshotTaken | SnapshotFailed | Stopped:
        """Write a snapshot and commit it; `fill` is given where to write. Of the state it touches nothing itself."""
        try:
            fill(writer.write)
            return SnapshotTaken(writer.commit())
        except NoRoom as error:  # it is removed already; the log has room of its own, and may have for long
            return SnapshotFailed(str(error))
        except StorageFailed as error:
            return Stopped(str(error), disk=True)
        except Exception as error:  # user code may not take the log's thread down
            try:
                writer.abort()
            except StorageFailed as failed:
                return Stopped(str(failed), disk=True)
            return SnapshotFailed(_why(error))

    def _install(self, work: Restore) -> Restored | Applied | Stopped:
        """Take up a snapshot; what this node held at, if anything, is behind it. If it cannot, it holds there."""
        self.hold, self._waiting = None, []
        words = self.marks.words
        if 0 <= words[HELD] <= work.last_index:
            words[HELD] = words[HELD_POSITION] = -1
            self.marks.sync()
        try:
            done = self._restore(work)
        except MachineHeld as held:  # what is half restored is never served
            self.last_applied = work.last_index
            self.hold = Hold(work.last_index + 1, BEFORE, None, str(held), held.module)
            logger.error("this node holds: %s", held)
            return self._done([])
        if type(done) is Restored:
            self.marks.passed(work.last_index)
        return done

    def _restore(self, work: Restore) -> Restored | Stopped:
        """Replace everything by a snapshot.

        Raises:
            MachineHeld: user code raised; what there is now is nobody's state.
        """
        self.published.restore([], work.last_index + 1)  # a watch must not miss what is not read yet
        try:
            with work.open() as file:
                (size,) = _HEAD.unpack(file.read(_HEAD.size))
                state = msgspec.msgpack.decode(file.read(size))
                self.last_applied, self.log_time_s, self.serial, sessions, published, *later = state
                skips, first_index, *more = later if later else ((), None)  # 0.1.0 has neither
                code, self._code_from, self._not_migrated = None, -1, ""
                if more and more[0] is not None:
                    code, self._code_from = codec.Code(*more[0][:2]), more[0][2]
                    self._not_migrated = "".join(more[0][3:4])
                for index, crc in skips:
                    self.skips[index] = crc
                self.sessions.restore(sessions)
                self._restore_history(file, published, first_index)
                self._use_code(code)
                self._look()
                self.host.restore(file)
            if self._mine is not None:
                self.host.did_not_migrate(self._not_migrated)
            self.checks.forget()
        except (StorageFailed, CorruptionError) as error:
            return Stopped(str(error), disk=True)
        except MachineStopped as stop:
            return Stopped(f"the snapshot at index {work.last_index} cannot be restored: {stop}")
        except BaseException as error:  # user code
            why = f"the snapshot at index {work.last_index} cannot be restored: {_why(error)}"
            raise MachineHeld(why, module=module_of(error)) from error
        assert self.last_applied == work.last_index, (
            f"snapshot at {work.last_index} holds the state at {self.last_applied}"
        )
        return Restored(work.last_index, self.log_time_s, self._wake_at(), self.code)


# --- Where work is done ---


class LogOnly:
    """An executor for a log without a machine: every entry counts as applied at once."""

    def __init__(self) -> None:
        self._done: list[Done] = []

    def submit(self, work: Work) -> None:
        if isinstance(work, Apply):
            last = work.first_index + len(work.entries) - 1
            self._done.append(Applied(last, [], 0.0, None, []))

    def poll(self) -> list[Done]:
        done, self._done = self._done, []
        return done


class InlineExecutor:
    """Runs work when it is submitted; for simulations, where nothing may depend on threads."""

    def __init__(self, machine: Executor) -> None:
        self.executor = machine
        self._done: list[Done] = []
        self._stopped = False  # the machine is, for good: what is handed over after that must not be done

    def submit(self, work: Work) -> None:
        if not self._stopped:
            done = self.executor.run(work)
            self._stopped = type(done) is Stopped
            self._done.append(done)

    def poll(self) -> list[Done]:
        done, self._done = self._done, []
        return done


def _why(error: BaseException) -> str:
    return str(error) if isinstance(error, HookFailed) else exceptions.summary(error)
