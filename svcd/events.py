"""Every event of the log: its name and its fields, in the order in which they are written.

A line is `TIME EVENT key=value ...` as text, or one JSON object with the same keys. Times are local, ISO 8601 with the
offset from UTC and milliseconds. A value with other characters than letters, digits and `_.:/@%+,-[]` is written as
a JSON string, so that nothing that a client sends can forge or break a line.

Fields: `service` name/protocol; `address` where a listener stands; `runs` what answers there; `peer` the other end;
`host` its name, with resolve=yes; `id` the connection's number since the start; `count` the service's open
connections after the event; `in`, `out` bytes from and to the client; `seconds` how long it lasted; `reason` why it
ended: done (closed in good order), lost (reset, or an error of the network), aborted (by the service), error (a
mistake in the service), failed (it could not be served, as a `fail` line says), killed (a signal that was not ours
ended the process), unknown (its launcher was lost, and it may go on), timeout (it named no service to tcpmux),
shutdown (the daemon stopped), or which deadline passed: idle (idle_timeout), first_byte (first_byte_timeout), session
(session_timeout); `pid` the process that serves; `exit` its exit status, or the signal that ended it; `user`, `system`
its processor time in seconds; `datagrams` received in all, `ignored` those of them that came from a service; `state` of
a launcher or of the nursery; `retry` the seconds until it is started again; `text` what a handler wrote for the log.

A `refuse` line is for all clients of a service that were refused for one reason since the last such line, one line a
second at most: `peer` the first of them, `count` how many, `rule` what decided for the first, with its place in the
file. Reasons: address, time, load, global (--max-connections), descriptors, instances, per_source, rate,
per_source_rate, name (the host name, or that there is none), service (the service itself wants no connection).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twisted.logger import Logger

__all__ = [
    "ACCEPT",
    "BLIND",
    "CLOSE",
    "DESCRIPTORS",
    "END",
    "FAIL",
    "FORMATS",
    "LAUNCHER",
    "LISTEN",
    "LOG",
    "LOST",
    "NURSERY",
    "PAUSE",
    "PROBLEM",
    "READY",
    "REFUSE",
    "RELOAD",
    "RELOAD_FAILED",
    "RESUME",
    "SAID",
    "STOP",
    "Event",
    "tell",
]

#: How the values of a field are written where it isn't as text (%s).
FORMATS = {"id": "%d", "count": "%d", "in": "%d", "out": "%d", "seconds": "%.3f", "pid": "%d",
           "user": "%.3f", "system": "%.3f"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Event:
    """One kind of line: its name and its fields in order."""

    name: str
    fields: tuple[str, ...]
    level: str = "info"


LISTEN = Event("listen", ("service", "address", "runs"))
CLOSE = Event("close", ("service", "address", "datagrams", "ignored", "in", "out"))
READY = Event("ready", ("services", "listeners", "reactor"))
RELOAD = Event("reload", ("added", "removed", "changed", "opened", "closed", "seconds"))
RELOAD_FAILED = Event("reload-failed", ("problems",), "error")
PROBLEM = Event("problem", ("text",), "error")
STOP = Event("stop", ("connections",))
DESCRIPTORS = Event("descriptors", ("limit", "connections", "advice"), "warn")
PAUSE = Event("pause", ("reason", "connections", "limit"), "warn")
RESUME = Event("resume", ("reason", "connections", "limit"))
LOST = Event("lost", ("lines", "reason"), "error")
LOG = Event("log", ("level", "message"))

NURSERY = Event("nursery", ("pid", "state", "reason"))
#: The kernel does not say what moves on the connections of handlers: idle_timeout and first_byte_timeout don't hold.
BLIND = Event("blind", ("service", "reason"), "warn")
LAUNCHER = Event("launcher", ("service", "pid", "state", "reason", "retry"))

# Of single connections: written by the journal itself, not through twisted.logger.
ACCEPT = Event("accept", ("service", "peer", "host", "id", "count", "pid"))
END = Event("end", ("service", "peer", "host", "id", "in", "out", "seconds", "reason", "count", "pid",
                    "exit", "user", "system"))  # fmt: skip
FAIL = Event("fail", ("service", "peer", "id", "reason"))
SAID = Event("said", ("service", "id", "pid", "text"))
REFUSE = Event("refuse", ("service", "peer", "reason", "count", "rule"))


def tell(log: Logger, event: Event, **values: object) -> None:
    """Report an event of the daemon through twisted.logger.

    Any observer can write it as text; the journal's own finds the event under `svcd_event`.
    """
    known = [name for name in event.fields if name in values]
    text = " ".join([event.name, *(f"{name}={{{name}}}" for name in known)])
    {"info": log.info, "warn": log.warn, "error": log.error}[event.level](text, svcd_event=event, **values)
