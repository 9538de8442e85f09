"""Which services file a command is about, and who will serve it: as the running daemon says, else as a unit does."""

from __future__ import annotations

import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svcd.defaults import DEFAULT_NAME, SERVICES_FILE
from svcd.errors import UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Mapping

    from svcd.config.endpoints import Endpoint
    from svcd.config_loader import Loaded
    from svcd.model import ConfigProblem
    from svcd.net.port_owner import Process

__all__ = ["KnownAddresses", "ServicesFileSource", "become", "source_of"]

#: There is where systemd is the init system (sd_booted(3)).
_BOOTED = Path("/run/systemd/system")
_UNIT = "svcd.service"
#: Where the control socket of root's daemon and of the unit is.
_ROOTS_FOLDER = Path("/run/svcd")
_PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class ServicesFileSource:
    """A services file, and who serves it.

    Attributes:
        file: its path; None for the usual one, or the embedded one where that is not there.
        whose: whose it is, for people; empty for one that was named.
        port_offset: with which it is served.
        reader: who reads it and opens its sockets, by name or number; empty if that is not known.
        handlers: who runs handlers without user=, if that is somebody else; else empty.
    """

    file: str | None
    whose: str = ""
    port_offset: int = 0
    reader: str = ""
    handlers: str = ""

    def rights(self, loaded: Loaded, user: str) -> list[ConfigProblem]:
        """Return what services ask for that only root can give, if it is known that no root will serve them.

        Args:
            loaded: the file, without faults of users.
            user: who this is.
        """
        from svcd.supervisor.daemon_account import account_of
        from svcd.supervisor.launch_rights import needs_root

        if user != self.reader or loaded.faults:
            return []
        account = account_of({})
        return [each for service in loaded.config.enabled if service.spawned for each in needs_root(service, account)]

    @property
    def name(self) -> str:
        """The path, for people."""
        from svcd.config_loader import usual_file

        return f"{self.file or usual_file() or DEFAULT_NAME}{f', {self.whose}' if self.whose else ''}"


@dataclass(frozen=True, slots=True)
class KnownAddresses:
    """Addresses that are in use, as far as that is to be asked before root is given up.

    Attributes:
        served: those that the running daemon listens on.
        owners: processes that have sockets, by inode; only root sees all.
        doubt: why addresses of the daemon are not known, if one may run; else empty.
    """

    served: frozenset[str]
    owners: Mapping[str, Process]
    doubt: str = ""

    @classmethod
    def now(cls, chosen: argparse.Namespace) -> KnownAddresses:
        """Ask the daemon that a command line means, and /proc."""
        from svcd.cli.control_commands import daemon_status
        from svcd.net.port_owner import socket_owners

        status = daemon_status(chosen, _PATIENCE)
        root, doubt = os.geteuid() == 0, ""
        if status is None and not root and not chosen.control and _ROOTS_FOLDER.is_dir():
            doubt = "perhaps it is the running svcd, which root or its user can ask (svcctl --control PATH)"
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
    """Yield the addresses that a daemon listens on, by its status, which has those that it can't have as well."""
    for row in status.get("services", []):
        for address in row.get("addresses", []):
            if not any(f"can't listen on {address}: " in problem for problem in row.get("problems", [])):
                yield address


def source_of(named: str | None, chosen: argparse.Namespace) -> ServicesFileSource:
    """Return the services file that a command line means.

    Args:
        named: on the command line; None for none.
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
    """Return what a running daemon says of its services file; None where none answers."""
    from svcd.cli.control_commands import daemon_status

    status = daemon_status(chosen, _PATIENCE)
    if status is None or not isinstance(status.get("services_file"), str):
        return None
    file = status["services_file"]
    return ServicesFileSource(
        None if file == DEFAULT_NAME else file,
        f"which the running daemon serves (pid {status['pid']})",
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
        done = subprocess.run(words, capture_output=True, text=True, timeout=_PATIENCE, check=False)  # noqa: S603 - fixed words
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    return (found.get("User") or "root") if found.get("LoadState") == "loaded" else ""


def become(name: str) -> str:
    """Become a user for good, if root is running this; returns whose eyes see from now on.

    Args:
        name: of the user, or a number; empty for whoever this is.

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
        return f"{own} (root could check as {entry.pw_name}, who serves)"
    os.initgroups(entry.pw_name, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
    return entry.pw_name


def _name_of(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
