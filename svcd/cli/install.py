"""`svcctl install` and `svcctl uninstall`: svcd as a service of the machine, run from this Python environment."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svcd.cli.prefixes import SYSTEM_PREFIXES, USUAL_PREFIX

if TYPE_CHECKING:
    import argparse

    from svcd.cli.install_files import InstallPath

__all__ = ["add_install"]

# These commands import what only they need: other commands of svcctl start in two thirds of the time.

#: A directory that exists if systemd is the init system (sd_booted(3)).
_BOOTED = Path("/run/systemd/system")


def add_install(commands: Any, parser: argparse.ArgumentParser) -> None:  # noqa: ANN401 - argparse has no public name
    """Add both commands to a parser.

    Args:
        commands: the result of add_subparsers().
        parser: the whole parser, for shell completion.
    """
    where = ", ".join(map(str, SYSTEM_PREFIXES))
    texts = {
        "install": "install the systemd units, services file, manual pages and shell completion of svcd",
        "uninstall": "remove the installed files, except those that were edited",
    }
    more = {
        "install": "An edited file is never overwritten: the new version is written beside it, as NAME.new. The exit "
        "status is 69 if svcd can't run as a service from here, or a command of systemd fails, 73 if a file can't be "
        "written, 77 if the system does not permit it.",
        "uninstall": "Stops and disables the service first. The user svcd stays. The exit status is 69 if a command of "
        "systemd fails, 73 if a file can't be removed, 77 if the system does not permit it.",
    }
    for name, run in (("install", partial(_install, parser)), ("uninstall", _uninstall)):
        command = commands.add_parser(
            name, help=texts[name], description=f"{texts[name][0].upper()}{texts[name][1:]}. {more[name]}"
        )
        command.add_argument(
            "--prefix",
            metavar="DIR",
            default=USUAL_PREFIX,
            help=f"default: {USUAL_PREFIX}; systemd looks below {where}",
        )
        command.add_argument("--dry-run", action="store_true", help="print what would be done, and change nothing")
        command.set_defaults(run=run)


def _say(dry: bool, verb: str, path: Path) -> None:
    print(f"{'would ' if dry and verb[0] in 'wur' and verb != 'unchanged' else ''}{verb} {path}")


def _install(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> int:
    from svcd.cli.file_installer import FileInstaller
    from svcd.cli.install_files import InstallPath, files_of, why_not

    place, dry = InstallPath(_absolute(chosen.prefix)), chosen.dry_run
    reason = why_not(place, Path(sys.executable).resolve())
    if reason:
        warning = "" if place.system else "warning: "
        _complain(f"{warning}{reason}; install svcd into an environment of its own, as in: python3 -m venv /opt/svcd")
        if place.system:
            return os.EX_UNAVAILABLE
    try:
        FileInstaller(place.manifest, partial(_say, dry), dry=dry).place(files_of(place, parser))
    except OSError as error:
        return _failed(error)
    users, folders = ["systemd-sysusers", str(place.users)], ["systemd-tmpfiles", "--create", str(place.folders)]
    done = _manage(place, dry, users, folders, ["systemctl", "daemon-reload"])
    if done and not dry:
        print(f"Edit {place.services}, and start: systemctl enable --now svcd")
    return 0 if done else os.EX_UNAVAILABLE


def _uninstall(chosen: argparse.Namespace) -> int:
    from svcd.cli.file_installer import FileInstaller
    from svcd.cli.install_files import InstallPath

    place, dry = InstallPath(_absolute(chosen.prefix)), chosen.dry_run
    try:
        placer = FileInstaller(place.manifest, partial(_say, dry), dry=dry)
        if not placer:
            _complain(f"nothing is installed below {place.prefix}: there is no {place.manifest}")
            return 0
        if place.unit in placer and not _manage(place, dry, ["systemctl", "disable", "--now", "svcd.service"]):
            return os.EX_UNAVAILABLE
        placer.take_back()
    except OSError as error:
        return _failed(error)
    done = _manage(place, dry, ["systemctl", "daemon-reload"])
    if place.system and not dry:
        print("The user svcd is kept, since it may own files; to remove it: userdel svcd")
    return 0 if done else os.EX_UNAVAILABLE


def _absolute(prefix: str) -> Path:
    return Path(os.path.abspath(prefix))  # noqa: PTH100 - with its links, as it was written


def _manage(place: InstallPath, dry: bool, *commands: list[str]) -> bool:
    """Let systemd reload its units if it runs and reads this prefix; return whether that succeeded."""
    import shutil
    import subprocess

    if not place.system:
        if len(commands) > 1:
            print(f"systemd does not look below {place.prefix}; copy {place.users} to /etc/sysusers.d,")
            print(
                f"{place.folders} to /etc/tmpfiles.d, run systemd-sysusers and systemd-tmpfiles --create, and link the"
            )
            print(f"unit: systemctl link {place.unit}")
        return True
    if not _BOOTED.is_dir():
        if len(commands) > 1:
            print("systemd is not running; when it is: systemctl enable --now svcd")
        return True
    for words in commands:
        print(f"{'would run' if dry else 'run'} {' '.join(words)}")
        if dry:
            continue
        program = shutil.which(words[0])
        if program is None or subprocess.run([program, *words[1:]], check=False).returncode:  # noqa: S603 - as listed
            _complain(f"{' '.join(words)} failed" if program else f"there is no {words[0]}")
            return False
    return True


def _failed(error: OSError) -> int:
    """Report a failed installation; return the exit status.

    Raises:
        BrokenPipeError: the reader of the output, such as head(1), has ended.
    """
    if isinstance(error, BrokenPipeError):
        raise error
    forbidden = isinstance(error, PermissionError)
    advice = "; do it as root, or choose another --prefix" if forbidden else ""
    _complain(f"{error.filename or ''}: {error.strerror or error}{advice}")
    return os.EX_NOPERM if forbidden else os.EX_CANTCREAT


def _complain(text: str) -> None:
    print(f"svcctl: {text}", file=sys.stderr)
