"""The access log of an HTTP service: a line for each request, in the log of the daemon or in a file."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from twisted.internet.address import IPv4Address, IPv6Address

from svcd.addresses import short_address, unmapped
from svcd.log.events import REQUEST
from svcd.wire.access_line import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IAddress

    from svcd.log.writer import LogWriter
    from svcd.wire.access_line import RequestFacts
    from svcd.wire.http_request import HttpRequest

__all__ = ["CLIENT_GONE", "AccessLog", "EventFormat"]

#: The status in the line of a request whose client has disconnected before the response, as in the logs of nginx.
CLIENT_GONE = 499
#: The number of different requests whose texts are kept, and the longest text that is kept, in characters.
_MOST_TEXTS = 512
_MOST_TEXT = 1024


class _TextFormat(Protocol):
    """Format of the lines of an AccessLog."""

    def request(self, facts: RequestFacts, /) -> str:
        """Return the text of a request, for line()."""
        ...

    def line(self, request: str, peer: str, now: float, result: tuple[int, int, float], /) -> str:
        """Return a line; empty for none."""
        ...


class EventFormat:
    """Lines of the event `request`, in the format of the log of the daemon.

    Args:
        log_writer: the writer of this log.
        service: the id of the service.
    """

    def __init__(self, log_writer: LogWriter, service: str) -> None:
        self._writer = log_writer
        self._service = service

    def request(self, facts: RequestFacts) -> str:
        """Return the template of the line of a request."""
        method, target, version, referer, agent = facts
        constants = {
            "service": self._service,
            "method": method,
            "target": printable(target),
            "version": version,
            "referer": printable(referer),
            "agent": printable(agent),
        }
        return self._writer.template(REQUEST, constants, ("peer", "status", "bytes", "seconds"))

    def line(self, request: str, peer: str, now: float, result: tuple[int, int, float]) -> str:  # noqa: ARG002 - as all
        """Return a line without its time, which the writer adds; empty if lines of this level are not written."""
        if not self._writer.is_logged(REQUEST.level):
            return ""
        status, size, seconds = result
        return request % {"peer": self._writer.quoted(peer), "status": status, "bytes": size, "seconds": seconds}


class AccessLog:
    """The access log of a service.

    Args:
        log_writer: the writer of the log of the daemon, or of a file.
        line_format: the format of lines.
        anonymize: whether to shorten clients' addresses.
        now: returns the time in seconds since 1970.
    """

    def __init__(
        self,
        log_writer: LogWriter,
        line_format: _TextFormat,
        now: Callable[[], float] = time.time,
        *,
        anonymize: bool = False,
    ) -> None:
        self._writer = log_writer
        self._format = line_format
        self._anonymize = anonymize
        self._now = now
        self._texts: dict[RequestFacts, str] = {}

    def write(self, request: HttpRequest | None, peer: IAddress, result: tuple[int, int, float]) -> None:
        """Write the line of a request.

        Args:
            request: the request; None if it was invalid.
            peer: the address of the client.
            result: the status, or CLIENT_GONE; the number of bytes of the response's content that were sent; the time
                from the request to the end of the response, in seconds.
        """
        facts: RequestFacts = ("-", b"-", "-", b"-", b"-")
        if request is not None:
            get = request.fields.get
            facts = request.method, request.target, request.version, get(b"referer", b"-"), get(b"user-agent", b"-")
        text = self._texts.get(facts)
        if text is None:
            text = self._format.request(facts)
            if text and len(text) <= _MOST_TEXT:
                if len(self._texts) >= _MOST_TEXTS:
                    del self._texts[next(iter(self._texts))]
                self._texts[facts] = text
        line = self._format.line(text, self._host(peer), self._now(), result)
        if line:
            self._writer.write(line)

    def _host(self, peer: IAddress) -> str:
        if not isinstance(peer, IPv4Address | IPv6Address):
            return "local"
        host = peer.host
        if self._anonymize:
            return short_address(host)
        return unmapped(host) if ":" in host else host
