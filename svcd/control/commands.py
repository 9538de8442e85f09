"""The commands of the control socket; their results are plain data: strings, numbers, lists and dicts."""

from __future__ import annotations

import math
import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from twisted.internet.defer import maybeDeferred

from svcd.config.statement import nearest_word
from svcd.errors import CommandError, ConfigError, FaultError, SvcdError
from svcd.log.events import PRIORITIES
from svcd.metrics.snapshot import ServiceState
from svcd.supervisor.upgrader import READY_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

    from svcd.config.service import Service
    from svcd.supervisor.broken_services import BrokenService
    from svcd.supervisor.listener import Listener
    from svcd.supervisor.reload import Reloader
    from svcd.supervisor.running_service import RunningService
    from svcd.supervisor.supervisor import ReloadResult, Supervisor
    from svcd.supervisor.upgrader import Upgrader
    from svcd.tls.certificates import ServerTls

__all__ = ["Commands"]

ResultT = TypeVar("ResultT")


class Commands:
    """The commands of the control protocol.

    Args:
        supervisor: runs the services.
        reloader: reloads the services file.
        upgrader: replaces the daemon.
        stop: stops the daemon; with True only after the last connection has ended.
        facts: constant facts: version, reactor, and so on.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        reloader: Reloader,
        upgrader: Upgrader,
        stop: Callable[[bool], None],
        facts: Mapping[str, object],
    ) -> None:
        self._supervisor = supervisor
        self._reloader = reloader
        self._upgrader = upgrader
        self._stop = stop
        self._facts = dict(facts)

    def table(self) -> dict[str, Callable[..., object]]:
        """Return the function of each command. It takes keyword arguments and returns the result, or a Deferred."""
        return {
            "status": self.status,
            "show": self.show,
            "connections": self.connections,
            "kick": self.kick,
            "enable": self.enable,
            "disable": self.disable,
            "pause": self.pause,
            "resume": self.resume,
            "restart": self.restart,
            "reload": self.reload,
            "diff": self.diff,
            "upgrade": self.upgrade,
            "drain": self.drain,
            "stop": self.stop,
            "log-level": self.log_level,
        }

    def status(self) -> dict[str, object]:
        """Return facts of the daemon, and a row for each service."""
        supervisor = self._supervisor
        services = [self._row(running) for running in supervisor.hosted.values()]
        services += [
            _idle_row(each.service, ServiceState.BROKEN, each) for each in supervisor.broken if not self._runs(each)
        ]
        services += [_idle_row(service, ServiceState.DISABLED) for service in supervisor.disabled.values()]
        leaving = sum(len(each.tracker.all_connections()) for each in supervisor.draining if each.tracker is not None)
        return {
            **self._facts,
            "uptime": round(supervisor.registry.uptime, 3),
            "pid": os.getpid(),
            "services": services,
            "leaving": leaving,
            "connections": supervisor.connection_counts,
            "descriptors": supervisor.descriptors,
        }

    def _row(self, running: RunningService) -> dict[str, object]:
        service, tracker = running.service, running.tracker
        listeners = self._supervisor.listeners_of(service.id)
        broken = self._supervisor.broken.get(service.id)
        unavailable = tracker.counters.unavailable if tracker is not None else ""
        counters = self._supervisor.registry.counters(service.id)
        row: dict[str, object] = {
            "service": service.id,
            "state": self._state(running, listeners),
            "runs": service.handler_text,
            "addresses": [listener.opened.address for listener in listeners],
            "description": service.options.description,
            "arrived": counters.arrivals()[0],
            "failed": counters.failures + counters.failed_exits,
        }
        if running.tls is not None:
            row["certificate"] = _certificate(running.tls)
        problems: list[object] = [*(running.tls.problems if running.tls else ()), *(broken.errors if broken else ())]
        if unavailable:
            problems.append(unavailable)
        if problems:
            row["problems"] = [str(problem) for problem in problems]
        if tracker is not None:
            row["connections"] = len(tracker.connections)
            row["limit"] = tracker.service_admission.admission.rules.instances
            row["refused"] = {
                str(reason): count for reason, count in tracker.service_admission.refusals.counts.items() if count
            }
        return row

    def _state(self, running: RunningService, listeners: Sequence[Listener]) -> ServiceState:
        unavailable = running.tracker is not None and running.tracker.counters.unavailable
        if unavailable or running.service.id in self._supervisor.broken:
            return ServiceState.BROKEN
        return ServiceState.PAUSED if any(listener.paused for listener in listeners) else ServiceState.ON

    def _runs(self, broken: BrokenService) -> bool:
        """Return whether a part or an earlier configuration of a broken service runs."""
        return broken.service.id in self._supervisor.hosted

    def show(self, service: str) -> dict[str, object]:
        """Return the row of a service, with its line and the location of that."""
        supervisor = self._supervisor
        name = _choose(service, self._names(), "service")
        broken = supervisor.broken.get(name)
        if name in supervisor.disabled:
            return _with_line(_idle_row(supervisor.disabled[name], ServiceState.DISABLED), supervisor.disabled[name])
        if broken is not None and name not in supervisor.hosted:
            return _with_line(_idle_row(broken.service, ServiceState.BROKEN, broken), broken.service)
        running = supervisor.hosted[name]
        row = self._row(running)
        if running.tls is not None and running.tracker is not None:
            counters = running.tracker.counters
            row["handshakes"] = {**counters.handshakes, "failed": sum(counters.handshakes_failed.values())}
        return _with_line(row, running.service if broken is None else broken.service)

    def connections(self, service: str = "") -> list[dict[str, object]]:
        """Return the connections of a service, or of all services.

        Those of removed services and those that are not yet admitted are included.
        """
        supervisor = self._supervisor
        everything = [*supervisor.hosted.values(), *supervisor.draining]
        all_running = [self._find(service)] if service else everything
        return [
            {"service": running.service.id, **session.info()}
            for running in all_running
            if running.tracker is not None
            for session in running.tracker.all_connections()
        ]

    def kick(self, who: str) -> dict[str, object]:
        """Abort the connection with an id, or all connections of a client's address, given with or without port."""
        number = int(who) if who.isdecimal() and len(who) < 20 else -1
        ended = 0
        for running in [*self._supervisor.hosted.values(), *self._supervisor.draining]:
            for session in running.tracker.all_connections() if running.tracker is not None else []:
                peer = str(session.info()["peer"])
                if session.connection_id == number or who in (peer, peer.rpartition(":")[0].strip("[]")):
                    session.abort("kicked")
                    ended += 1
        if not ended:
            raise CommandError(f"no connection {who}; use an id or an address from `svcctl connections`")
        return {"ended": ended}

    def disable(self, service: str) -> Deferred[dict[str, object]]:
        """Stop listening for a service once no reload or upgrade is in progress; open connections continue."""
        return self._reloader.run_exclusively(maybeDeferred, self._disable, service)

    def _disable(self, service: str) -> dict[str, object]:
        supervisor = self._supervisor
        name = _choose(service, self._names(), "service")
        if name in supervisor.disabled:
            return {"service": name, "state": ServiceState.DISABLED, "connections": 0, "already": True}
        running = supervisor.hosted.get(name)
        supervisor.disable(name)
        # A broken service may need an address that is free now.
        supervisor.broken.addresses_changed()
        open_ones = len(running.tracker.connections) if running is not None and running.tracker is not None else 0
        return {"service": name, "state": ServiceState.DISABLED, "connections": open_ones}

    def _names(self) -> list[str]:
        supervisor = self._supervisor
        return list(dict.fromkeys([*supervisor.hosted, *supervisor.broken.ids, *supervisor.disabled]))

    def enable(self, service: str) -> Deferred[dict[str, object]]:
        """Start a disabled service, or retry a broken one, once no reload or upgrade is in progress.

        A service that is on is not changed; the result has `already` then.
        """
        supervisor, chosen, already = self._supervisor, list[str](), {"already": True}

        def services() -> list[Service]:
            idle = [*supervisor.disabled, *supervisor.broken.ids]
            matching = [name for name in idle if service in (name, name.rpartition("/")[0])]
            name = _choose(service, matching or list(dict.fromkeys([*idle, *supervisor.hosted])), "service")
            chosen.append(name)
            if name not in idle:
                if any(listener.paused for listener in supervisor.listeners_of(name)):
                    raise CommandError(f"{name} is paused; resume it with svcctl resume {name}")
                return []
            already.clear()
            return [
                _enabled(supervisor.disabled[name]) if name in supervisor.disabled else supervisor.broken[name].service
            ]

        def served(_result: None) -> dict[str, object]:
            (name,) = chosen
            broken = supervisor.broken.get(name)
            if broken is not None:
                raise CommandError(f"{name} is broken: {broken.reason}")
            return {"service": name, "state": ServiceState.ON, **already}

        return self._reloader.serve(services).addCallback(self._when_named).addCallback(served)

    def _when_named(self, result: ResultT) -> Deferred[ResultT]:
        """Wait, for a bounded time, until the processes that use the addresses of broken services are known."""
        return self._supervisor.broken.when_named().addCallback(lambda _named: result)

    def pause(self, service: str = "") -> dict[str, object]:
        """Stop accepting for a service, or for all; new connections wait in the kernel's queue."""
        return self._pause(service, paused=True)

    def resume(self, service: str = "") -> dict[str, object]:
        """Resume accepting for a service, or for all."""
        return self._pause(service, paused=False)

    def restart(self, service: str) -> Deferred[dict[str, object]]:
        """Restart the launcher of a service.

        The Deferred fails with a CommandError if it has no launcher, or if the new launcher can't start.
        """
        return self._find(service).restart()

    def _pause(self, service: str, *, paused: bool) -> dict[str, object]:
        name = self._find(service).service.id if service else ""
        listeners = self._supervisor.pause(name, paused=paused)
        services = dict.fromkeys(listener.endpoint.service.id for listener in listeners)
        return {"listeners": len(listeners), "services": list(services)}

    def reload(
        self, *, now: bool = False, strict: bool = False, allow_empty: bool = False
    ) -> Deferred[dict[str, object]]:
        """Reload the services file; the Deferred fails with a CommandError that has its problems."""
        done = self._reloader.reload(now=now, strict=strict, allow_empty=allow_empty)
        done.addCallback(self._when_named).addCallback(self._named)
        return done.addCallback(_reloaded).addErrback(_as_command_error)

    def _named(self, result: ReloadResult) -> ReloadResult:
        return result._replace(faults=tuple(self._supervisor.broken.named(result.faults)))

    def diff(self, file: str | None = None) -> Deferred[dict[str, object]]:
        """Return the changes that a reload would make."""
        if file is not None and not file.startswith("/"):
            raise CommandError("file must be an absolute path: the daemon has another working directory")
        return self._reloader.diff(file).addCallback(_reloaded).addErrback(_as_command_error)

    def upgrade(self, *, now: bool = False, timeout: float = READY_TIMEOUT) -> Deferred[dict[str, object]]:
        """Replace this daemon by a new one that takes over its sockets; clients are not affected."""
        return self._upgrader.upgrade(now=now, seconds=timeout)

    def drain(self) -> dict[str, object]:
        """Stop listening, and stop the daemon after the last connection has ended."""
        self._stop(True)
        return {"connections": self._supervisor.connections}

    def stop(self) -> dict[str, object]:
        """Stop the daemon as after SIGTERM."""
        self._stop(False)
        return {"connections": self._supervisor.connections}

    def log_level(self, level: str) -> dict[str, object]:
        """Log events of this level and above from now on."""
        try:
            self._supervisor.log_from(level)
        except ValueError:
            levels = ", ".join(reversed(PRIORITIES))
            raise CommandError(f"unknown level {level!r}; the levels are {levels}") from None
        return {"level": level}

    def _find(self, name: str) -> RunningService:
        running = self._supervisor.hosted
        return running[_choose(name, list(running), "service")]


def _idle_row(service: Service, state: ServiceState, broken: BrokenService | None = None) -> dict[str, object]:
    """Return the row of a service that does not run."""
    row: dict[str, object] = {
        "service": service.id,
        "state": state,
        "runs": service.handler_text,
        "addresses": [endpoint.address for endpoint in broken.endpoints] if broken else [],
        "description": service.options.description,
    }
    return row | ({"problems": [str(error) for error in broken.errors]} if broken else {})


def _with_line(row: dict[str, object], service: Service) -> dict[str, object]:
    return {**row, "line": service.line, "place": str(service.location)}


def _reloaded(result: ReloadResult) -> dict[str, object]:
    plan = result.plan
    return {
        "changes": list(plan.lines()),
        "faults": [str(fault) for fault in result.faults],
        "added": [service.id for service in plan.added],
        "removed": [service.id for service in plan.removed],
        "changed": [service.id for _, service in plan.changed],
        "opened": [endpoint.address for endpoint in plan.opened],
        "closed": [endpoint.address for endpoint in plan.closed],
        "broken": list(result.broken),
    }


def _enabled(service: Service) -> Service:
    """Return a service that `svcctl disable` has disabled.

    Raises:
        CommandError: the services file disables it.
    """
    if service.options.disable:
        raise CommandError(
            f"{service.id} is disabled in the services file ({service.locations['disable']}); "
            "remove disable=yes there, then svcctl reload"
        )
    return service


def _choose(name: str, known: list[str], what: str) -> str:
    """Return the id in `known` that is given as name/protocol, or as a name alone if that is unambiguous.

    Raises:
        CommandError: there is none, or there are several.
    """
    if name in known:
        return name
    found = [each for each in known if each.rpartition("/")[0] == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise CommandError(f"{name} is {' and '.join(found)}; name one")
    spellings = {each.rpartition("/")[0]: each for each in known} | {each: each for each in known}
    near = nearest_word(name, spellings)
    hint = f"; did you mean {spellings[near]}?" if near else ""
    raise CommandError(f"there is no {what} {name}{hint}")


def _certificate(tls: ServerTls) -> dict[str, object]:
    """Return the certificate of a service that expires first, the days until then, and the days of its warning.

    If a file is due for a warning, it is the first of these, which may be a revocation list.
    """
    first = [*tls.expiring, *tls.certificates][0]
    days = int((first.expires - time.time()) // 86_400)
    expires = datetime.fromtimestamp(first.expires, UTC).isoformat()
    warn = math.ceil((first.expires - first.warn_from) / 86_400)
    return {"file": first.file, "expires": expires, "days": days, "warn": warn, "count": len(tls.certificates)}


def _as_command_error(failure: Failure) -> Failure:
    failure.trap(SvcdError, OSError)
    error = failure.value
    if isinstance(error, CommandError):
        return failure
    # Faults of the machine are no mistakes in the file.
    code = "config" if isinstance(error, ConfigError) and not isinstance(error, FaultError) else "refused"
    raise CommandError(str(error), code, error.problems if isinstance(error, ConfigError) else ()) from error
