"""All log events: their names and their fields, in the order in which they are written.

A line is `TIME EVENT key=value ...` as text, or one JSON object with the same keys and the event's `level`, where the
values of NUMBERS are numbers and all others strings. Times are local, ISO 8601 with the offset from UTC and
milliseconds. A value with other characters than letters, digits and `_.:/@%+,-[]` is written as a JSON string, so that
nothing that a client sends can forge or break a line.

svcd/log/event_help.py describes the events and the fields.

Lines are in the order of their times, and the counts of a service's accept and end lines follow from each other. So the
accept line of a connection that waits for a handshake, process or name has the time at which that is complete;
`seconds` of its end line count from the accept.

With --log-addresses short a line identifies only the network of a client: `peer` is 192.0.2.0 for 192.0.2.1 and
2001:db8:1:: for all of 2001:db8:1::/48, without port; there is no `host`, no `subject`, and no `rule` that is for an
address or a name. Peers of UNIX sockets are not shortened, nor is the output of handlers (`output`) or text in
tracebacks. Code that writes a peer's address into a line gets it from LogWriter.format_peer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twisted.logger import Logger

__all__ = [
    "ACCEPT",
    "BROKEN",
    "CERTIFICATE",
    "CERTIFICATE_EXPIRES",
    "CLOSE",
    "CONTROL",
    "DESCRIPTORS",
    "DROPPED",
    "END",
    "FAIL",
    "FORMATS",
    "HANDLER_OUTPUT",
    "LAUNCHER",
    "LAUNCHER_LOST",
    "LISTEN",
    "LOG",
    "LOST",
    "MODULE_CHANGED",
    "NOT_ACTIVATED",
    "NO_SOCK_DIAG",
    "NUMBERS",
    "PAUSE",
    "PRIORITIES",
    "PROBLEM",
    "READY",
    "RECOVERED",
    "REFUSE",
    "RELOAD",
    "RELOAD_FAILED",
    "REQUEST",
    "RESUME",
    "STOP",
    "UNRESOLVED",
    "UNUSED_FD",
    "UPGRADE",
    "UPGRADE_FAILED",
    "ZYGOTE",
    "ZYGOTE_LOST",
    "Event",
    "log_event",
]

#: The fields whose values are numbers; all others are text.
NUMBERS = frozenset({
    "added", "broken", "bytes", "changed", "closed", "connections", "count", "datagrams", "days", "id", "ignored",
    "in", "limit", "lines", "listeners", "opened", "out", "pid", "problems", "removed", "retry", "seconds",
    "services", "status", "system", "user",
})  # fmt: skip
#: The %-formats of fields that are not written with %s.
FORMATS = {"id": "%d", "count": "%d", "days": "%d", "in": "%d", "out": "%d", "seconds": "%.3f", "pid": "%d",
           "status": "%d", "user": "%.3f", "system": "%.3f"}  # fmt: skip

#: Levels as severities of syslog (RFC 5424, 6.2.1).
PRIORITIES = {"critical": 2, "error": 3, "warn": 4, "notice": 5, "info": 6, "debug": 7}


@dataclass(frozen=True, slots=True)
class Event:
    """Kind of line: its name, its fields in order, and its level, a key of PRIORITIES."""

    name: str
    fields: tuple[str, ...]
    level: str = "info"


# Actions of the daemon are notices, problems are warnings.
LISTEN = Event("listen", ("service", "address", "runs", "origin"), "notice")
UNUSED_FD = Event("leftover", ("name", "address", "reason"), "warn")
NOT_ACTIVATED = Event("ungiven", ("service", "address"), "warn")
UNRESOLVED = Event("unresolved", ("host", "reason"), "warn")
CLOSE = Event("close", ("service", "address", "datagrams", "ignored", "in", "out"), "notice")
READY = Event("ready", ("services", "listeners", "reactor"), "notice")
RELOAD = Event("reload", ("added", "removed", "changed", "opened", "closed", "broken", "seconds"), "notice")
RELOAD_FAILED = Event("reload-failed", ("problems",), "error")
UPGRADE = Event("upgrade", ("pid", "connections", "seconds"), "notice")
UPGRADE_FAILED = Event("upgrade-failed", ("reason",), "error")
CONTROL = Event("control", ("path", "state"), "notice")
PROBLEM = Event("problem", ("text",), "error")
BROKEN = Event("broken", ("service", "reason", "retry"), "error")
RECOVERED = Event("recovered", ("service", "seconds"), "notice")
CERTIFICATE = Event("certificate", ("service", "file", "expires", "count"), "notice")
CERTIFICATE_EXPIRES = Event("certificate-expires", ("service", "file", "expires", "days", "count"), "warn")
STOP = Event("stop", ("connections",), "notice")
DESCRIPTORS = Event("descriptors", ("limit", "connections", "advice"), "warn")
PAUSE = Event("pause", ("reason", "connections", "limit", "service"), "warn")
RESUME = Event("resume", ("reason", "connections", "limit"), "notice")
LOST = Event("lost", ("lines", "reason"), "error")
LOG = Event("log", ("level", "message"))

ZYGOTE = Event("zygote", ("pid", "state", "reason"), "notice")
ZYGOTE_LOST = replace(ZYGOTE, level="warn")
#: The kernel does not count the bytes of handlers' connections: idle_timeout and first_byte_timeout don't hold.
NO_SOCK_DIAG = Event("blind", ("service", "reason"), "warn")
LAUNCHER = Event("launcher", ("service", "pid", "state", "reason", "retry"), "notice")
LAUNCHER_LOST = replace(LAUNCHER, level="warn")

# Events of single connections: written by the LogWriter itself, not through twisted.logger. Their level is info, or
# warn if the connection was not served, as tcpd(8) does.
ACCEPT = Event("accept", ("service", "peer", "host", "id", "count", "pid", "tls", "subject"))
END = Event("end", ("service", "peer", "host", "id", "in", "out", "seconds", "reason", "count", "pid",
                    "exit", "user", "system"))  # fmt: skip
FAIL = Event("fail", ("service", "peer", "id", "reason"), "warn")
HANDLER_OUTPUT = Event("output", ("service", "id", "pid", "text"))
#: Output of handlers beyond stderr_rate, at most once a second.
DROPPED = Event("dropped", ("service", "lines", "bytes", "rule"), "warn")
#: A process keeps the code that it has imported: the text names the command that imports it anew.
MODULE_CHANGED = Event("module-changed", ("service", "text"), "warn")
#: A request of HTTP and its response (access_log=).
REQUEST = Event("request", ("service", "peer", "method", "target", "version", "status", "bytes", "seconds", "referer",
                            "agent"))  # fmt: skip
REFUSE = Event("refuse", ("service", "peer", "reason", "count", "rule"), "warn")


def log_event(log: Logger, event: Event, **values: object) -> None:
    """Write an event of the daemon through twisted.logger.

    Any observer can write it as text; LogObserver gets the Event from the key `svcd_event`.
    """
    known = [name for name in event.fields if name in values]
    text = " ".join([event.name, *(f"{name}={{{name}}}" for name in known)])
    # twisted.logger has no level notice.
    write = {"info": log.info, "notice": log.info, "warn": log.warn, "error": log.error}[event.level]
    write(text, svcd_event=event, **values)
