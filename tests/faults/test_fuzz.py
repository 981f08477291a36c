"""Decoders meet bytes of all kinds: each gives a value, or its own one error; and a node outlives any client's frame."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actorraft import CorruptionError, RaftControl, UsageError, codec
from actorraft.node.driver import ClientEvent, TickEvent
from actorraft.node.executor import Executor, InlineExecutor
from actorraft.node.host import MachineHost
from actorraft.raft.messages import EntryId, HardState, LogEntry
from actorraft.storage import records
from actorraft.storage.directory import seal, unseal
from actorraft.storage.disk import DiskStorage
from actorraft.storage.portable import check_portable
from actorraft.storage.snapshots import check_content, read_footer, snapshot_name
from actorraft.storage.wal import LogReader, segment_name
from transports.mock import MockNetwork

MARKER = b"01234567"
anything = st.binary(max_size=400)
plain: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


# ---- the store


@given(data=anything)
def test_records_of_nonsense_are_refused(data: bytes) -> None:
    with contextlib.suppress(ValueError, records.struct.error):
        list(records.decode_records(data, 0, len(data)))
    with contextlib.suppress(ValueError):
        records.decode_segment_header(data)
    with contextlib.suppress(ValueError):
        records.decode_configuration(data)
    assert records.decode_batch(data, 0, MARKER) is None
    assert records.find_batch(data, 0, MARKER, 0) is None
    assert records.decode_mark(data) is None or len(data) >= records.SLOT_BYTES


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(body=anything, sequence=st.integers(0, 3))
def test_a_log_whose_checksums_are_right_and_whose_records_are_nonsense_is_refused(
    tmp_path: Path, body: bytes, sequence: int
) -> None:
    header = records.SegmentHeader(0, b"s" * 16, MARKER)
    start = records.encode_start(records.Start(HardState(), 0, -1, 0))
    data = records.encode_segment_header(header)
    data += records.encode_batch_header(MARKER, 0, start) + start
    data += records.encode_batch_header(MARKER, sequence, body) + body
    (tmp_path / f"{segment_name(0)}.wal").write_bytes(data)
    with contextlib.suppress(CorruptionError):
        LogReader(tmp_path, b"s" * 16).read()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(data=anything, honest_head=st.booleans())
def test_snapshots_and_descriptions_of_nonsense_are_refused(tmp_path: Path, data: bytes, honest_head: bool) -> None:
    path = tmp_path / snapshot_name(EntryId(1, 1))
    path.write_bytes((b"ARaftSnp\x01\0\0\0\0\0\0\0" if honest_head else b"") + data)
    with pytest.raises(CorruptionError):
        check_content(read_footer(path, b"s" * 16))
    path.write_bytes(data)
    with pytest.raises((CorruptionError, UsageError)):
        unseal(path)
    with pytest.raises((CorruptionError, UsageError)):
        check_portable(path, "machine")
    path.write_bytes((b'{"actorraft_snapshot": 1, "machine": "m", "term": 1, "index": 1}\n') + data)
    with pytest.raises((CorruptionError, UsageError)):
        check_portable(path, "m")


def test_a_description_comes_back_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "sealed").write_bytes(seal({"a": [1]}))
    assert unseal(tmp_path / "sealed") == {"a": [1]}


# ---- the wire


@given(data=anything)
def test_frames_of_nonsense_are_refused_by_one_error(data: bytes) -> None:
    for decode in (codec.decode_message, codec.decode_request, codec.decode_reply, codec.decode_body, codec.unstamp):
        with contextlib.suppress(codec.MalformedFrame):
            decode(data)


requests = st.one_of(
    st.builds(
        codec.Commands,
        st.integers(-2, 50),
        st.integers(-2, 5),
        st.integers(-2, 5),
        st.integers(-2, 5),
        st.one_of(anything, st.lists(plain, max_size=4).map(msgspec.msgpack.encode)),
    ),
    st.builds(codec.Register, st.integers(-(2**63), 2**63 - 1)),
    st.builds(codec.CloseSession, st.integers(-2, 50)),
    st.builds(
        codec.Query,
        st.integers(-2, 2**40),
        st.sampled_from(["linearizable", "lease", "stale", "", "?"]),
        st.booleans(),
        st.integers(-2, 5),
        st.one_of(anything, st.lists(plain, max_size=4).map(msgspec.msgpack.encode)),
    ),
    st.builds(
        codec.Admin,
        st.integers(0, 9),
        st.sampled_from(
            ["status", "transfer", "snapshot", "read_snapshot", "digest", "change_membership", "definitions", "?"]
        ),
        st.one_of(
            st.dictionaries(st.sampled_from(["target", "offset", "changes"]), plain, max_size=3),
            st.fixed_dictionaries(
                {
                    "changes": st.lists(
                        st.tuples(st.sampled_from(["add_learner", "add_voter", "remove"]), plain).map(list), max_size=2
                    )
                }
            ),
        ),
    ),
    st.builds(codec.Watch, st.integers(0, 5), st.text(max_size=3), st.none() | st.integers(-5, 2**63 - 1)),
    st.builds(codec.Unwatch, st.integers(0, 5)),
    st.builds(codec.Clock),
    st.builds(codec.Check, st.integers(0, 5), st.integers(-5, 50), st.binary(max_size=3), st.binary(max_size=3)),
    st.builds(codec.Hello),
)


class Nobody:
    """Clients that take any answer."""

    def __init__(self) -> None:
        self.answers: list[Any] = []

    def is_gone(self, client: Any) -> bool:
        return False

    def role(self, client: Any) -> str:
        return "admin"

    def key(self, client: Any) -> str:
        return ""

    def send_client(self, client: Any, frame: bytes) -> bool:
        """Take it."""
        self.answers.append(codec.decode_reply(frame))
        return True


@pytest.mark.long
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=150)
@given(frames=st.lists(st.one_of(requests.map(codec.encode), anything), max_size=12))
def test_a_node_outlives_whatever_a_client_sends(tmp_path_factory: pytest.TempPathFactory, frames: list[bytes]) -> None:
    clients = Nobody()
    storage = DiskStorage(tmp_path_factory.mktemp("node"), durability="os", sync_on_close=False)
    control = RaftControl(
        MockNetwork(0, ()),
        storage=storage,
        executor=InlineExecutor(Executor(MachineHost(dict), session_expiry_s=60.0)),
        clients=clients,
    )
    try:
        control.become_leader()
        for number, frame in enumerate(frames):
            control.process_event(ClientEvent(b"stranger", frame))
            control.process_event(TickEvent(number))
        if control.server.configuration.voters == {0} and control.is_leader():
            clients.answers.clear()
            control.process_event(ClientEvent(b"honest", codec.encode(codec.Register(7))))
            assert any(isinstance(answer, codec.Registered) and answer.nonce == 7 for answer in clients.answers)
    finally:
        control.storage.close()


@pytest.mark.parametrize("offset", [-5, -(10**6), 2**63, 1.5, "x", True, None])
def test_a_copier_of_snapshots_who_asks_for_nonsense_does_not_stop_the_node(tmp_path: Path, offset: Any) -> None:
    clients = Nobody()
    control = RaftControl(
        MockNetwork(0, ()),
        storage=DiskStorage(tmp_path / "node", durability="os"),
        executor=InlineExecutor(Executor(MachineHost(dict), session_expiry_s=60.0)),
        clients=clients,
    )
    control.become_leader()
    for verb, arguments in (("snapshot", {}), ("read_snapshot", {"offset": offset}), ("read_snapshot", {"offset": 0})):
        control.process_event(ClientEvent(b"stranger", codec.encode(codec.Admin(1, verb, arguments))))
    assert [bool(answer.error) for answer in clients.answers] == [False, True, False]
    control.storage.close()


@pytest.mark.parametrize(
    "change", [["add_learner", 1.5], ["add_voter", 5, 7], ["add_learner", True], ["add_voter", 2**32], ["remove", "1"]]
)
def test_a_change_of_membership_that_could_not_be_read_back_never_enters_the_log(change: list[Any]) -> None:
    clients = Nobody()
    control = RaftControl(MockNetwork(0, ()), clients=clients)
    control.become_leader()
    before = list(control.server.log)
    control.process_event(
        ClientEvent(b"stranger", codec.encode(codec.Admin(1, "change_membership", {"changes": [change]})))
    )
    assert clients.answers[-1].error
    assert list(control.server.log) == before


def test_items_that_only_the_executor_opens_do_not_stop_it() -> None:
    executor = Executor(MachineHost(dict), session_expiry_s=60.0)
    from actorraft.node.work import Applied, Apply

    items = [
        b"",
        b"1234567",
        b"12345678",
        codec.stamp(1.0, b"\xc1"),
        codec.stamp(float("nan"), codec.encode(codec.Clock())),
    ]
    done = executor.run(Apply(0, [LogEntry(1, item) for item in items]))
    assert isinstance(done, Applied)
    assert done.last_index == len(items) - 1
