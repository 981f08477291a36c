"""Judge a recorded history: is there one order of its operations that explains every result?

A history is linearizable if each operation can be given one instant between its call and its return so that,
taken in the order of these instants, every operation returns what a plain register per key would return.
Keys are independent, so each is judged by itself (Herlihy and Wing: linearizability is local).

The search is Wing and Gong's in Lowe's just-in-time form: walk through calls and returns in order of time and
keep every *configuration* the register can be in: (state, which pending operations already took effect, which
unknown ones). Only when an operation returns must it have taken effect, so only then are configurations expanded.

Operations with an unknown outcome may take effect at any time after their call, or never; they stay pending for
ever, and trying all subsets of them would be hopeless. Two facts keep it short. A configuration that used fewer
unknown operations for the same state can do all that one that used more can, so the latter is forgotten. And an
unknown operation changes nothing worth having unless the next operation needs the state it makes, so a chain of
them is searched backwards from the state that is needed; of equal ones, one will do. (Appends stay visible, so
unknown ones are tried before appends; on a key that only knows appends and gets, the longest content read says
which of them can be next.)

Many writes at once still have too many orders, while nearly all histories are sound. So a quick search comes first,
which only tries orders that lose no read: see _QuickCheck. What it finds is an order; only if it finds none, all is
searched.

Source:     Wing and Gong 1993; Lowe 2017, "Testing for linearizability"; Horn and Kroening 2015 (per key).
Shape:      times are integers of one clock; an operation that returns at the instant another is called overlaps it.
Invariant:  sound and complete unless it says "undecided", which it does beyond `configurations_max`.
Speed:      about 3.5 µs an operation: a million operations on 2,000 keys, 5 % of them unknown, in 3.4 s.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

CONFIGURATIONS_MAX = 50_000  # per key and instant; beyond it the verdict on the key is "undecided"


class Operation(NamedTuple):
    """One call of a client, as a line of a history file has it.

    `op` is get, put, append, cas or delete. `result` is the content or None (get), True or False (cas, delete).
    `status` is "ok", "fail" (certainly never takes effect) or "unknown". `return_ns` is None unless ok.
    """

    client: int | str
    op: str
    key: str
    value: Any = None
    expected: Any = None
    result: Any = None
    status: str = "unknown"
    call_ns: int = 0
    return_ns: int | None = None


class Violation(NamedTuple):
    """No order explains `operation`: none of the `states` that its key could be in at its return fits its result."""

    key: str
    operation: Operation
    states: tuple[Any, ...]
    pending: tuple[Operation, ...]

    def __str__(self) -> str:
        op = self.operation
        call = {"get": "get()", "delete": "delete()", "cas": f"cas({op.expected!r} -> {op.value!r})"}
        states = ", ".join(repr(state) for state in self.states[:5]) + (" ..." if len(self.states) > 5 else "")
        return (
            f"key {self.key!r}: {call.get(op.op, f'{op.op}({op.value!r})')} = {op.result!r} of client {op.client} "
            f"([{op.call_ns}, {op.return_ns}] ns) fits no order; the key could hold {states}"
        )


class Verdict(NamedTuple):
    """What the checker found; true if the whole history is linearizable."""

    operations: int
    keys: int
    violations: tuple[Violation, ...]
    undecided: tuple[str, ...]  # keys on which the search was given up

    def __bool__(self) -> bool:
        return not self.violations and not self.undecided


# An operation, reduced to what the search asks: (need, argument, effect, value).
UNSEEN = "(a value that no operation asks for)"
BEYOND = "(and more that was never read)"
ANY, EXACT, NOT = 0, 1, 2  # it fits any state; only the state `argument`; any but `argument`
KEEP, SET, APPEND = 0, 1, 2  # what it does with the state
Act = tuple[int, Any, int, Any]
Config = tuple[Any, int, int]  # state, mask of pending operations that took effect, mask of unknown ones that did


class _Undecided(Exception):
    """The search has more configurations than it may hold."""


def check_history(operations: Iterable[Operation], *, configurations_max: int = CONFIGURATIONS_MAX) -> Verdict:
    """Judge a history, key by key; every key is absent at its start.

    Raises:
        ValueError: an operation is malformed (unknown `op` or `status`; ok without a return after its call).
    """
    by_key: dict[str, list[Operation]] = {}
    count = 0
    for operation in operations:
        count += 1
        ops = by_key.get(operation.key)
        if ops is None:
            by_key[operation.key] = [operation]
        else:
            ops.append(operation)
    violations: list[Violation] = []
    undecided: list[str] = []
    for key, ops in by_key.items():
        try:
            violation = (
                None if _is_quickly_explained(ops, configurations_max) else _KeyCheck(ops, configurations_max).run()
            )
        except _Undecided:
            undecided.append(key)
            continue
        if violation is not None:
            violations.append(violation)
    return Verdict(count, len(by_key), tuple(violations), tuple(undecided))


def write_history(path: Path | str, operations: Iterable[Operation]) -> None:
    """Write one JSON object a line."""
    with open(path, "w", encoding="utf-8") as file:
        for operation in operations:
            file.write(json.dumps(operation._asdict()) + "\n")


def read_history(path: Path | str) -> Iterator[Operation]:
    """Read what `write_history` or any other program wrote, one JSON object a line."""
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            try:
                yield Operation(**json.loads(line))
            except (TypeError, json.JSONDecodeError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from None


def _act(operation: Operation) -> Act:
    """Return what an operation needs and does; an unknown result needs nothing that its effect does not."""
    op, value, result = operation.op, operation.value, operation.result
    if op == "get":
        return EXACT, result, KEEP, None
    if op == "put":
        return ANY, None, SET, value
    if op == "append":
        return ANY, None, APPEND, value
    known = operation.status == "ok"
    if op == "cas":
        if known and not result:
            return NOT, operation.expected, KEEP, None
        return EXACT, operation.expected, SET, value
    if op == "delete":
        if not known:
            return ANY, None, SET, None
        return (NOT, None, SET, None) if result else (EXACT, None, KEEP, None)
    raise ValueError(f"unknown op in {operation}")


def _after(state: Any, act: Act) -> Any:
    """Return the state that `act` leaves behind."""
    effect = act[2]
    if effect == KEEP:
        return state
    if effect == SET:
        return act[3]
    return act[3] if state is None else state + act[3]


def _fits(state: Any, act: Act) -> bool:
    """Whether `act` can happen in `state`."""
    need = act[0]
    return need == ANY or (state == act[1]) == (need == EXACT)


class _KeyCheck:
    """The search on one key."""

    def __init__(self, operations: list[Operation], configurations_max: int) -> None:
        self.operations = operations
        self.configurations_max = configurations_max
        self.events: list[tuple[int, int, int]] = []  # (time, 0 call or 1 return, index into operations)
        self.acts: list[Act] = []
        self.unknown: dict[Act, int] = {}  # called so far: act -> the bits of all operations that are this act
        self.makers: dict[Any, list[Act]] = {}  # state -> the unknown acts that set it
        self.appenders: list[Act] = []  # the unknown acts that append
        self.unknown_count = 0
        self.guide: Any = None  # appends and gets only: the longest content read
        self.pending: dict[int, tuple[Act, Operation]] = {}  # bit -> an operation between call and return
        self.now = -1  # the time of the event under way
        self._prepare()

    def _prepare(self) -> None:
        """Reduce and order the operations; leave out those that take no effect."""
        events, acts = self.events, self.acts
        for index, operation in enumerate(self.operations):
            acts.append(_act(operation))
            status = operation.status
            if status == "ok":
                returned = operation.return_ns
                if returned is None or returned < operation.call_ns:
                    raise ValueError(f"ok without a return after its call: {operation}")
                events.append((operation.call_ns, 0, index))
                events.append((returned, 1, index))
            elif status == "unknown":
                if operation.op != "get":
                    events.append((operation.call_ns, 0, index))
            elif status != "fail":
                raise ValueError(f"unknown status in {operation}")
        events.sort()
        self._merge_unseen_values()
        self.unknown_useful = self._useful() if any(op.status == "unknown" for op in self.operations) else set()
        if all(operation.op in ("get", "append") for operation in self.operations):
            reads = [op.result for op in self.operations if op.op == "get" and op.status == "ok"]
            self.guide = max((read for read in reads if read is not None), key=len, default="")

    def _merge_unseen_values(self) -> None:
        """Give all values that no operation asks for one name: which of them the key holds makes no difference."""
        if any(act[2] == APPEND for act in self.acts):
            return
        asked_for = {act[1] for act in self.acts if act[0] != ANY}
        self.acts = [
            (act[0], act[1], SET, UNSEEN) if act[2] == SET and act[3] is not None and act[3] not in asked_for else act
            for act in self.acts
        ]

    def _useful(self) -> set[int]:
        """Return the unknown operations that could explain a result; the others are as good as never executed."""
        acts = [act for act, op in zip(self.acts, self.operations, strict=True) if op.status != "fail"]
        unknown = {i for i, op in enumerate(self.operations) if op.status == "unknown" and op.op != "get"}
        if any(act[0] == NOT for act in acts):
            return unknown
        needed = {act[1] for act in acts if act[0] == EXACT}
        if all(act[2] != APPEND for act in acts):
            return {i for i in unknown if self.acts[i][3] in needed}
        text = "\n".join(item for item in needed if isinstance(item, str))
        return {i for i in unknown if not isinstance(self.acts[i][3], str) or self.acts[i][3] in text}

    def run(self) -> Violation | None:
        """Walk through the events; return the first return that nothing explains."""
        operations, acts, pending = self.operations, self.acts, self.pending
        configs: list[Config] = [(None, 0, 0)]
        bits: dict[int, int] = {}
        free: list[int] = []
        slots = 0
        for now, is_return, index in self.events:
            self.now = now
            if not is_return:
                operation = operations[index]
                if operation.status == "unknown":
                    if index in self.unknown_useful:
                        self._add_unknown(acts[index])
                    continue
                if free:
                    bit = free.pop()
                else:
                    bit = 1 << slots
                    slots += 2  # the next bit is the quick search's
                bits[index] = bit
                pending[bit] = acts[index], operation
                continue
            bit = bits[index]
            free.append(bit)
            act = acts[index]
            if len(pending) == 1 and len(configs) == 1 and (act[2] != APPEND or not self.unknown):
                state, mask, used = configs[0]  # the common case: alone, one state, and it fits
                need = act[0]
                if not mask and (need == ANY or (state == act[1]) == (need == EXACT)):
                    if act[2]:
                        configs = [(_after(state, act), 0, used)]
                    pending.clear()
                    continue
            after = self._return(configs, bit, act)
            if not after:
                states = tuple(dict.fromkeys(state for state, _, _ in configs))
                others = tuple(op for b, (_, op) in pending.items() if b != bit)
                return Violation(operations[index].key, operations[index], states, others)
            del pending[bit]
            configs = after
        return None

    def _add_unknown(self, act: Act) -> None:
        if act not in self.unknown:
            self.unknown[act] = 0
            if act[2] == SET:
                self.makers.setdefault(act[3], []).append(act)
            else:
                self.appenders.append(act)
        self.unknown[act] |= 1 << self.unknown_count
        self.unknown_count += 1

    def _return(self, configs: list[Config], bit: int, act: Act) -> list[Config]:
        """Return every configuration in which the operation `bit` has taken effect, without the mark that it has."""
        found: set[Config] = set()
        seen: set[Config] = set(configs)
        stack = list(configs)
        while stack:
            state, mask, used = stack.pop()
            if self.guide is not None and state == self.guide + BEYOND:
                mask |= self._pending_appends()  # nobody sees them any more
            if mask & bit:
                found.add((state, mask ^ bit, used))
                continue
            found.update((after, mask, now_used) for after, now_used in self._apply(state, used, act))
            for other, (other_act, _) in self.pending.items():
                if other == bit or mask & other:
                    continue
                for after, now_used in self._apply(state, used, other_act):
                    new = self._read_pending(after, mask | other, bit), now_used
                    new_config = after, new[0], now_used
                    if new_config not in seen:
                        seen.add(new_config)
                        stack.append(new_config)
            if len(seen) + len(found) > self.configurations_max:
                raise _Undecided
        return self._undominated(found) if self.unknown and len(found) > 1 else list(found)

    def _read_pending(self, state: Any, mask: int, returning: int) -> int:
        """Let every pending operation that only looks, and fits, take effect: it can do no harm."""
        for bit, (act, _) in self.pending.items():
            if act[2] == KEEP and not mask & bit and bit != returning and _fits(state, act):
                mask |= bit
        return mask

    def _apply(self, state: Any, used: int, act: Act) -> Iterator[tuple[Any, int]]:
        """Yield (state, used) after `act`, with as few unknown operations before it as it needs."""
        need, argument, effect, _ = act
        if effect == APPEND:
            yield from self._apply_append(state, used, act)
        elif need == ANY or (state == argument) == (need == EXACT):
            yield _after(state, act), used
        elif need == EXACT:
            for now_used in self._chains(state, used, argument):
                yield _after(argument, act), now_used
        else:
            for other, bits in self.unknown.items():
                bit = bits & ~used
                if bit and _fits(state, other) and (changed := _after(state, other)) != argument:
                    yield _after(changed, act), used | (bit & -bit)

    def _chains(self, state: Any, used: int, goal: Any) -> Iterator[int]:
        """Search backwards: yield the unknown operations (with `used`) that lead from `state` to `goal`."""
        stack = [(goal, used)]
        seen = set(stack)
        while stack:
            wanted, now_used = stack.pop()
            for act in (*self.makers.get(wanted, ()), *self.appenders):
                free = self.unknown[act] & ~now_used
                if not free:
                    continue
                need, argument, effect, value = act
                bit = free & -free
                before: tuple[Any, ...]
                if effect == APPEND:
                    if not isinstance(wanted, str) or not wanted.endswith(value):
                        continue
                    rest = wanted[: len(wanted) - len(value)]
                    before = (rest,) if rest else (rest, None)
                elif need == ANY:
                    yield now_used | bit
                    continue
                else:
                    before = (argument,)
                for item in before:
                    if item == state:
                        yield now_used | bit
                    elif (item, now_used | bit) not in seen:
                        seen.add((item, now_used | bit))
                        stack.append((item, now_used | bit))
            if len(seen) > self.configurations_max:
                raise _Undecided

    def _apply_append(self, state: Any, used: int, act: Act) -> Iterator[tuple[Any, int]]:
        """An append: what unknown operations did before it stays visible, so all that may have is tried."""
        stack = [(state, used)]
        seen = set(stack)
        while stack:
            now, now_used = stack.pop()
            after = self._shortened(_after(now, act))
            if self._guided(after):
                yield after, now_used
            for other, bits in self.unknown.items():
                bit = bits & ~now_used
                if not bit or not _fits(now, other):
                    continue
                new = _after(now, other), now_used | (bit & -bit)
                if new not in seen and (self.guide is None or self.guide.startswith(new[0])):
                    seen.add(new)
                    stack.append(new)
            if len(seen) > self.configurations_max:
                raise _Undecided

    def _guided(self, state: Any) -> bool:
        """On a key with appends and gets only: whether the longest content read can still come about."""
        guide = self.guide
        return guide is None or guide.startswith(state) or state.startswith(guide)

    def _shortened(self, state: Any) -> Any:
        """Give all contents that are longer than any that was read one name."""
        guide = self.guide
        beyond = guide is not None and len(state) > len(guide) and state.startswith(guide)
        return guide + BEYOND if beyond else state

    def _pending_appends(self) -> int:
        mask = 0
        for bit, (act, _) in self.pending.items():
            if act[2] == APPEND:
                mask |= bit
        return mask

    def _undominated(self, configs: set[Config]) -> list[Config]:
        """Forget a configuration if another has the same state with fewer unknown operations used."""
        groups: dict[tuple[Any, int], list[int]] = {}
        for state, mask, used in configs:
            groups.setdefault((state, mask), []).append(used)
        kept: list[Config] = []
        for (state, mask), candidates in groups.items():
            minimal: list[int] = []
            for used in sorted(candidates, key=int.bit_count):
                if not any(small & used == small for small in minimal):
                    minimal.append(used)
            kept.extend((state, mask, used) for used in minimal)
        return kept


def _is_quickly_explained(operations: list[Operation], configurations_max: int) -> bool:
    """Whether the quick search finds an order; if not, there may be one nevertheless."""
    if any(operation.op == "append" for operation in operations):
        return False
    try:
        return _QuickCheck(operations, configurations_max).run() is None
    except _Undecided:
        return False


class _QuickCheck(_KeyCheck):
    """A search on one key, without appends, that leaves out most orders; every order that it does find is a real one.

    A value that somebody must still see is not overwritten if nothing can bring it back. A write that nobody must see
    needs no moment of its own once another write happened while it was pending: just before that one it does no harm.
    The next bit after its own says so. (It may be of use as long as it is pending, for a delete that found something.)
    So of n writes at once this keeps about n configurations, where the complete search keeps 2^n.
    """

    def __init__(self, operations: list[Operation], configurations_max: int) -> None:
        super().__init__(operations, configurations_max)
        self.last_asked: dict[Any, tuple[int, int]] | None = None  # value -> last call and return of who must see it
        self.made_once: set[Any] = set()
        self.last_denied: dict[Any, int] = {}  # value -> last call of who must not find it

    def _look_ahead(self) -> dict[Any, tuple[int, int]]:
        """Find out who asks for what until when; only histories with calls at the same time need it."""
        asked: dict[Any, tuple[int, int]] = {}
        makers: dict[Any, int] = {}
        for act, operation in zip(self.acts, self.operations, strict=True):
            if operation.status == "ok" and act[0] == EXACT and operation.return_ns is not None:
                called, returned = asked.get(act[1], (-1, -1))
                asked[act[1]] = max(called, operation.call_ns), max(returned, operation.return_ns)
            if operation.status == "ok" and act[0] == NOT:
                self.last_denied[act[1]] = max(self.last_denied.get(act[1], -1), operation.call_ns)
            if operation.status != "fail" and act[2] == SET and act[3] is not None:
                makers[act[3]] = makers.get(act[3], 0) + 1
        self.made_once = {value for value, count in makers.items() if count == 1}
        return asked

    def _return(self, configs: list[Config], bit: int, act: Act) -> list[Config]:
        """As above, with fewer configurations."""
        if self.last_asked is None:
            self.last_asked = self._look_ahead()
        found: set[Config] = set()
        seen: set[Config] = set(configs)
        stack = list(configs)
        unseen = {other for other, (other_act, _) in self.pending.items() if self._is_unseen_write(other_act)}
        covers = sum(unseen) << 1
        while stack:
            state, mask, used = stack.pop()
            mask = self._read_pending(state, mask, 0)
            if mask & (bit | bit << 1):
                found.add((state, mask & ~(bit | bit << 1), used))
                if mask & bit or not self._is_denied(state, mask):
                    continue
            useful = self._useful_write(state, mask, unseen)
            for other, (other_act, _) in self.pending.items():
                if mask & other or (other in unseen and other not in (bit, useful)):
                    continue
                if other_act[2] == SET and self._is_awaited(state, mask | other):
                    continue
                covered = covers if other_act[2] == SET and other_act[0] != EXACT else 0
                for after, now_used in self._apply(state, used, other_act):
                    if other == bit:
                        found.add((after, (mask | covered) & ~(bit << 1), now_used))
                        continue
                    new = after, mask | other | covered, now_used
                    if new not in seen:
                        seen.add(new)
                        stack.append(new)
            if len(seen) + len(found) > self.configurations_max:
                raise _Undecided
        return self._undominated(found) if self.unknown and len(found) > 1 else list(found)

    def _is_awaited(self, state: Any, mask: int) -> bool:
        """Whether somebody must still see this value, which nobody will write again."""
        assert self.last_asked is not None
        if state not in self.made_once or state not in self.last_asked:
            return False
        return self.last_asked[state][0] > self.now or any(
            act[0] == EXACT and act[1] == state and not mask & bit for bit, (act, _) in self.pending.items()
        )

    def _is_unseen_write(self, act: Act) -> bool:
        """Whether it needs nothing and nobody must see what it writes from now on."""
        assert self.last_asked is not None
        if act[0] != ANY or act[2] != SET or act[3] is None:
            return False
        return self.last_asked.get(act[3], (-1, -1))[1] < self.now

    def _useful_write(self, state: Any, mask: int, unseen: set[int]) -> int:
        """Return the unseen write to try now, if another value is of use to somebody: the first to return. Else 0."""
        if not (self._is_denied_now(state, mask) or (state is not None and self._is_denied(state, mask))):
            return 0
        free = [(self.pending[bit][1].return_ns or 0, bit) for bit in unseen if not mask & bit]
        return min(free)[1] if free else 0

    def _is_denied(self, state: Any, mask: int) -> bool:
        """Whether somebody must not find this value, now or later."""
        return self.last_denied.get(state, -1) > self.now or self._is_denied_now(state, mask)

    def _is_denied_now(self, state: Any, mask: int) -> bool:
        return any(act[0] == NOT and act[1] == state and not mask & bit for bit, (act, _) in self.pending.items())
