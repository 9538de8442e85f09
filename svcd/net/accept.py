"""accept(2) in batches."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

__all__ = ["accept_batch"]

#: The client left while it waited (accept(2)): the next one is served.
_CLIENT_GONE = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EINTR})
#: Descriptors or memory are used up: no client can be accepted for now.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def accept_batch(listener: socket.socket, limit: int, on_exhausted: Callable[[], object]) -> Iterator[tuple[int, Any]]:
    """Yield the descriptor of each waiting connection, and the client's socket address.

    The descriptors are close-on-exec and blocking; the caller owns each from the moment that it is yielded.

    Args:
        listener: a listening socket, non-blocking.
        limit: the greatest number of connections.
        on_exhausted: called when the system is short of descriptors or memory; the batch ends.

    Raises:
        OSError: the listening socket is of no use.
    """
    # socket.accept() is this method of C and a new socket object, which costs more than all the rest here. It is
    # private to the socket module; tests/unit/test_private_names.py fails if a Python has it no more.
    accept = listener._accept  # type: ignore[attr-defined]  # noqa: SLF001
    for _ in range(limit):
        try:
            yield accept()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in _EXHAUSTED:
                on_exhausted()
                return
            if error.errno not in _CLIENT_GONE:
                raise
