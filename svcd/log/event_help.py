"""Descriptions of all log events, of their fields, and of the reasons in them, for the reference documentation."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["END_REASONS", "EVENTS", "FIELDS", "REFUSE_REASONS"]

#: What each event means, by name.
EVENTS: Mapping[str, str] = {
    "listen": "A socket was opened for a service, or taken over.",
    "leftover": "An inherited socket is used by no service. `name` is the name that it was passed with.",
    "ungiven": "The daemon opened a socket itself, because the socket unit did not pass it.",
    "unresolved": "A host name in the rules of datagram services could not be looked up. Its previous addresses stay "
    "in use. There is one line until a lookup succeeds again.",
    "close": "A socket was closed.",
    "ready": "The daemon serves all services that can be served.",
    "reload": "A reload has changed services. The fields are numbers of services and sockets.",
    "reload-failed": "A reload has changed nothing. A `problem` line precedes this line for each mistake.",
    "upgrade": "Another process, `pid`, has taken over, `seconds` after the request. `connections` remain in this "
    "process.",
    "upgrade-failed": "An upgrade failed. This process goes on.",
    "control": "The control socket was opened again at its `path`, because its file was removed or replaced.",
    "problem": "A mistake in the services file, with its place and its remedy.",
    "broken": "A service can't be served as configured. svcd tries again in `retry` seconds.",
    "recovered": "A broken service is served again, after `seconds`.",
    "certificate": "A service has read its certificates or revocation lists again. `file` and `expires` are those of "
    "the certificate that expires first, `count` is the number of certificates.",
    "certificate-expires": "Certificates expire soon; written once a day. `file` is the first of them, `days` what "
    "is left (negative if it has expired), `count` their number.",
    "stop": "The daemon stops. `connections` are open.",
    "descriptors": "The limit of file descriptors is low. `advice` is what to change.",
    "pause": "The descriptors of a `service`, or of all services, are used up. New clients wait to be accepted.",
    "resume": "No service is paused any more.",
    "lost": "Log lines could not be written.",
    "log": "A message of Twisted or of a handler that runs in the daemon.",
    "zygote": "The process that starts the launchers was started or has ended.",
    "blind": "The kernel does not count the bytes of the connections of handlers: idle_timeout and "
    "first_byte_timeout have no effect.",
    "launcher": "The launcher of a service was started or has ended.",
    "accept": "A connection was accepted. The line of a connection that waits for a handshake, a process or a host "
    "name has the time at which that is complete.",
    "end": "A connection has ended. `in` and `out` are the bytes on the wire.",
    "fail": "A connection could not be served.",
    "output": "A line that a handler has written to its standard error (stderr=log).",
    "dropped": "Output of handlers beyond stderr_rate (`rule`) was dropped since the last such line.",
    "module-changed": "A Python module that a service has imported has changed on disk. Written at a reload; `text` "
    "has the command that imports it anew.",
    "request": "An HTTP server has responded to a request (access_log=). `bytes` are those of the content. The status "
    "is 499 if the client has disconnected before the response; an invalid request has dashes.",
    "refuse": "Clients of a service were refused for one reason since the last such line, at most one line per second.",
}

#: What each field means, by name.
FIELDS: Mapping[str, str] = {
    "added": "New services.",
    "address": "Address of a listening socket.",
    "advice": "What to change.",
    "agent": "User-Agent field of a request, a dash without one.",
    "broken": "Services that can't be served.",
    "bytes": "Bytes of handler output that were dropped.",
    "changed": "Services with other options.",
    "closed": "Sockets that were closed.",
    "connections": "Open connections.",
    "count": "In `accept` and `end` lines the open connections of the service after the event; else the number of "
    "refused clients, or of certificates.",
    "datagrams": "Datagrams received in all.",
    "days": "Days until a certificate expires.",
    "exit": "Exit status of the process, or the signal that ended it.",
    "expires": "Time at which a certificate expires.",
    "file": "File of a certificate.",
    "host": "Host name of the client (resolve=yes), or of a rule.",
    "id": "Number of the connection since the start of the daemon.",
    "ignored": "Datagrams that were not answered because of the rules.",
    "in": "Bytes received from the client.",
    "level": "Level of a message.",
    "limit": "Limit of file descriptors.",
    "lines": "Number of lines that were dropped or lost.",
    "listeners": "Open sockets.",
    "message": "Text of a message.",
    "method": "Method of a request.",
    "name": "Name of an inherited socket.",
    "opened": "Sockets that were opened.",
    "origin": "Origin of a socket that was open before: `activation` (a socket unit) or `store` (the old daemon, "
    "through the file descriptor store).",
    "out": "Bytes sent to the client.",
    "path": "Path of the control socket.",
    "peer": "Address of the client; in `refuse` lines of the first client. A client behind a proxy has the address "
    "in the PROXY protocol header.",
    "pid": "ID of the process that serves, or that was started.",
    "problems": "Number of mistakes.",
    "reactor": "Event loop of the daemon.",
    "reason": "Cause. `end` and `refuse` lines have one of the words below.",
    "referer": "Referer field of a request, a dash without one.",
    "removed": "Services that are not in the file any more.",
    "retry": "Seconds until the next attempt.",
    "rule": "Rule that decided for the first client, with its place in the file.",
    "runs": "Handler: the built-in, the program, or the Python object.",
    "seconds": "Duration. For a connection it begins with the accept.",
    "service": "Name and protocol of the service.",
    "services": "Services that are served.",
    "state": "State of a launcher (`ready`, `lost`, or `idle`: it has ended because there were no clients, and the "
    "next connection starts it again), of the zygote, or of the control socket (`reopened`).",
    "status": "Status code of a response.",
    "subject": "Subject of the client's certificate (RFC 4514), a dash without one; for services with tls_client_ca.",
    "system": "System time of the process in seconds.",
    "target": "Path and query of a request; other than printable ASCII characters are written as `\\x` and two digits.",
    "text": "Output of a handler, or a message.",
    "tls": "TLS version, a dash if the handshake failed.",
    "user": "User time of the process in seconds.",
    "version": "Version of HTTP.",
}

#: The reasons of `end` lines.
END_REASONS: Mapping[str, str] = {
    "done": "Closed in good order. A client that closes without a TLS closure alert counts as well: many omit it.",
    "lost": "Reset, or a network error.",
    "aborted": "Aborted by the service.",
    "error": "An exception in the service.",
    "failed": "The connection could not be served; a `fail` line has the cause.",
    "handshake": "The TLS handshake failed; a `fail` line has the cause, unless the client closed without sending "
    "anything.",
    "killed": "A signal that the daemon did not send ended the process.",
    "unknown": "The launcher was lost. The process may still run.",
    "kicked": "`svcctl kick` ended it.",
    "timeout": "The client sent no service name to tcpmux.",
    "shutdown": "The daemon stopped.",
    "evicted": "An idle or slow connection of HTTP, or in a TLS handshake, made room for another one.",
    "idle": "idle_timeout passed.",
    "first_byte": "first_byte_timeout passed.",
    "session": "session_timeout passed.",
    "request": "request_timeout passed (HTTP).",
    "keepalive": "keepalive_timeout passed (HTTP).",
    "send": "send_timeout passed (HTTP).",
}

#: The reasons of `refuse` lines.
REFUSE_REASONS: Mapping[str, str] = {
    "address": "only_from or no_access.",
    "time": "access_times.",
    "load": "max_load.",
    "global": "`--max-connections`.",
    "descriptors": "The file descriptors are used up.",
    "instances": "instances.",
    "per_source": "per_source.",
    "rate": "rate.",
    "per_source_rate": "per_source_rate.",
    "name": "The host name of the client, or the lack of a confirmed one.",
    "service": "The service itself accepts no connection.",
    "proxy": "A proxy sent no valid PROXY protocol header. `peer` is the proxy, `rule` what is wrong.",
    "port": "The source port of the datagram is that of a service.",
}
