"""What an installation on a machine consists of, for the environment that svcd runs from."""

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
from svcd.cli.man_page import manual
from svcd.cli.prefixes import SYSTEM_PREFIXES

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

__all__ = ["InstallPath", "files_of", "why_not"]

#: How the files in etc/ name the environment and the services file.
_SCRIPTS = "/opt/svcd/bin/"
_SERVICES = "/etc/svcd/services"
#: What the unit hides from the daemon (ProtectHome=, PrivateTmp=).
_HIDDEN = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))  # noqa: S108 - no file is made there
_PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class InstallPath:
    """Where to install, and from where.

    Attributes:
        prefix: what the files are put below.
        scripts: the directory with twistd and svcctl.
    """

    prefix: Path
    scripts: Path = Path(sysconfig.get_path("scripts"))

    @property
    def system(self) -> bool:
        """Whether the machine looks there by itself."""
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
        """What systemd-sysusers(8) reads."""
        return self.prefix / "lib/sysusers.d/svcd.conf"

    @property
    def folders(self) -> Path:
        """What systemd-tmpfiles(8) reads."""
        return self.prefix / "lib/tmpfiles.d/svcd.conf"

    @property
    def manifest(self) -> Path:
        """What was installed."""
        return self.prefix / "share/svcd/installed"


def _etc() -> Path:
    """The files of etc/: a part of the package where that is installed, beside it in a checkout."""
    package = Path(svcd.__file__).parent
    installed = package / "etc"
    return installed if installed.is_dir() else package.parent / "etc"


def files_of(place: InstallPath, parser: argparse.ArgumentParser) -> Iterator[InstalledFile]:
    """All files of an installation.

    Args:
        place: where to, and from where.
        parser: what svcctl understands.

    Raises:
        OSError: the files of etc/ are not there.
    """
    etc, prefix = _etc(), place.prefix
    yield InstalledFile(place.unit, _unit(etc / "systemd/svcd.service", place))
    yield InstalledFile(place.users, (etc / "sysusers.d/svcd.conf").read_text("utf-8"))
    yield InstalledFile(place.folders, (etc / "tmpfiles.d/svcd.conf").read_text("utf-8"))
    yield InstalledFile(place.services, (etc / "svcd/services").read_text("utf-8"))
    for page in sorted((etc / "man").iterdir()):
        yield InstalledFile(prefix / f"share/man/man{page.suffix[1:]}" / page.name, page.read_text("utf-8"))
    yield InstalledFile(prefix / "share/man/man1/svcctl.1", manual(parser))
    yield InstalledFile(prefix / "share/bash-completion/completions/svcctl", bash(parser))
    yield InstalledFile(prefix / "share/zsh/site-functions/_svcctl", zsh(parser))
    # Examples, which are to be copied and adapted.
    yield InstalledFile(prefix / "share/svcd/svcd.socket", _unit(etc / "systemd/svcd.socket", place))
    yield InstalledFile(prefix / "share/svcd/logrotate.d/svcd", (etc / "logrotate.d/svcd").read_text("utf-8"))
    for each in sorted((etc / "systemd/drop-ins").iterdir()):
        yield InstalledFile(prefix / "share/svcd/drop-ins" / each.name, _unit(each, place))
    if prefix / "bin" != place.scripts:
        text = f'#!/bin/sh\nexec {_shell_word(place.scripts / "svcctl")} "$@"\n'
        yield InstalledFile(prefix / "bin/svcctl", text, 0o755, spare=True)


def _unit(source: Path, place: InstallPath) -> str:
    """A unit with the paths of this installation."""
    text = source.read_text("utf-8")
    text = re.sub(rf"{_SCRIPTS}(\w+)", lambda found: _unit_word(place.scripts / found[1]), text)
    return text.replace(f" {_SERVICES}", f" {_unit_word(place.services)}")


def _unit_word(path: Path) -> str:
    """A path in ExecStart= (systemd.service(5), command lines; systemd.unit(5), specifiers)."""
    text = str(path).replace("%", "%%").replace("$", "$$")
    if re.fullmatch(r"[\w/.,:@%+=$-]+", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _shell_word(path: Path) -> str:
    text = str(path)
    return text if re.fullmatch(r"[\w/.,:@%+=-]+", text, re.ASCII) else "'" + text.replace("'", "'\\''") + "'"


def why_not(place: InstallPath, python: Path) -> str:
    """Why the daemon could not run from this environment as its unit starts it; empty if it could.

    Args:
        place: has the scripts.
        python: the interpreter, behind all links.
    """
    for path in (place.scripts / "twistd", python, Path(svcd.__file__)):
        hidden = next((folder for folder in _HIDDEN if folder in path.parents), None)
        if hidden is not None:
            return f"{path} lies below {hidden}, which the unit hides from the daemon"
        closed = next((folder for folder in path.parents if not _open_to_all(folder)), None)
        if closed is not None:
            return f"{path} can't be read by the daemon's user, who may not enter {closed}"
    # As the unit starts it: nothing of this shell's environment helps.
    words = [str(place.scripts / "twistd"), "svcd", "--version"]
    try:
        done = subprocess.run(  # noqa: S603 - it is what the unit will start
            words, env={}, cwd="/", capture_output=True, text=True, timeout=_PATIENCE, check=False
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
