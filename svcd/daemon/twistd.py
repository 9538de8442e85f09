"""twistd's pid file, status pipe and account, controlled by its own options."""

from __future__ import annotations

import contextlib
import os
import pwd
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger
from twisted.python import usage

from svcd.log.events import PROBLEM, log_event
from svcd.supervisor.daemon_account import FOLLOWS_USER

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

__all__ = ["Twistd", "check_account", "check_pid_file"]


#: Files that container runtimes create (Podman, Docker, systemd-nspawn and others), and variables that they set.
_CONTAINER_FILES = ("/run/.containerenv", "/.dockerenv", "/run/systemd/container")
_CONTAINER_VARIABLES = ("container", "KUBERNETES_SERVICE_HOST")

#: The suffix of the new daemon's pid file while the old daemon has the pid file.
_NEW_SUFFIX = ".new"


class Twistd:
    """Interface to the twistd that runs the daemon.

    Args:
        options: twistd's options, which it reads again when the daemon has started and when it exits.
        managed: whether a service manager gets notifications.
        new_daemon: whether an old daemon has started this process.
    """

    _log = Logger()

    def __init__(self, options: MutableMapping[str, Any], *, managed: bool = False, new_daemon: bool = False) -> None:
        self._options = options
        self._managed = managed
        # The parent of a new daemon was the old daemon; the later parent has no meaning.
        self._parent = 0 if new_daemon else os.getppid()
        self._waiting: int | None = None

    @property
    def upgrade_blocker(self) -> str:
        """The reason why this process can't be replaced by a new daemon; empty if it can."""
        # systemd sets the variable to the pid of a unit's main process (systemd.exec(5)).
        unit = os.environ.get("SYSTEMD_EXEC_PID") == str(os.getpid())
        # An init process of a container, such as tini, exits with the process that it has started.
        watched = self._parent == 1 and bool(self._options.get("nodaemon")) and _in_container()
        if os.getpid() == 1 or (watched and not unit):
            return (
                "this is the main process of a container, which would end with it: restart the container (docker "
                "restart, podman restart, kubectl rollout restart), with an image that has the new program; svcctl "
                "reload changes the services without a restart"
            )
        if self._managed or unit:
            return (
                "a service manager supervises this process, and would treat its exit as the end of the service: "
                "restart it there; systemctl restart refuses no client, as systemd keeps the sockets of svcd.service"
            )
        if self._options.get("chroot"):
            return "a process can't leave the root directory of twistd --chroot; stop svcd and start it again"
        return ""

    @staticmethod
    def use_temporary_pid_file(options: MutableMapping[str, Any]) -> None:
        """Set the options of a new daemon: a pid file beside the old daemon's, and no second change of the account."""
        if options.get("pidfile"):
            options["pidfile"] += _NEW_SUFFIX
        if options.get("uid") == os.geteuid() and options.get("gid") in (None, os.getegid()):
            options["uid"] = options["gid"] = None
            options[FOLLOWS_USER] = os.geteuid() != 0

    def take_over(self) -> None:
        """Replace the old daemon's pid file."""
        temporary = self._pid_file
        if temporary:
            path = temporary.removesuffix(_NEW_SUFFIX)
            try:
                os.replace(temporary, path)  # noqa: PTH105 - one system call
            except OSError as error:
                # The daemon can serve without a pid file.
                log_event(self._log, PROBLEM, text=f"the pid file {path} can't be replaced: {error.strerror}")
            else:
                self._options["pidfile"] = path

    def upgraded(self) -> None:
        """Leave the pid file to the new daemon."""
        self._options["pidfile"] = ""

    def upgrade_failed(self) -> None:
        """Restore the pid file after a new daemon has failed."""
        path, own_pid = Path(self._pid_file), f"{os.getpid()}"
        if not self._pid_file:
            return
        with contextlib.suppress(OSError):
            path.with_name(path.name + _NEW_SUFFIX).unlink(missing_ok=True)
            if path.read_text() != own_pid:
                path.write_text(own_pid)

    def remove_pid_file(self) -> None:
        """Remove the pid file, for an exit that bypasses twistd."""
        if self._pid_file:
            with contextlib.suppress(OSError):
                Path(self._pid_file).unlink()

    @property
    def _pid_file(self) -> str:
        return str(self._options.get("pidfile") or "")

    def hold_status_pipe(self) -> None:
        """Make the command that started the daemon wait until it serves, instead of returning at the fork."""
        self._waiting = self._options.pop("statusPipe", None)

    def release_status_pipe(self) -> None:
        """Let the command that started the daemon return."""
        if self._waiting is not None:
            with contextlib.suppress(BrokenPipeError):
                # twistd itself writes this when the application has started.
                os.write(self._waiting, b"0")
            os.close(self._waiting)
            self._waiting = None


def _in_container() -> bool:
    """Return whether this process runs in a container."""
    return any(map(os.path.exists, _CONTAINER_FILES)) or any(map(os.environ.get, _CONTAINER_VARIABLES))


def check_account(options: Mapping[str, Any]) -> None:
    """Check that the user of --uid exists, since twistd would print a traceback.

    Raises:
        UsageError: there is no such user.
    """
    user = options.get("uid")
    if user is None or (user == os.geteuid() and options.get("gid") is not None):
        return
    try:
        pwd.getpwuid(user)
    except (KeyError, OverflowError):
        raise usage.UsageError(f"--uid {user}: there is no such user in passwd(5); create it, or use another") from None


def check_pid_file(options: dict[str, Any]) -> None:
    """Check that the pid file can be written, since twistd would print a traceback.

    Raises:
        UsageError: it can't be written.
    """
    name = options.get("pidfile")
    if not name or options.get("chroot"):
        return
    path = os.path.join(options.get("rundir", "."), name)  # noqa: PTH118
    folder = os.path.dirname(path) or "."  # noqa: PTH120
    writable = os.access(path, os.R_OK | os.W_OK) if os.path.exists(path) else os.access(folder, os.W_OK | os.X_OK)  # noqa: PTH110
    if writable and not os.path.isdir(path):  # noqa: PTH112
        return
    if options.get("nodaemon") and name == "twistd.pid":
        # The default pid file was not requested, and in the foreground it is not needed.
        options["pidfile"] = ""
    else:
        folder = os.path.abspath(folder)  # noqa: PTH100 - links stay
        raise usage.UsageError(f"can't write the pid file {name} in {folder}; use --pidfile FILE, or --pidfile=")
