"""tcpmux: a name in, somebody else's connection out."""

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
    """The line ends by CRLF, and a bare LF does as well; what comes after it is not looked at."""
    assert question(line + b"more\r\n") == (name, len(line))


@given(st.binary(max_size=40).filter(lambda data: b"\n" not in data))
def test_a_line_without_an_end_is_waited_for(data: bytes) -> None:
    """At every split point there is no answer yet, and no mistake."""
    assert question(data) is None


@pytest.mark.parametrize("line", [b"\r\n", b"\n", b"caf\xc3\xa9\r\n", b"a\0b\r\n", b"x" * MOST, b"x" * MOST + b"\n"])
def test_a_line_that_is_no_name_is_refused(line: bytes) -> None:
    """Empty, not ASCII, not printable, or too long."""
    with pytest.raises(ValueError):
        question(line)


def test_answers_are_lines() -> None:
    """As RFC 1078 has them."""
    assert refusal("there is no service a") == b"-there is no service a\r\n"
    assert catalogue(["a", "b"]) == b"a\r\nb\r\n"


class _Mux:
    """A tcpmux that offers a service named score, and one client."""

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
        """One more client."""
        if family == socket.AF_UNIX:
            client, server = socket.socketpair()
            self.tracker.take(server.detach(), "", family)
            return client
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname(), 10)
            descriptor, peer = listener._accept()  # type: ignore[attr-defined]
        self.tracker.take(descriptor, peer, family)
        return client

    def send(self, data: bytes) -> None:
        """Let the client send, and the other side read once all is there."""
        self.client.send(data)
        for reader in list(self.reactor.readers):
            select.select([reader], [], [], 10)
            reader.doRead()

    def close(self) -> None:
        """End what the test left."""
        for session in list(self.tracker.connections.values()):
            session.abort("shutdown")
        self.client.close()
        for descriptor, *_ in self.taken:
            os.close(descriptor)


@pytest.fixture
def mux() -> Iterator[_Mux]:
    """A tcpmux with a client."""
    made = _Mux()
    yield made
    made.close()


def test_a_named_service_gets_the_connection(mux: _Mux) -> None:
    """The client is welcomed; what it sent too early is the service's; nothing stays here."""
    mux.send(b"SCORE\r\nearly")
    assert mux.client.recv(100) == b"+Go\r\n"
    ((descriptor, peer, family, relay),) = mux.taken
    assert (peer, family, relay) == (mux.client.getsockname(), socket.AF_INET, None)
    assert os.read(descriptor, 100) == b"early"
    assert os.get_blocking(descriptor)
    assert (mux.tracker.connections, mux.budget.open, mux.reactor.readers) == ({}, 0, set())
    assert not mux.reactor.getDelayedCalls()
    assert mux.lines[-1].startswith("end service=tcpmux/tcp")
    assert "reason=done" in mux.lines[-1]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_a_name_may_come_in_pieces(family: int) -> None:
    """A piece is taken, so that it does not wake the reactor again; what follows the name stays for the service."""
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


def test_a_name_that_never_ends_is_refused() -> None:
    """However small its pieces are."""
    mux = _Mux()
    for _ in range(MOST):
        mux.send(b"x")
    assert mux.client.recv(100).startswith(b"-")
    mux.close()


def test_a_client_that_leaves_within_its_name(mux: _Mux) -> None:
    """Its end is seen at once."""
    mux.send(b"sco")
    mux.client.shutdown(socket.SHUT_WR)
    for reader in list(mux.reactor.readers):
        reader.doRead()
    assert (mux.tracker.connections, mux.budget.open) == ({}, 0)


def test_clients_without_a_name_are_bounded(mux: _Mux) -> None:
    """The one that has waited longest goes when there are too many: a share of the daemon's descriptors."""
    clients = [mux.connect() for _ in range(5)]
    assert mux.budget.open == len(mux.tracker.connections) == 2
    assert [line.split()[5] for line in mux.lines if line.startswith("end")] == ["out=0"] * 4
    assert sum("reason=timeout" in line for line in mux.lines) == 4
    for client in clients:
        client.close()


def test_a_service_that_fails_costs_its_client_alone(mux: _Mux) -> None:
    """The connection is closed, and tcpmux goes on."""
    mux.tracker.offered = lambda: {"score": lambda *_connection: 1 // 0}
    with LogCatcher() as log:
        mux.send(b"score\r\n")
    assert len(log.failures) == 1
    assert (mux.tracker.connections, mux.budget.open, mux.reactor.readers) == ({}, 0, set())


def test_a_service_counts_a_connection_before_tcpmux_does_not(mux: _Mux) -> None:
    """A daemon that waits for its last connection never finds none in between."""
    seen: list[int] = []
    mux.tracker.offered = lambda: {"score": lambda *_connection: seen.append(len(mux.tracker.connections))}
    mux.send(b"score\r\n")
    assert seen == [1]


def test_the_listeners_end_before_the_clients(mux: _Mux) -> None:
    """A client that is here when the daemon stops listening still reaches what was offered."""
    offered = {"score": lambda *connection: mux.taken.append(connection)}
    mux.tracker.offered = lambda: offered
    mux.tracker.close()
    offered = {}
    mux.send(b"score\r\n")
    assert len(mux.taken) == 1


def test_an_unknown_name_is_refused_and_the_answer_arrives(mux: _Mux) -> None:
    """Even if the client has sent more than its question."""
    mux.send(b"nothing\r\nand more")
    assert mux.client.recv(100) == b"-there is no service nothing\r\n"
    assert mux.client.recv(100) == b""
    assert mux.tracker.connections[1].info()["state"] == "closing"
    mux.reactor.advance(LINGER)
    assert (mux.tracker.connections, mux.budget.open) == ({}, 0)
    assert "reason=failed" in mux.lines[-1]


def test_help_lists_the_services(mux: _Mux) -> None:
    """A name on each line, then the end."""
    mux.send(b"help\r\n")
    assert mux.client.recv(100) == b"score\r\n"
    assert mux.client.recv(100) == b""


def test_a_client_has_so_long_to_ask(mux: _Mux) -> None:
    """Who never ends its line is closed."""
    mux.send(b"sco")
    mux.reactor.advance(NAME_TIMEOUT)
    assert mux.client.recv(10) == b""
    assert "reason=timeout" in mux.lines[-1]
    assert (mux.budget.open, mux.reactor.readers) == (0, set())
    assert not mux.reactor.getDelayedCalls()


def test_a_client_may_leave(mux: _Mux) -> None:
    """Nothing is kept of it."""
    mux.client.shutdown(socket.SHUT_WR)
    for reader in list(mux.reactor.readers):
        reader.doRead()
    assert (mux.tracker.connections, mux.budget.open) == ({}, 0)


def test_stopping_does_not_wait_for_who_has_not_asked(mux: _Mux) -> None:
    """They are owed nothing."""
    empty = mux.tracker.when_empty()
    mux.tracker.connections[1].drain()
    assert empty.called
    assert "reason=shutdown" in mux.lines[-1]


def test_shortened_addresses() -> None:
    """The log says the client's network only."""
    made = _Mux(short=True)
    made.send(b"SCORE\r\n")
    made.close()
    assert [line.split(" in=")[0] for line in made.lines] == [
        "accept service=tcpmux/tcp peer=127.0.0.0 id=1 count=1",
        "end service=tcpmux/tcp peer=127.0.0.0 id=1",
    ]


def test_tcpmux_asks_its_own_rules_first() -> None:
    """Before anything is read; who is refused has a last word."""
    made = _Mux("only_from=10.0.0.0/8 banner_fail=/out", FakeFiles({"/out": "out\n"}))
    assert made.client.recv(100) == b"out\n"
    assert not made.tracker.connections
    assert "refuse service=tcpmux/tcp peer=127.0.0.1:" in made.lines[0]
    made.reactor.advance(2)
    assert (made.service_admission.admission.open, made.budget.open) == (0, 0)
    made.close()


@pytest.mark.parametrize("name", ["good.example", None])
def test_tcpmux_waits_for_a_name_that_decides(name: str | None) -> None:
    """Unread, counted and listed; its ticket is back when the connection is another service's."""
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
def test_a_client_whose_host_name_is_looked_up_is_no_exception(way: str) -> None:
    """The stop of the daemon finds it, and a look-up that takes too long ends it, without a line in the log."""
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
