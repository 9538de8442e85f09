"""Watcher of certificate files: puts changed files into use, renews ticket keys, and warns of expiry."""

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

__all__ = ["CHECK_SECONDS", "CertificateWatcher"]

#: Interval of file checks, in seconds. stat(2) of each path detects changed symbolic links, and takes microseconds.
CHECK_SECONDS = 5.0
#: Interval at which session tickets get new keys, in seconds.
_RENEW_SECONDS = 12 * 3600.0
_DAY = 86_400.0


@dataclass(slots=True)
class _FileState:
    """State of a service's files that differs from the one in use.

    Attributes:
        latest: the result of the last check.
        tried: the state in which they were last read.
    """

    latest: Mapping[str, Hashable] = field(default_factory=dict)
    tried: Mapping[str, Hashable] = field(default_factory=dict)


class CertificateWatcher:
    """Periodic check of the certificate files of all services that have TLS.

    Args:
        clock: the reactor.
        servers: returns the TLS of the running services.
        changed: called when the certificates of a service have changed.
        wall_clock: returns the time of day, in seconds since 1970.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        servers: Callable[[], Sequence[ServerTls]],
        changed: Callable[[], None],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._servers = servers
        self._changed = changed
        self._wall_clock = wall_clock
        self._states: dict[ServerTls, _FileState] = {}
        self._known: set[ServerTls] = set()
        # Unreadable files that were logged in this check.
        self._reported: set[str] = set()
        self._renewed = self._warned = 0.0
        self._call: IDelayedCall | None = None

    def start(self) -> None:
        """Start checking; must be called after the daemon has changed its user."""
        self._renewed = self._warned = self._clock.seconds()
        self._check()

    def stop(self) -> None:
        """Stop checking."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def check_now(self) -> None:
        """Put changed files into use without waiting until they stop changing.

        Called for an explicit reload, and after services have been added or removed.
        """
        self._check_all(settled=True)
        self._schedule_check()

    def _schedule_check(self) -> None:
        # Without TLS no timer is needed.
        if self._call is None and self._servers():
            self._call = self._clock.callLater(CHECK_SECONDS, self._check)

    def _check(self) -> None:
        self._call = None
        self._schedule_check()
        self._check_all(settled=False)
        now = self._clock.seconds()
        if now - self._renewed >= _RENEW_SECONDS:
            self._renewed = now
            for server in self._servers():
                server.renew_ticket_keys()
        if now - self._warned >= _DAY:
            self._warned = now
            for server in self._servers():
                self._warn_expiry(server)

    def _check_all(self, *, settled: bool) -> None:
        servers = list(self._servers())
        self._reported.clear()
        self._states = {server: self._states.get(server) or _FileState() for server in servers}
        changed = [server for server in servers if self._check_server(server, self._states[server], settled=settled)]
        for server in changed:
            self._warn_expiry(server)
        if changed:
            self._changed()
        for server in [server for server in servers if server not in self._known]:
            self._add(server)
        self._known.intersection_update(servers)

    def _check_server(self, server: ServerTls, state: _FileState, *, settled: bool) -> bool:
        """Check the files of a service; return whether its certificates have changed."""
        file_stats = server.current_file_stats()
        previous, state.latest = state.latest, file_stats
        if file_stats == server.file_stats:
            state.tried = {}
            return False
        # A certificate and its key may be two files, and writing takes some time: wait until two checks agree.
        if file_stats == state.tried or not (settled or file_stats == previous):
            return False
        state.tried = file_stats
        return self._reload(server, file_stats)

    def _reload(self, server: ServerTls, file_stats: Mapping[str, Hashable]) -> bool:
        error = server.access_error(file_stats)
        if error is not None:
            self._report_unreadable(error)
            return False
        changed, problems = server.reload()
        for problem in problems:
            log_event(self._log, PROBLEM, text=f"{problem}; {server.service.id} keeps its previous certificates")
        if changed:
            first = server.certificates[0]
            values = {"service": server.service.id, "file": first.file, "count": len(server.certificates)}
            log_event(self._log, CERTIFICATE, expires=_moment(first.expires), **values)
        return changed

    def _add(self, server: ServerTls) -> None:
        """Check a new service: whether the daemon's user may read its files again, and their expiry."""
        self._known.add(server)
        error = server.access_error()
        if error is not None:
            self._report_unreadable(error)
        self._warn_expiry(server)

    def _report_unreadable(self, error: OSError) -> None:
        # Several services may have the same file.
        if error.filename in self._reported:
            return
        self._reported.add(error.filename)
        text = (
            f"{error.filename} can't be read again ({error.strerror}): the certificate in use stays until a restart; "
            "make the file readable for the user that svcd runs as, or restart svcd after a renewal"
        )
        log_event(self._log, PROBLEM, text=text)

    def _warn_expiry(self, server: ServerTls) -> None:
        expiring = server.expiring
        if expiring:
            days = int((expiring[0].expires - self._wall_clock()) // _DAY)
            log_event(
                self._log,
                CERTIFICATE_EXPIRES,
                service=server.service.id,
                file=expiring[0].file,
                expires=_moment(expiring[0].expires),
                days=days,
                count=len(expiring),
            )


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
