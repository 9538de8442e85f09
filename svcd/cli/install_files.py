"""The files of an installation, for the Python environment that svcd runs from."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import svcd
from svcd.cli.completion import bash, zsh
from svcd.cli.file_installer import InstalledFile
from svcd.cli.prefixes import SYSTEM_PREFIXES

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

__all__ = ["InstallPath", "files_of", "why_not"]

#: The paths of the environment and the services file in the files of etc/.
_SCRIPTS = "/opt/svcd/bin/"
_SERVICES = "/etc/svcd/services"
#: Directories that the unit hides from the daemon (ProtectHome=, PrivateTmp=).
_HIDDEN = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))  # noqa: S108 - no file is made there
_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class InstallPath:
    """The paths of an installation.

    Attributes:
        prefix: the directory below which files are installed.
        scripts: the directory with twistd and svcctl.
    """

    prefix: Path
    scripts: Path = Path(sysconfig.get_path("scripts"))

    @property
    def system(self) -> bool:
        """Whether systemd, man and shells read this prefix by default."""
        return self.prefix in SYSTEM_PREFIXES

    @property
    def services(self) -> Path:
        """The services file."""
        return Path(_SERVICES) if self.system else self.prefix / _SERVICES[1:]

    @property
    def unit(self) -> Path:
        """The service unit."""
        return self.prefix / "lib/systemd/system/svcd.service"

    @property
    def users(self) -> Path:
        """The file for systemd-sysusers(8)."""
        return self.prefix / "lib/sysusers.d/svcd.conf"

    @property
    def folders(self) -> Path:
        """The file for systemd-tmpfiles(8)."""
        return self.prefix / "lib/tmpfiles.d/svcd.conf"

    @property
    def manifest(self) -> Path:
        """The record of the installed files."""
        return self.prefix / "share/svcd/installed"


def _etc() -> Path:
    """Return the directory etc/: inside an installed package, beside it in a checkout."""
    package = Path(svcd.__file__).parent
    installed = package / "etc"
    return installed if installed.is_dir() else package.parent / "etc"


def files_of(place: InstallPath, parser: argparse.ArgumentParser) -> Iterator[InstalledFile]:
    """Yield all files of an installation.

    Args:
        place: the paths of the installation.
        parser: the parser of svcctl.

    Raises:
        OSError: the files of etc/ are missing.
    """
    etc, prefix = _etc(), place.prefix
    yield InstalledFile(place.unit, _unit(etc / "systemd/svcd.service", place))
    yield InstalledFile(place.users, (etc / "sysusers.d/svcd.conf").read_text("utf-8"))
    yield InstalledFile(place.folders, (etc / "tmpfiles.d/svcd.conf").read_text("utf-8"))
    yield InstalledFile(place.services, (etc / "svcd/services").read_text("utf-8"))
    for page in sorted((etc / "man").iterdir()):
        yield InstalledFile(prefix / f"share/man/man{page.suffix[1:]}" / page.name, page.read_text("utf-8"))
    yield InstalledFile(prefix / "share/bash-completion/completions/svcctl", bash(parser))
    yield InstalledFile(prefix / "share/zsh/site-functions/_svcctl", zsh(parser))
    # Examples to copy and adapt.
    yield InstalledFile(prefix / "share/svcd/svcd.socket", _unit(etc / "systemd/svcd.socket", place))
    yield InstalledFile(prefix / "share/svcd/logrotate.d/svcd", (etc / "logrotate.d/svcd").read_text("utf-8"))
    for each in sorted((etc / "systemd/drop-ins").iterdir()):
        yield InstalledFile(prefix / "share/svcd/drop-ins" / each.name, _unit(each, place))
    if prefix / "bin" != place.scripts:
        for name in ("svcctl", "svcd"):
            text = f'#!/bin/sh\nexec {_shell_word(place.scripts / name)} "$@"\n'
            yield InstalledFile(prefix / "bin" / name, text, 0o755, spare=True)


def _unit(source: Path, place: InstallPath) -> str:
    """Return a unit with the paths of this installation."""
    text = source.read_text("utf-8")
    text = re.sub(rf"{_SCRIPTS}(\w+)", lambda found: _unit_word(place.scripts / found[1]), text)
    return text.replace(f" {_SERVICES}", f" {_unit_word(place.services)}")


def _unit_word(path: Path) -> str:
    """Escape a path for ExecStart= (systemd.service(5), command lines; systemd.unit(5), specifiers)."""
    text = str(path).replace("%", "%%").replace("$", "$$")
    if re.fullmatch(r"[\w/.,:@%+=$-]+", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _shell_word(path: Path) -> str:
    text = str(path)
    return text if re.fullmatch(r"[\w/.,:@%+=-]+", text, re.ASCII) else "'" + text.replace("'", "'\\''") + "'"


def why_not(place: InstallPath, python: Path) -> str:
    """Return why the daemon can't run from this environment under its unit; empty if it can.

    Args:
        place: the paths of the installation.
        python: the interpreter, with links resolved.
    """
    for path in (place.scripts / "twistd", python, Path(svcd.__file__)):
        hidden = next((folder for folder in _HIDDEN if folder in path.parents), None)
        if hidden is not None:
            return f"{path} lies below {hidden}, which the unit hides from the daemon"
        closed = next((folder for folder in path.parents if not _open_to_all(folder)), None)
        if closed is not None:
            return f"{path} can't be read by the daemon's user, which has no access to {closed}"
    # As the unit starts it: without the environment of this shell.
    words = [str(place.scripts / "twistd"), "svcd", "--version"]
    try:
        done = subprocess.run(  # noqa: S603 - it is what the unit will start
            words, env={}, cwd="/", capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{words[0]} does not start: {error}"
    said = (done.stderr or done.stdout).strip().splitlines()
    cause = f": {said[-1]}" if said else ""
    return f"{' '.join(words)} ends with {done.returncode}{cause}" if done.returncode else ""


def _open_to_all(folder: Path) -> bool:
    try:
        return bool(os.stat(folder).st_mode & stat.S_IXOTH)  # noqa: PTH116 - one system call
    except OSError:
        return True
