"""The options of WebSocket: their checks, what a refused client gets, and the status of a Close frame."""

from __future__ import annotations

import socket

import pytest

from svcd.config.endpoints import check
from svcd.connections.descriptor_budget import DescriptorBudget
from svcd.connections.lingering_close import LINGER_SECONDS, LingeringCloser, RejectProtocol
from svcd.connections.spawned_connection import ExitResult, close_status
from svcd.model import Severity
from tests.doubles import FakeFiles, FakeMachine, FakeReactor, StreamDouble, config_of, problems_of


def _check(line: str, machine: FakeMachine | None = None) -> list[tuple[str, str]]:
    _, problems = check(config_of(line), FakeFiles(), machine or FakeMachine())
    return [(problem.severity.name, problem.text) for problem in problems if problem.severity is not Severity.WARNING]


def test_options_without_websocket() -> None:
    """An option that has no effect is a mistake on a line, and may be in @defaults."""
    needed = "this has no effect without websocket=; add websocket=lines, text or binary, or remove it"
    for option in ("websocket_path=/x", "websocket_deflate=yes", "websocket_origin=*", "request_timeout=5s"):
        name = option.partition("=")[0]
        assert _check(f"x 7/tcp server=/bin/cat {option}") == [("MISTAKE", f"{name}: {needed}")]
        assert _check(f"@defaults {option}\nx 7/tcp server=/bin/cat") == []
        assert _check(f"x 7/tcp server=/bin/cat websocket=lines {option}") == []
    assert _check("@defaults websocket=text\nx 7/tcp server=/bin/cat websocket=none") == []


def test_a_process_that_accepts_connections() -> None:
    """With wait=yes svcd sees no connection."""
    ((severity, text),) = _check("x 7/tcp server=/bin/cat wait=yes websocket=lines")
    assert severity == "MISTAKE"
    assert "with wait=yes" in text


def test_a_missing_package() -> None:
    """Without wsproto a service is broken, and the others serve."""
    line = "x 7/tcp server=/bin/cat websocket=lines\ny 8/tcp echo"
    assert _check(line, FakeMachine(modules=frozenset())) == [
        (
            "FAULT",
            "websocket: the Python package wsproto is not installed; install it with pip install 'svcd[websocket]'",
        )
    ]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("websocket=frames", "websocket takes lines or text or binary; or none, not 'frames'"),
        ("websocket=lines websocket_path=chat", "not 'chat'"),
        ("websocket=lines websocket_path=/a//b", "not '/a//b'"),
        ("websocket=lines websocket_path=/a/../b", "not '/a/../b'"),
        ("websocket=lines websocket_path=/a?b", "not '/a?b'"),
        ("websocket=lines websocket_path=/a%20b", "not '/a%20b'"),
        ("websocket=lines websocket_origin=example.org", "not 'example.org'"),
        ("websocket=lines websocket_origin=https://example.org/", "not 'https://example.org/'"),
        ("websocket=lines websocket_protocols=a,,b", "not 'a,,b'"),
        ("websocket=lines websocket_max_message=0", "not '0'"),
        ("websocket=lines websocket_max_message=none", "not 'none'"),
    ],
)
def test_invalid_values(options: str, problem: str) -> None:
    """An invalid value is a mistake with its place."""
    (found,) = problems_of(f"x 7/tcp server=/bin/cat {options}")
    assert found.startswith("s:1:")
    assert problem in found


@pytest.mark.parametrize("line", ["x 7/tcp echo", "x 7/udp server=/bin/cat wait=yes", "x 7/tcp factory=a:b"])
def test_services_that_have_no_websocket(line: str) -> None:
    """Built-ins, factories and datagram services have no WebSocket."""
    (found,) = problems_of(f"{line} websocket=lines")
    assert "websocket is for stream services (tcp, unix) with server=, python= or redirect=" in found


@pytest.mark.parametrize(
    ("result", "stops", "code", "reason"),
    [
        (ExitResult("done", "0"), False, 1000, ""),
        (ExitResult("done", "0"), True, 1001, "the service stops"),
        (ExitResult("done", "3"), False, 1011, "exit status 3"),
        (ExitResult("killed", "SIGSEGV"), False, 1011, "killed by SIGSEGV"),
        (ExitResult("shutdown", "SIGTERM"), True, 1001, "the service stops"),
        (ExitResult("kicked", "SIGTERM"), False, 1008, "ended by the server: kicked"),
        (ExitResult("session", "0"), False, 1008, "ended by the server: session"),
        (ExitResult("failed"), False, 1011, "the handler could not be run"),
        (ExitResult("unknown"), False, 1011, "the handler could not be run"),
    ],
)
def test_status_of_the_close(result: ExitResult, stops: bool, code: int, reason: str) -> None:
    """The status of a Close frame says how the process has ended."""
    assert close_status(result, stops=stops) == (code, reason)


def test_answers_to_refused_clients() -> None:
    """A refused client gets an HTTP response after it has sent something; a silent one is closed."""
    reactor = FakeReactor()
    closer = LingeringCloser(reactor, DescriptorBudget(100, reactor))
    for speaks in (True, False):
        protocol = RejectProtocol(closer, b"HTTP/1.1 503 \r\n\r\n", answers=True)
        transport = StreamDouble(protocol)
        protocol.makeConnection(transport)
        assert transport.sent == b""
        if speaks:
            protocol.dataReceived(b"GET")
            protocol.dataReceived(b" / HTTP/1.1")
            assert (transport.sent, transport.write_closed) == (b"HTTP/1.1 503 \r\n\r\n", True)
        reactor.advance(LINGER_SECONDS)
        assert transport.lost == "done"
    assert closer.open == 0


def test_answers_on_descriptors() -> None:
    """The same holds for a connection without a transport."""
    reactor = FakeReactor()
    closer = LingeringCloser(reactor, DescriptorBudget(100, reactor))
    for question in (b"GET", b""):
        ours, client = socket.socketpair()
        with client:
            closer.close(ours.detach(), b"503", answers=True)
            client.settimeout(10)
            (reader,) = reactor.readers
            if question:
                client.send(question)
                reader.doRead()
                assert client.recv(100) == b"503"
            else:
                reactor.advance(LINGER_SECONDS)
            assert client.recv(100) == b""
            client.close()
            if question:
                reader.doRead()
    assert (closer.open, list(reactor.readers)) == (0, [])
