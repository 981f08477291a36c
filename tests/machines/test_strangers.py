"""Who has no key, a wrong one, or another's name: refused, counted, named; and nothing of his is unpickled."""

from __future__ import annotations

import ast
import contextlib
import os
import pickle
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import zmq

from actorraft import ActorRaftError, codec
from actorraft.raft.messages import AppendEntries
from tests.machines.hosts import PORT, REPOSITORY, Hosts, eventually
from transports import hello
from transports.curve import dial_with
from transports.hello import Introduction
from transports.keys import ClientFolder, KeyPair, Keys

# Every place that opens a pickle: file -> (functions, whose bytes these are). A new one is a new decision.
OPENS_PICKLES: Final = {
    "actorraft/actors/bootstrap.py": (
        {"ChildContext.receive", "main"},
        "the pipe of the parent that started this process",
    ),
    "actorraft/actors/letters.py": (
        {"(import)", "_read"},
        "messages and answers of actors, over Unix sockets of one user",
    ),
    "actorraft/actors/loop.py": (
        {"", "(import)", "_Loop._take", "_Loop._take_word"},
        "messages of an actor, over Unix sockets of one user",
    ),
    "actorraft/actors/post.py": ({"", "(import)", "Post._on_frame"}, "answers of an actor, likewise"),
    "actorraft/actors/process.py": ({"ActorProcess.pump"}, "the pipe of a child"),
    "actorraft/actors/wire.py": ({"", "loads", "load_error", "Bulk.value", "unpack"}, "all of these"),
    "actorraft/node/class_attributes.py": ({"ClassAttributes.restore"}, "what this process has pickled itself"),
    "actorraft/node/host.py": (
        {
            "MachineHost._apply_other",
            "MachineHost._ask",
            "MachineHost._object",
            "MachineHost._unknown_method",
            "MachineHost.decode_value",
            "MachineHost.from_factory",
        },
        "a frame's: commands and queries, after authentication, in the executor; the factory is this start's own",
    ),
    "actorraft/node/machine_state.py": (
        {"MachineState.read"},
        "a frame's: snapshots, of whoever proves a member's key",
    ),
    "actorraft/pickling/definitions.py": (
        {"Definitions.__init__", "Definitions._build"},
        "a frame's: classes that an administrator has sent",
    ),
    "actorraft/pickling/results.py": (
        {"_Inquiry", "_load"},
        "a frame's: results at a client, of whoever has proven a member's key",
    ),
}


class Canary:
    """Unpickled, it leaves a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return (Path.touch, (self.file,))


def opens_pickles(file: Path) -> set[str]:
    """Return the functions of a file that call a loads of pickles, by whatever name, or make an Unpickler."""
    found: set[str] = set()

    def visit(node: ast.AST, name: str) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{name}.{node.name}".lstrip(".")
        if isinstance(node, ast.Attribute) and node.attr in ("loads", "load", "Unpickler"):
            owner = ast.unparse(node.value)
            if "pickle" in owner or (node.attr == "loads" and owner.partition(".")[0] not in PLAIN):
                found.add(name)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.lstrip("_") == "loads":
            found.add(name)  # by a name of its own
        if isinstance(node, ast.ImportFrom) and any(alias.name == "loads" for alias in node.names):
            found.add(name or "(import)")
        for child in ast.iter_child_nodes(node):
            visit(child, name)

    text = file.read_text()
    if "load" in text or "Unpickler" in text:  # else it need not be parsed
        visit(ast.parse(text), "")
    return found


PLAIN: Final = {"json", "tomllib", "msgspec", "beside"}  # beside.py reads arrays by their shape, and opens no pickle


def test_every_place_that_opens_pickles_is_listed_with_whose_they_are() -> None:
    found = {
        str(file.relative_to(REPOSITORY)): functions
        for package in ("actorraft", "transports")
        for file in (REPOSITORY / package).rglob("*.py")
        if (functions := opens_pickles(file))
    }
    assert found == {file: functions for file, (functions, _) in OPENS_PICKLES.items()}


@contextlib.contextmanager
def dealer(endpoint: str, keys: Keys | None = None, server: str = "") -> Iterator[zmq.Socket[bytes]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        made = context.socket(zmq.DEALER)
        made.linger = 0
        if keys is not None:
            dial_with(made, keys, server)
        made.connect(endpoint)
        yield made
    finally:
        context.destroy(linger=0)


def frames(canary: Canary, client_id: int = 1) -> list[bytes]:
    """A canary in everything that a stranger can say, to a node or to a client; or a client with that session."""
    pickled = pickle.dumps(canary)
    ext = msgspec.msgpack.Ext
    bodies = [msgspec.msgpack.encode([ext(code, pickled)]) for code in range(1, 12)] + [pickled]
    bodies += [msgspec.msgpack.encode([["get", ext(code, pickled)]]) for code in range(1, 12)]
    said = [codec.encode(codec.Commands(client_id, 0, 0, 1, body)) for body in bodies]
    said += [codec.encode(codec.Query(number, "stale", True, 1, body)) for number, body in enumerate(bodies)]
    said += [msgspec.msgpack.encode([number, 1, pickled, ext(1, pickled)]) for number in range(12)]
    said += [codec.encode_message(AppendEntries(1, 0, 10**6, -1, -1, [], -1)), pickled]
    results = [codec.encode(codec.Results(1, 0, [ext(code, pickled)], 0)) for code in range(1, 8)]
    return said + results


def dropped(net: Hosts, client: Any, node_id: int) -> dict[str, int]:
    said = client._thread.admin(node_id, "status", {}, 30.0).result()
    counts: dict[str, int] = said["dropped"]
    return counts


@pytest.mark.cluster
def test_who_has_not_the_right_key_is_refused_counted_named_and_nothing_of_his_is_unpickled(
    net: Hosts, tmp_path: Path
) -> None:
    net.found()
    net.start()
    file = tmp_path / "unpickled"
    canaries = frames(Canary(file))
    own = ClientFolder.load(net.client_folder)
    member = {node_id: keys[0] for node_id, keys in own.keys.members.items()}
    with net.connect() as client:
        client.proxy(timeout=30.0).set("x", 1)
        net.settled(client)
        at = {node_id: host.address for node_id, host in net.nodes.items()}
        cluster_id = bytes.fromhex(own.cluster_id)
        stolen = KeyPair.load(net.nodes[1].folder / "secret.key")
        tag = b"the tag."

        def hello_of(node_id: int) -> bytes:
            said = Introduction(node_id, cluster_id, os.urandom(8))
            return hello.say(hello.HELLO, tag, hello.encode(said))

        cases = {
            "no key": (None, PORT),
            "no key, at the door for clients": (None, PORT + 1),
            "a key that is not allowed": (KeyPair.generate(), PORT),
            "the same, at the door for clients": (KeyPair.generate(), PORT + 1),
            "a client's key at the door for peers": (own.keys.own, PORT),
            "a member's key at the door for clients": (stolen, PORT + 1),
            "a member's key with another node's id": (stolen, PORT),
        }
        for case, (pair, port) in cases.items():
            before = sum(dropped(net, client, 0).values())
            keys = None if pair is None else Keys(pair)
            with dealer(f"tcp://{at[0]}:{port}", keys, member[0]) as stranger:
                for node_id in (2, -1):
                    stranger.send(hello_of(node_id))
                for frame in canaries:
                    stranger.send(tag + frame)
                    stranger.send_multipart([tag, frame])
                    stranger.send(frame)
                eventually(
                    lambda before=before: sum(dropped(net, client, 0).values()) > before, 60.0, f"{case}: not counted"
                )
        counts = dropped(net, client, 0)
        assert any("key" in what for what in counts), counts
        assert "key" in net.nodes[0].said(), "the operator is told"
        assert not file.exists(), "something was unpickled"
        assert client.proxy(timeout=20.0).get("x") == 1
        assert max(row.term for row in client.status()) < 10**6


@pytest.mark.cluster
def test_a_client_that_is_let_in_has_no_pickle_opened_unless_it_is_an_administrator(net: Hosts, tmp_path: Path) -> None:
    net.found(nodes=1)
    net.start()
    own = ClientFolder.load(net.client_folder)
    pairs = {"admin": own.keys.own}
    with net.connect() as client:
        client.proxy(timeout=30.0).set("x", 1)
        for role in ("read", "write"):
            folder = tmp_path / role
            net.run("clients", "add", role, "--role", role, "--folder", str(folder))
            pairs[role] = ClientFolder.load(folder).keys.own
        for role in ("read", "write", "admin"):  # the last shows that these are the frames that would do it
            file, tag = tmp_path / f"unpickled-{role}", role.encode().ljust(8, b".")
            with dealer(f"tcp://{net.nodes[0].address}:{PORT + 1}", Keys(pairs[role]), own.keys.members[0][0]) as wire:
                said = Introduction(-1, bytes.fromhex(own.cluster_id), os.urandom(8))
                wire.send(hello.say(hello.HELLO, tag, hello.encode(said)))
                assert wire.poll(30_000)
                assert hello.hear(wire.recv())[0] == hello.WELCOME
                wire.send(tag + codec.encode(codec.Register(7)))
                answer = codec.decode_reply(answered(wire))
                if role == "read":
                    assert isinstance(answer, codec.Refused), answer
                    client_id = 1
                else:
                    assert isinstance(answer, codec.Registered), answer
                    client_id = answer.client_id
                for frame in frames(Canary(file), client_id):
                    wire.send(tag + frame)
                wire.send(tag + codec.encode(codec.Admin(99, "status", {})))  # answered after all of these
                eventually(lambda wire=wire: getattr(codec.decode_reply(answered(wire)), "request_id", 0) == 99)
            if role == "admin":
                eventually(file.exists, 60.0, "these frames open nothing anywhere, and prove nothing")
            else:
                assert dropped(net, client, 0)["requests that a client's role does not allow"] > 20
                assert not file.exists(), f"something of a client of the role {role} was unpickled"
        assert client.proxy(timeout=20.0).get("x") == 1


def answered(wire: zmq.Socket[bytes]) -> bytes:
    """Return the next frame that is no word of the transport."""
    while True:
        assert wire.poll(30_000), "no answer"
        frame = b"".join(wire.recv_multipart())
        if not frame.startswith(hello.MAGIC):
            return frame


@pytest.mark.cluster
def test_a_server_in_a_dead_node_s_place_is_believed_by_nobody(net: Hosts, tmp_path: Path) -> None:
    """It answers at the right address, with a key of its own, as a process without an answerer for ZAP would."""
    net.found()
    net.start()
    file = tmp_path / "unpickled"
    with net.connect() as client:
        client.proxy(timeout=30.0).set("x", 1)
        net.settled(client)
        leader = client.wait_for_leader()
        net.nodes[leader].kill()
        host = net.nodes[leader]
        script = (
            "import sys, zmq, pickle\n"
            "from tests.machines.test_strangers import Canary, frames, hello\n"
            "from pathlib import Path\n"
            "context, sockets = zmq.Context(), []\n"
            "for port in (int(sys.argv[2]), int(sys.argv[2]) + 1):\n"
            "    one = context.socket(zmq.ROUTER)\n"
            "    one.curve_server, one.curve_secretkey = True, zmq.curve_keypair()[1]\n"
            "    one.bind(f'tcp://{sys.argv[1]}:{port}')\n"
            "    sockets.append(one)\n"
            "print('there', flush=True)\n"
            "while True:\n"
            "    for one in [each for each in sockets if each.poll(20)]:\n"
            "        who, *parts = one.recv_multipart()\n"
            "        for frame in frames(Canary(Path(sys.argv[3]))):\n"
            "            one.send_multipart([who, frame])\n"
        )
        impostor = subprocess.Popen(
            ["ip", "netns", "exec", host.namespace, sys.executable, "-c", script, host.address, str(PORT), str(file)],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert impostor.stdout is not None
            with impostor.stdout:
                assert impostor.stdout.readline() == "there\n"
                proxy = client.proxy(timeout=20.0)
                for number in range(200):
                    assert proxy.set("x", number) is True
                other = next(node_id for node_id in net.nodes if node_id != leader)
                eventually(lambda: dropped(net, client, other).get("a handshake that failed"), 60.0)
                row = next(row for row in client.status() if row.id == leader)
                assert not row.alive
                impostor.kill()
        finally:
            impostor.kill()
            impostor.wait(10)
        assert not file.exists(), "something was unpickled"


@pytest.mark.cluster
def test_what_passes_on_the_wire_shows_no_command(net: Hosts) -> None:
    """Every packet that the router forwards, as a raw socket in its namespace sees them."""
    net.found()
    net.start()
    script = (
        "import socket, sys, select\n"
        "raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))\n"
        "print('there', flush=True)\n"
        "seen, total = b'', 0\n"
        "while not select.select([sys.stdin], [], [], 0)[0]:\n"
        "    if select.select([raw], [], [], 0.05)[0]:\n"
        "        packet = raw.recv(1 << 16); total += len(packet)\n"
        "        for word in sys.argv[1:]:\n"
        "            if word.encode() in packet: seen += word.encode() + b' '\n"
        "print(total, seen.decode() or 'nothing', flush=True)\n"
    )
    words = [net.router.prefix + "r", sys.executable, "-c", script, "a-secret-key", "a-secret-value", "visible-to-all"]
    tap = subprocess.Popen(["ip", "netns", "exec", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert tap.stdin is not None
    assert tap.stdout is not None
    with tap.stdin, tap.stdout:
        assert tap.stdout.readline() == "there\n"
        with net.connect() as client:
            proxy = client.proxy(timeout=30.0)
            for number in range(50):
                proxy.set(f"a-secret-key-{number}", "a-secret-value" * 20)
            assert proxy.get("a-secret-key-7") == "a-secret-value" * 20
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:  # else the tap sees nothing, and proves nothing
            for _ in range(20):
                plain.sendto(b"visible-to-all", (net.nodes[0].address, 9))
                time.sleep(0.05)
        tap.stdin.write("enough\n")
        tap.stdin.flush()
        total, *seen = tap.stdout.readline().split()
    tap.wait(10)
    assert int(total) > 50_000, "nothing was captured"
    assert set(seen) == {"visible-to-all"}


@pytest.mark.cluster
def test_a_thousand_connections_and_messages_without_end_cost_little_and_no_service(net: Hosts) -> None:
    grown = flooded(net)
    print(f"1,000 connections at a limit of 300: {grown:.0f} MB more")
    assert grown < 50


def flooded(net: Hosts) -> float:
    """Have a stranger take all descriptors and send without end; return how many MB that costs the leader's node."""
    net.found()
    net.start()
    with net.connect() as client:
        proxy = client.proxy(timeout=30.0)
        proxy.set("x", 0)
        net.settled(client)
        leader = client.wait_for_leader()
        pid = node_pid(net, leader)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (300, 364))  # few, so that a test can take them all
        before = rss_mb(pid)
        strangers: list[socket.socket] = []
        greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32)
        endless = greeting[:12] + b"NULL".ljust(20, b"\0") + bytes(32) + b"\x03" + (1 << 40).to_bytes(8, "big")
        try:
            for number in range(1000):
                one = socket.socket()
                one.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    one.connect((net.nodes[leader].address, PORT + number % 2))
                strangers.append(one)
            for round_ in range(30):
                for one in strangers:
                    with contextlib.suppress(OSError):
                        one.send(greeting if round_ == 0 else endless if round_ == 1 else bytes(1 << 16))
                assert proxy.set("x", round_) is True
            net.run("snapshot")  # its files are opened meanwhile
            with contextlib.suppress(ActorRaftError):
                proxy.set("large", "x" * (1 << 20))
        finally:
            for one in strangers:
                one.close()
        grown = rss_mb(pid) - before
        assert proxy.set("x", "after") is True
        assert net.nodes[leader].process is not None
        assert net.nodes[leader].process.poll() is None
        assert [row.error for row in client.status()] == [None] * 3
        return grown


def node_pid(net: Hosts, node_id: int) -> int:
    """The node's own process: `ip netns exec` becomes it."""
    process = net.nodes[node_id].process
    assert process is not None
    return process.pid


def rss_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024
