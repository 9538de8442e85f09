"""Which services file a command is about, and who will serve it: as the running daemon says, else as a unit does."""

from __future__ import annotations

import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from svcd.config.default import DEFAULT_NAME, SERVICES_FILE
from svcd.errors import UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from svcd.loading import Loaded
    from svcd.model import Problem

__all__ = ["Source", "become", "source_of"]

#: There is where systemd is the init system (sd_booted(3)).
_BOOTED = Path("/run/systemd/system")
_UNIT = "svcd.service"
_PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class Source:
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

    def rights(self, loaded: Loaded, user: str) -> list[Problem]:
        """Return what services ask for that only root can give, if it is known that no root will serve them.

        Args:
            loaded: the file, without faults of users.
            user: who this is.
        """
        from svcd.resources import account_of
        from svcd.transport.specs import root_needed

        if user != self.reader or loaded.faults:
            return []
        account = account_of({})
        return [each for service in loaded.config.enabled if service.spawned for each in root_needed(service, account)]

    @property
    def name(self) -> str:
        """The path, for people."""
        from svcd.loading import usual_file

        return f"{self.file or usual_file() or DEFAULT_NAME}{f', {self.whose}' if self.whose else ''}"


def source_of(named: str | None, chosen: argparse.Namespace) -> Source:
    """Return the services file that a command line means.

    Args:
        named: on the command line; None for none.
        chosen: the command line, which may name a control socket.
    """
    if named is not None and os.path.abspath(named) != SERVICES_FILE and not chosen.control:  # noqa: PTH100 - links stay
        return Source(named)
    running = _running(chosen)
    if running is not None and (named is None or os.path.abspath(named) == running.file):  # noqa: PTH100 - links stay
        return running
    if named is not None and os.path.abspath(named) != SERVICES_FILE:  # noqa: PTH100 - links stay
        return Source(named)
    return Source(named, reader=_unit_user())


def _running(chosen: argparse.Namespace) -> Source | None:
    """Return what a running daemon says of its services file; None where none answers."""
    from svcd.cli.client import daemon_status

    status = daemon_status(chosen, _PATIENCE)
    if status is None or not isinstance(status.get("services_file"), str):
        return None
    file = status["services_file"]
    return Source(
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
