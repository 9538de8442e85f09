"""ConnectionCopies, with processes that hold connections."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.task import Clock

from svcd.net.stream_sockets import final_byte_counts
from svcd.process.connection_copies import ConnectionCopies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Program that closes the connection, or passes it to a child, on request.
CODE = """
import os, signal, sys
for line in sys.stdin:
    if line == "close\\n":
        os.close(int(sys.argv[1]))
    elif os.fork() == 0:
        signal.pause()
    print("done", flush=True)
"""


class _Handler:
    """A connection, and a process that has it open."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.client = socket.create_connection(listener.getsockname())
            served, _ = listener.accept()
        with served:
            served.sendall(b"abc")
            words = [sys.executable, "-I", "-S", "-c", CODE, str(served.fileno())]
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(
                words, stdin=pipe, stdout=pipe, text=True, pass_fds=[served.fileno()], start_new_session=True
            )
            self.copy = os.dup(served.fileno())
        self.client.settimeout(60)
        assert self.client.recv(3) == b"abc"

    def tell(self, word: str) -> None:
        """Send a request to the process, and wait for its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        self.process.stdout.readline()

    @property
    def ended(self) -> bool:
        """Whether the client has received the end of the connection."""
        self.client.settimeout(0.05)
        try:
            return self.client.recv(1) == b""
        except TimeoutError:
            return False

    def close(self) -> None:
        """Kill the process and its child."""
        if self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.client.close()


@pytest.fixture
def handler() -> Iterator[_Handler]:
    """A handler process with a connection."""
    made = _Handler()
    yield made
    made.close()


def test_copy_is_closed_after_the_handler_closes(handler: _Handler) -> None:
    """A copy is closed within 0.1 s after the handler has closed the connection, with the counts at that time."""
    clock = Clock()
    copies = ConnectionCopies(clock.seconds)
    assert copies.due is None
    copies.keep(7, handler.process.pid, handler.copy)
    assert copies.due == pytest.approx(0.1)
    handler.tell("close")
    copies.check()
    assert not handler.ended
    clock.advance(0.2)
    copies.check()
    assert handler.ended
    assert copies.due is None
    assert copies.close_copy(7) == (0, 3)
    assert copies.close_copy(7) == (-1, -1)


def test_a_copy_is_kept_for_a_child(handler: _Handler) -> None:
    """A copy is kept while a child of the handler has the connection open."""
    clock = Clock()
    copies = ConnectionCopies(clock.seconds)
    copies.keep(7, handler.process.pid, handler.copy)
    handler.tell("fork")
    handler.tell("close")
    clock.advance(0.2)
    copies.check()
    assert not handler.ended
    assert copies.due == pytest.approx(0.3)
    assert copies.close_copy(7) == (0, 3)


def test_a_copy_outlives_its_handler(handler: _Handler) -> None:
    """The copy of an exited handler is kept until close_copy() is called."""
    clock = Clock()
    copies = ConnectionCopies(clock.seconds)
    copies.keep(7, handler.process.pid, handler.copy)
    handler.close()
    clock.advance(0.2)
    copies.check()
    assert copies.close_copy(7) == (0, 3)


def _hidden(path: str) -> list[str]:
    raise PermissionError(path)


@pytest.mark.parametrize("way", ["no /proc", "hidden"])
def test_no_counts_if_descriptors_are_hidden(handler: _Handler, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """If the descriptors of the handler are hidden, the copy is closed and the counts are unknown."""
    clock = Clock()
    if way == "no /proc":
        monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    copies = ConnectionCopies(clock.seconds)
    copies.keep(7, handler.process.pid, handler.copy)
    if way == "hidden":
        listing: Callable[[str], list[str]] = _hidden
        monkeypatch.setattr(os, "listdir", listing)
        for _ in range(2):
            clock.advance(0.2)
            copies.check()
    handler.tell("close")
    assert handler.ended
    assert copies.due is None
    assert copies.close_copy(7) == (-1, -1)


def test_a_program_that_is_hidden_while_it_is_executed(handler: _Handler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Descriptors that are hidden at one check only do not cost the counts."""
    clock = Clock()
    copies = ConnectionCopies(clock.seconds)
    copies.keep(7, handler.process.pid, handler.copy)
    with monkeypatch.context() as context:
        listing: Callable[[str], list[str]] = _hidden
        context.setattr(os, "listdir", listing)
        clock.advance(0.2)
        copies.check()
    for _ in range(2):
        clock.advance(0.2)
        copies.check()
    assert copies.close_copy(7) == (0, 3)


@pytest.mark.parametrize(("closed", "counts"), [(True, (0, 3)), (False, (-1, -1))])
@pytest.mark.parametrize("way", ["no /proc", "hidden"])
def test_a_handler_that_reports(
    handler: _Handler, monkeypatch: pytest.MonkeyPatch, way: str, closed: bool, counts: tuple[int, int]
) -> None:
    """Without /proc the copy is kept until the handler reports its close; then the bytes are counted."""
    clock = Clock()
    hidden = {"no /proc": "/proc/self/fd", "hidden": f"/proc/{handler.process.pid}/fd"}[way]
    monkeypatch.setattr(os, "access", lambda path, _mode: path != hidden)
    copies = ConnectionCopies(clock.seconds)
    copies.keep(7, handler.process.pid, handler.copy, reported=True)
    if way == "hidden":
        listing: Callable[[str], list[str]] = _hidden
        monkeypatch.setattr(os, "listdir", listing)
    clock.advance(0.2)
    copies.check()
    handler.tell("close")
    assert not handler.ended
    copies.handler_left(7, closed=closed)
    copies.handler_left(8, closed=closed)
    assert handler.ended
    assert copies.close_copy(7) == counts


def test_report_with_visible_descriptors(handler: _Handler) -> None:
    """With /proc a report does not close the copy, as a child may still have the connection."""
    clock = Clock()
    copies = ConnectionCopies(clock.seconds)
    copies.keep(7, handler.process.pid, handler.copy, reported=True)
    handler.tell("fork")
    copies.handler_left(7, closed=True)
    handler.tell("close")
    clock.advance(0.2)
    copies.check()
    assert not handler.ended
    assert copies.close_copy(7) == (0, 3)


def test_slow_checks_are_less_frequent(handler: _Handler) -> None:
    """A check that takes long is followed by a longer pause."""
    times = iter([0.0, 1.0, 1.5])
    copies = ConnectionCopies(lambda: next(times))
    copies.keep(7, handler.process.pid, handler.copy)
    copies.check()
    assert copies.due == pytest.approx(1.5 + 0.5 * 20)
    copies.close()


@pytest.mark.parametrize("client_closes", [False, True])
def test_end_of_the_stream_is_not_counted(client_closes: bool) -> None:
    """Data for which the client has no room counts as sent; the end of the stream after it does not count."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(listener.getsockname())
        served, _ = listener.accept()
        with served:
            if client_closes:
                client.sendall(b"abc")
                client.shutdown(socket.SHUT_WR)
                assert served.recv(3, socket.MSG_WAITALL) + served.recv(1) == b"abc"
            served.setblocking(False)
            sent = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    sent += served.send(bytes(65_536))
            served.shutdown(socket.SHUT_WR)
            assert final_byte_counts(served) == (3 if client_closes else 0, sent)


def test_a_state_belongs_to_its_counters() -> None:
    """The end of the stream arrives while the kernel answers: it has read the state before, and the counters after."""
    established, time_wait = 1, 6

    class Socket:
        states = iter([established, time_wait, time_wait])

        def getsockopt(self, *_arguments: int) -> bytes:
            """Return a tcp_info with 11 bytes received, one of which is the end, and 10,000 sent."""
            return struct.pack("=B119xQQ8xI52xQQ", next(self.states), 10_000, 11, 0, 10_000, 0)

    sock: Any = Socket()
    assert final_byte_counts(sock) == (10, 10_000)
