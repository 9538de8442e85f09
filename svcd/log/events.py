"""All log events: their names and their fields, in the order in which they are written.

A line is `TIME EVENT key=value ...` as text, or one JSON object with the same keys and the event's `level`, where the
values of NUMBERS are numbers and all others strings. Times are local, ISO 8601 with the offset from UTC and
milliseconds. A value with other characters than letters, digits and `_.:/@%+,-[]` is written as a JSON string, so that
nothing that a client sends can forge or break a line.

Fields: `service` name/protocol; `address` of a listening socket; `runs` its handler; `peer` the client's address;
`host` its host name, with resolve=yes; `id` the number of the connection since the start; `count` the open connections
of the service after the event; `in`, `out` bytes from and to the client; `seconds` the duration; `reason` why the
connection ended: done (closed in good order), lost (reset, or a network error), aborted (by the service), error (an
exception in the service), failed (it could not be served, as a `fail` line explains), handshake (the TLS handshake did
not succeed; a `fail` line explains why, unless the client closed without sending anything), killed (a signal that the
daemon did not send ended the process), unknown (its launcher was lost, and the process may go on), timeout (the client
sent no service name to tcpmux), shutdown (the daemon stopped), evicted (of HTTP, or in a TLS handshake: it was idle or
slow, and another connection needed its place), or the deadline that passed: idle (idle_timeout), first_byte
(first_byte_timeout), session (session_timeout), of HTTP request (request_timeout), keepalive (keepalive_timeout), send
(send_timeout); `pid` the process that serves; `exit` its exit status, or the signal that ended it; `user`, `system` its
processor time in seconds; `tls` the TLS version, a dash if the handshake failed; `subject` of the client's certificate
(RFC 4514), a dash if there is none, for services with tls_client_ca; `datagrams` received in all, `ignored` those that
the rules left unanswered; `state` of a launcher or of the zygote; `retry` the seconds until it is started again; `text`
the output of a handler.

The `state` of a launcher is ready, lost, or idle: it has ended for lack of clients (launcher_idle), and the next
connection starts it again. A `dropped` line counts the `lines` and `bytes` of handler output beyond what the `rule`
(stderr_rate) allows since the last such line. A `module-changed` line is written at a reload for a module that was
imported and has changed on disk since.

Lines are in the order of their times, and the counts of a service's accept and end lines follow from each other. So
the accept line of a connection that waits for a handshake, process or name has the time at which that is complete;
`seconds` of its end line count from the accept. `in` and `out` are the bytes on the wire.
A client that closes without TLS's closure alert counts as done: many omit it, browsers among them.

An `upgrade` line is written when another process, `pid`, has taken over: the `seconds` since the request, and the
`connections` that this process still has. An `upgrade-failed` line has the `reason` of a failed upgrade.

A `control` line is written when the control socket was opened again at its `path` (`state` reopened), because its file
was removed or replaced.

`origin` of a socket that was open before: activation (from a socket unit) or store (from the old daemon, by the fd
store). A `leftover` line is for an inherited socket that no service uses, with the `name` that it was passed with; an
`ungiven` line for a socket that the daemon opened itself, since the socket unit did not pass it.

A `broken` line is written when a service can't be served as configured: the `reason`, with the remedy, and the seconds
until svcd tries again (`retry`). A `recovered` line is written when it is served, after so many `seconds`.

An `unresolved` line gives the reason why a `host` in the rules of datagram services could not be looked up; its
previous addresses stay in use. There is one line until a lookup succeeds again.

A `certificate` line is written when a service has read its certificates or revocation lists again: the `file` of the
certificate that expires first, when that is (`expires`), and the number of certificates (`count`). A
`certificate-expires` line warns of certificates that expire soon, once a day: the `file` of the first of them, the
`days` that it has left (negative if it has expired), and their number.

A `pause` line is written when the descriptors of a `service`, or of all services, are used up: clients wait to be
accepted. A `resume` line is written when no service is paused any more.

A `refuse` line is for all clients of a service that were refused for one reason since the last such line, at most one
line a second: `peer` the first of them, `count` their number, `rule` the rule that decided for the first, with its
place in the file. Reasons: address, time, load, global (--max-connections), descriptors, instances, per_source, rate,
per_source_rate, name (the host name, or that there is none), service (the service itself accepts no connection), port
(of datagrams: the source port is that of a service), proxy (without a valid header of the PROXY protocol: `peer` is the
proxy, and `rule` explains what is wrong).

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
    "services", "system", "user",
})  # fmt: skip
#: The %-formats of fields that are not written with %s.
FORMATS = {"id": "%d", "count": "%d", "days": "%d", "in": "%d", "out": "%d", "seconds": "%.3f", "pid": "%d",
           "user": "%.3f", "system": "%.3f"}  # fmt: skip

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
