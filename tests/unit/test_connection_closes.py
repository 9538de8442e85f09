"""HandlerSocket and CloseReports."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from svcd.process.connection_closes import CloseReports, HandlerSocket

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pair() -> Iterator[tuple[HandlerSocket, socket.socket]]:
    """The sockets of a handler and its client."""
    ours, theirs = socket.socketpair()
    with theirs, HandlerSocket(fileno=ours.detach()) as handlers:
        yield handlers, theirs


def test_a_close_is_reported_once(pair: tuple[HandlerSocket, socket.socket]) -> None:
    """close() is reported while the socket is still open, and after all files made of it are closed."""
    sock, client = pair
    reports: list[tuple[int, bool]] = []
    sock.on_close = lambda each, closed: reports.append((each.fileno(), closed))
    number = sock.fileno()
    with sock.makefile("rb"):
        sock.close()
        assert reports == []
    assert reports == [(number, True)]
    assert client.recv(1) == b""
    sock.close()
    assert len(reports) == 1


def test_a_detached_socket_is_reported(pair: tuple[HandlerSocket, socket.socket]) -> None:
    """detach() is reported; a later close of the descriptor is not."""
    sock, _ = pair
    reports: list[bool] = []
    sock.on_close = lambda _each, closed: reports.append(closed)
    os.close(sock.detach())
    sock.close()
    assert reports == [False]


def test_socket_without_on_close(pair: tuple[HandlerSocket, socket.socket]) -> None:
    """Without on_close it behaves as any socket."""
    sock, client = pair
    sock.sendall(b"x")
    sock.close()
    assert client.recv(2) == b"x"
    assert client.recv(2) == b""


def test_reports_reach_the_launcher(pair: tuple[HandlerSocket, socket.socket]) -> None:
    """Each report has the id of its connection."""
    closings = CloseReports()
    assert list(closings.read()) == []
    child = os.fork()
    if not child:
        try:
            pair[0].on_close = closings.reporter(2**40)
            pair[0].close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert list(closings.read()) == [(2**40, True)]
    # A handler is not affected if the launcher has exited.
    pair[0].on_close = closings.reporter(3)
    pair[0].close()
    assert pair[0].fileno() == -1
    closings.close()
