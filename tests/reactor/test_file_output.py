"""Parts of files as output: order, back-pressure, files that change, and connections that end."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.threads import blockingCallFromThread

from svcd.reactor.starttls import _secure
from svcd.reactor.tcp import TCPTransport
from svcd.reactor.unix import UNIXTransport
from tests.reactor.conftest import Recorder, Recorders
from tests.reactor.test_streams import listen, read_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.reactor.conftest import ReactorHarness

CONTENT = os.urandom(6_000_000)
PART = CONTENT[1000:5_500_000]


class Sender(Recorder):
    """Push producer of a head, a part of a file, and a tail."""

    source = -1

    def connectionMade(self) -> None:
        """Write the head, and send the file."""
        super().connectionMade()
        self.transport.registerProducer(self, True)
        self.transport.write(b"head")
        self.transport.send_file((self.source, 1000, len(PART)), self.failed)

    def pauseProducing(self) -> None:
        """Record the call."""
        self.events.append("pause")

    def resumeProducing(self) -> None:
        """Write the tail, and close."""
        assert not self.transport.writing
        self.events.append("resume")
        self.transport.write(b"tail")
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def stopProducing(self) -> None:
        """Record the call."""
        self.events.append("stop")

    def failed(self, error: OSError) -> None:
        """Record the error, and abort the connection."""
        self.events.append(str(error))
        self.transport.abortConnection()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a file with the content."""
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def factory(path: Path) -> Iterator[Recorders]:
    """Return a factory of senders of the file."""
    descriptor = os.open(path, os.O_RDONLY)
    yield Recorders(type("FileSender", (Sender,), {"source": descriptor}))
    os.close(descriptor)


def test_a_part_of_a_file(harness: ReactorHarness, factory: Recorders) -> None:
    """A part of a file is sent after earlier output and before later output, and the bytes are counted."""
    address = listen(harness, factory)

    def client() -> bytes:
        with socket.create_connection(address) as sock:
            return read_all(sock)

    assert harness.run(client, factory) == b"head" + PART + b"tail"
    (sender,) = factory.made
    assert sender.events[0] == "pause"
    assert sender.events[-2:] == ["resume", "ConnectionDone"]
    assert sender.counted == (0, len(PART) + 8)


def test_most_of_a_file_is_not_copied(
    harness: ReactorHarness, factory: Recorders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most of a file is sent by sendfile(2), also to a client that pauses."""
    sent: list[int] = []
    real = os.sendfile

    def sendfile(*arguments: Any) -> int:
        count = real(*arguments)
        sent.append(count)
        return count

    monkeypatch.setattr(os, "sendfile", sendfile)
    address = listen(harness, factory)

    def client() -> bytes:
        with socket.create_connection(address) as sock:
            first = b""
            for _ in range(20):
                # The reactor has filled the kernel's buffers when it runs this call.
                blockingCallFromThread(harness.reactor, int)
                first += sock.recv(100_000)
            return first + read_all(sock)

    assert harness.run(client, factory) == b"head" + PART + b"tail"
    assert sum(sent) > len(PART) * 0.7


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EAGAIN])
def test_a_system_that_does_not_send(
    harness: ReactorHarness, factory: Recorders, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Where sendfile(2) does not work the file is read and written."""

    def refuse(*_: Any) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "sendfile", refuse)
    address = listen(harness, factory)

    def client() -> bytes:
        with socket.create_connection(address) as sock:
            return read_all(sock)

    assert harness.run(client, factory) == b"head" + PART + b"tail"


def test_a_file_that_becomes_shorter(harness: ReactorHarness, factory: Recorders, path: Path) -> None:
    """If the file has fewer bytes, the protocol is told, and the client gets no other bytes."""
    os.truncate(path, 300_000)
    address = listen(harness, factory)

    def client() -> bytes:
        data = b""
        with socket.create_connection(address) as sock:
            try:
                while piece := sock.recv(65_536):
                    data += piece
            except ConnectionResetError:
                pass
        return data

    received = harness.run(client, factory)
    assert (b"head" + PART[: 300_000 - 1000]).startswith(received)
    (sender,) = factory.made
    missing = len(PART) - 299_000
    assert f"[Errno {errno.EIO}] it became shorter while it was sent, {missing} bytes are missing" in sender.events
    assert "resume" not in sender.events


def test_a_file_that_becomes_longer(harness: ReactorHarness, factory: Recorders, path: Path) -> None:
    """A file that becomes longer is sent up to the end of the part."""
    with path.open("ab") as file:
        file.write(b"more")
    address = listen(harness, factory)

    def client() -> bytes:
        with socket.create_connection(address) as sock:
            return read_all(sock)

    assert harness.run(client, factory) == b"head" + PART + b"tail"


@pytest.mark.parametrize("reset", [True, False])
def test_a_client_that_goes(harness: ReactorHarness, factory: Recorders, reset: bool) -> None:
    """A client that disconnects ends the connection, and nothing is sent after that."""
    address = listen(harness, factory)

    def client() -> None:
        with socket.create_connection(address) as sock:
            sock.recv(1000)
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    harness.run(client, factory)
    (sender,) = factory.made
    # The end of the client's input may arrive before the reset.
    assert sender.events[-2:] in (["stop", "ConnectionLost"], ["stop", "ConnectionDone"])
    assert "resume" not in sender.events


def test_two_clients(harness: ReactorHarness, factory: Recorders) -> None:
    """A client that reads nothing does not hold up another one."""
    address = listen(harness, factory)

    def client() -> bytes:
        with socket.create_connection(address), socket.create_connection(address) as sock:
            return read_all(sock)

    assert harness.run(client, factory) == b"head" + PART + b"tail"


def test_transports_that_do_not_send_files() -> None:
    """UNIX sockets, whose bytes are counted when they are written, and connections with TLS do not send files."""
    assert hasattr(TCPTransport, "send_file")
    assert not hasattr(UNIXTransport, "send_file")
    assert not hasattr(object.__new__(_secure(TCPTransport)), "send_file")
