"""CGI programs behind an HTTP connection, in memory: the program's end of each pipe is the test's."""

from __future__ import annotations

import errno
import os
import signal
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure

from svcd.process.messages import Started
from svcd.protocols.http.cgi import CgiHandler, CgiSettings
from svcd.protocols.http.cgi_input import CgiInput
from svcd.protocols.http.cgi_script import CgiScript
from svcd.protocols.http.connections import GONE_SECONDS
from svcd.protocols.http.greeting import GreetingPage
from svcd.protocols.http.server import HttpFactory
from svcd.wire.cgi_response import MOST_CGI_HEAD
from tests.doubles import PEER, FakeReactor, FakeResolver, StreamDouble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from twisted.internet.interfaces import IAddress

PLAIN = b"Content-Type: text/plain\n\n"
LIMIT = 10.0


class _Program(NamedTuple):
    """A program that was ordered: its events go to `script`."""

    script: CgiScript
    variables: dict[str, str]
    fds: tuple[int, ...]


class _Budget:
    """Descriptors that are counted, up to a number."""

    def __init__(self) -> None:
        self.open, self.most = 0, 100

    def acquire(self) -> None:
        self.open += 1

    def release(self) -> None:
        self.open -= 1

    def try_acquire(self) -> bool:
        self.open += self.open < self.most
        return self.open < self.most


class _Launcher:
    """ScriptLauncher whose programs are the test."""

    def __init__(self) -> None:
        self.reactor = FakeReactor()
        self.descriptors = _Budget()
        self.programs: list[_Program] = []
        self.ended: list[int] = []
        self.failures: list[str] = []

    def start(self, script: CgiScript, environment: bytes, *fds: int) -> int:
        """Record an order."""
        variables = dict(each.split("=", 1) for each in environment.decode().split("\0"))
        self.programs.append(_Program(script, variables, fds))
        return len(self.programs)

    def end(self, number: int) -> None:
        """Record that a program is to end."""
        self.ended.append(number)

    def failed(self, peer: IAddress, reason: str) -> None:
        """Record a failure."""
        assert peer == PEER
        self.failures.append(reason)


class _Client:
    """Client of a connection to a service with CGI programs."""

    def __init__(self, instances: int | None = None, resolver: FakeResolver | None = None) -> None:
        self.launcher = _Launcher()
        self.clock = self.launcher.reactor
        self.open_fds: set[int] = set()
        settings = CgiSettings("/cgi-bin/", LIMIT, instances, "/srv/www", resolver)
        handler = CgiHandler(settings, GreetingPage(FakeResolver()), self.launcher)
        self._factory = HttpFactory(handler, self.clock)
        self.protocol: Any = self._factory.buildProtocol(PEER)
        self.transport = StreamDouble(self.protocol)
        self.transport.protocol.makeConnection(self.transport)

    def sibling(self) -> Any:
        """Return another connection to the same service."""
        other: Any = self._factory.buildProtocol(PEER)
        transport: Any = StreamDouble(other)
        other.makeConnection(transport)
        return other

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self.protocol.dataReceived(data)

    def get(self, name: str = "x", method: str = "GET", version: str = "1.1", *, body: bytes = b"") -> None:
        """Send a request."""
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        self.send(f"{method} /cgi-bin/{name} HTTP/{version}\r\nHost: a\r\n{length}\r\n".encode() + body)

    def start(self, number: int = 0, *, nph: bool = False) -> None:
        """Report the start of a program."""
        program = self.launcher.programs[number]
        self.open_fds |= set(program.fds)
        program.script.started(Started(number + 1, 500 + number, nph))
        # The output is watched soon.
        self.clock.pump([0.002])
        self.read()

    def write(self, data: bytes, number: int = 0) -> None:
        """Write output of a program."""
        os.write(self.launcher.programs[number].fds[0], data)
        self.read()

    def close(self, number: int = 0) -> None:
        """Close the output of a program."""
        for fd in set(self.launcher.programs[number].fds) & self.open_fds:
            os.close(fd)
            self.open_fds.remove(fd)
        self.read()

    def exit(self, status: int | None = 0, number: int = 0) -> None:
        """Report the exit of a program, which closes its descriptors."""
        self.close(number)
        self.launcher.programs[number].script.ended(status)

    def read(self) -> None:
        """Let the connection read what programs have written."""
        for reader in [each for each in self.clock.readers if isinstance(each, CgiScript)]:
            reader.doRead()

    @property
    def statuses(self) -> list[int]:
        """The status codes of the responses so far."""
        return [int(each[:3]) for each in self.transport.sent.split(b"HTTP/1.1 ")[1:]]

    @property
    def content(self) -> bytes:
        """What follows the head of the first response."""
        return self.transport.sent.partition(b"\r\n\r\n")[2]

    @property
    def head(self) -> list[str]:
        """The fields of the first response."""
        return self.transport.sent.partition(b"\r\n\r\n")[0].decode().split("\r\n")

    def clean(self) -> None:
        """Check that nothing is left: no watched and no counted descriptor."""
        assert not [each for each in self.clock.readers if isinstance(each, CgiScript)]
        assert not self.clock.writers
        assert self.launcher.descriptors.open <= 1


@pytest.fixture
def connect() -> Iterator[Callable[..., _Client]]:
    """Return a function that makes a client."""
    clients: list[_Client] = []

    def made(**settings: Any) -> _Client:
        clients.append(_Client(**settings))
        return clients[-1]

    yield made
    for client in clients:
        if not client.transport.lost:
            client.transport.lose(Failure(ConnectionLost()), "lost")
        for number in range(len(client.launcher.programs)):
            client.close(number)


def test_complete_output_has_a_length(connect: Callable[..., _Client]) -> None:
    """Output that is complete when the head is read gets a Content-Length, and the connection stays open."""
    client = connect()
    client.get("x/info?a=b")
    program = client.launcher.programs[0]
    assert program.variables["SCRIPT_NAME"] == "/cgi-bin"
    assert program.variables["PATH_INFO"] == "/x/info"
    assert program.variables["QUERY_STRING"] == "a=b"
    assert program.variables["DOCUMENT_ROOT"] == "/srv/www"
    client.start()
    os.write(program.fds[0], PLAIN + b"hi")
    client.close()
    assert client.statuses == [200]
    assert "Content-Length: 2" in client.head
    assert client.content == b"hi"
    client.exit()
    client.get()
    assert len(client.launcher.programs) == 2
    assert client.launcher.ended == []


def test_output_is_sent_in_chunks_as_it_is_written(connect: Callable[..., _Client]) -> None:
    """Output that is not complete is sent in chunks."""
    client = connect()
    client.get()
    client.start()
    client.write(PLAIN + b"one")
    assert "Transfer-Encoding: chunked" in client.head
    assert client.content == b"3\r\none\r\n"
    client.write(b"two")
    assert client.content == b"3\r\none\r\n3\r\ntwo\r\n"
    client.close()
    assert client.content.endswith(b"two\r\n0\r\n\r\n")
    client.exit()
    client.clean()


def test_output_for_an_old_client_ends_with_the_connection(connect: Callable[..., _Client]) -> None:
    """HTTP/1.0 has no chunks."""
    client = connect()
    client.get(version="1.0")
    client.start()
    client.write(PLAIN + b"one")
    client.exit()
    assert client.content == b"one"
    assert client.transport.write_closed or client.transport.lost


def test_the_exit_ends_the_response(connect: Callable[..., _Client]) -> None:
    """A response ends with the process, although another process still has its output."""
    for first in (b"", PLAIN):
        client = connect()
        client.get()
        client.start()
        if first:
            client.write(first)
        os.write(client.launcher.programs[0].fds[0], PLAIN[len(first) :] + b"done")
        client.launcher.programs[0].script.ended(0)
        assert client.statuses == [200]
        assert b"done" in client.content
        client.clean()


@pytest.mark.parametrize(
    ("output", "status", "reason"),
    [
        (b"", 0, "it ended without a response (exit status 0)"),
        (b"", 3 << 8, "it ended without a response (exit status 3)"),
        (b"", signal.SIGKILL, "it ended without a response (ended by signal 9)"),
        (b"", None, "it ended without a response (its exit status is not known)"),
        (b"Status: 200\n", 0, "it ended within the header of its response (exit status 0)"),
        (b"hello\n\n", 0, "its response has an invalid header line: b'hello'"),
        (b"A: " + b"b" * MOST_CGI_HEAD, 0, "the header of its response is larger than 32768 bytes"),
        (b"Status: 200\nContent-Length: 3\n\nhi", 0, "it wrote 2 bytes with a Content-Length of 3"),
    ],
)
def test_other_output_is_a_bad_gateway(
    connect: Callable[..., _Client], output: bytes, status: int | None, reason: str
) -> None:
    """Output that is no response is 502, and the reason is in the log."""
    client = connect()
    client.get("x/y")
    client.start()
    os.write(client.launcher.programs[0].fds[0], output)
    client.exit(status)
    assert client.statuses == [502]
    assert client.launcher.failures == [f"/cgi-bin/x/y: {reason}"]
    client.clean()


def test_missing_content_cuts_the_response_off(connect: Callable[..., _Client]) -> None:
    """A program that writes less than its Content-Length has its connection aborted; more is not sent."""
    client = connect()
    client.get()
    client.start()
    client.write(b"Status: 200\nContent-Length: 5\n\nab")
    client.exit()
    assert client.transport.lost == "aborted"
    client = connect()
    client.get()
    client.start()
    client.write(b"Status: 200\nContent-Length: 5\n\nab")
    client.write(b"cdefg")
    assert client.content == b"abcde"
    assert not client.transport.lost
    client.exit()
    client.clean()


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (errno.ENOENT, 404),
        (errno.ENOTDIR, 404),
        (errno.ELOOP, 404),
        (errno.EACCES, 403),
        (errno.EISDIR, 403),
        (errno.EAGAIN, 503),
        (0, 503),
        (errno.ENOEXEC, 500),
    ],
)
def test_programs_that_can_not_be_started(connect: Callable[..., _Client], number: int, status: int) -> None:
    """The error of a start is a status; an unusual one is in the log."""
    client = connect()
    client.get()
    client.launcher.programs[0].script.start_failed(number)
    for fd in client.launcher.programs[0].fds:
        os.close(fd)
    assert client.statuses == [status]
    assert ("Retry-After: 1" in client.head) == (status == 503)
    assert bool(client.launcher.failures) == (status == 500)
    client.clean()


def test_without_descriptors_a_client_may_try_again(connect: Callable[..., _Client]) -> None:
    """If the budget is used up, the response is 503, and no program is started."""
    client = connect()
    client.launcher.descriptors.most = client.launcher.descriptors.open
    client.get()
    assert (client.statuses, client.launcher.programs) == ([503], [])


@pytest.mark.parametrize("begun", [False, True])
def test_a_client_that_is_lost_ends_its_program(connect: Callable[..., _Client], begun: bool) -> None:
    """The program of a lost connection is ended, before and during its response."""
    client = connect()
    client.get()
    client.start()
    if begun:
        client.write(PLAIN + b"one")
    client.transport.lose(Failure(ConnectionLost()), "lost")
    assert client.launcher.ended == [1]
    client.exit(signal.SIGTERM)
    assert client.launcher.failures == []
    client.clean()


def test_a_client_that_is_lost_before_the_start(connect: Callable[..., _Client]) -> None:
    """A program that is reported after the end of its client is ended, too."""
    client = connect()
    client.get()
    client.transport.lose(Failure(ConnectionLost()), "lost")
    assert client.launcher.ended == [1]
    client.start()
    client.exit()
    client.clean()


@pytest.mark.parametrize("begun", [False, True])
def test_a_client_that_sends_no_more_may_be_gone(connect: Callable[..., _Client], begun: bool) -> None:
    """A client that has closed its side counts as gone after 2 s without output."""
    client = connect()
    client.get()
    client.start()
    if begun:
        client.write(PLAIN)
    client.protocol.readConnectionLost()
    for _ in range(3):
        client.clock.pump([GONE_SECONDS / 2])
        if begun:
            client.write(b"more")
    assert client.launcher.ended == ([] if begun else [1])
    client.clock.pump([0.5] * 6)
    assert client.launcher.ended == [1]
    assert client.transport.lost == "aborted"


def test_a_client_that_sends_no_more_gets_its_response(connect: Callable[..., _Client]) -> None:
    """A client that closes its side gets a response that is made in time."""
    client = connect()
    client.get()
    client.protocol.readConnectionLost()
    client.start()
    client.clock.pump([1.0])
    client.write(PLAIN + b"hi")
    client.exit()
    assert client.content.endswith(b"hi\r\n0\r\n\r\n")
    assert client.launcher.ended == []


def test_a_program_without_output_is_ended(connect: Callable[..., _Client]) -> None:
    """After the time limit the response is 504, or is cut off."""
    for begun in (False, True):
        client = connect()
        client.get()
        client.start()
        if begun:
            client.write(PLAIN)
        client.clock.pump([0.5] * 19)
        assert client.launcher.ended == []
        client.clock.pump([0.5] * 3)
        assert client.launcher.ended == [1]
        assert client.launcher.failures == ["/cgi-bin/x: it was ended after 10 s without output"]
        assert client.transport.lost == ("aborted" if begun else "")
        assert client.statuses == ([200] if begun else [504])


def test_a_client_that_waits_is_not_the_program_s_fault(connect: Callable[..., _Client]) -> None:
    """The time limit does not count while the client takes nothing, or has not sent the body."""
    client = connect()
    client.send(b"POST /cgi-bin/x HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n")
    client.start()
    client.clock.pump([0.5] * 50)
    assert client.launcher.ended == []
    client = connect()
    client.transport.room = 10
    client.get()
    client.start()
    client.write(PLAIN + b"x" * 100)
    client.write(b"x" * 100)
    for _ in range(50):
        client.transport.bytes_out += 10_000
        client.clock.pump([0.5])
    assert client.launcher.ended == []


def test_a_program_that_goes_on_after_its_response(connect: Callable[..., _Client]) -> None:
    """A program may go on after its response, up to the time limit; the connection is free."""
    client = connect()
    client.get()
    client.start()
    os.write(client.launcher.programs[0].fds[0], PLAIN)
    client.close()
    assert client.statuses == [200]
    client.get("y")
    assert len(client.launcher.programs) == 2
    client.start(1)
    client.clock.pump([0.5] * 21)
    assert 1 in client.launcher.ended


def test_input_waits_for_the_program(connect: Callable[..., _Client]) -> None:
    """The connection reads a body only as fast as the program does."""
    client = connect()
    size = 500_000
    client.send(f"POST /cgi-bin/x HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n".encode())
    program = client.launcher.programs[0]
    assert program.variables["CONTENT_LENGTH"] == str(size)
    client.start()
    sent = 0
    while client.transport.reading and sent < size:
        client.send(b"b" * 10_000)
        sent += 10_000
    assert sent < 200_000
    received = b""
    while len(received) < size:
        received += os.read(program.fds[1], 65_536)
        for writer in list(client.clock.writers):
            writer.doWrite()
        while client.transport.reading and sent < size:
            client.send(b"b" * 10_000)
            sent += 10_000
    assert (len(received), os.read(program.fds[1], 10)) == (size, b"")
    client.write(PLAIN)
    client.exit()
    assert client.statuses == [200]
    client.clean()


def test_a_program_that_reads_nothing(connect: Callable[..., _Client]) -> None:
    """The rest of a body is dropped if the program closes its input or ends; the connection goes on."""
    client = connect()
    client.send(b"POST /cgi-bin/x HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n" + b"b" * 200_000)
    client.start()
    assert [each for each in client.clock.writers if isinstance(each, CgiInput)]
    os.write(client.launcher.programs[0].fds[0], PLAIN + b"hi")
    client.exit()
    assert client.statuses == [200]
    client.clean()
    client.send(b"b" * 100_000)
    client.get("y")
    assert [each.variables["PATH_INFO"] for each in client.launcher.programs] == ["/x", "/y"]


def test_a_local_redirect_is_followed(connect: Callable[..., _Client]) -> None:
    """A local redirect is a GET request without a body, for a program or for another path."""
    client = connect()
    client.get("x", "POST", body=b"abc")
    client.start()
    client.write(b"Location: /cgi-bin/y?a=b\n\n")
    variables = client.launcher.programs[1].variables
    assert (variables["REQUEST_METHOD"], variables["PATH_INFO"], variables["QUERY_STRING"]) == ("GET", "/y", "a=b")
    assert "CONTENT_LENGTH" not in variables
    assert len(client.launcher.programs[1].fds) == 1
    client.start(1)
    client.write(b"Location: /elsewhere\n\n", 1)
    assert client.statuses == [404]
    for number in range(2):
        client.exit(0, number)
    client.clean()


def test_local_redirects_are_limited(connect: Callable[..., _Client]) -> None:
    """After 10 local redirects the response is 500."""
    client = connect()
    client.get("x", "HEAD")
    for number in range(11):
        assert client.launcher.programs[number].variables["REQUEST_METHOD"] == "HEAD"
        client.start(number)
        client.write(b"Location: /cgi-bin/x\n\n", number)
        client.exit(0, number)
    assert client.statuses == [500]
    assert client.launcher.failures == ["/cgi-bin/x: more than 10 local redirects"]


@pytest.mark.parametrize(("method", "status"), [("HEAD", "200"), ("GET", "204"), ("GET", "304")])
def test_responses_without_content(connect: Callable[..., _Client], method: str, status: str) -> None:
    """Content that must not be sent is dropped."""
    client = connect()
    client.get("x", method)
    client.start()
    client.write(f"Status: {status}\n\nhello".encode())
    assert client.statuses == [int(status)]
    assert client.content == b""
    client.exit()
    client.get("y")
    assert len(client.launcher.programs) == 2


def test_an_nph_program_writes_the_whole_response(connect: Callable[..., _Client]) -> None:
    """The output of an NPH program is sent unchanged, and the connection is closed."""
    client = connect()
    client.get()
    client.start(nph=True)
    client.write(b"HTT")
    assert client.transport.sent == b""
    client.write(b"P/1.1 299 Odd\nX: y\n\nhi")
    client.exit()
    assert client.transport.sent == b"HTTP/1.1 299 Odd\nX: y\n\nhi"
    assert client.transport.write_closed or client.transport.lost
    client = connect()
    client.get()
    client.start(nph=True)
    client.write(PLAIN)
    assert client.statuses == [502]


def test_requests_wait_for_programs(connect: Callable[..., _Client]) -> None:
    """Requests over the limit wait for the end of a program, not of its response, and at most for the time limit."""
    client = connect(instances=1)
    other = client.sibling()
    client.get("a")
    client.start()
    other.dataReceived(b"GET /cgi-bin/b HTTP/1.1\r\nHost: a\r\n\r\n")
    assert len(client.launcher.programs) == 1
    os.write(client.launcher.programs[0].fds[0], PLAIN)
    client.close()
    assert client.statuses == [200]
    client.exit()
    assert [each.variables["PATH_INFO"] for each in client.launcher.programs] == ["/a", "/b"]
    client.get("c")
    for _ in range(21):
        client.clock.pump([0.5])
    assert client.statuses[1:] == [503]


def test_programs_that_waited_and_can_not_be_started(connect: Callable[..., _Client]) -> None:
    """Each failure makes room for the next request, however many wait."""
    client = connect(instances=1)
    client.get()
    client.start()
    others = [client.sibling() for _ in range(2000)]
    for other in others:
        other.dataReceived(b"GET /cgi-bin/x HTTP/1.1\r\nHost: a\r\n\r\n")
    client.launcher.descriptors.most = 0
    client.launcher.programs[0].script.ended(0)
    assert all(other.transport.sent.startswith(b"HTTP/1.1 503 ") for other in others)
    assert len(client.launcher.programs) == 1


def test_a_request_that_waits_is_forgotten_with_its_client(connect: Callable[..., _Client]) -> None:
    """A lost client leaves the queue."""
    client = connect(instances=0)
    client.get()
    client.transport.lose(Failure(ConnectionLost()), "lost")
    client.clock.pump([0.5] * 25)
    assert client.launcher.programs == []


def test_the_host_name_of_the_client(connect: Callable[..., _Client]) -> None:
    """With resolve=yes REMOTE_HOST waits for the name."""
    resolver = FakeResolver()
    client = connect(resolver=resolver)
    client.get()
    while not client.launcher.programs:
        resolver.answer("a.example")
    assert client.launcher.programs[0].variables["REMOTE_HOST"] == "a.example"


def test_large_heads_are_refused(connect: Callable[..., _Client]) -> None:
    """Variables that do not fit into a message to the launcher are 431."""
    client = connect()
    fields = "".join(f"a{number}: {'b' * 1000}\r\n" for number in range(30))
    client.send(f"GET /cgi-bin/{'x' * 8000}?{'y' * 8000} HTTP/1.1\r\nHost: a\r\n{fields}\r\n".encode())
    assert client.statuses in ([414], [431])
    assert client.launcher.programs == []
