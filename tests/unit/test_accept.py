"""accept(2) in batches."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from svcd.net.stream_sockets import accept_batch

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Listener:
    """A listening socket whose accept gives what is planned: errors, or descriptors."""

    def __init__(self, *plan: int) -> None:
        self._plan = list(plan)

    def _accept(self) -> tuple[int, Any]:
        code = self._plan.pop(0) if self._plan else errno.EAGAIN
        if code > 0:
            raise OSError(code, os.strerror(code))
        return -code, ("192.0.2.1", 1)


def _batch(listener: Any, limit: int, calls: list[str]) -> Iterator[int]:
    return (fd for fd, _sockaddr in accept_batch(listener, limit, lambda: calls.append("exhausted")))


def test_a_batch_has_the_waiting_connections_with_their_clients() -> None:
    """In their order, and it ends when none waits."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
        accepted = list(accept_batch(listener, 10, lambda: None))
        assert [sockaddr for _fd, sockaddr in accepted] == [client.getsockname() for client in clients]
        for fd, _sockaddr in accepted:
            assert not os.get_inheritable(fd)
            os.close(fd)
        for client in clients:
            client.close()


@pytest.mark.parametrize(("limit", "found"), [(0, []), (2, [3, 4]), (9, [3, 4, 5])])
def test_a_batch_has_a_limit(limit: int, found: list[int]) -> None:
    """No more are accepted, so that they stay in the kernel's queue."""
    assert list(_batch(_Listener(-3, -4, -5), limit, [])) == found


@pytest.mark.parametrize("code", [errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EINTR])
def test_a_client_that_left_is_passed_over(code: int) -> None:
    """The next one is served."""
    assert list(_batch(_Listener(code, -3), 9, [])) == [3]


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_exhaustion_ends_the_batch(code: int) -> None:
    """The port is notified, once."""
    calls: list[str] = []
    assert list(_batch(_Listener(-3, code, -4), 9, calls)) == [3]
    assert calls == ["exhausted"]


def test_a_useless_socket_is_an_error() -> None:
    """Any other error is the caller's to handle."""
    with pytest.raises(OSError, match="Bad file descriptor"):
        list(_batch(_Listener(errno.EBADF), 9, []))
