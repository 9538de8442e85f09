"""Construction of the service of `twistd svcd`. Only this module uses the global reactor."""

from __future__ import annotations

import os
import sys
import time
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger

from svcd import __version__
from svcd.access.admission import GlobalLimit
from svcd.config_loader import usual_file
from svcd.connections.context import ConnectionContext
from svcd.connections.descriptor_budget import DescriptorBudget
from svcd.daemon.daemon import Daemon, not_started
from svcd.daemon.hints import print_next_steps
from svcd.daemon.later_imports import import_rest
from svcd.daemon.options import Options
from svcd.daemon.source_watch import SourceWatch
from svcd.daemon.startup import connection_limit, inherited_socket_pool, own_program
from svcd.daemon.twistd import Twistd
from svcd.defaults import DEFAULT_NAME
from svcd.errors import ListenErrors, StartFailure
from svcd.host.control_path import ControlPath, control_paths, make_directory
from svcd.host.reverse_resolver import ReverseResolver
from svcd.host.systemd import ServiceManager
from svcd.log.events import PROBLEM, log_event
from svcd.metrics.registry import MetricsRegistry
from svcd.net.monotonic import use_monotonic_time
from svcd.net.resolver import PooledResolver
from svcd.net.threads import call_in_daemon_thread
from svcd.protocols.catalog import ServiceDependencies
from svcd.sockets.acquire import FdStore, acquire_sockets
from svcd.supervisor.daemon_account import account_of
from svcd.supervisor.reload import Reloader
from svcd.supervisor.running_service import ServiceContext
from svcd.supervisor.supervisor import Supervisor
from svcd.supervisor.upgrader import Upgrader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from twisted.application.service import IService
    from twisted.internet.interfaces import IStreamClientEndpoint

    from svcd.addresses import HostPort
    from svcd.config.endpoints import DesiredServices
    from svcd.control.server import ControlService
    from svcd.interfaces import DescriptorCounter
    from svcd.net.lookups import LookupPool
    from svcd.net.resolver import Name
    from svcd.sockets.acquire import SocketPool
    from svcd.supervisor.daemon_account import DaemonAccount

__all__ = ["Options", "makeService"]


def _check_listening(desired: DesiredServices, options: Options, parent: dict[str, Any]) -> None:
    """Try to open the sockets while the terminal for error messages is still there.

    A daemon opens its sockets after it has left the terminal; twistd then prints little and exits with 1.

    Raises:
        StartFailure: no service can listen, or with --strict not every one.
    """
    if parent.get("nodaemon") or parent.get("chroot"):
        return
    opened, errors = acquire_sockets(desired.endpoints, name_owners=True)
    for each in opened:
        each.close()
    if errors and (options["strict"] or not opened):
        raise not_started(ListenErrors(errors))


def _install_reactor() -> None:
    """Install the reactor on uvloop if the user named none and uvloop is installed."""
    if "twisted.internet.reactor" in sys.modules:
        return
    try:
        from svcd.reactor import install
    except ImportError:
        return
    install()


def makeService(options: Options) -> IService:
    """Return the daemon, for twistd.

    Raises:
        StartFailure: the services file has mistakes (78), its sockets can't be opened (71), or inherited sockets can't
            be used (78). The reasons are logged, too.
    """
    try:
        return _daemon(options)
    except StartFailure as failure:
        options.log_output.report_start_failure(failure)
        raise


def _daemon(options: Options) -> Daemon:
    reactor = _reactor()
    parent: Any = {} if options.parent is None else options.parent
    registry, start = MetricsRegistry(), time.monotonic()
    desired = options.services()
    registry.config_seconds = time.monotonic() - start
    # Before twistd leaves the terminal: some variables have the pid of this process, and twistd forks then.
    manager = ServiceManager.from_environment(os.environ, os.getpid())
    socket_pool = inherited_socket_pool(os.environ, os.getpid(), options.handover)
    if not socket_pool:
        _check_listening(desired, options, parent)
    # Before the limit of open files is raised.
    account = _account(parent, options)
    budget = DescriptorBudget(connection_limit(len(list(desired))), reactor)
    deps = _dependencies(reactor, options, budget, registry)
    connections = _connections(reactor, options, deps, budget, registry)
    context = ServiceContext(connections, deps, account, FdStore(manager))
    supervisor = Supervisor(context, desired, manager, socket_pool, strict=bool(options["strict"]))
    reloader = _reloader(supervisor, options, reactor)
    twistd = Twistd(parent, managed=manager.present, new_daemon=options.old_daemon is not None)
    daemon = Daemon(reactor, supervisor, reloader, options.log_output, twistd, options.old_daemon)
    upgrader = Upgrader(reactor, supervisor, reloader, own_program(parent, os.environ, account), twistd, daemon.stop)

    def commands() -> Mapping[str, Callable[..., object]]:
        from svcd.control.commands import Commands

        return Commands(supervisor, reloader, upgrader, daemon.stop, _facts(reactor, options, account)).table()

    control = _control(options, account, socket_pool, reactor, supervisor.store, commands)
    if options["watch"]:
        SourceWatch(reactor, reloader, lambda: options.sources).setServiceParent(daemon)  # type: ignore[no-untyped-call]
    if control is not None:
        reloader.reopen = control.reopen
        upgrader.also.append(control)
        control.setServiceParent(daemon)  # type: ignore[no-untyped-call]
    if options.log_output.is_screen and options.old_daemon is None:
        daemon.serving = partial(print_next_steps, supervisor, "" if control is None else control.path)
    # The last service is stopped first: it must kill a new daemon, which would take over otherwise.
    upgrader.setServiceParent(daemon)  # type: ignore[no-untyped-call]
    return daemon


def _reactor() -> Any:  # noqa: ANN401 - several interfaces
    _install_reactor()
    from twisted.internet import reactor  # not before now: importing it installs one

    use_monotonic_time(reactor)
    return reactor


def _account(parent: dict[str, Any], options: Options) -> DaemonAccount:
    account = account_of(parent, options.handover)
    if parent.get("chroot") or account.user is not None:
        # The modules may be out of reach after chroot(2) or setuid(2).
        import_rest()
    return account


def _connections(
    reactor: Any,  # noqa: ANN401 - several interfaces
    options: Options,
    deps: ServiceDependencies,
    budget: DescriptorBudget,
    registry: MetricsRegistry,
) -> ConnectionContext:
    """Return the context that the connections of all services share."""
    global_limit, log_writer = GlobalLimit(options["max-connections"]), options.log_output.log_writer
    return ConnectionContext(reactor, log_writer, deps.files, deps.resolver, budget, global_limit, registry=registry)


def _dependencies(
    reactor: Any,  # noqa: ANN401 - several interfaces
    options: Options,
    budget: DescriptorBudget,
    registry: MetricsRegistry,
) -> ServiceDependencies:
    """Return the objects that built-in services may need. Each kind of name lookup has threads of its own."""
    reactor.installNameResolver(PooledResolver(reactor))
    names = ReverseResolver(reactor, reactor)
    logs = options.log_output
    return ServiceDependencies(
        reactor, names, options.files, budget, registry, _endpoint_maker(reactor), logs.log_writer, logs.files.open
    )


def _endpoint_maker(reactor: Any) -> Callable[[HostPort, float, DescriptorCounter], IStreamClientEndpoint]:  # noqa: ANN401
    """Return the function that makes the endpoint of a redirection's server."""

    @cache
    def lookups() -> LookupPool[list[Name]]:
        from svcd.protocols.outgoing import redirect_lookups

        return redirect_lookups()

    def endpoint(server: HostPort, timeout: float, descriptors: DescriptorCounter) -> IStreamClientEndpoint:
        # It imports twisted.internet.endpoints, and only redirections connect to servers.
        from svcd.protocols.outgoing import client_endpoint

        return client_endpoint(reactor, lookups(), server, timeout, descriptors)

    return endpoint


def _reloader(supervisor: Supervisor, options: Options, reactor: Any) -> Reloader:  # noqa: ANN401 - several interfaces
    reloader = Reloader(supervisor, options.read, partial(call_in_daemon_thread, reactor), options.check_again)
    supervisor.retry = reloader.retry
    supervisor.broken.in_thread = partial(call_in_daemon_thread, reactor)
    reactor.callWhenRunning(setattr, options, "started", True)
    return reloader


def _facts(reactor: object, options: Options, account: DaemonAccount) -> dict[str, object]:
    """Return the constant facts for the command `status`; users are uids."""
    return {
        "version": __version__,
        "reactor": type(reactor).__name__,
        "since": time.time(),
        "services_file": options["services"] or usual_file() or DEFAULT_NAME,
        "port_offset": options["port-offset"],
        "reader": os.geteuid(),
        "user": os.geteuid() if account.user is None else account.user,
    }


def _control(
    options: Options,
    account: DaemonAccount,
    socket_pool: SocketPool,
    reactor: Any,  # noqa: ANN401 - several interfaces
    store: FdStore,
    commands: Callable[[], Mapping[str, Callable[..., object]]],
) -> ControlService | None:
    """Return the service that listens on the control socket; None if there is no control socket."""
    path, named = options["control"], options["control"] is not None
    make_parent = None
    if not named:
        # With --uid the new daemon of an upgrade runs as another user, which has other default paths.
        path = socket_pool.control_path
        place = None if path else _default_control_path(account)
        if place is not None:
            path, make_parent = place.path, partial(make_directory, place, account.user, account.group)
    if not path:
        return None
    # A daemon without a control socket does not need these modules.
    from svcd.control.server import ControlFactory, ControlService, ControlSocket

    users = frozenset({0, os.geteuid(), *([account.user] if account.user is not None else [])})
    path = os.path.abspath(path)  # noqa: PTH100 - a daemon changes its folder
    settings = ControlSocket(path, named, socket_pool.take_control(path), account.user, make_parent)
    return ControlService(reactor, settings, ControlFactory(commands(), users, reactor), store)


def _default_control_path(account: DaemonAccount) -> ControlPath | None:
    """Return the default path of the control socket; None, which is logged, if no default path can be used."""
    problems = []
    for place in control_paths():
        problem = make_directory(place, account.user, account.group)
        if not problem:
            return place
        problems.append(problem)
    text = f"svcctl can't reach this daemon: {'; '.join(problems)}; or set another path with --control PATH"
    log_event(Logger(), PROBLEM, text=text)
    return None
