"""Notifications to the service manager: state, watchdog, and stored sockets (sd_notify(3), sd_pid_notify_with_fds(3)).

Each message is a datagram of assignments to the socket $NOTIFY_SOCKET, with optional descriptors. The protocol is small
and stable, and its manual page specifies it in full, so no library is used.
"""

from __future__ import annotations

import os
import select
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

__all__ = ["ServiceManager", "StatusReporter"]

#: The longest wait for room in the manager's queue, for messages that must not be lost, in seconds.
_SEND_SECONDS = 1.0
#: The longest wait of a barrier for the manager, in seconds, as sd_notify_barrier(3) recommends.
_BARRIER_SECONDS = 5.0
#: The time between status messages, in seconds.
_STATUS_SECONDS = 5.0


class ServiceManager:
    """Service manager that has started the daemon; without one all methods do nothing.

    Args:
        address: the value of NOTIFY_SOCKET: a path, or an @ and a name in the abstract namespace; None for no manager.
        watchdog: the watchdog timeout in seconds; None without a watchdog.
    """

    def __init__(self, address: str | None = None, watchdog: float | None = None) -> None:
        self._address = address or ""
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        self._socket: socket.socket | None = None
        self.watchdog = watchdog if address else None

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str], pid: int) -> ServiceManager:
        """Return the manager that the environment names.

        The variables are removed, so that child processes do not inherit them. The watchdog applies to the process
        WATCHDOG_PID only, if that is set (sd_watchdog_enabled(3)).
        """
        address = environment.pop("NOTIFY_SOCKET", None)
        period = environment.pop("WATCHDOG_USEC", "")
        guarded = environment.pop("WATCHDOG_PID", "")
        read_end = not guarded or guarded == str(pid)
        watchdog = int(period) / 1e6 if period.isdecimal() and int(period) and read_end else None
        return cls(address, watchdog)

    @property
    def present(self) -> bool:
        """Whether there is a service manager."""
        return bool(self._address)

    def send(self, *states: str, fd: int | None = None, wait: bool = True) -> bool:
        """Send assignments as one message.

        Args:
            states: assignments like `READY=1`; line feeds in values are replaced by blanks.
            fd: a descriptor to send with the message.
            wait: whether to wait for room in the queue, a second at most.

        Returns:
            Whether the message was sent; it is not acknowledged.
        """
        if not self._address:
            return False
        message = "\n".join(state.replace("\n", " ") for state in states).encode()
        rights = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fd.to_bytes(4, "little"))]
        try:
            try:
                self._send(message, rights, wait=wait)
            except ConnectionError:
                # A restarted manager has a new socket at the same address.
                self.close()
                self._send(message, rights, wait=wait)
        except OSError:
            return False
        return True

    def _send(self, message: bytes, rights: list[tuple[int, int, bytes]], *, wait: bool) -> None:
        sender = self._connected()
        if wait:
            poller = select.poll()
            poller.register(sender, select.POLLOUT)
            poller.poll(_SEND_SECONDS * 1000)
        sender.sendmsg([message], rights)

    def _connected(self) -> socket.socket:
        """Return the socket, which stays connected: so poll(2) reports room, and messages are cheaper."""
        if self._socket is None:
            sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                sender.setblocking(False)
                sender.connect(self._address)
            except BaseException:
                sender.close()
                raise
            self._socket = sender
        return self._socket

    def ready(self, status: str = "") -> None:
        """Send READY=1: this process serves, after a start or a reload."""
        self.send("READY=1", f"MAINPID={os.getpid()}", *([f"STATUS={status}"] if status else []))

    def reloading(self) -> None:
        """Send RELOADING=1 at the start of a reload; `ready` ends it. Type=notify-reload identifies it by the time."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Send STOPPING=1 at the start of a stop."""
        self.send("STOPPING=1", "STATUS=stopping")

    def store_fd(self, name: str, sock: socket.socket) -> bool:
        """Store a socket in the manager's file descriptor store; the manager passes it to the daemon at a restart.

        FDPOLL=0: the manager must not remove a socket because of an error on it; the daemon handles errors.
        """
        return self.send("FDSTORE=1", "FDPOLL=0", f"FDNAME={name}", fd=sock.fileno())

    def remove_fd(self, name: str) -> None:
        """Remove all sockets of a name from the manager's file descriptor store."""
        self.send("FDSTOREREMOVE=1", f"FDNAME={name}")

    def barrier(self, seconds: float = _BARRIER_SECONDS) -> bool:
        """Block until the manager has handled all earlier messages; return whether it has.

        The manager then closes the descriptor that is sent with BARRIER=1 (sd_notify_barrier(3)).
        """
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        try:
            sent = self.send("BARRIER=1", fd=write_end)
            os.close(write_end)
            write_end = -1
            poller = select.poll()
            poller.register(read_end, 0)
            return sent and bool(poller.poll(seconds * 1000))
        finally:
            os.close(read_end)
            if write_end >= 0:
                os.close(write_end)

    def close(self) -> None:
        """Close the socket; the next message opens it again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class StatusReporter:
    """Periodic watchdog messages, and the status when it has changed.

    Timers of the reactor send them, so a reactor that hangs sends none and the manager restarts the daemon.

    Args:
        clock: the reactor.
        manager: gets the messages.
        status: returns the status line that `systemctl status` shows.
    """

    def __init__(self, clock: IReactorTime, manager: ServiceManager, status: Callable[[], str]) -> None:
        self._clock = clock
        self._manager = manager
        self._status = status
        self._sent_status = ""
        self._calls: dict[str, IDelayedCall] = {}

    def start(self) -> None:
        """Send READY=1 when the reactor runs, and start the timers.

        If it were sent earlier, a signal sent in response would terminate the process at once.
        """
        if self._manager.present:
            self._calls["ready"] = self._clock.callLater(0, self._start_timers)

    def _start_timers(self) -> None:
        del self._calls["ready"]
        self.reloaded()
        self._repeat("status", _STATUS_SECONDS, self._send_status)
        if self._manager.watchdog is not None:
            # Half of the timeout, as sd_watchdog_enabled(3) recommends.
            self._repeat("watchdog", self._manager.watchdog / 2, self._send_watchdog)

    def _repeat(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        def run() -> None:
            self._calls[name] = self._clock.callLater(seconds, run)
            call()

        self._calls[name] = self._clock.callLater(seconds, run)

    def _send_status(self) -> None:
        status = self._status()
        if status != self._sent_status and self._manager.send(f"STATUS={status}", wait=False):
            self._sent_status = status

    def _send_watchdog(self) -> None:
        self._manager.send("WATCHDOG=1", wait=False)

    def reloading(self) -> None:
        """Send that a reload begins; `reloaded` ends it, whether it succeeds or not."""
        self._manager.reloading()

    def reloaded(self) -> None:
        """Send that the reload has ended, with the status."""
        if self._manager.present:
            self._sent_status = self._status()
            self._manager.ready(self._sent_status)

    def stopping(self) -> None:
        """Send that the daemon stops; watchdog messages go on, status messages end."""
        self._manager.stopping()
        for name in ("ready", "status"):
            call = self._calls.pop(name, None)
            if call is not None:
                call.cancel()

    def stop(self) -> None:
        """Stop all timers."""
        for call in self._calls.values():
            call.cancel()
        self._calls.clear()
