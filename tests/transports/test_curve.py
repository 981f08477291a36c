"""The gate fails shut: a process in which nobody answers for keys lets nobody in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from transports.curve import CLIENTS, Gate, dial_with, listen_with
from transports.keys import KeyPair, Keys


@contextlib.contextmanager
def a_context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        yield made
    finally:
        made.destroy(linger=0)


@pytest.mark.parametrize("gated", [False, True])
def test_without_the_gate_nobody_is_let_in(gated: bool) -> None:
    with a_context() as context:
        node, client = Keys(KeyPair.generate()), Keys(KeyPair.generate())
        refused: list[str] = []
        gate = (
            Gate(context, lambda domain: {client.own.public}, lambda what, _: refused.append(what)) if gated else None
        )
        router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
        listen_with(router, node, CLIENTS)
        router.bind("tcp://127.0.0.1:0")
        dial_with(dealer, client, node.own.public)
        monitor = dealer.get_monitor_socket(int(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED))
        dealer.connect(router.getsockopt_string(zmq.LAST_ENDPOINT))
        dealer.send(b"hello")
        while not monitor.poll(20):
            if gate is not None:
                gate.answer()
        happened = int(recv_monitor_message(monitor)["event"])  # type: ignore[arg-type]
        dealer.disable_monitor()
        assert not refused
        if gated:
            assert happened == zmq.EVENT_HANDSHAKE_SUCCEEDED
            assert router.poll(10_000)
        else:
            assert happened != zmq.EVENT_HANDSHAKE_SUCCEEDED
            assert not router.poll(0)
