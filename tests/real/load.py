"""Clients in closed loops, which record failures while something happens to the daemon."""

from __future__ import annotations

import contextlib
import socket
from functools import partial
from typing import TYPE_CHECKING

from tests.real.background import Background
from tests.real.daemon import PATIENCE, exchange

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Load"]


class Load(Background):
    """32 clients that keep a connection for 20 echoes, and 32 that read the time and close.

    Each connection must be accepted, and each answer complete: a refusal, a reset or an early end is a failure.

    Args:
        echo, daytime: ports of the services.
        datagrams: port of an echo service over UDP; each datagram must have one answer, and one is sent at a time.
        pause: time before each connection of a client, in seconds, which leaves processor time to other processes.

    Attributes:
        done: number of connections and rounds of datagrams that succeeded.
        wrong: the failures.
    """

    def __init__(self, echo: int, daytime: int, datagrams: int = 0, pause: float = 0) -> None:
        super().__init__(pause)
        self.done = 0
        work = [(self._echo, echo)] * 32 + [(self._day, daytime)] * 32
        work += [(self._datagrams, datagrams)] * (2 if datagrams else 0)
        for once, port in work:
            self.repeat(partial(self._count, once, port))

    def _count(self, once: Callable[[int], None], port: int) -> None:
        once(port)
        self.done += 1

    def _echo(self, port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
            for number in range(20):
                client.sendall(b"%d\n" % number)
                assert client.recv(100) == b"%d\n" % number

    def _day(self, port: int) -> None:
        answer = exchange(socket.create_connection(("127.0.0.1", port), PATIENCE))
        assert answer.endswith(b"\r\n"), answer

    def _datagrams(self, port: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE)
            client.connect(("127.0.0.1", port))
            for number in range(50):
                client.send(b"%d" % number)
                # A second answer to the previous datagram would be read here.
                assert client.recv(100) == b"%d" % number
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                raise AssertionError(f"an answer too many: {client.recv(100)!r}")
