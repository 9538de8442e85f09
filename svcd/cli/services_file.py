"""The services file of a command and the user that serves it, from the running daemon or else from the unit."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svcd.defaults import DEFAULT_NAME, SERVICES_FILE
from svcd.errors import FaultError, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Mapping

    from svcd.config.endpoints import Endpoint
    from svcd.config_loader import Loaded
    from svcd.model import ConfigProblem
    from svcd.net.port_owner import Process

__all__ = ["KnownAddresses", "ServicesFileSource", "become", "require_modules", "source_of"]

#: A directory that exists if systemd is the init system (sd_booted(3)).
_BOOTED = Path("/run/systemd/system")
_UNIT = "svcd.service"
#: The control sockets of root's daemon and of the unit.
_ROOTS_FOLDER = Path("/run/svcd")
_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class ServicesFileSource:
    """A services file and the user that serves it.

    Attributes:
        file: its path; None for the usual file, or the embedded one if that does not exist.
        whose: the source of the path, as text; empty if the command line names it.
        port_offset: the port offset of the daemon.
        reader: the user that reads it and opens its sockets, by name or number; empty if unknown.
        handlers: the user of handlers without user=, if it is another one; else empty.
    """

    file: str | None
    whose: str = ""
    port_offset: int = 0
    reader: str = ""
    handlers: str = ""

    def rights(self, loaded: Loaded, user: str) -> list[ConfigProblem]:
        """Return the problems of services that need root, if the file is known not to be served by root.

        Args:
            loaded: the file, without faults of users.
            user: the user of this process.
        """
        from svcd.supervisor.daemon_account import account_of
        from svcd.supervisor.launch_rights import needs_root

        if user != self.reader or loaded.faults:
            return []
        account = account_of({})
        return [each for service in loaded.config.enabled if service.launches for each in needs_root(service, account)]

    @property
    def handlers_text(self) -> str:
        """The user of handlers, for a line of text; empty if there is no other user than the reader."""
        return f", handlers as {self.handlers}" if self.handlers else ""

    @property
    def name(self) -> str:
        """The path and its source, as text."""
        from svcd.config_loader import usual_file

        return f"{self.file or usual_file() or DEFAULT_NAME}{f', {self.whose}' if self.whose else ''}"


@dataclass(frozen=True, slots=True)
class KnownAddresses:
    """Addresses in use, as collected before root is given up.

    Attributes:
        served: the addresses of the running daemon.
        owners: the processes of sockets, by inode; only root sees all.
        doubt: why the addresses of a daemon that may run are unknown; else empty.
    """

    served: frozenset[str]
    owners: Mapping[str, Process]
    doubt: str = ""

    @classmethod
    def now(cls, chosen: argparse.Namespace) -> KnownAddresses:
        """Ask the daemon that a command line means, and /proc."""
        from svcd.cli.control_commands import daemon_status
        from svcd.net.port_owner import socket_owners

        status = daemon_status(chosen, _TIMEOUT_SECONDS)
        root, doubt = os.geteuid() == 0, ""
        if status is None and not root and not chosen.control and _ROOTS_FOLDER.is_dir():
            doubt = "the process may be the running svcd; check as root or as its user, or use svcctl --control PATH"
        owners = socket_owners() if root else {}
        return cls(frozenset(_served(status or {})), owners, doubt)

    def problems(self, endpoints: Iterable[Endpoint]) -> tuple[list[ConfigProblem], list[ConfigProblem]]:
        """Return the faults of addresses that can't be listened on, and warnings."""
        from svcd.model import Severity
        from svcd.sockets.address_check import address_faults

        found = list(address_faults(endpoints, self.served, self.owners, self.doubt))
        faults = [each for each in found if each.severity is Severity.FAULT]
        return faults, [each for each in found if each.severity is not Severity.FAULT]


def _served(status: Mapping[str, Any]) -> Iterator[str]:
    """Yield the addresses on which a daemon listens; its status also has those that it can't open."""
    for row in status.get("services", []):
        for address in row.get("addresses", []):
            if not any(f"can't listen on {address}: " in problem for problem in row.get("problems", [])):
                yield address


def source_of(named: str | None, chosen: argparse.Namespace) -> ServicesFileSource:
    """Return the services file that a command line means.

    Args:
        named: the path on the command line; None if there is none.
        chosen: the command line, which may name a control socket.
    """
    if named is not None and os.path.abspath(named) != SERVICES_FILE and not chosen.control:  # noqa: PTH100 - links stay
        return ServicesFileSource(named)
    running = _running(chosen)
    if running is not None and (named is None or os.path.abspath(named) == running.file):  # noqa: PTH100 - links stay
        return running
    if named is not None and os.path.abspath(named) != SERVICES_FILE:  # noqa: PTH100 - links stay
        return ServicesFileSource(named)
    return ServicesFileSource(named, reader=_unit_user())


def _running(chosen: argparse.Namespace) -> ServicesFileSource | None:
    """Return the services file in the status of a running daemon; None if none answers."""
    from svcd.cli.control_commands import daemon_status

    status = daemon_status(chosen, _TIMEOUT_SECONDS)
    if status is None or not isinstance(status.get("services_file"), str):
        return None
    file = status["services_file"]
    return ServicesFileSource(
        None if file == DEFAULT_NAME else file,
        f"the file of the running daemon (pid {status['pid']})",
        int(status.get("port_offset", 0)),
        _user(status, "reader"),
        _user(status, "user") if status.get("user") != status.get("reader") else "",
    )


def _user(status: Mapping[str, object], key: str) -> str:
    number = status.get(key)
    if not isinstance(number, int):
        return ""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _unit_user() -> str:
    """Return the user of the installed unit; empty if there is none."""
    if not _BOOTED.is_dir():
        return ""
    words = ["systemctl", "show", "--property=LoadState,User", _UNIT]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)  # noqa: S603 - fixed words
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    return (found.get("User") or "root") if found.get("LoadState") == "loaded" else ""


def become(name: str) -> str:
    """Become a user for good if this process runs as root, and return the user of this process, as text.

    Args:
        name: the name or number of the user; empty for no change.

    Raises:
        UsageError: there is no such user.
    """
    own = _name_of(os.geteuid())
    if not name or name == own:
        return own
    try:
        entry = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        raise UsageError(f"no user {name!r} on this machine") from None
    if os.geteuid() != 0:
        return f"{own} (as root, the check would run as {entry.pw_name}, the user that serves)"
    os.initgroups(entry.pw_name, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
    return entry.pw_name


def require_modules(user: str) -> None:
    """Check that this process can read Python's library and svcd's modules, as it may not after a change of its user.

    A later import would fail: Python imports codecs, for example, at their first use.

    Args:
        user: the user of this process, as text.

    Raises:
        FaultError: it can't read them.
    """
    from svcd.host.permissions import PathUser, cannot_read
    from svcd.model import ConfigProblem, Severity, SourceLocation

    account = PathUser(user, os.geteuid(), frozenset({os.getegid(), *os.getgroups()}))
    for file in (sys.modules[name].__file__ or "" for name in ("os", "svcd", "twisted") if name in sys.modules):
        reason = cannot_read(file, account)
        if reason:
            text = (
                f"can't read the modules of Python and svcd: {reason}; install Python and svcd where {user} can read "
                "them, or check as another user with --user USER"
            )
            raise FaultError([ConfigProblem(SourceLocation(file), text, Severity.FAULT)])


def _name_of(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
