"""One connection that has a process of its own: what is known of it, and how it is made to end."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from svcd.net.peer_credentials import credentials
from svcd.process.environment import local_proxy_environment, proxy_environment, tcp_environment, unix_environment

if TYPE_CHECKING:
    from svcd.wire.proxy_header import ProxyHeader


import signal
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall

    from svcd.access.admission import ConnectionSlot
    from svcd.interfaces import FdReactor
    from svcd.log.writer import LogWriter
    from svcd.net.sock_diag import SocketView
    from svcd.process.launcher_client import LauncherClient
    from svcd.tls.termination import TlsTerminator

__all__ = ["KILL_SECONDS", "LAST_KILL_SECONDS", "ConnectionAddresses", "ExitResult", "SpawnedConnection"]

#: How long a process group has after SIGTERM, in seconds, before SIGKILL.
KILL_SECONDS = 2.0
#: The same once the daemon is about to end, which it does 2 s after shutdown_timeout at the latest; so long it waits
#: after SIGKILL as well.
LAST_KILL_SECONDS = 0.75


class ExitResult(NamedTuple):
    """What came of a connection's process.

    Attributes:
        reason: why it ended, in a word of the log.
        code: its exit status or its signal, as text.
        user, system: processor time in seconds.
        traffic: bytes that came from the client and that went to it, as far as its launcher knows; -1 if it does not.
    """

    reason: str
    code: str = "-"
    user: float = 0.0
    system: float = 0.0
    traffic: tuple[int, int] = (-1, -1)


class _Keeper(Protocol):
    accept_line: str
    nameless: str
    tells_subject: bool
    log_writer: LogWriter
    reactor: FdReactor
    sessions: dict[int, SpawnedConnection]
    untold: int
    view: SocketView
    clock: Callable[[], float]

    def facts(self, session: SpawnedConnection, peer: str, **more: object) -> dict[str, object]:
        """What is known of a connection, as plain data."""
        ...

    def start_failed(self, number: int, errno: int) -> None:
        """A connection has no process and never will."""

    def process_lost(self, number: int) -> None:
        """A process that nobody watches any more."""


class SpawnedConnection:
    """One connection and its process.

    Attributes:
        number: the connection's, since the daemon started.
        peer: who it is, quoted as the log has it.
        slot: its right to be in.
        host: its name, the same.
        started: by the keeper's clock, in seconds.
        pid: of the process; 0 before it has one.
        launcher_client: to the launcher that has it; None before it was handed over.
        ended: called when the connection is over.
        traced: what the kernel finds the connection by; empty if nobody asks, or it can't.
        pump: has the connection, if the client speaks TLS; else only its process has.
        secured: the version of TLS and the subject of the client's certificate, quoted as the log has them.
        outcome: what came of the process, when that is known and the connection still has to be closed.
        before: how many bytes came before the client's own, of a proxy's header.
    """

    __slots__ = (
        "_call",
        "_killed",
        "_last",
        "_tracker",
        "_untold",
        "before",
        "cause",
        "ended",
        "host",
        "launcher_client",
        "number",
        "outcome",
        "peer",
        "pid",
        "pump",
        "secured",
        "slot",
        "started",
        "traced",
    )

    def __init__(self, tracker: _Keeper, number: int, peer: str, slot: ConnectionSlot) -> None:
        self._tracker = tracker
        self.slot = slot
        # The accept line waits for what it is to say.
        self._untold = True
        tracker.untold += 1
        self._call: IDelayedCall | None = None
        self._killed = self._last = False
        self.number = number
        self.peer = peer
        self.host = tracker.nameless
        self.started = tracker.clock()
        self.pid = 0
        self.launcher_client: LauncherClient | None = None
        self.cause = ""
        self.ended: Callable[[], None] | None = None
        self.traced = b""
        self.pump: TlsTerminator | None = None
        self.secured = tracker.nameless, tracker.nameless
        self.outcome: ExitResult | None = None
        self.before = 0

    def tell_accept(self) -> None:
        """Write the accept line, once."""
        tracker = self._tracker
        if not self._untold:
            return
        self.tell_nothing()
        if not tracker.accept_line:
            return
        version, subject = self.secured
        count = len(tracker.sessions) - tracker.untold
        values = {"peer": self.peer, "host": self.host, "id": self.number, "count": count, "pid": self.pid,
                  "tls": version, "subject": subject}  # fmt: skip
        tracker.log_writer.write(tracker.accept_line % values)

    def tell_nothing(self) -> None:
        """Write no accept line any more."""
        if self._untold:
            self._untold = False
            self._tracker.untold -= 1

    def traffic(self) -> tuple[int, int] | None:
        """Bytes that came from the client, and bytes that its system has taken; None where that can't be seen."""
        if self.pump is not None:
            return self.pump.byte_counts()
        found = self._tracker.view.traffic(self.traced) if self.traced else None
        return found and (self.own(found[0]), found[1])

    def own(self, count: int) -> int:
        """Of the bytes that came, those of the client itself; -1 if nobody knows."""
        return max(count - self.before, 0) if count > 0 else count

    def info(self) -> dict[str, object]:
        """What is known of the connection."""
        more = {} if self.pump is None else self.pump.info(subject=self._tracker.tells_subject)
        return self._tracker.facts(self, self.peer, **{"pid": self.pid, "state": self._state, **more})

    @property
    def _state(self) -> str:
        if self.outcome is not None:
            return "closing"
        if self.pid:
            return "open"
        # A connection with TLS that still shakes hands says so itself.
        return "host-name" if self.launcher_client is None and self.pump is None else "starting"

    def drain(self) -> None:
        """A process is asked nothing: what it owes only it knows. One that can't be had is not awaited."""
        self._last = True
        if not self.pid and (self.launcher_client is None or self.launcher_client.failing):
            self.abort("shutdown")

    def abort(self, cause: str, patience: float | None = None) -> None:
        """End the process group: SIGTERM, then SIGKILL.

        Args:
            cause: why, in a word of the log.
            patience: how long it has between the two, in seconds; None for KILL_SECONDS, or less when the daemon ends.
        """
        seconds = self._kill_seconds if patience is None else patience
        if self.cause:
            # On its way; to ask again is no reason to wait longer.
            call = self._call
            if call is not None and call.active() and call.getTime() > self._tracker.reactor.seconds() + seconds:
                call.reset(seconds)
            return
        self.cancel()
        self.cause = cause
        if self.outcome is not None and self.pump is not None:
            self.outcome = self.outcome._replace(reason=cause)
            self.pump.abort()
            return
        tracker = self._tracker
        launcher_client = self.launcher_client
        if launcher_client is None or launcher_client.drop(self.number) or not self.pid:
            tracker.start_failed(self.number, 0)
            return
        launcher_client.signal(self.number, signal.SIGTERM)
        self._call = tracker.reactor.callLater(seconds, self._kill, launcher_client)

    @property
    def _kill_seconds(self) -> float:
        return LAST_KILL_SECONDS if self._last else KILL_SECONDS

    def _kill(self, launcher_client: LauncherClient) -> None:
        tracker = self._tracker
        if self._killed and self._last:
            # Neither the process nor its launcher can be moved, and the daemon is to end.
            launcher_client.forget_connection(self.number)
            tracker.process_lost(self.number)
            return
        self._killed = True
        launcher_client.signal(self.number, signal.SIGKILL)
        self._call = tracker.reactor.callLater(self._kill_seconds, self._kill, launcher_client)

    def wind_up(self, pump: TlsTerminator, outcome: ExitResult) -> None:
        """The process is over, or there will be none: close the connection, which the daemon has."""
        self.cancel()
        self.outcome = outcome
        if not self.cause:
            pump.end()
        elif self.pid and not self._killed:
            # It went when it was told to, perhaps with a last word.
            self._call = self._tracker.reactor.callLater(self._kill_seconds, pump.abort)
            pump.end(linger=False)
        else:
            pump.abort()

    def cancel(self) -> None:
        """No deadline holds any more."""
        if self._call is not None and self._call.active():
            self._call.cancel()


@dataclass(slots=True)
class ConnectionAddresses:
    """Both ends of a connection.

    Attributes:
        near, far: our socket address and the client's, over TCP or by a proxy's header; None without one.
        real: the socket addresses that the connection itself has over TCP, ours first; None at a UNIX socket.
        process: the one at the other end of a UNIX socket, with its user and group (unix(7)).
        more: variables that a process gets besides, of a proxy; each behind a NUL.
        family: of the socket.
        relay: a proxy's header.
    """

    near: Any
    far: Any
    real: tuple[Any, Any] | None = None
    process: tuple[int, int, int] = (0, 0, 0)
    more: bytes = b""
    family: int = socket.AF_INET
    relay: ProxyHeader | None = None

    @classmethod
    def of(cls, descriptor: int, name: Any, family: int, relay: ProxyHeader | None = None) -> ConnectionAddresses:  # noqa: ANN401 - a socket address
        """Those of a connection.

        Args:
            descriptor: the connection's.
            name: the client's socket address.
            family: of the socket.
            relay: a proxy's header, which the client's address may be from.

        Raises:
            OSError: the client is gone already.
        """
        near = None if relay is None else relay.destination
        sock = socket.SocketType(family, socket.SOCK_STREAM, 0, descriptor)
        try:
            if family == socket.AF_UNIX:
                process = credentials(sock)
                more = b"" if near is None else b"\0" + local_proxy_environment(*process)
                return cls(near, name, None, process, more, family, relay)
            own = sock.getsockname()
            if near is None:
                return cls(own, name, (own, name), family=family, relay=relay)
            proxy = sock.getpeername()
            more = b"\0" + proxy_environment(proxy[0], proxy[1])
            return cls(near, name, (own, proxy), more=more, family=family, relay=relay)
        finally:
            sock.detach()

    def environment(self, count: int, host: str | None = None, near: str | None = None) -> bytes:
        """The variables of the connection.

        Args:
            count: the open connections of the service, this one included.
            host: the client's name, if it was looked up.
            near: the name of our own address, the same.
        """
        if self.near is None:
            return unix_environment(*self.process)
        return tcp_environment(self.near[0], self.near[1], self.far[0], self.far[1], count, host, near) + self.more
