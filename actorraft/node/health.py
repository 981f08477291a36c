"""A node's health over HTTP: /livez, /readyz and /metrics.

livez     200 while the node's loop turns. Nothing about a quorum: a node that waits for others must not be restarted.
readyz    200 once a leader is known and what was committed when this node started is applied here; else 503, and why.
metrics   for Prometheus; what is in it is made by the loop, in its turn.

Threads:    one for the server and one for each request; they touch nothing of the node but by asking its loop.
Source:     Kubernetes' conventions for probes.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Final

from actorraft.errors import UsageError
from actorraft.node.exposition import MissingExtra, expose

ANSWER_S: Final = 2.0  # a loop that does not turn for so long is stuck
REQUEST_S: Final = 5.0  # what a caller may take to send its request
TEXT: Final = "text/plain; charset=utf-8"

Ask = Callable[[float], dict[str, Any] | None]  # seconds -> the node's status; None: the loop did not answer in time


class HealthServer:
    """Serves a node's health until `close`.

    Args:
        address: "host:port" to bind; port 0 lets the system choose.
        ask: asks the node's loop for its status.

    Raises:
        UsageError: it cannot be bound.
    """

    def __init__(self, address: str, ask: Ask) -> None:
        host, _, port = address.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not host or not port.isdecimal():
            raise UsageError(f"health and metrics are served at host:port, not {address!r}")

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            address_family = socket.AF_INET6 if _is_six(host) else socket.AF_INET

            def server_bind(self) -> None:
                """Bind, and ask no name server what this host is called: the one above does, and may wait long."""
                TCPServer.server_bind(self)

        class Handler(_Handler):
            asks = staticmethod(ask)

        try:
            self._server = Server((host, int(port)), Handler)
        except (OSError, OverflowError) as error:
            raise UsageError(f"health and metrics cannot be served at {address}: {error}") from error
        self.address = f"{address.rpartition(':')[0]}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.5,), name="health", daemon=True).start()

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()


def _is_six(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


class _Handler(BaseHTTPRequestHandler):
    asks: Ask
    timeout = REQUEST_S
    server_version = "actorraft"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path not in ("/livez", "/readyz", "/metrics"):
            self._answer(404, "there are /livez, /readyz and /metrics\n")
            return
        try:
            status = self.asks(ANSWER_S)
        except Exception as error:  # a fault of ours; the loop goes on
            self._answer(500, f"{type(error).__name__}: {error}\n")
            return
        if status is None:
            self._answer(503, f"the node's loop has not turned for {ANSWER_S:g} s\n")
        elif path == "/livez":
            self._answer(200, "ok\n")
        elif path == "/readyz":
            why = status.get("not_ready")
            self._answer(503, f"{why}\n") if why else self._answer(200, "ok\n")
        else:
            try:
                self._answer(200, expose(status), "text/plain; version=0.0.4; charset=utf-8")
            except MissingExtra as error:
                self._answer(501, f"{error}\n")

    def _answer(self, code: int, body: str | bytes, kind: str = TEXT) -> None:
        data = body.encode() if isinstance(body, str) else body
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_HEAD(self) -> None:
        self.do_GET()  # load balancers ask so

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base's name)
        """Requests are no news."""
