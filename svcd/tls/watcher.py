"""The watch over services' certificates: what changes on disk comes into use, and who expires soon is told of."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from twisted.logger import Logger

from svcd.log.events import CERTIFICATE, CERTIFICATE_EXPIRES, PROBLEM, log_event

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    from svcd.tls.certificates import ServerTls

__all__ = ["LOOK_SECONDS", "CertificateWatcher"]

#: How often files are looked at. Names and times alone: this sees links that are switched, and costs microseconds.
LOOK_SECONDS = 5.0
#: How often session tickets get new keys.
_RENEW_SECONDS = 12 * 3600.0
_DAY = 86_400.0


@dataclass(slots=True)
class _Seen:
    """What was seen of a service's files, where it is not what is in use.

    Attributes:
        latest: how they were the last time.
        done: how they were when they could not be read.
    """

    latest: Mapping[str, Hashable] = field(default_factory=dict)
    done: Mapping[str, Hashable] = field(default_factory=dict)


class CertificateWatcher:
    """Looks at the files of all services that have TLS.

    Args:
        clock: the reactor.
        servers: asked for the TLS of the services that run.
        changed: called when one has other certificates.
        wall: the time of day, in seconds since 1970.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        servers: Callable[[], Sequence[ServerTls]],
        changed: Callable[[], None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._servers = servers
        self._changed = changed
        self._wall = wall
        self._seen: dict[ServerTls, _Seen] = {}
        self._met: set[ServerTls] = set()
        # Files of which the log said in the last look that they can't be read.
        self._told: set[str] = set()
        self._renewed = self._warned = 0.0
        self._call: IDelayedCall | None = None

    def start(self) -> None:
        """Begin, once the daemon is who it will be."""
        self._renewed = self._warned = self._clock.seconds()
        self._look()

    def stop(self) -> None:
        """No more."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def look_now(self) -> None:
        """Take in what has changed without waiting until nothing changes any more: for who says that all is there.

        To be called as well when there are other services.
        """
        self._look_at_all(settled=True)
        self._look_later()

    def _look_later(self) -> None:
        # Without TLS nobody is woken.
        if self._call is None and self._servers():
            self._call = self._clock.callLater(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._call = None
        self._look_later()
        self._look_at_all(settled=False)
        now = self._clock.seconds()
        if now - self._renewed >= _RENEW_SECONDS:
            self._renewed = now
            for server in self._servers():
                server.renew()
        if now - self._warned >= _DAY:
            self._warned = now
            for server in self._servers():
                self._warn(server)

    def _look_at_all(self, *, settled: bool) -> None:
        servers = list(self._servers())
        self._told.clear()
        self._seen = {server: self._seen.get(server) or _Seen() for server in servers}
        changed = [server for server in servers if self._look_at(server, self._seen[server], settled=settled)]
        for server in changed:
            self._warn(server)
        if changed:
            self._changed()
        for server in [server for server in servers if server not in self._met]:
            self._meet(server)
        self._met.intersection_update(servers)

    def _look_at(self, server: ServerTls, seen: _Seen, *, settled: bool) -> bool:
        """Whether a service has other certificates now."""
        stamps = server.stamps_now()
        before, seen.latest = seen.latest, stamps
        if stamps == server.stamps:
            seen.done = {}
            return False
        # A certificate and its key are two files, and a file takes a while to be written: not before it is over.
        if stamps == seen.done or not (settled or stamps == before):
            return False
        seen.done = stamps
        return self._read(server, stamps)

    def _read(self, server: ServerTls, stamps: Mapping[str, Hashable]) -> bool:
        error = server.denied(stamps)
        if error is not None:
            self._tell_denied(error)
            return False
        changed, problems = server.refresh()
        for problem in problems:
            log_event(self._log, PROBLEM, text=f"{problem}; {server.service.id} goes on with what it had")
        if changed:
            first = server.held[0]
            values = {"service": server.service.id, "file": first.file, "count": len(server.held)}
            log_event(self._log, CERTIFICATE, expires=_moment(first.expires), **values)
        return changed

    def _meet(self, server: ServerTls) -> None:
        """See for the first time whether a service's files can be read again, by who the daemon is now, and how old."""
        self._met.add(server)
        error = server.denied()
        if error is not None:
            self._tell_denied(error)
        self._warn(server)

    def _tell_denied(self, error: OSError) -> None:
        # Several services may have the same file.
        if error.filename in self._told:
            return
        self._told.add(error.filename)
        text = (
            f"{error.filename} can't be read again ({error.strerror}): what is in use stays until svcd is restarted; "
            "let the user that svcd runs as read it, or restart svcd when there is a new one"
        )
        log_event(self._log, PROBLEM, text=text)

    def _warn(self, server: ServerTls) -> None:
        soon = server.ending
        if soon:
            days = int((soon[0].expires - self._wall()) // _DAY)
            log_event(
                self._log,
                CERTIFICATE_EXPIRES,
                service=server.service.id,
                file=soon[0].file,
                expires=_moment(soon[0].expires),
                days=days,
                count=len(soon),
            )


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
