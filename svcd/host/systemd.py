"""The service manager: it is told how we are, and keeps our sockets for us (sd_notify(3), sd_pid_notify_with_fds(3)).

Each message is a datagram of assignments to the socket that $NOTIFY_SOCKET names, perhaps with descriptors. The
protocol is small and stable, and its manual page shows it written out, so there is no library between.
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

#: How long a message that must arrive waits for room in the manager's queue, in seconds.
_PATIENCE = 1.0
#: How long we wait for the manager to have handled everything, in seconds: as sd_notify_barrier(3) recommends.
_BARRIER_PATIENCE = 5.0
#: The status is told so often at most, in seconds.
_STATUS_SECONDS = 5.0


class ServiceManager:
    """Whoever started us, if they want to hear of us; else all of this does nothing.

    Args:
        address: the value of NOTIFY_SOCKET: a path, or a name in the abstract name space behind an @; None for nobody.
        watchdog: within how many seconds a sign of life is expected; None if it is not.
    """

    def __init__(self, address: str | None = None, watchdog: float | None = None) -> None:
        self._address = address or ""
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        self._socket: socket.socket | None = None
        self.watchdog = watchdog if address else None

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str], pid: int) -> ServiceManager:
        """The manager that the environment names; its variables are taken out, for they are not our children's.

        The watchdog is for process WATCHDOG_PID only, where that is set (sd_watchdog_enabled(3)).
        """
        address = environment.pop("NOTIFY_SOCKET", None)
        period = environment.pop("WATCHDOG_USEC", "")
        guarded = environment.pop("WATCHDOG_PID", "")
        ours = not guarded or guarded == str(pid)
        watchdog = int(period) / 1e6 if period.isdecimal() and int(period) and ours else None
        return cls(address, watchdog)

    @property
    def present(self) -> bool:
        """Whether there is one."""
        return bool(self._address)

    def say(self, *states: str, descriptor: int | None = None, patient: bool = True) -> bool:
        """Send assignments as one message.

        Args:
            states: like `READY=1`; a line feed in a value is not possible.
            descriptor: goes with the message.
            patient: whether to wait for room, a second at most; the next sign of life comes anyway.

        Returns:
            Whether it was sent; what happens to it then is the manager's affair.
        """
        if not self._address:
            return False
        message = "\n".join(state.replace("\n", " ") for state in states).encode()
        rights = (
            [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptor.to_bytes(4, "little"))]
        )
        try:
            try:
                self._send(message, rights, patient=patient)
            except ConnectionError:
                # A manager that was started anew has a new socket at the old name.
                self.close()
                self._send(message, rights, patient=patient)
        except OSError:
            return False
        return True

    def _send(self, message: bytes, rights: list[tuple[int, int, bytes]], *, patient: bool) -> None:
        sender = self._connected()
        if patient:
            room = select.poll()
            room.register(sender, select.POLLOUT)
            room.poll(_PATIENCE * 1000)
        sender.sendmsg([message], rights)

    def _connected(self) -> socket.socket:
        """The socket, which is kept: connected, it tells when there is room, and costs each message less."""
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
        """We serve; or, after `reloading`, we do so again. It is this process that does."""
        self.say("READY=1", f"MAINPID={os.getpid()}", *([f"STATUS={status}"] if status else []))

    def reloading(self) -> None:
        """A reload begins; `ready` ends it. The time tells a manager with Type=notify-reload which one it is."""
        self.say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """We stop."""
        self.say("STOPPING=1", "STATUS=stopping")

    def store(self, name: str, kept: socket.socket) -> bool:
        """Give the manager a socket to keep: it gives it back when it starts us again.

        FDPOLL=0: an error on a socket is ours to handle, no reason for the manager to drop it.
        """
        return self.say("FDSTORE=1", "FDPOLL=0", f"FDNAME={name}", descriptor=kept.fileno())

    def forget(self, name: str) -> None:
        """It need not keep the sockets of this name any longer."""
        self.say("FDSTOREREMOVE=1", f"FDNAME={name}")

    def barrier(self, patience: float = _BARRIER_PATIENCE) -> bool:
        """Wait, blocking, until the manager has handled everything that was said; whether it has.

        It closes the descriptor that comes with BARRIER=1 when it gets there (sd_notify_barrier(3)).
        """
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            sent = self.say("BARRIER=1", descriptor=theirs)
            os.close(theirs)
            theirs = -1
            watch = select.poll()
            watch.register(ours, 0)
            return sent and bool(watch.poll(patience * 1000))
        finally:
            os.close(ours)
            if theirs >= 0:
                os.close(theirs)

    def close(self) -> None:
        """Let the socket go; the next message opens one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class StatusReporter:
    """Signs of life from the reactor, and the status when it has changed.

    They are sent by timers of the reactor, so that one that does not turn any more sends none, and the manager acts.

    Args:
        clock: the reactor.
        manager: who is told.
        status: a line for people, as `systemctl status` shows it.
    """

    def __init__(self, clock: IReactorTime, manager: ServiceManager, status: Callable[[], str]) -> None:
        self._clock = clock
        self._manager = manager
        self._status = status
        self._told = ""
        self._calls: dict[str, IDelayedCall] = {}

    def start(self) -> None:
        """Say that we are ready once the reactor turns, and go on from there.

        Before it does, signals of whoever hears that we are ready would end us at once.
        """
        if self._manager.present:
            self._calls["ready"] = self._clock.callLater(0, self._begin)

    def _begin(self) -> None:
        del self._calls["ready"]
        self.reloaded()
        self._again("status", _STATUS_SECONDS, self._tell_status)
        if self._manager.watchdog is not None:
            # As sd_watchdog_enabled(3) recommends: each half of the time.
            self._again("watchdog", self._manager.watchdog / 2, self._tell_life)

    def _again(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        def run() -> None:
            self._calls[name] = self._clock.callLater(seconds, run)
            call()

        self._calls[name] = self._clock.callLater(seconds, run)

    def _tell_status(self) -> None:
        status = self._status()
        if status != self._told and self._manager.say(f"STATUS={status}", patient=False):
            self._told = status

    def _tell_life(self) -> None:
        self._manager.say("WATCHDOG=1", patient=False)

    def reloading(self) -> None:
        """A reload begins; `reloaded` says that it is over, however it went."""
        self._manager.reloading()

    def reloaded(self) -> None:
        """The reload is over."""
        if self._manager.present:
            self._told = self._status()
            self._manager.ready(self._told)

    def stopping(self) -> None:
        """We stop: the status is told no more, signs of life are."""
        self._manager.stopping()
        for name in ("ready", "status"):
            call = self._calls.pop(name, None)
            if call is not None:
                call.cancel()

    def stop(self) -> None:
        """The end."""
        for call in self._calls.values():
            call.cancel()
        self._calls.clear()
