"""The zygote: the process that launchers are forked from, also after the daemon has given up root.

Only the zygote keeps the rights that the daemon was started with, so it does as little as possible: it has a table of
services, fixed at its start. On request it starts another launcher for a row of the table, with the same rights or
fewer (svcd.process.launch_options has the rule), or signals a handler whose launcher was lost. It exits with the
daemon. Before that it resumes stopped launchers (SIGSTOP), which may have to signal their handlers, and exit.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import select
import socket
import sys
from signal import SIGCONT, SIGKILL, SIGTERM
from typing import NoReturn

from svcd.process.credentials import become_subreaper
from svcd.process.launch_options import apply_options, excess, inherited_limits
from svcd.process.launcher import serve
from svcd.process.messages import (
    FD_STRUCT,
    MAX_PACKET,
    ChildExited,
    Kill,
    LauncherStarted,
    Signal,
    StartLauncher,
    pack,
    parse,
)
from svcd.process.signals import ChildWatch, ignore_termination_signals, reap_children
from svcd.process.spec import LaunchSpec, load

__all__ = ["TABLE_FD", "main"]

#: The descriptor of the table of services; the socket to the daemon is the standard input.
TABLE_FD = 3


class _Zygote:
    def __init__(self, control: socket.socket, specs: tuple[LaunchSpec, ...]) -> None:
        self._control = control
        self._specs = specs
        self._limits = inherited_limits()
        self._watch = ChildWatch()
        self._launchers: set[int] = set()

    def run(self) -> None:
        """Serve until the daemon is gone."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._watch, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll()]
            if self._watch.fileno() in ready:
                self._watch.clear()
                for pid, status, *_ in reap_children():
                    self._launchers.discard(pid)
                    self._control.send(pack(ChildExited(pid, status)))
            if self._control.fileno() in ready:
                packet = self._control.recv(MAX_PACKET)
                if not packet:
                    return
                self._handle_order(packet)

    def resume_launchers(self) -> None:
        """Resume stopped launchers, which then notice the end of the daemon."""
        for pid in self._launchers:
            # None of them was reaped, so the pids are valid.
            with contextlib.suppress(OSError):
                os.kill(pid, SIGCONT)

    def _handle_order(self, packet: bytes) -> None:
        """Execute an order. A compromised daemon can get the rights of a row of the table or fewer, nothing else."""
        try:
            order = parse(packet)
        except ValueError:
            return
        if isinstance(order, Signal):
            _signal_orphan(order)
        if isinstance(order, Kill) and order.pid in self._launchers:
            os.kill(order.pid, SIGKILL)
        if isinstance(order, StartLauncher):
            self._handle_start(order)

    def _handle_start(self, order: StartLauncher) -> None:
        spec = self._specs[order.row] if order.row < len(self._specs) else None
        try:
            adapted = apply_options(spec or self._specs[0], order.options) if order.options else spec
        except ValueError:
            return
        if spec is None or adapted is None:
            self._control.send(pack(LauncherStarted(order.row, 0, errno.EINVAL)))
        elif excess(spec, adapted, self._limits):
            self._control.send(pack(LauncherStarted(order.row, 0, errno.EPERM)))
        else:
            self._launch(order.row, adapted)

    def _launch(self, row: int, spec: LaunchSpec) -> None:
        daemon_end, launcher_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with daemon_end, launcher_end:
            try:
                pid = os.fork()
            except OSError as error:
                self._control.send(pack(LauncherStarted(row, 0, error.errno or 0)))
                return
            if not pid:
                daemon_end.close()
                self._run_launcher(spec, launcher_end)
            self._launchers.add(pid)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, FD_STRUCT.pack(daemon_end.fileno()))]
            self._control.sendmsg([pack(LauncherStarted(row, pid))], rights)

    def _run_launcher(self, spec: LaunchSpec, control: socket.socket) -> NoReturn:
        """Run a launcher, in the child."""
        code = 70  # sysexits(3) EX_SOFTWARE
        try:
            self._control.close()
            self._watch.close()
            code = serve(spec, control)
        except BaseException:  # noqa: BLE001 - the child must not continue in the code of the zygote
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)


def _signal_orphan(order: Signal) -> None:
    """Signal the process group of a handler whose launcher was lost; launchers lead no group."""
    if order.pid <= 0 or order.signal not in (SIGTERM, SIGKILL):
        return
    with contextlib.suppress(OSError):
        os.waitid(os.P_PID, order.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if os.getsid(order.pid) == order.pid:
            os.killpg(order.pid, order.signal)


def _close_inherited_fds(kept: int) -> None:
    """Close all inherited descriptors except the standard ones and `kept`: no handler may get them."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - pathlib is not worth its memory here
        if int(name) > 2 and int(name) != kept:
            # The descriptor of the listing itself is closed already.
            with contextlib.suppress(OSError):
                os.close(int(name))


def main() -> None:
    """Run the zygote, in a fresh interpreter."""
    os.setsid()
    ignore_termination_signals()
    control = socket.socket(fileno=os.dup(0))
    with open(TABLE_FD, "rb") as table:
        table.seek(0)
        specs = load(table.read())
    _close_inherited_fds(control.fileno())
    devnull = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(devnull, 0)
    os.dup2(devnull, 1)
    os.close(devnull)
    become_subreaper()
    # Keep the current objects out of garbage collection, so that their memory stays shared with the launchers.
    gc.collect()
    gc.freeze()
    zygote = _Zygote(control, specs)
    try:
        zygote.run()
    except (BrokenPipeError, ConnectionResetError):
        return
    finally:
        zygote.resume_launchers()
