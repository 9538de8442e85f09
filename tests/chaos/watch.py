"""Processes that watch: what a healthy service and a reference answer, and how long it takes.

    python -m tests.chaos.watch SECONDS SERVICE_PORT REFERENCE_PORT

asks both in turn, and writes a line of JSON for each answer that took long or failed, and one at the end. The
reference is a server that nothing happens to: when that is late as well, the machine was.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time

__all__ = ["LATE", "serve"]

#: From when on an answer is written down, in seconds.
LATE = 0.03
#: How long an answer is waited for, in seconds.
_PATIENCE = 10.0
#: How long a connection is asked before another one is made, in seconds: an old daemon ends with its last connection.
_KEPT = 1.0
_PAUSE = 0.01


def serve(listening: socket.socket) -> None:
    """Echo, for ever: the reference."""
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


class _Asked:
    """A server that is asked again and again."""

    def __init__(self, name: str, port: int) -> None:
        self._name = name
        self._port = port
        self._sock: socket.socket | None = None
        self._made = 0.0
        self.asked = self.failed = 0
        self.slowest = 0.0

    def ask(self) -> None:
        """One question, on a new connection now and then."""
        began = time.monotonic()
        try:
            if self._sock is None or began - self._made > _KEPT:
                if self._sock is not None:
                    self._sock.close()
                self._sock = socket.create_connection(("127.0.0.1", self._port), _PATIENCE)
                self._made = began
            self._sock.sendall(b"x")
            if self._sock.recv(1) != b"x":
                raise ConnectionResetError("closed")
        except OSError as error:
            self._sock = None
            self.failed += 1
            self._tell(began, repr(error))
        self.asked += 1
        took = time.monotonic() - began
        self.slowest = max(self.slowest, took)
        if took > LATE:
            self._tell(began, "")

    def _tell(self, began: float, error: str) -> None:
        print(
            json.dumps({"who": self._name, "at": began, "took": time.monotonic() - began, "error": error}), flush=True
        )


def main(seconds: float, *ports: int) -> None:
    """Ask both until the time is over."""
    both = [_Asked(name, port) for name, port in zip(("service", "reference"), ports, strict=True)]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for each in both:
            each.ask()
        time.sleep(_PAUSE)
    for name, each in zip(("service", "reference"), both, strict=True):
        print(
            json.dumps({"sum": name, "asked": each.asked, "failed": each.failed, "slowest": each.slowest}), flush=True
        )


if __name__ == "__main__":
    main(float(sys.argv[1]), *map(int, sys.argv[2:]))
