"""`twistd svcd`: its options, and the service made from them. The only module that touches the global reactor."""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger
from twisted.python import usage

from svcd import __version__
from svcd.access.admission import GlobalLimit
from svcd.config_loader import check_again, listing, load_config, usual_file
from svcd.connections.descriptor_budget import DescriptorBudget
from svcd.control.commands import Commands
from svcd.control.server import ControlFactory, ControlService
from svcd.daemon.daemon import Daemon, not_started
from svcd.daemon.startup import connection_limit, inherited_socket_pool, own_program
from svcd.daemon.twistd import Twistd, check_account, check_pid_file
from svcd.defaults import DEFAULT_NAME, SERVICES_FILE
from svcd.errors import ConfigError, FaultError, ListenErrors, StartFailure
from svcd.host.control_path import ControlPath, control_paths, make_directory
from svcd.host.files import LocalFiles
from svcd.host.info import Host
from svcd.host.reverse_resolver import ReverseResolver
from svcd.host.systemd import ServiceManager
from svcd.log.events import PROBLEM, log_event
from svcd.log.setup import LOG_FORMATS, LogSetup
from svcd.metrics.registry import MetricsRegistry
from svcd.net.monotonic import use_monotonic_time
from svcd.net.resolver import PooledResolver
from svcd.net.threads import call_in_daemon_thread
from svcd.process.signals import reset_inherited_signals
from svcd.protocols.catalog import BUILTINS, ServiceDependencies, import_protocols
from svcd.protocols.outgoing import client_endpoint, redirect_lookups
from svcd.protocols.sample_files import default_ports
from svcd.sockets.acquire import open_sockets
from svcd.supervisor.launch_spec import account_of
from svcd.supervisor.reload import Reloader
from svcd.supervisor.supervisor import Supervisor
from svcd.supervisor.upgrader import Upgrader
from svcd.upgrade.channel import OldDaemon

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from twisted.application.service import IService

    from svcd.config.endpoints import DesiredServices
    from svcd.config.service import Service
    from svcd.model import ConfigProblem
    from svcd.sockets.acquire import FdStore, SocketPool
    from svcd.supervisor.launch_spec import DaemonAccount
    from svcd.upgrade.handover import Handover

__all__ = ["Options", "makeService"]


#: How long a start, a reload or a retry waits for the imports of modules, in seconds. Those that take longer go on.
_IMPORT_SECONDS = 1.0


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is no whole number") from None


_whole_number.coerceDoc = "A whole number."  # type: ignore[attr-defined]


def _at_least_one(text: str) -> int:
    number = _whole_number(text)
    if number < 1:
        raise ValueError(f"{text!r} is less than 1")
    return number


_at_least_one.coerceDoc = "A whole number, at least 1."  # type: ignore[attr-defined]


def _one_of(*words: str) -> Callable[[str], str]:
    def coerce(text: str) -> str:
        if text not in words:
            raise ValueError(f"{text!r} is none of {', '.join(words)}")
        return text

    coerce.coerceDoc = f"One of {', '.join(words)}."  # type: ignore[attr-defined]
    return coerce


class Options(usage.Options):
    """The command line of `twistd svcd`."""

    synopsis = "[options]"
    longdesc = (
        f"svcd hosts the small internet services ({', '.join(BUILTINS)}), "
        "as its services file says. Options of twistd itself (-n, --logfile, --pidfile, --uid, ...) stand before "
        f"the word svcd. Without --services it reads {SERVICES_FILE}, or else serves on the loopback interface: "
        f"{default_ports()}."
    )
    optParameters = [  # noqa: RUF012 - Twisted's name for it
        ["services", "s", None, "The services file."],
        [
            "port-offset",
            None,
            0,
            "Added to every port, to try a file with low ports without root.",
            _whole_number,
        ],
        ["control", None, None, "Where svcctl reaches the daemon: the path of a UNIX socket; empty for nowhere."],
        ["max-connections", None, None, "How many connections there may be at once, of all services.", _at_least_one],
        [
            "log-format",
            None,
            None,
            "How the log is written, with journald also where to. [default: text; journald where that is the output]",
            _one_of(*LOG_FORMATS),
        ],
        [
            "log-addresses",
            None,
            "full",
            "How the log names clients; short: their network only (/24 of IPv4, /48 of IPv6), no port, no host name.",
            _one_of("full", "short"),
        ],
    ]
    optFlags = [  # noqa: RUF012 - Twisted's name for it
        ["check", None, "Say where the services would listen, or what is wrong with the file, and exit."],
        ["strict", None, "Serve all services or none: one that can't be served stops a start and a reload."],
    ]
    compData = usage.Completions(optActions={"services": usage.CompleteFiles()})
    log_output: LogSetup
    old_daemon: OldDaemon | None = None
    #: Whether the daemon runs, and will fork no more.
    started = False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # The same ones for each reading: they know what could be read before root was given up.
        self.files = LocalFiles()

    @property
    def handover(self) -> Handover | None:
        """What the daemon before this one has told."""
        return None if self.old_daemon is None else self.old_daemon.handover

    def opt_version(self) -> None:
        """Display the version of svcd and exit."""
        print(f"svcd {__version__}")
        sys.exit(0)

    def parseArgs(self, *words: str) -> None:
        """There are none."""
        if words:
            raise usage.UsageError(f"unexpected word {words[0]!r}: a services file is named by --services FILE")

    def read(self, path: str | None) -> DesiredServices:
        """Return the services of a file; of the one that the command line names for None.

        Raises:
            ConfigError: it has mistakes.
        """
        path = self["services"] if path is None else path
        loaded = load_config(path, self.files, port_offset=self["port-offset"], machine=self._machine)
        if self["check"]:
            for warning in loaded.warnings:
                print(warning, file=sys.stderr)
        return loaded.desired

    def check_again(self, services: Sequence[Service]) -> DesiredServices:
        """Check services that were read before, whether the machine can serve them now."""
        return check_again(services, self.files, self._machine)

    @property
    def _machine(self) -> Host:
        checking = bool(self["check"])
        parent: Any = self.parent or {}
        # A thread does not survive the fork of a daemon that leaves the terminal: what it imports is waited for. A new
        # daemon of an upgrade waits, too: the old one serves meanwhile.
        waits = not self.started and (self.old_daemon is not None or not parent.get("nodaemon"))
        wait = None if checking or waits else _IMPORT_SECONDS
        check_wait = None if checking else _IMPORT_SECONDS
        user = "" if parent.get("uid") is None else str(parent["uid"])
        # The old daemon has waited for these in vain. Once started this one waits for them, as it tries again.
        unanswered = self.handover.unanswered if self.handover is not None and not self.started else frozenset[str]()
        return Host(
            check_expiry=checking,
            thorough=checking,
            user=user,
            import_wait=wait,
            check_wait=check_wait,
            unanswered=unanswered,
        )

    def services(self) -> DesiredServices:
        """Return what the services file says.

        Raises:
            StartFailure: it has mistakes, or no service can be served, or with --strict or --check not every one; the
                reasons were printed.
        """
        try:
            desired = self.read(None)
        except ConfigError as error:
            print(error, file=sys.stderr)
            raise StartFailure(error.exit_code, "the services file has mistakes", str(error).splitlines()) from None
        faults = [problem for each in desired.faulty for problem in each.problems]
        if self["check"]:
            faults += self._address_faults(desired)
        serves = desired.endpoints or any(fault.pending for fault in faults)
        if faults and (self["strict"] or self["check"] or not serves):
            reasons = ConfigError(faults)
            print(reasons, file=sys.stderr)
            which = "some services" if desired.endpoints else "the services"
            code = reasons.exit_code if not (self["check"] or self["strict"]) else FaultError.exit_code
            raise StartFailure(code, f"{which} can't be served", str(reasons).splitlines())
        if self.old_daemon is not None and not desired.endpoints and not desired.faulty:
            # As a reload: a truncated file is no instruction.
            reason = "no service is enabled in the services file; to serve nothing, stop svcd and start it"
            print(reason, file=sys.stderr)
            raise StartFailure(ConfigError.exit_code, reason)
        if self["services"]:
            # A daemon changes its folder, and may read the file again.
            self["services"] = os.path.abspath(self["services"])  # noqa: PTH100 - Path has no such thing for links
        return desired

    def _address_faults(self, desired: DesiredServices) -> list[ConfigProblem]:
        """The faults of addresses that are absent or in use, by another than a running daemon; warnings are printed."""
        from svcd.cli.services_file import KnownAddresses

        faults, doubtful = KnownAddresses.now(Namespace(control=self["control"])).problems(desired.endpoints)
        for problem in doubtful:
            print(problem, file=sys.stderr)
        return faults

    def postOptions(self) -> None:
        """Answer --check; look at the log's and the pid file's places."""
        # The first that is ours of a daemon's start.
        reset_inherited_signals()
        if self["check"]:
            for line in listing(self.services().endpoints):
                print(line)
            sys.exit(0)
        parent: dict[str, Any] = self.parent if self.parent is not None else {}
        if self["log-format"] == "journald" and any(parent.get(name) for name in ("logfile", "syslog", "logger")):
            raise usage.UsageError("--log-format journald is a place too; leave out --logfile, --syslog and --logger")
        self.old_daemon = OldDaemon.from_environment(os.environ, os.getpid())
        if self.old_daemon is not None:
            Twistd.use_temporary_pid_file(parent)
        self.log_output = LogSetup(parent, self["log-format"], anonymize=self["log-addresses"] == "short")
        check_pid_file(parent)
        check_account(parent)


def _check_listening(desired: DesiredServices, options: Options, parent: dict[str, Any]) -> None:
    """Try the sockets while there still is a terminal to complain to.

    A daemon opens its sockets when it has left the terminal, and twistd then can say little and exits by 1.

    Raises:
        StartFailure: no service can listen, or with --strict not every one.
    """
    if parent.get("nodaemon") or parent.get("chroot"):
        return
    opened, errors = open_sockets(desired.endpoints, name_owners=True)
    for each in opened:
        each.close()
    if errors and (options["strict"] or not opened):
        raise not_started(ListenErrors(errors))


def _install_reactor() -> None:
    """Take the reactor on uvloop where the user named none and uvloop is there."""
    if "twisted.internet.reactor" in sys.modules:
        return
    try:
        from svcd.reactor import install
    except ImportError:
        return
    install()


def makeService(options: Options) -> IService:
    """The daemon, for twistd.

    Raises:
        StartFailure: the services file has Problems (78), its sockets can't be opened (71), or those that we were
            started with are no listening ones (78). The log says so, too.
    """
    try:
        return _daemon(options)
    except StartFailure as failure:
        options.log_output.record_start_failure(failure.lines)
        raise


def _daemon(options: Options) -> Daemon:
    _install_reactor()
    from twisted.internet import reactor  # not before now: importing it installs one

    use_monotonic_time(reactor)

    parent: Any = {} if options.parent is None else options.parent
    registry, began = MetricsRegistry(), time.monotonic()
    desired = options.services()
    registry.config_seconds = time.monotonic() - began
    # Before twistd leaves the terminal: what is meant for this process is not meant for the one that it becomes.
    manager = ServiceManager.from_environment(os.environ, os.getpid())
    socket_pool = inherited_socket_pool(os.environ, os.getpid(), options.handover)
    if not socket_pool:
        _check_listening(desired, options, parent)
    # Before the limit of open files is raised.
    account = _account(parent, options)
    budget = DescriptorBudget(connection_limit(len(list(desired))), reactor)
    supervisor = Supervisor(
        reactor,
        desired,
        _dependencies(reactor, options.files, budget, registry),
        options.log_output.log_writer,
        budget,
        account,
        GlobalLimit(options["max-connections"]),
        registry,
        manager,
        socket_pool,
        strict=bool(options["strict"]),
    )
    reloader = _reloader(supervisor, options, reactor)
    twistd = Twistd(parent, managed=manager.present, new_daemon=options.old_daemon is not None)
    daemon = Daemon(reactor, supervisor, reloader, options.log_output, twistd, options.old_daemon)
    upgrader = Upgrader(reactor, supervisor, reloader, own_program(parent, os.environ, account), twistd, daemon.stop)
    commands = Commands(supervisor, reloader, upgrader, daemon.stop, _facts(reactor, options, account))
    control = _control(options, commands, account, reactor, supervisor.store, socket_pool)
    _join(daemon, control, reloader, upgrader)
    return daemon


def _account(parent: dict[str, Any], options: Options) -> DaemonAccount:
    account = account_of(parent, options.handover)
    if parent.get("chroot") or account.user is not None:
        # The modules may be out of reach after chroot(2) or setuid(2).
        import_protocols()
    return account


def _dependencies(
    reactor: Any,  # noqa: ANN401
    files: LocalFiles,
    budget: DescriptorBudget,
    registry: MetricsRegistry,
) -> ServiceDependencies:
    """What services need; each user of name lookups gets threads of its own."""
    reactor.installNameResolver(PooledResolver(reactor))
    names = ReverseResolver(reactor, reactor)
    return ServiceDependencies(
        reactor, names, files, budget, registry, partial(client_endpoint, reactor, redirect_lookups())
    )


def _reloader(supervisor: Supervisor, options: Options, reactor: Any) -> Reloader:  # noqa: ANN401 - several interfaces
    reloader = Reloader(supervisor, options.read, partial(call_in_daemon_thread, reactor), options.check_again)
    supervisor.retry = reloader.retry
    supervisor.broken.in_thread = partial(call_in_daemon_thread, reactor)
    reactor.callWhenRunning(setattr, options, "started", True)
    return reloader


def _facts(reactor: object, options: Options, account: DaemonAccount) -> dict[str, object]:
    """Return what `status` says of the daemon as a whole; users by their numbers."""
    return {
        "version": __version__,
        "reactor": type(reactor).__name__,
        "since": time.time(),
        "services_file": options["services"] or usual_file() or DEFAULT_NAME,
        "port_offset": options["port-offset"],
        "reader": os.geteuid(),
        "user": os.geteuid() if account.user is None else account.user,
    }


def _join(daemon: Daemon, control: ControlService | None, reloader: Reloader, upgrader: Upgrader) -> None:
    """Let the daemon start and stop what else there is."""
    if control is not None:
        reloader.reopen = control.reopen
        upgrader.also.append(control)
        control.setServiceParent(daemon)  # type: ignore[no-untyped-call]
    # As the last it is the first to stop, since a new daemon would take over.
    upgrader.setServiceParent(daemon)  # type: ignore[no-untyped-call]


def _control(
    options: Options,
    commands: Commands,
    account: DaemonAccount,
    reactor: Any,  # noqa: ANN401 - several interfaces
    store: FdStore,
    socket_pool: SocketPool,
) -> ControlService | None:
    """What lets the daemon be controlled, where that was not declined."""
    path, named = options["control"], options["control"] is not None
    make = None
    if not named:
        # With --uid the new daemon of an upgrade has other usual places than the first.
        path = socket_pool.control_path
        place = None if path else _usual_place(account)
        if place is not None:
            path, make = place.path, partial(make_directory, place, account.user, account.group)
    if not path:
        return None
    users = frozenset({0, os.geteuid(), *([account.user] if account.user is not None else [])})
    path = os.path.abspath(path)  # noqa: PTH100 - a daemon changes its folder
    factory = ControlFactory(commands.table(), users, reactor)
    opened = socket_pool.take_control(path)
    return ControlService(
        reactor, path, factory, store, needed=named, opened=opened, owner=account.user, make_folder=make
    )


def _usual_place(account: DaemonAccount) -> ControlPath | None:
    """Return the place of the control socket where none is named; None where there is none, which is logged."""
    problems = []
    for place in control_paths():
        problem = make_directory(place, account.user, account.group)
        if not problem:
            return place
        problems.append(problem)
    text = f"svcctl can't reach this daemon: {'; '.join(problems)}; or name another place by --control PATH"
    log_event(Logger(), PROBLEM, text=text)
    return None
