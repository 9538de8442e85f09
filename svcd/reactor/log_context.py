"""Log prefix (`system`) of a uvloop connection, without additional time for each piece of data.

Twisted's reactors push a dictionary on a stack around each callback, which takes 2 µs, so that lines logged meanwhile
have the prefix of the connection. uvloop runs callbacks in the connection's contextvars.Context in any case, so the
prefix is a variable in that context; the dictionary at the bottom of Twisted's stack reads it when a line is logged.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from twisted.internet.interfaces import ILoggingContext
from twisted.python import context
from twisted.python.log import ILogContext

__all__ = ["LOG_PREFIX", "log_prefix", "use_log_prefix"]

#: The prefix of log lines in this context, or an object with a logPrefix() method.
LOG_PREFIX: ContextVar[Any] = ContextVar("svcd log prefix", default="-")


def _prefix() -> str:
    found = LOG_PREFIX.get()
    return found if isinstance(found, str) else str(found.logPrefix())


class _LogContext(dict[str, Any]):
    """Twisted's outermost log context; its `system` is LOG_PREFIX."""

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401 - a log event's value
        return _prefix() if key == "system" else super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:  # noqa: ANN401 - a log event's value
        return _prefix() if key == "system" else super().get(key, default)

    def copy(self) -> dict[str, Any]:
        return {**self, "system": _prefix()}


def use_log_prefix() -> None:
    """Make Twisted's log use LOG_PREFIX. A single call is enough for all reactors of the process."""
    found = context.get(ILogContext)
    if not isinstance(found, _LogContext):
        context.setDefault(ILogContext, _LogContext(context.defaultContextDict[ILogContext]))


def log_prefix(protocol: object) -> str:
    """Return the log prefix of a protocol: the result of its logPrefix(), or else the name of its class."""
    if ILoggingContext.providedBy(protocol):
        return str(protocol.logPrefix())
    return type(protocol).__name__
