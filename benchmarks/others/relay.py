"""Passes lines between the harness and a process that makes load inside itself: some systems have no remote client.

Run: `python -m benchmarks.others.relay SOCKET SPEC`. The spec goes first; then lines, both ways, until a side ends.
"""

from __future__ import annotations

import socket
import sys
import threading


def main() -> None:
    """Connect, send the spec, pass lines on."""
    path, spec = sys.argv[1:3]
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    connection.sendall(b"l" + spec.encode() + b"\n")

    def pass_on() -> None:
        for line in sys.stdin:
            connection.sendall(line.encode())
        connection.shutdown(socket.SHUT_WR)

    threading.Thread(target=pass_on, daemon=True).start()
    with connection.makefile() as lines:
        for line in lines:
            sys.stdout.write(line)
            sys.stdout.flush()


if __name__ == "__main__":
    main()
