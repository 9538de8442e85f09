"""sock_diag(7): messages, and the traffic of connections that other processes hold."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcd.net.sock_diag import GONE, SocketView, diag_request, parse_reply, request_message


class _Pair:
    """Both ends of a connection; the accepted one is observed."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.client = socket.create_connection(listener.getsockname())
            self.server, self.name = listener.accept()

    def trace(self, view: SocketView) -> bytes:
        """Return the data by which a SocketView finds the connection."""
        near = self.server.getsockname()
        return view.trace(self.server.fileno(), socket.AF_INET, near, self.name)

    def close(self) -> None:
        """Close both ends."""
        self.client.close()
        self.server.close()


class _Netlink:
    """Netlink socket with planned answers."""

    def __init__(self, *answers: bytes | OSError) -> None:
        self._answers = list(answers)
        self.closed = False

    def send(self, _data: bytes) -> None:
        """Ignore a request."""

    def recv(self, _size: int) -> bytes:
        """Return or raise the next answer."""
        answer = self._answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    def close(self) -> None:
        """Record the close."""
        self.closed = True


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def test_the_traffic_of_a_connection() -> None:
    """traffic() has the bytes received and the bytes acknowledged, and GONE after the close."""
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


def test_a_later_connection_with_the_same_addresses() -> None:
    """A later connection with the same addresses differs by its cookie."""
    view, pair = SocketView(), _Pair()
    traced = pair.trace(view)
    other = traced[:-1] + bytes([traced[-1] ^ 1])
    assert view.traffic(traced) == (0, 0)
    assert view.traffic(other) == GONE
    pair.close()
    view.close()


@pytest.mark.parametrize("code", [errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EPERM])
def test_a_missing_sock_diag_is_reported_once(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """If the kernel refuses sock_diag, that is reported once, and no more requests are sent."""

    def refuse(*_arguments: Any) -> None:
        raise _error(code)

    reported: list[str] = []
    view = SocketView(reported.append)
    monkeypatch.setattr(socket, "socket", refuse)
    assert view.traffic(b"x" * 56) is None
    assert view.traffic(b"x" * 56) is None
    assert reported == [os.strerror(code)]


def test_a_temporary_error_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a temporary error the next call sends its request; a malformed reply is reported and closes the socket."""
    reported: list[str] = []
    view = SocketView(reported.append)
    netlink = _Netlink(_error(errno.ENOBUFS), _error(errno.EAGAIN), b"no answer")
    monkeypatch.setattr(socket, "socket", lambda *_arguments: netlink)
    assert view.traffic(b"x" * 56) is None
    assert view.traffic(b"x" * 56) is None
    assert not reported
    assert view.traffic(b"x" * 56) is None
    assert reported
    assert netlink.closed


def test_a_kernel_that_finds_no_connection() -> None:
    """If no connection is ever found, as without the module tcp_diag, traffic() is unknown, which is reported once."""
    reported: list[str] = []
    view, pair = SocketView(reported.append), _Pair()
    other_view = SocketView()
    traced = pair.trace(other_view)
    other_view.close()
    other = traced[:-1] + bytes([traced[-1] ^ 1])
    found = {view.traffic(other) for _ in range(200)}
    assert found == {None}
    assert len(reported) == 1
    pair.close()


# Messages


def _message(number: int, *attributes: tuple[int, bytes]) -> bytes:
    body = bytes(72)
    for kind, value in attributes:
        body += struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
    return struct.pack("=IHHII", 16 + len(body), 20, 0, number, 1) + body


def test_a_request() -> None:
    """A request is struct inet_diag_req_v2 after a netlink header."""
    traced = diag_request(2, (b"\x7f\0\0\1", 7), (b"\xc0\0\2\1", 40_000), 3, b"cookie!!")
    request = request_message(9, traced)
    assert struct.unpack_from("=IHHII", request) == (len(request), 20, 1, 9, 0)
    assert request[16:24] == struct.pack("=BBBxI", 2, 6, 2, 0xFFFF_FFFF)
    assert request[24:28] == struct.pack("!HH", 7, 40_000)
    assert request[28:60] == b"\x7f\0\0\1" + bytes(12) + b"\xc0\0\2\1" + bytes(12)
    assert request[60:] == struct.pack("=I", 3) + b"cookie!!"


def test_a_reply() -> None:
    """parse_reply() finds INET_DIAG_INFO among the attributes, whatever precedes it."""
    assert parse_reply(_message(9, (8, b"\0"), (2, b"info"), (15, b"x"))) == (9, b"info")


def test_a_reply_about_a_closed_connection() -> None:
    """An error, and a reply about a socket in TIME_WAIT, have no INET_DIAG_INFO."""
    error = struct.pack("=IHHIIi", 36, 2, 0, 9, 1, -2) + bytes(16)
    assert parse_reply(error) == (9, b"")
    assert parse_reply(_message(9, (8, b"\0"))) == (9, b"")


@pytest.mark.parametrize(
    "data", [b"", b"short", struct.pack("=IHHII", 16, 3, 0, 1, 1), struct.pack("=IHHII", 99, 20, 0, 1, 1)]
)
def test_malformed_replies(data: bytes) -> None:
    """A malformed reply is a ValueError."""
    with pytest.raises(ValueError):
        parse_reply(data)


@given(st.binary(max_size=300))
def test_arbitrary_replies(data: bytes) -> None:
    """Any bytes are a reply or a ValueError."""
    for each in (data, struct.pack("=IHHII", 16 + len(data), 20, 0, 1, 1) + data):
        try:
            parse_reply(each)
        except ValueError:
            continue
