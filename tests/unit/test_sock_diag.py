"""Looking at connections that others have, through the real kernel or none."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

import pytest

from svcd.net.sock_diag import GONE, SocketView


class _Pair:
    """Two ends of a connection, and the view of the accepted one."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.client = socket.create_connection(listener.getsockname())
            self.server, self.name = listener.accept()

    def trace(self, view: SocketView) -> bytes:
        """What it is found by."""
        near = self.server.getsockname()
        return view.trace(self.server.fileno(), socket.AF_INET, near, self.name)

    def close(self) -> None:
        """Close both."""
        self.client.close()
        self.server.close()


class _Netlink:
    """A netlink socket as planned."""

    def __init__(self, *answers: bytes | OSError) -> None:
        self._answers = list(answers)
        self.closed = False

    def send(self, _data: bytes) -> None:
        """Ask."""

    def recv(self, _size: int) -> bytes:
        """Answer."""
        answer = self._answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    def close(self) -> None:
        """Close."""
        self.closed = True


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def test_bytes_are_seen_from_outside() -> None:
    """What came, what was taken, and that a connection is over."""
    view, pair = SocketView(), _Pair()
    traced = pair.trace(view)
    assert view.traffic(traced) == (0, 0)
    pair.client.sendall(b"hello")
    assert pair.server.recv(5) == b"hello"
    received, _ = view.traffic(traced) or GONE
    assert received == 5
    pair.close()
    assert view.traffic(traced) == GONE
    view.close()
    assert view.traffic(traced) == GONE
    view.close()


def test_a_later_connection_of_the_same_addresses_is_another() -> None:
    """The cookie tells them apart."""
    view, pair = SocketView(), _Pair()
    traced = pair.trace(view)
    other = traced[:-1] + bytes([traced[-1] ^ 1])
    assert view.traffic(traced) == (0, 0)
    assert view.traffic(other) == GONE
    pair.close()
    view.close()


@pytest.mark.parametrize("code", [errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EPERM])
def test_without_the_kernels_help_it_is_said_once(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """And nothing is asked any more."""

    def refuse(*_arguments: Any) -> None:
        raise _error(code)

    told: list[str] = []
    view = SocketView(told.append)
    monkeypatch.setattr(socket, "socket", refuse)
    assert view.traffic(b"x" * 56) is None
    assert view.traffic(b"x" * 56) is None
    assert told == [os.strerror(code)]


def test_what_is_short_for_a_moment_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is late belongs to an earlier question."""
    told: list[str] = []
    view = SocketView(told.append)
    netlink = _Netlink(_error(errno.ENOBUFS), _error(errno.EAGAIN), b"no answer")
    monkeypatch.setattr(socket, "socket", lambda *_arguments: netlink)
    assert view.traffic(b"x" * 56) is None
    assert view.traffic(b"x" * 56) is None
    assert not told
    assert view.traffic(b"x" * 56) is None
    assert told
    assert netlink.closed


def test_a_kernel_that_finds_nothing_ever_is_not_believed() -> None:
    """Without its module tcp_diag it says of each connection that there is none."""
    told: list[str] = []
    view, pair = SocketView(told.append), _Pair()
    believed = SocketView()
    traced = pair.trace(believed)
    believed.close()
    other = traced[:-1] + bytes([traced[-1] ^ 1])
    found = {view.traffic(other) for _ in range(200)}
    assert found == {None}
    assert len(told) == 1
    pair.close()
