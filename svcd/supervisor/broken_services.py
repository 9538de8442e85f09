"""Services that can't be served as configured: the errors of each, and the time of its next attempt."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from svcd.errors import ConfigError, FaultError, ListenError, ListenErrors
from svcd.host.path_watch import PathWatcher
from svcd.log.events import BROKEN, RECOVERED, log_event
from svcd.model import ip_literal
from svcd.sockets.listening import with_owner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from twisted.internet.interfaces import IDelayedCall

    from svcd.config.endpoints import Endpoint
    from svcd.config.service import Service
    from svcd.interfaces import FdReactor
    from svcd.model import ConfigProblem

__all__ = ["BrokenService", "BrokenServices", "failure_of"]

#: First and longest time between two attempts to serve a service, in seconds; the time doubles after each attempt.
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 30.0
#: The number of services in one report whose address owners are searched for (each search reads /proc).
_MAX_SEARCHES = 16
#: How long an answer waits for the search of address owners, in seconds.
_NAMING_SECONDS = 3.0
#: Delay after a change, in seconds: several events belong together, such as creating, writing and closing a file.
_SETTLE_SECONDS = 0.2


@dataclass(slots=True)
class BrokenService:
    """A service that can't be served as its line in the services file requires.

    Attributes:
        service: the service, as configured.
        endpoints: the endpoints of its sockets, as far as they are known.
        errors: the reasons; never empty.
        since: the time since which it is broken, by the reactor's clock.
        pause: the time until the next attempt, in seconds.
        due: the time of the next attempt, by the reactor's clock.
    """

    service: Service
    endpoints: tuple[Endpoint, ...]
    errors: tuple[ConfigProblem | ListenError, ...]
    since: float = 0.0
    pause: float = _FIRST_PAUSE
    due: float = 0.0
    #: The texts of the errors before the owners of addresses were added.
    found: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.found = tuple(map(str, self.errors))

    @property
    def seeks_owner(self) -> bool:
        """Whether the process that has one of its addresses has yet to be searched for."""
        errors = [error for error in self.errors if isinstance(error, ListenError)]
        return any(error.number == errno.EADDRINUSE and not error.owner_sought for error in errors)

    def with_owners(self) -> tuple[ConfigProblem | ListenError, ...]:
        """Return the errors, with the processes that have the addresses. This may block: it reads /proc."""
        places = {endpoint.address: endpoint for endpoint in self.endpoints}
        return tuple(
            with_owner(error, places[error.address])
            if isinstance(error, ListenError) and error.address in places
            else error
            for error in self.errors
        )

    @property
    def reason(self) -> str:
        """The errors in one line."""
        return "; ".join(map(str, self.errors))

    @property
    def pending(self) -> bool:
        """Whether an error will probably end by itself soon, such as an import in progress."""
        return any(not isinstance(error, ListenError) and error.pending for error in self.errors)

    @property
    def paths(self) -> Iterator[str]:
        """The paths of files whose change may repair the service."""
        for error in self.errors:
            if not isinstance(error, ListenError):
                if error.path:
                    yield error.path
            elif self.service.socket_file:
                yield self.service.socket_file

    @property
    def lacks_address(self) -> bool:
        """Whether a new address of the machine, or of an interface in bind=, may repair the service."""
        return not all(map(ip_literal, self.service.options.bind)) or any(
            error.number == errno.EADDRNOTAVAIL
            if isinstance(error, ListenError)
            else error.location == self._bind_place
            for error in self.errors
        )

    @property
    def unanswered_names(self) -> Iterator[str]:
        """The host and interface names in bind=, if one of them has no address."""
        place = self._bind_place
        if any(not isinstance(error, ListenError) and error.location == place for error in self.errors):
            yield from (name for name in self.service.options.bind if not ip_literal(name))

    @property
    def lacks_socket(self) -> bool:
        """Whether another process has one of its addresses."""
        return any(isinstance(error, ListenError) and error.number == errno.EADDRINUSE for error in self.errors)

    @property
    def _bind_place(self) -> object:
        return self.service.locations.get("bind")


class BrokenServices:
    """The broken services of a daemon.

    Args:
        reactor: watches descriptors and time.

    Attributes:
        retry: called with the ids of services to try again; None before start() and after stop().
        in_thread: runs a blocking call in a thread; None to run it in the reactor's thread.
    """

    _log = Logger()

    def __init__(self, reactor: FdReactor) -> None:
        self._reactor = reactor
        self._services: dict[str, BrokenService] = {}
        self._timer: IDelayedCall | None = None
        self._paths = PathWatcher(reactor, self._paths_changed)
        self.retry: Callable[[Sequence[str]], object] | None = None
        self.in_thread: Callable[[Callable[[], Any]], Deferred[Any]] | None = None
        self._searches = 0
        self._waiting: list[Deferred[None]] = []

    def __getitem__(self, service_id: str) -> BrokenService:
        """Return the broken service with this id."""
        return self._services[service_id]

    def get(self, service_id: str) -> BrokenService | None:
        """Return the broken service with this id; None if that service is not broken."""
        return self._services.get(service_id)

    def __contains__(self, service_id: object) -> bool:
        """Return whether the service with this id is broken."""
        return service_id in self._services

    def __iter__(self) -> Iterator[BrokenService]:
        """Iterate over the broken services."""
        return iter(self._services.values())

    def __len__(self) -> int:
        """Return the number of broken services."""
        return len(self._services)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the broken services."""
        return tuple(self._services)

    @property
    def unanswered_names(self) -> frozenset[str]:
        """The names in bind= of the services that are broken because one of these names has no address."""
        return frozenset(name for each in self for name in each.unanswered_names)

    def update(self, found: Mapping[str, BrokenService], tried: Iterable[str] | None = None) -> None:
        """Set which services are broken now; log those that have broken, have other errors or have recovered.

        Args:
            found: the broken services, by id.
            tried: the ids of the services that were tried; those that are not in `found` have recovered. None for all
                services.
        """
        now = self._reactor.seconds()
        for service_id in list(self._services) if tried is None else list(tried):
            before = self._services.get(service_id)
            if before is not None and service_id not in found:
                del self._services[service_id]
                log_event(self._log, RECOVERED, service=service_id, seconds=round(now - before.since, 3))
        fresh = []
        for service_id, broken in found.items():
            before = self._services.get(service_id)
            broken.since = now if before is None else before.since
            if before is not None and before.service == broken.service and not broken.pending:
                broken.pause = min(before.pause * 2, _LONGEST_PAUSE)
            broken.due = now + broken.pause
            self._services[service_id] = broken
            if before is not None and before.found == broken.found:
                broken.errors = before.errors
            else:
                fresh.append(broken)
        self._report(fresh)
        if self.retry is not None:
            self._schedule()

    def _report(self, services: Sequence[BrokenService]) -> None:
        """Log broken services, the first _MAX_SEARCHES of them with the processes that have their addresses."""

        def find() -> list[tuple[ConfigProblem | ListenError, ...]]:
            return [each.with_owners() if n < _MAX_SEARCHES else each.errors for n, each in enumerate(services)]

        def report(found: list[tuple[ConfigProblem | ListenError, ...]]) -> None:
            for broken, errors in zip(services, found, strict=True):
                broken.errors = errors
                log_event(self._log, BROKEN, service=broken.service.id, reason=broken.reason, retry=broken.pause)

        if self.in_thread is None or not any(each.seeks_owner for each in services):
            report([each.errors for each in services])
        else:
            self._searches += 1
            found = self.in_thread(find).addCallback(report)
            found.addErrback(lambda _failure: report([b.errors for b in services])).addBoth(self._search_ended)

    def _search_ended(self, _result: object) -> None:
        self._searches -= 1
        if not self._searches:
            self._end_waiting()

    def _end_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)

    def when_named(self) -> Deferred[None]:
        """Return a Deferred that fires when the search for address owners ends, after _NAMING_SECONDS at the latest."""
        if not self._searches:
            return succeed(None)
        named: Deferred[None] = Deferred()
        self._waiting.append(named)
        late = self._reactor.callLater(_NAMING_SECONDS, self._give_up_naming, named)
        return named.addCallback(lambda _result: late.cancel() if late.active() else None)

    def _give_up_naming(self, named: Deferred[None]) -> None:
        self._waiting.remove(named)
        named.callback(None)

    def named(self, errors: Iterable[ConfigProblem | ListenError]) -> list[ConfigProblem | ListenError]:
        """Return the errors, with the processes that have the addresses where these have been found."""
        known = {
            (error.service, error.address): error
            for each in self
            for error in each.errors
            if isinstance(error, ListenError)
        }
        return [
            known.get((error.service, error.address), error) if isinstance(error, ListenError) else error
            for error in errors
        ]

    def postpone(self, ids: Iterable[str]) -> None:
        """Double the pause of broken services and schedule their next attempt after it."""
        for each in [self._services[name] for name in ids if name in self._services]:
            each.pause = min(each.pause * 2, _LONGEST_PAUSE)
            each.due = self._reactor.seconds() + each.pause
        if self.retry is not None:
            self._schedule()

    def remove(self, service_id: str) -> BrokenService | None:
        """Remove a service that is no longer configured; return it, or None if it was not broken."""
        return self._services.pop(service_id, None)

    def start(self, retry: Callable[[Sequence[str]], object]) -> None:
        """Begin to try broken services again.

        Args:
            retry: called with the ids of services to try again; update() must follow.
        """
        self.retry = retry
        self._schedule()

    def stop(self) -> None:
        """Stop trying broken services again."""
        self.retry = None
        self._paths.stop()
        self._end_waiting()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def addresses_changed(self) -> None:
        """Schedule an attempt for the services that lack an address."""
        self._retry_soon([each for each in self if each.lacks_address])

    def socket_freed(self) -> None:
        """Schedule an attempt for the services whose address another process has: such a process has exited."""
        self._retry_soon([each for each in self if each.lacks_socket])

    def _paths_changed(self, paths: frozenset[str]) -> None:
        self._retry_soon([each for each in self if not paths.isdisjoint(each.paths)])

    def _retry_soon(self, services: Iterable[BrokenService]) -> None:
        """Schedule an attempt after _SETTLE_SECONDS; further attempts start at _FIRST_PAUSE again."""
        due = self._reactor.seconds() + _SETTLE_SECONDS
        for each in services:
            each.pause = _FIRST_PAUSE / 2
            each.due = min(each.due, due)
        if self.retry is not None:
            self._schedule()

    def _schedule(self) -> None:
        self._paths.watch([path for each in self for path in each.paths])
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._services:
            pause = min(each.due for each in self) - self._reactor.seconds()
            self._timer = self._reactor.callLater(max(pause, 0.0), self._try)

    def _try(self) -> None:
        self._timer = None
        now = self._reactor.seconds()
        due = [name for name, each in self._services.items() if each.due <= now]
        if self.retry is not None and due:
            self.retry(due)
        else:
            self._schedule()


def failure_of(broken: Iterable[BrokenService], *, strict: bool) -> ConfigError | ListenErrors:
    """Return the error of a start or reload that fails: no service, or with `strict` not every service, is served.

    The reasons are in the order of the lines of the services.
    """
    services = sorted(broken, key=lambda each: (each.service.location.file, each.service.location.line))
    errors = [error for each in services for error in each.errors]
    problems = [error for error in errors if not isinstance(error, ListenError)]
    if len(problems) == len(errors):
        return FaultError(problems) if strict else ConfigError(problems)

    def with_owners() -> ListenErrors:
        found = [each.with_owners() if n < _MAX_SEARCHES else each.errors for n, each in enumerate(services)]
        return ListenErrors([error for each in found for error in each])

    return ListenErrors(errors, with_owners if any(each.seeks_owner for each in services) else None)
