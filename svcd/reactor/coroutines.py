"""Coroutines of uvloop that are driven by hand, since Twisted's calls must have their result at once.

uvloop opens a transport for a socket in the first step of a coroutine; the second waits for connection_made(), which
the loop calls next, and does nothing more. A Task for each would cost more than the transport.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Coroutine, Iterable

__all__ = ["finish_coroutines", "start_coroutine"]


def start_coroutine(loop: AbstractEventLoop, coroutine: Coroutine[Any, Any, Any]) -> None:
    """Take the first step now, and the second when connection_made() was called.

    Raises:
        OSError: the socket is of no use.
    """
    coroutine.send(None)
    loop.call_soon(finish_coroutines, [coroutine])


def finish_coroutines(coroutines: Iterable[Coroutine[Any, Any, Any]]) -> None:
    """Take the second step. Each coroutine's connection_made() was called."""
    for coroutine in coroutines:
        try:
            coroutine.send(None)
        except (StopIteration, RuntimeError):
            # It has ended, or its transport was closed before it was of any use, which its protocol knows.
            continue
