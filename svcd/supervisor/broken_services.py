"""Services that can't be served as the services file says: what each lacks, and when it is tried again."""

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

#: Seconds until a service is tried again: at first, and at most; each pause is twice the last.
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 30.0
#: So many services at most have the processes looked for that have their addresses, each time.
_MAX_SOUGHT = 16
#: An answer waits so long for the names of processes that have addresses, in seconds.
_NAMING_SECONDS = 3.0
#: Several events come together, such as a file that is created, written and closed, in seconds.
_SETTLE_SECONDS = 0.2


@dataclass(slots=True)
class BrokenService:
    """A service that can't be served as its line says.

    Attributes:
        service: the service, as the file has it.
        endpoints: the sockets that it should have, as far as they are known.
        errors: what it lacks; never empty.
        since: when it broke, by the reactor's clock.
        pause: how long the next attempt is waited for, in seconds.
        due: when it is tried again, by the reactor's clock.
    """

    service: Service
    endpoints: tuple[Endpoint, ...]
    errors: tuple[ConfigProblem | ListenError, ...]
    since: float = 0.0
    pause: float = _FIRST_PAUSE
    due: float = 0.0
    #: The errors as they were found, before the processes were named that have addresses.
    found: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.found = tuple(map(str, self.errors))

    @property
    def seeks_owner(self) -> bool:
        """Whether the process is to be looked for that has one of its addresses."""
        errors = [error for error in self.errors if isinstance(error, ListenError)]
        return any(error.number == errno.EADDRINUSE and not error.owner_sought for error in errors)

    def with_owners(self) -> tuple[ConfigProblem | ListenError, ...]:
        """Return the errors, with the processes that have addresses; this takes a while."""
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
        """Whether what it lacks will come by itself."""
        return any(not isinstance(error, ListenError) and error.pending for error in self.errors)

    @property
    def paths(self) -> Iterator[str]:
        """The files that may mend it."""
        for error in self.errors:
            if not isinstance(error, ListenError):
                if error.path:
                    yield error.path
            elif self.service.socket_file:
                yield self.service.socket_file

    @property
    def lacks_address(self) -> bool:
        """Whether another address of the machine, or of an interface of bind=, may mend it."""
        return not all(map(ip_literal, self.service.options.bind)) or any(
            error.number == errno.EADDRNOTAVAIL
            if isinstance(error, ListenError)
            else error.location == self._bind_place
            for error in self.errors
        )

    @property
    def unanswered_names(self) -> Iterator[str]:
        """The names of its bind=, if one of them leads to no address."""
        place = self._bind_place
        if any(not isinstance(error, ListenError) and error.location == place for error in self.errors):
            yield from (name for name in self.service.options.bind if not ip_literal(name))

    @property
    def lacks_socket(self) -> bool:
        """Whether another process has an address that it asks for."""
        return any(isinstance(error, ListenError) and error.number == errno.EADDRINUSE for error in self.errors)

    @property
    def _bind_place(self) -> object:
        return self.service.locations.get("bind")


class BrokenServices:
    """The broken services of a daemon.

    Args:
        reactor: watches descriptors and time.

    Attributes:
        retry: tries services again, by their ids; None while nothing is to be tried.
        in_thread: calls what may take a while; None to call it at once.
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
        self._awaiting: list[Deferred[None]] = []

    def __getitem__(self, service_id: str) -> BrokenService:
        """Return a service that is broken."""
        return self._services[service_id]

    def get(self, service_id: str) -> BrokenService | None:
        """Return a service if it is broken, else None."""
        return self._services.get(service_id)

    def __contains__(self, service_id: object) -> bool:
        """Whether a service is broken."""
        return service_id in self._services

    def __iter__(self) -> Iterator[BrokenService]:
        """Iterate over all that are broken."""
        return iter(self._services.values())

    def __len__(self) -> int:
        """How many are broken."""
        return len(self._services)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all that are broken."""
        return tuple(self._services)

    @property
    def unanswered_names(self) -> frozenset[str]:
        """The names of bind= of services that lack an address since a name leads to none."""
        return frozenset(name for each in self for name in each.unanswered_names)

    def update(self, found: Mapping[str, BrokenService], tried: Iterable[str] | None = None) -> None:
        """Note which services are broken now; a service that breaks, breaks otherwise or recovers is logged.

        Args:
            found: the services that are broken, by id.
            tried: the ids of the services that were tried, of which all but those in `found` have recovered; None for
                all.
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
            self._wait()

    def _report(self, services: Sequence[BrokenService]) -> None:
        """Log services that are broken, the first of them with the processes that have their addresses."""

        def find() -> list[tuple[ConfigProblem | ListenError, ...]]:
            return [each.with_owners() if n < _MAX_SOUGHT else each.errors for n, each in enumerate(services)]

        def report(found: list[tuple[ConfigProblem | ListenError, ...]]) -> None:
            for broken, errors in zip(services, found, strict=True):
                broken.errors = errors
                log_event(self._log, BROKEN, service=broken.service.id, reason=broken.reason, retry=broken.pause)

        if self.in_thread is None or not any(each.seeks_owner for each in services):
            report([each.errors for each in services])
        else:
            self._searches += 1
            found = self.in_thread(find).addCallback(report)
            found.addErrback(lambda _failure: report([b.errors for b in services])).addBoth(self._searched)

    def _searched(self, _result: object) -> None:
        self._searches -= 1
        if not self._searches:
            self._answer_all()

    def _answer_all(self) -> None:
        awaiting, self._awaiting = self._awaiting, []
        for each in awaiting:
            each.callback(None)

    def when_named(self) -> Deferred[None]:
        """Return a Deferred that fires when the processes that have addresses are named, or were sought for long."""
        if not self._searches:
            return succeed(None)
        named: Deferred[None] = Deferred()
        self._awaiting.append(named)
        late = self._reactor.callLater(_NAMING_SECONDS, self._give_up_naming, named)
        return named.addCallback(lambda _result: late.cancel() if late.active() else None)

    def _give_up_naming(self, named: Deferred[None]) -> None:
        self._awaiting.remove(named)
        named.callback(None)

    def named(self, errors: Iterable[ConfigProblem | ListenError]) -> list[ConfigProblem | ListenError]:
        """Return errors, with the processes that have addresses as far as they have been found."""
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
        """Try services again after their next pause."""
        for each in [self._services[name] for name in ids if name in self._services]:
            each.pause = min(each.pause * 2, _LONGEST_PAUSE)
            each.due = self._reactor.seconds() + each.pause
        if self.retry is not None:
            self._wait()

    def forget(self, service_id: str) -> BrokenService | None:
        """Remove a service that is no longer wanted; return it, or None if it was not broken."""
        return self._services.pop(service_id, None)

    def start(self, retry: Callable[[Sequence[str]], object]) -> None:
        """Try broken services again from now on.

        Args:
            retry: tries services, by their ids, and calls update().
        """
        self.retry = retry
        self._wait()

    def stop(self) -> None:
        """Try nothing any more."""
        self.retry = None
        self._paths.stop()
        self._answer_all()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def addresses_changed(self) -> None:
        """Try the services that lack an address."""
        self._hasten([each for each in self if each.lacks_address])

    def socket_freed(self) -> None:
        """Try the services whose address another process has: one that had a socket has ended."""
        self._hasten([each for each in self if each.lacks_socket])

    def _paths_changed(self, paths: frozenset[str]) -> None:
        self._hasten([each for each in self if not paths.isdisjoint(each.paths)])

    def _hasten(self, services: Iterable[BrokenService]) -> None:
        """Try services soon, and if that fails as often as at first."""
        due = self._reactor.seconds() + _SETTLE_SECONDS
        for each in services:
            each.pause = _FIRST_PAUSE / 2
            each.due = min(each.due, due)
        if self.retry is not None:
            self._wait()

    def _wait(self) -> None:
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
            self._wait()


def failure_of(broken: Iterable[BrokenService], *, strict: bool) -> ConfigError | ListenErrors:
    """Return the error of a start or a reload that serves nothing, or with `strict` not everything."""
    services = list(broken)
    errors = [error for each in services for error in each.errors]
    problems = [error for error in errors if not isinstance(error, ListenError)]
    if len(problems) == len(errors):
        return FaultError(problems) if strict else ConfigError(problems)

    def with_owners() -> ListenErrors:
        found = [each.with_owners() if n < _MAX_SOUGHT else each.errors for n, each in enumerate(services)]
        return ListenErrors([error for each in found for error in each if isinstance(error, ListenError)], problems)

    return ListenErrors(
        [error for error in errors if isinstance(error, ListenError)],
        problems,
        with_owners if any(each.seeks_owner for each in services) else None,
    )
