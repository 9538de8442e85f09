"""Clients in closed loops, who count what went wrong while something happens to the daemon."""

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
    """32 clients that keep a connection for 20 echoes, and 32 that ask for the time and close.

    Every connection must be accepted, and every answer whole: a refusal, a reset or an early end is written down.

    Args:
        echo, daytime: the ports.
        datagrams: of an echo service; each question must have one answer, and there is one at a time.
        pause: how long each client waits before it comes again, in seconds, to leave others something of the machine.

    Attributes:
        done: how many connections, and rounds of datagrams, went well.
        wrong: what did not.
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
                # A second answer to the one before would be found here.
                assert client.recv(100) == b"%d" % number
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                raise AssertionError(f"an answer too many: {client.recv(100)!r}")
