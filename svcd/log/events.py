"""Every event of the log: its name and its fields, in the order in which they are written.

A line is `TIME EVENT key=value ...` as text, or one JSON object with the same keys and the event's `level`, where the
values of NUMBERS are numbers and all others strings. Times are local, ISO 8601 with the
offset from UTC and milliseconds. A value with other characters than letters, digits and `_.:/@%+,-[]` is written as
a JSON string, so that nothing that a client sends can forge or break a line.

Fields: `service` name/protocol; `address` where a listener stands; `runs` what answers there; `peer` the other end;
`host` its name, with resolve=yes; `id` the connection's number since the start; `count` the service's open connections
after the event; `in`, `out` bytes from and to the client; `seconds` how long it lasted; `reason` why it ended: done
(closed in good order), lost (reset, or an error of the network), aborted (by the service), error (a mistake in the
service), failed (it could not be served, as a `fail` line says), handshake (of TLS: it did not come to an end, and a
`fail` line says why, unless the client came and went without a word), killed (a signal that was not ours ended the
process), unknown (its launcher was lost, and it may go on), timeout (it named no service to tcpmux), shutdown (the
daemon stopped), evicted (of HTTP, or in a handshake of TLS: it was idle or slow, and another connection needed its
place), or which deadline passed: idle (idle_timeout), first_byte (first_byte_timeout), session (session_timeout), of
HTTP request (request_timeout), keepalive (keepalive_timeout), send (send_timeout); `pid` the process that serves;
`exit` its exit status, or the signal that ended it; `user`, `system` its processor time in seconds; `tls` the version
of TLS, a dash if the handshake failed; `subject` whose certificate the client has shown (RFC 4514), a dash if none, for
services with tls_client_ca; `datagrams` received in all, `ignored` those of them that the rules leave unanswered;
`state` of a launcher or of the zygote; `retry` the seconds until it is started again; `text` what a handler wrote for
the log.

The `state` of a launcher is ready, lost, or idle: it has ended for want of clients (launcher_idle), and the next one
has it started again. A `dropped` line says how many `lines`, with how many `bytes`, handlers have written for the log
beyond what the `rule` (stderr_rate) allows since the last such line. A `module-changed` line is written at a reload for
a module that was imported and has changed on disk since.

Lines come in the order of their times, and the counts of a service's accept and end lines follow from each other. So
the accept line of a connection whose handshake, process or name is waited for has the time of when that is known;
`seconds` of its end line count from the accept. `in` and `out` are what was on the wire.
A client that ends its side without TLS's closure alert is done as well: many leave it out, browsers among them.

An `upgrade` line says that another process, `pid`, has taken over, so many `seconds` after that was asked for, and how
many `connections` this one still has; an `upgrade-failed` line the `reason` why none could.

A `control` line says that the control socket was opened again at its `path` (`state` reopened), since its file was
removed or replaced.

`origin` of a socket that was open before: activation (a socket unit has it) or store (the daemon before this one had
it). A `leftover` line is for a socket that we were started with and have no use for, with the `name` that its giver
gave it; an `ungiven` line for one that we opened ourselves, since the socket unit did not give it.

A `broken` line says that a service can't be served as its line says: the `reason`, with the remedy, and the seconds
until svcd tries again (`retry`). A `recovered` line says that it is served, after so many `seconds`.

An `unresolved` line says why a `host` in the rules of datagram services could not be looked up: the addresses that it
had hold on. There is one line until that succeeds again.

A `certificate` line says that a service has read its certificates again, or the lists of those that were revoked, and
uses them from now on: the `file` of the
one that expires first, when that is (`expires`), and how many there are (`count`). A `certificate-expires` line warns
of those that won't hold for long, once a day: the `file` of the first of them, the `days` that it has left (less than
none for one that has expired), and how many they are.

A `pause` line says that the descriptors of a `service`, or of all, are used up: its clients wait to be accepted, and
others may have to by now; a `resume` line that nobody has to.

A `refuse` line is for all clients of a service that were refused for one reason since the last such line, one line a
second at most: `peer` the first of them, `count` how many, `rule` what decided for the first, with its place in the
file. Reasons: address, time, load, global (--max-connections), descriptors, instances, per_source, rate,
per_source_rate, name (the host name, or that there is none), service (the service itself wants no connection), port (of
datagrams: services ask no questions), proxy (without a good header of the PROXY protocol: `peer` is the proxy, and
`rule` says what is wrong).

With --log-addresses short no line says more of a client than its network: `peer` is 192.0.2.0 for 192.0.2.1 and
2001:db8:1:: for all of 2001:db8:1::/48, without port; there is no `host`, no `subject`, and no `rule` that is for an
address or a name. UNIX sockets' peers are as ever, and so is what handlers themselves write (`said`) and what stands
in tracebacks. Whoever writes a peer's address into a line gets it from Journal.peer_text.
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

#: The fields whose values are numbers; of all others they are text.
NUMBERS = frozenset({
    "added", "broken", "bytes", "changed", "closed", "connections", "count", "datagrams", "days", "id", "ignored",
    "in", "limit", "lines", "listeners", "opened", "out", "pid", "problems", "removed", "retry", "seconds",
    "services", "system", "user",
})  # fmt: skip
#: How the values of a field are written where it isn't as text (%s).
FORMATS = {"id": "%d", "count": "%d", "days": "%d", "in": "%d", "out": "%d", "seconds": "%.3f", "pid": "%d",
           "user": "%.3f", "system": "%.3f"}  # fmt: skip

#: Levels as numbers of syslog (RFC 5424, 6.2.1), where those are wanted.
PRIORITIES = {"critical": 2, "error": 3, "warn": 4, "notice": 5, "info": 6, "debug": 7}


@dataclass(frozen=True, slots=True)
class Event:
    """One kind of line: its name, its fields in order, and its level, one of PRIORITIES."""

    name: str
    fields: tuple[str, ...]
    level: str = "info"


# What the daemon does is a notice, what it suffers a warning.
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
#: The kernel does not say what moves on the connections of handlers: idle_timeout and first_byte_timeout don't hold.
NO_SOCK_DIAG = Event("blind", ("service", "reason"), "warn")
LAUNCHER = Event("launcher", ("service", "pid", "state", "reason", "retry"), "notice")
LAUNCHER_LOST = replace(LAUNCHER, level="warn")

# Of single connections: written by the journal itself, not through twisted.logger. They are information, but for those
# that got nothing: tcpd(8) has a warning for whom it refuses as well.
ACCEPT = Event("accept", ("service", "peer", "host", "id", "count", "pid", "tls", "subject"))
END = Event("end", ("service", "peer", "host", "id", "in", "out", "seconds", "reason", "count", "pid",
                    "exit", "user", "system"))  # fmt: skip
FAIL = Event("fail", ("service", "peer", "id", "reason"), "warn")
HANDLER_OUTPUT = Event("output", ("service", "id", "pid", "text"))
#: What handlers have written for the log beyond stderr_rate, once a second at most.
DROPPED = Event("dropped", ("service", "lines", "bytes", "rule"), "warn")
#: A process goes on with the code that it has imported: the text says what has it imported anew.
MODULE_CHANGED = Event("module-changed", ("service", "text"), "warn")
REFUSE = Event("refuse", ("service", "peer", "reason", "count", "rule"), "warn")


def log_event(log: Logger, event: Event, **values: object) -> None:
    """Report an event of the daemon through twisted.logger.

    Any observer can write it as text; the journal's own finds the event under `svcd_event`.
    """
    known = [name for name in event.fields if name in values]
    text = " ".join([event.name, *(f"{name}={{{name}}}" for name in known)])
    # twisted.logger knows no notices.
    write = {"info": log.info, "notice": log.info, "warn": log.warn, "error": log.error}[event.level]
    write(text, svcd_event=event, **values)
