"""Watcher of the chaos test: measures the response times of a healthy service and of a reference server.

    python -m tests.chaos.watch SECONDS SERVICE_PORT REFERENCE_PORT

sends a byte to both in turn, and prints a line of JSON for each answer that is late or fails, and a summary of each
server at the end. Nothing is done to the reference server: when it is late as well, the machine was.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time

__all__ = ["LATE", "serve"]

#: The response time from which an answer is reported, in seconds.
LATE = 0.03
#: Timeout of an answer, in seconds.
_TIMEOUT = 10.0
#: How long a connection is used, in seconds: an old daemon ends with its last connection.
_MAX_AGE = 1.0
_PAUSE = 0.01


def serve(listening: socket.socket) -> None:
    """Run the reference server: echo on all connections, without end."""
    with selectors.DefaultSelector() as selector:
        selector.register(listening, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                sock: socket.socket = key.fileobj  # type: ignore[assignment]
                if sock is listening:
                    selector.register(sock.accept()[0], selectors.EVENT_READ)
                elif data := sock.recv(4096):
                    sock.sendall(data)
                else:
                    selector.unregister(sock)
                    sock.close()


class _Probe:
    """Client that measures the response times of one server."""

    def __init__(self, name: str, port: int) -> None:
        self._name = name
        self._port = port
        self._sock: socket.socket | None = None
        self._connected_at = 0.0
        self.asked = self.failed = 0
        self.slowest = 0.0

    def measure(self) -> None:
        """Send one byte and receive its echo; connect again when the connection is too old."""
        began = time.monotonic()
        try:
            if self._sock is None or began - self._connected_at > _MAX_AGE:
                if self._sock is not None:
                    self._sock.close()
                self._sock = socket.create_connection(("127.0.0.1", self._port), _TIMEOUT)
                self._connected_at = began
            self._sock.sendall(b"x")
            if self._sock.recv(1) != b"x":
                raise ConnectionResetError("closed")
        except OSError as error:
            self._sock = None
            self.failed += 1
            self._report(began, repr(error))
        self.asked += 1
        took = time.monotonic() - began
        self.slowest = max(self.slowest, took)
        if took > LATE:
            self._report(began, "")

    def _report(self, began: float, error: str) -> None:
        took = time.monotonic() - began
        print(json.dumps({"server": self._name, "at": began, "took": took, "error": error}), flush=True)


def main(seconds: float, *ports: int) -> None:
    """Measure both servers for a time in seconds."""
    both = [_Probe(name, port) for name, port in zip(("service", "reference"), ports, strict=True)]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for each in both:
            each.measure()
        time.sleep(_PAUSE)
    for name, each in zip(("service", "reference"), both, strict=True):
        print(
            json.dumps({"sum": name, "asked": each.asked, "failed": each.failed, "slowest": each.slowest}), flush=True
        )


if __name__ == "__main__":
    main(float(sys.argv[1]), *map(int, sys.argv[2:]))
