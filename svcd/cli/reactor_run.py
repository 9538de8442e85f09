"""Run of a coroutine on a reactor of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.epollreactor import EPollReactor
from twisted.python.failure import Failure

from svcd.net.monotonic import use_monotonic_time

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import TypeVar

    _T = TypeVar("_T")

__all__ = ["run"]


def run(main: Callable[[EPollReactor], Coroutine[Deferred[Any], Any, _T]]) -> _T:
    """Run a coroutine to its end.

    Args:
        main: takes the reactor, which is not the global one and is closed afterwards.

    Returns:
        The result of the coroutine.

    Raises:
        Exception: the exception of the coroutine.
    """
    reactor = EPollReactor()
    use_monotonic_time(reactor)
    results: list[Any] = []

    def start() -> None:
        Deferred.fromCoroutine(main(reactor)).addBoth(end)

    def end(result: object) -> None:
        results.append(result)
        reactor.stop()

    reactor.callWhenRunning(start)
    # Signals have their default actions.
    reactor.run(installSignalHandlers=False)
    [result] = results
    if isinstance(result, Failure):
        result.raiseException()
    found: _T = result
    return found
