"""Helper process for accept(2) on a socket whose file status flags other processes may change.

A program that has a listening socket, or had it, may make it blocking at any time (O_NONBLOCK belongs to the open file
description, fcntl(2)), and accept(2) has no flag to prevent that. So a helper process calls accept(2); SIGALRM
terminates it if the call blocks.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from functools import partial
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IReadDescriptor
from zope.interface import implementer

from svcd.process.messages import FD_STRUCT
from svcd.process.pidfd import PidfdChild

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

    from svcd.interfaces import FdReactor

__all__ = ["AcceptHelper"]

#: The time limit of accept(2) in the helper, in seconds; after that it counts as blocked.
_ACCEPT_SECONDS = 2
#: The time that an unused helper process is kept, in seconds.
_IDLE_SECONDS = 5.0
#: Code of the helper: for each received byte it accepts a connection and sends a byte, with the descriptor if there is
#: a connection.
_CODE = f"""
import signal, socket
listener, pair = socket.socket(fileno=0), socket.socket(fileno=1)
while pair.recv(1):
    signal.alarm({_ACCEPT_SECONDS})
    try:
        connection = listener.accept()[0]
    except OSError:
        pair.send(b"-")
    else:
        socket.send_fds(pair, [b"+"], [connection.fileno()])
        connection.close()
    signal.alarm(0)
"""


@implementer(IReadDescriptor)
class AcceptHelper:
    """Process that accepts connections of a listening socket on request.

    Args:
        reactor: watches the socket to the process, and schedules the end of the process.
        listener: the listening socket.
        done: called after each accept() with the descriptor of a connection, which it takes ownership of, or with -1 if
            there was no connection.

    Attributes:
        waiting: whether an accept() is in progress.
    """

    def __init__(self, reactor: FdReactor, listener: socket.socket, done: Callable[[int], None]) -> None:
        self._reactor = reactor
        self._listener = listener
        self._done = done
        self._pair: socket.socket | None = None
        self._pid = 0
        self._idle: IDelayedCall | None = None
        self.waiting = False

    def accept(self) -> None:
        """Request a connection; `done` is called later.

        Raises:
            OSError: no process can be started.
        """
        if self._pair is None:
            self._start()
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        self.waiting = True
        assert self._pair is not None  # noqa: S101 - the process was started
        self._pair.send(b"?")

    def _start(self) -> None:
        own_end, helper_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", "-c", _CODE],
                {},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, self._listener.fileno(), 0),
                    (os.POSIX_SPAWN_DUP2, helper_end.fileno(), 1),
                ],
                setsigdef=[signal.SIGALRM],
                setsigmask=[],
            )
        except BaseException:
            own_end.close()
            raise
        finally:
            helper_end.close()
        own_end.setblocking(False)
        self._pair = own_end
        self._reactor.addReader(self)
        PidfdChild(self._reactor, self._pid, partial(self._reaped, self._pid))

    def doRead(self) -> None:
        """Receive the descriptor that the process has accepted."""
        assert self._pair is not None  # noqa: S101 - it is watched only while it exists
        try:
            answer, rights, _, _ = self._pair.recvmsg(1, socket.CMSG_SPACE(FD_STRUCT.size), socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except ConnectionError:
            answer, rights = b"", []
        if answer:
            self._idle = self._reactor.callLater(_IDLE_SECONDS, self.close)
        else:
            self._disconnect()
        self.waiting = False
        self._done(FD_STRUCT.unpack(rights[0][2])[0] if rights else -1)

    def close(self) -> None:
        """Kill the process; `done` is not called after this."""
        if self._pid:
            # The process is not reaped yet, so its pid is not reused.
            os.kill(self._pid, signal.SIGKILL)
        self._disconnect()
        self.waiting = False

    def _disconnect(self) -> None:
        if self._idle is not None and self._idle.active():
            self._idle.cancel()
        self._idle = None
        if self._pair is not None:
            self._reactor.removeReader(self)
            self._pair.close()
            self._pair = None

    def _reaped(self, pid: int, _status: int) -> None:
        """Clear the pid of a reaped process, which another process may get."""
        if pid == self._pid:
            self._pid = 0

    def connectionLost(self, reason: Failure) -> None:  # noqa: ARG002 - Twisted's signature
        """Handle the stop of the reactor."""
        self.close()

    def fileno(self) -> int:
        """Return the descriptor to watch."""
        return -1 if self._pair is None else self._pair.fileno()

    def logPrefix(self) -> str:
        """Return the prefix for log messages of the reactor."""
        return "acceptor"
