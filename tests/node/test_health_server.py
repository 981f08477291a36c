"""The server of a node's health by itself: what its start may wait for."""

from __future__ import annotations

import http.client
import socket
import urllib.request

import pytest

from actorraft.node.health import HealthServer


def test_no_name_server_is_asked_what_the_host_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object) -> str:
        raise AssertionError("a name server that does not answer would hold up the node's start")

    monkeypatch.setattr(socket, "getfqdn", silent)
    monkeypatch.setattr(socket, "gethostbyaddr", silent)
    server = HealthServer("127.0.0.1:0", lambda _: {})
    try:
        with urllib.request.urlopen(f"http://{server.address}/livez", timeout=30.0) as answer:
            assert answer.status == 200
    finally:
        server.close()


def test_head_is_answered_as_get_is_without_a_body() -> None:
    server = HealthServer("127.0.0.1:0", lambda _: {"not_ready": "it knows no leader"})
    try:
        for path, code, length in (("/livez", 200, "3"), ("/readyz", 503, "19"), ("/nothing", 404, "39")):
            connection = http.client.HTTPConnection(server.address, timeout=30.0)
            connection.request("HEAD", path)
            answer = connection.getresponse()
            assert (answer.status, answer.getheader("Content-Length"), answer.read()) == (code, length, b"")
            connection.close()
    finally:
        server.close()
