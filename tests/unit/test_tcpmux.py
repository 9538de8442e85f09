"""tcpmux (RFC 1078): the wire format, and clients that are handed over to the service that they name."""

from __future__ import annotations

import os
import select
import socket
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcd.access.admission import GlobalLimit
from svcd.connections.admission_queue import ServiceAdmission
from svcd.connections.context import ConnectionContext
from svcd.connections.descriptor_budget import DescriptorBudget
from svcd.connections.tcpmux import LINGER, NAME_TIMEOUT, TcpmuxTracker
from svcd.log.formats import TextFormat
from svcd.log.writer import LogWriter
from svcd.wire.tcpmux import MOST, catalogue, question, refusal
from tests.doubles import FakeFiles, FakeReactor, FakeResolver, LogCatcher, list_sink, service_of

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.parametrize(
    ("line", "name"),
    [(b"Echo\r\n", "echo"), (b"echo\n", "echo"), (b"My Service\r\n", "my service"), (b"HELP\r\n", "help")],
)
def test_a_name_is_read_in_any_case(line: bytes, name: str) -> None:
    """The line ends by CRLF or LF; data after it is ignored."""
    assert question(line + b"more\r\n") == (name, len(line))


@given(st.binary(max_size=40).filter(lambda data: b"\n" not in data))
def test_incomplete_line_is_no_name(data: bytes) -> None:
    """A line without its end gives neither a name nor an error, wherever it is split."""
    assert question(data) is None


@pytest.mark.parametrize("line", [b"\r\n", b"\n", b"caf\xc3\xa9\r\n", b"a\0b\r\n", b"x" * MOST, b"x" * MOST + b"\n"])
def test_invalid_name_is_refused(line: bytes) -> None:
    """A name that is empty, not ASCII, not printable or too long is an error."""
    with pytest.raises(ValueError):
        question(line)


def test_answers_are_lines() -> None:
    """Answers have the format of RFC 1078."""
    assert refusal("there is no service a") == b"-there is no service a\r\n"
    assert catalogue(["a", "b"]) == b"a\r\nb\r\n"


class _Mux:
    """A TcpmuxTracker that offers a service named score, and its clients."""

    def __init__(
        self, options: str = "", files: FakeFiles | None = None, *, short: bool = False, family: int = socket.AF_INET
    ) -> None:
        self.reactor = FakeReactor()
        self.lines: list[str] = []
        self.taken: list[tuple[int, Any, int, Any]] = []
        self.budget = DescriptorBudget(10, self.reactor)
        self.names = FakeResolver()
        service = service_of(f"tcpmux 0/tcp {options}")
        log_writer = LogWriter(list_sink(self.lines), TextFormat(stamped=False), anonymize=short)
        context = ConnectionContext(
            self.reactor, log_writer, files or FakeFiles(), self.names, self.budget, GlobalLimit()
        )
        self.service_admission = ServiceAdmission(context, service)
        self.tracker = TcpmuxTracker(
            service,
            context,
            self.service_admission,
            lambda: {"score": lambda *connection: self.taken.append(connection)},
        )
        self.client = self.connect(family)

    def connect(self, family: int = socket.AF_INET) -> socket.socket:
        """Return another client, whose connection was passed to the tracker."""
        if family == socket.AF_UNIX:
            client, server = socket.socketpair()
            self.tracker.take(server.detach(), "", family)
            return client
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname(), 10)
            fd, peer = listener._accept()  # type: ignore[attr-defined]
        self.tracker.take(fd, peer, family)
        return client

    def send(self, data: bytes) -> None:
        """Send data from the client, and read it once all has arrived."""
        self.client.send(data)
        for reader in list(self.reactor.readers):
            select.select([reader], [], [], 10)
            reader.doRead()

    def close(self) -> None:
        """Close the remaining sockets."""
        for session in list(self.tracker.connections.values()):
            session.abort("shutdown")
        self.client.close()
        for descriptor, *_ in self.taken:
            os.close(descriptor)


@pytest.fixture
def mux() -> Iterator[_Mux]:
    """A tcpmux tracker with one client."""
    made = _Mux()
    yield made
    made.close()


def test_a_named_service_gets_the_connection(mux: _Mux) -> None:
    """The client gets a welcome line; data after the name is left for the service; tcpmux keeps nothing."""
    mux.send(b"SCORE\r\nearly")
    assert mux.client.recv(100) == b"+Go\r\n"
    ((fd, peer, family, proxy_header),) = mux.taken
    assert (peer, family, proxy_header) == (mux.client.getsockname(), socket.AF_INET, None)
    assert os.read(fd, 100) == b"early"
    assert os.get_blocking(fd)
    assert (mux.tracker.connections, mux.budget.open, mux.reactor.readers) == ({}, 0, set())
    assert not mux.reactor.getDelayedCalls()
    assert mux.lines[-1].startswith("end service=tcpmux/tcp")
    assert "reason=done" in mux.lines[-1]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_a_name_may_come_in_pieces(family: int) -> None:
    """Each piece is read, so that it does not wake the reactor again; data after the name is left for the service."""
    mux = _Mux(family=family)
    for piece in (b"s", b"co", b"re"):
        mux.send(piece)
        (reader,) = mux.reactor.readers
        assert select.select([reader], [], [], 0)[0] == []
    assert [call.getTime() for call in mux.reactor.getDelayedCalls()] == [NAME_TIMEOUT]
    mux.send(b"\r\nearly")
    ((descriptor, *_),) = mux.taken
    assert os.read(descriptor, 100) == b"early"
    mux.close()


def test_endless_name_is_refused() -> None:
    """A name that is too long is refused, also in small pieces."""
    mux = _Mux()
    for _ in range(MOST):
        mux.send(b"x")
    assert mux.client.recv(100).startswith(b"-")
    mux.close()


def test_client_closes_within_its_name(mux: _Mux) -> None:
    """The close by the client is noticed at once."""
    mux.send(b"sco")
    mux.client.shutdown(socket.SHUT_WR)
    for reader in list(mux.reactor.readers):
        reader.doRead()
    assert (mux.tracker.connections, mux.budget.open) == ({}, 0)


def test_number_of_clients_without_a_name_is_limited(mux: _Mux) -> None:
    """Over the limit, a share of the daemon's descriptors, the client that has waited longest is closed."""
    clients = [mux.connect() for _ in range(5)]
    assert mux.budget.open == len(mux.tracker.connections) == 2
    assert [line.split()[5] for line in mux.lines if line.startswith("end")] == ["out=0"] * 4
    assert sum("reason=timeout" in line for line in mux.lines) == 4
    for client in clients:
        client.close()


def test_exception_of_a_service_closes_its_client(mux: _Mux) -> None:
    """The connection is closed, and tcpmux continues."""
    mux.tracker.offered = lambda: {"score": lambda *_connection: 1 // 0}
    with LogCatcher() as log:
        mux.send(b"score\r\n")
    assert len(log.failures) == 1
    assert (mux.tracker.connections, mux.budget.open, mux.reactor.readers) == ({}, 0, set())


def test_connection_is_counted_during_the_hand_over(mux: _Mux) -> None:
    """The service counts the connection before tcpmux stops counting it, so that there is no moment without one."""
    seen: list[int] = []
    mux.tracker.offered = lambda: {"score": lambda *_connection: seen.append(len(mux.tracker.connections))}
    mux.send(b"score\r\n")
    assert seen == [1]


def test_offered_services_are_kept_for_connected_clients(mux: _Mux) -> None:
    """A client that is connected when the daemon stops listening can still name an offered service."""
    offered = {"score": lambda *connection: mux.taken.append(connection)}
    mux.tracker.offered = lambda: offered
    mux.tracker.close()
    offered = {}
    mux.send(b"score\r\n")
    assert len(mux.taken) == 1


def test_an_unknown_name_is_refused_and_the_answer_arrives(mux: _Mux) -> None:
    """The answer arrives even if the client has sent data after the name."""
    mux.send(b"nothing\r\nand more")
    assert mux.client.recv(100) == b"-there is no service nothing\r\n"
    assert mux.client.recv(100) == b""
    assert mux.tracker.connections[1].info()["state"] == "closing"
    mux.reactor.advance(LINGER)
    assert (mux.tracker.connections, mux.budget.open) == ({}, 0)
    assert "reason=failed" in mux.lines[-1]


def test_help_lists_the_services(mux: _Mux) -> None:
    """The answer to help has a name on each line, then the end."""
    mux.send(b"help\r\n")
    assert mux.client.recv(100) == b"score\r\n"
    assert mux.client.recv(100) == b""


def test_client_is_closed_after_name_timeout(mux: _Mux) -> None:
    """A client that does not complete its line is closed."""
    mux.send(b"sco")
    mux.reactor.advance(NAME_TIMEOUT)
    assert mux.client.recv(10) == b""
    assert "reason=timeout" in mux.lines[-1]
    assert (mux.budget.open, mux.reactor.readers) == (0, set())
    assert not mux.reactor.getDelayedCalls()


def test_client_closes(mux: _Mux) -> None:
    """Nothing is kept of a client that closes its connection."""
    mux.client.shutdown(socket.SHUT_WR)
    for reader in list(mux.reactor.readers):
        reader.doRead()
    assert (mux.tracker.connections, mux.budget.open) == ({}, 0)


def test_drain_closes_clients_without_a_name(mux: _Mux) -> None:
    """The stop of the daemon does not wait for clients that have not named a service."""
    empty = mux.tracker.when_empty()
    mux.tracker.connections[1].drain()
    assert empty.called
    assert "reason=shutdown" in mux.lines[-1]


def test_shortened_addresses() -> None:
    """With anonymized addresses the log has only the network of the client."""
    made = _Mux(short=True)
    made.send(b"SCORE\r\n")
    made.close()
    assert [line.split(" in=")[0] for line in made.lines] == [
        "accept service=tcpmux/tcp peer=127.0.0.0 id=1 count=1",
        "end service=tcpmux/tcp peer=127.0.0.0 id=1",
    ]


def test_access_rules_of_tcpmux() -> None:
    """The rules of tcpmux apply before anything is read; a refused client gets the banner."""
    made = _Mux("only_from=10.0.0.0/8 banner_fail=/out", FakeFiles({"/out": "out\n"}))
    assert made.client.recv(100) == b"out\n"
    assert not made.tracker.connections
    assert "refuse service=tcpmux/tcp peer=127.0.0.1:" in made.lines[0]
    made.reactor.advance(2)
    assert (made.service_admission.admission.open, made.budget.open) == (0, 0)
    made.close()


@pytest.mark.parametrize("name", ["good.example", None])
def test_admission_by_host_name(name: str | None) -> None:
    """The client waits unread, counted and listed; its slot is released when the connection is handed over."""
    made = _Mux("only_from=.example banner=/all", FakeFiles({"/all": "all\n"}))
    assert (list(made.tracker.connections), made.service_admission.admission.open, made.budget.open) == ([1], 1, 1)
    assert (made.reactor.readers, made.lines) == (set(), [])
    session = made.tracker.connections[1]
    assert session.info()["state"] == "host-name"
    made.names.answer(name)
    assert made.client.recv(100) == b"all\n"
    if name:
        assert session.info()["state"] == "service-name"
        made.send(b"score\r\n")
        assert made.client.recv(100) == b"+Go\r\n"
    made.reactor.advance(2)
    assert (made.tracker.connections, made.service_admission.admission.open, made.budget.open) == ({}, 0, 0)
    made.close()


@pytest.mark.parametrize("way", ["drain", "late"])
def test_client_ends_during_the_lookup_of_its_host_name(way: str) -> None:
    """A client is closed by the stop and by a lookup that takes too long, without a log line."""
    made = _Mux("only_from=.example")
    empty = made.tracker.when_empty()
    if way == "drain":
        made.tracker.connections[1].drain()
    else:
        made.reactor.advance(NAME_TIMEOUT)
    assert empty.called
    assert (made.tracker.connections, made.service_admission.admission.open, made.budget.open, made.lines) == (
        {},
        0,
        0,
        [],
    )
    made.names.answer("good.example")
    assert made.client.recv(100) == b""
    made.close()
