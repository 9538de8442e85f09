"""The command line of `twistd svcd`."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from twisted.python import usage

from svcd import __version__
from svcd.config_loader import check_again, listing, load_config
from svcd.daemon.twistd import Twistd, check_account, check_pid_file
from svcd.defaults import SERVICES_FILE
from svcd.errors import ConfigError, FaultError, StartFailure
from svcd.host.files import LocalFiles
from svcd.host.info import Host
from svcd.log.setup import LOG_FORMATS, LogSetup
from svcd.process.signals import reset_inherited_signals
from svcd.protocols.catalog import BUILTINS
from svcd.protocols.sample_files import default_ports
from svcd.upgrade.channel import CHANNEL_VARIABLE, OldDaemon

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from svcd.config.endpoints import DesiredServices
    from svcd.config.service import Config, Service
    from svcd.model import ConfigProblem
    from svcd.upgrade.handover import Handover

__all__ = ["Options"]

#: How long a start, a reload or a retry waits for imports of modules, in seconds. Longer imports go on afterwards.
_IMPORT_SECONDS = 1.0


def _number(option: str, least: int | None = None) -> Callable[[str], int]:
    """Return the function that checks the value of an option that takes a whole number."""

    def coerce(text: str) -> int:
        with contextlib.suppress(ValueError):
            number = int(text)
            if least is None or number >= least:
                return number
        raise ValueError(f"--{option} takes {accepts}, not {text!r}")

    accepts = "a whole number" if least is None else f"a whole number of at least {least}"
    return coerce


def _one_of(option: str, *words: str) -> Callable[[str], str]:
    """Return the function that checks the value of an option that takes one of some words."""

    def coerce(text: str) -> str:
        if text not in words:
            raise ValueError(f"--{option} takes {', '.join(words[:-1])} or {words[-1]}, not {text!r}")
        return text

    return coerce


class Options(usage.Options):
    """The command line of `twistd svcd`."""

    synopsis = "[options]"
    longdesc = (
        f"svcd serves what its services file lists: built-ins ({', '.join(BUILTINS)}), programs, Python handlers and "
        "Twisted factories. Options of twistd (-n, --logfile, --pidfile, --uid, ...) come before the word svcd. "
        f"Without --services, svcd reads {SERVICES_FILE}; without that file, it serves on the loopback interface: "
        f"{default_ports()}."
    )
    optParameters = [  # noqa: RUF012 - Twisted's name for it
        ["services", "s", None, "Services file."],
        [
            "port-offset",
            None,
            0,
            "Number added to every port, to test a file with low ports without root.",
            _number("port-offset"),
        ],
        ["control", None, None, "Path of the control socket, which svcctl connects to; empty for none."],
        [
            "max-connections",
            None,
            None,
            "Maximum number of concurrent connections of all services.",
            _number("max-connections", 1),
        ],
        [
            "log-format",
            None,
            None,
            (
                "Format of the log: text, json or journald, which sets the destination as well. [default: text; "
                "journald if that is the output]"
            ),
            _one_of("log-format", *LOG_FORMATS),
        ],
        [
            "log-addresses",
            None,
            "full",
            "Client addresses in the log; short: only the network (/24 of IPv4, /48 of IPv6), no port, no host name.",
            _one_of("log-addresses", "full", "short"),
        ],
    ]
    optFlags = [  # noqa: RUF012 - Twisted's name for it
        ["check", None, "Check the services file, list the addresses of its services, and exit."],
        ["watch", None, "Reload when the services file or a file that it includes changes, for development."],
        ["strict", None, "Serve all services or none: a start or reload fails if one of them can't be served."],
    ]
    compData = usage.Completions(optActions={"services": usage.CompleteFiles()})
    log_output: LogSetup
    old_daemon: OldDaemon | None = None
    #: Whether the daemon runs, so that it forks no more.
    started = False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # One object for all readings: it keeps the content of files that could be read before root was given up.
        self.files = LocalFiles()
        #: The paths of the services file and of the files that it includes, by the last reading; a path that ends in /*
        #: stands for the content of a directory.
        self.sources = frozenset[str]()

    @property
    def handover(self) -> Handover | None:
        """The data that the old daemon has handed over; None without an old daemon."""
        return None if self.old_daemon is None else self.old_daemon.handover

    def opt_version(self) -> None:
        """Display the version of svcd and exit."""
        print(f"svcd {__version__}")
        sys.exit(0)

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse the command line; a new daemon reports mistakes to the old one, which passes them on to svcctl.

        Raises:
            UsageError: the command line is wrong; twistd prints the text on the standard output.
            StartFailure: it is wrong, and an old daemon waits.
        """
        waits = CHANNEL_VARIABLE in os.environ
        try:
            super().parseOptions(options)  # type: ignore[no-untyped-call]
        except usage.UsageError as error:
            if not waits:
                raise
            failure = StartFailure(os.EX_USAGE, f"can't start: {error}")
            failure.report()
            raise failure from None

    def parseArgs(self, *words: str) -> None:
        """Reject positional arguments."""
        if words:
            raise usage.UsageError(f"unexpected argument {words[0]!r}; set the services file with --services FILE")

    def read(self, path: str | None) -> DesiredServices:
        """Return the services of a file; None for the file that the command line names.

        Raises:
            ConfigError: it has mistakes.
        """
        parsed = self._note_sources if path is None else None
        path = self["services"] if path is None else path
        loaded = load_config(path, self.files, port_offset=self["port-offset"], machine=self._machine, parsed=parsed)
        if self["check"]:
            for warning in loaded.warnings:
                print(warning, file=sys.stderr)
        return loaded.desired

    def _note_sources(self, config: Config) -> None:
        paths = {os.path.abspath(path) for path in config.sources or (SERVICES_FILE,)}  # noqa: PTH100 - links stay
        # The target of a link may change, too.
        self.sources = frozenset(paths | {os.path.realpath(path) for path in paths})

    def check_again(self, services: Sequence[Service]) -> DesiredServices:
        """Check whether the machine can now serve services that were read before."""
        return check_again(services, self.files, self._machine)

    @property
    def _machine(self) -> Host:
        checking = bool(self["check"])
        parent: Any = self.parent or {}
        # Threads do not survive the fork of a daemon that leaves the terminal, so it waits for the end of imports. The
        # new daemon of an upgrade waits, too: the old daemon serves meanwhile.
        waits = not self.started and (self.old_daemon is not None or not parent.get("nodaemon"))
        wait = None if checking or waits else _IMPORT_SECONDS
        check_wait = None if checking else _IMPORT_SECONDS
        user = "" if parent.get("uid") is None else str(parent["uid"])
        # The old daemon got no answer for these names. This daemon waits for them only in retries after its start.
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
        """Return the services of the services file.

        Raises:
            StartFailure: the file has mistakes, or no service can be served, or with --strict or --check some can't.
        """
        try:
            desired = self.read(None)
        except ConfigError as error:
            lines = str(error).splitlines()
            raise StartFailure(error.exit_code, "the services file has mistakes", lines, prefix="") from None
        faults = [problem for each in desired.faulty for problem in each.problems]
        if self["check"]:
            faults += self._address_faults(desired)
        serves = desired.endpoints or any(fault.pending for fault in faults)
        if faults and (self["strict"] or self["check"] or not serves):
            reasons = ConfigError(faults)
            which = "some services" if desired.endpoints else "the services"
            code = reasons.exit_code if not (self["check"] or self["strict"]) else FaultError.exit_code
            raise StartFailure(code, f"{which} can't be served", str(reasons).splitlines(), prefix="")
        if self.old_daemon is not None and not desired.endpoints and not desired.faulty:
            # As at a reload: the file may be truncated.
            reason = "no service is enabled in the services file; to serve nothing, stop svcd and start it"
            raise StartFailure(ConfigError.exit_code, reason)
        if self["services"]:
            # A daemon changes its working directory, and may read the file again.
            self["services"] = os.path.abspath(self["services"])  # noqa: PTH100 - Path has no such thing for links
        return desired

    def _address_faults(self, desired: DesiredServices) -> list[ConfigProblem]:
        """Return the faults of addresses that are absent or that a process other than svcd uses; print warnings."""
        from argparse import Namespace

        from svcd.cli.services_file import KnownAddresses

        faults, doubtful = KnownAddresses.now(Namespace(control=self["control"])).problems(desired.endpoints)
        for problem in doubtful:
            print(problem, file=sys.stderr)
        return faults

    def _check(self) -> NoReturn:
        """Print where the services would listen, or what is wrong with the file, and exit."""
        try:
            services = self.services()
        except StartFailure as failure:
            failure.report()
            raise
        for line in listing(services.endpoints):
            print(line)
        sys.exit(0)

    def postOptions(self) -> None:
        """Run --check, or check the options of the log, the pid file and the account."""
        # This is the first code of svcd that runs when a daemon starts.
        reset_inherited_signals()
        if self["check"]:
            self._check()
        parent: dict[str, Any] = self.parent if self.parent is not None else {}
        if self["log-format"] == "journald" and any(parent.get(name) for name in ("logfile", "syslog", "logger")):
            raise usage.UsageError(
                "--log-format journald sets the destination as well; remove --logfile, --syslog and --logger"
            )
        self.old_daemon = OldDaemon.from_environment(os.environ, os.getpid())
        if self.old_daemon is not None:
            Twistd.use_temporary_pid_file(parent)
        self.log_output = LogSetup(parent, self["log-format"], anonymize=self["log-addresses"] == "short")
        check_pid_file(parent)
        check_account(parent)
