"""Batches of accept(2)."""

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
    """Listening socket whose accept fails with planned errors or returns planned descriptors."""

    def __init__(self, *plan: int) -> None:
        self._plan = list(plan)

    def _accept(self) -> tuple[int, Any]:
        code = self._plan.pop(0) if self._plan else errno.EAGAIN
        if code > 0:
            raise OSError(code, os.strerror(code))
        return -code, ("192.0.2.1", 1)


def _batch(listener: Any, limit: int, calls: list[str]) -> Iterator[int]:
    return (fd for fd, _sockaddr in accept_batch(listener, limit, lambda: calls.append("exhausted")))


def test_a_batch_contains_the_waiting_connections() -> None:
    """A batch contains the waiting connections in order, with the clients' addresses, and ends when none is left."""
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
    """A batch accepts at most `limit` connections; the others stay in the kernel's queue."""
    assert list(_batch(_Listener(-3, -4, -5), limit, [])) == found


@pytest.mark.parametrize("code", [errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EINTR])
def test_an_error_of_one_client_is_skipped(code: int) -> None:
    """After an error that concerns one client the next connection is accepted."""
    assert list(_batch(_Listener(code, -3), 9, [])) == [3]


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_exhaustion_ends_the_batch(code: int) -> None:
    """When descriptors or memory are exhausted the batch ends, and the port is notified once."""
    calls: list[str] = []
    assert list(_batch(_Listener(-3, code, -4), 9, calls)) == [3]
    assert calls == ["exhausted"]


def test_other_errors_are_raised() -> None:
    """Any other error is raised to the caller."""
    with pytest.raises(OSError, match="Bad file descriptor"):
        list(_batch(_Listener(errno.EBADF), 9, []))
