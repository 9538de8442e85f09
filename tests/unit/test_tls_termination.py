"""TLS clients of handler processes: the test is the launcher client and the handler."""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.python.failure import Failure

from svcd.access.admission import GlobalLimit
from svcd.connections.admission_queue import ServiceAdmission
from svcd.connections.context import ConnectionContext
from svcd.connections.descriptor_budget import DescriptorBudget
from svcd.connections.spawned import SpawnedTracker
from svcd.connections.spawned_connection import KILL_SECONDS
from svcd.log.formats import TextFormat
from svcd.log.writer import LogWriter
from svcd.process.messages import Ended, Started
from svcd.protocols.base import LINGER_SECONDS
from svcd.protocols.handler_pipe import ClientEnd, HandlerEnd
from svcd.supervisor.daemon_account import DaemonAccount
from svcd.supervisor.launch_spec import launch_spec
from svcd.tls.service_tls import ServiceTls
from svcd.tls.termination import TlsTerminator
from tests.doubles import LOCAL_PEER, PEER, FakeFiles, FakeReactor, FakeResolver, StreamDouble, list_sink, service_of
from tests.tls import ANNA, FILES, TlsClient, tls_service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from svcd.config.service import Service

CAT = "cat 7/tcp server=/bin/cat"


class _Adopted(StreamDouble):
    """Transport of a descriptor, which stays open until its protocol has been notified of the end."""

    def __init__(self, fd: int, family: int, protocol: Any) -> None:
        super().__init__(protocol, peer=LOCAL_PEER if family == socket.AF_UNIX else PEER)
        self.sock = socket.socket(family, fileno=fd)
        self.sock.setblocking(False)

    def getHandle(self) -> Any:
        """Return the socket."""
        return self.sock

    def lose(self, reason: Failure, word: str = "lost") -> None:
        """End the connection."""
        super().lose(reason, word)
        self.sock.close()


class _Reactor(FakeReactor):
    """Reactor with transports for connected sockets.

    Attributes:
        late: whether makeConnection() is called in the next turn.
        error: raised instead, if it is not None.
    """

    def __init__(self) -> None:
        super().__init__()
        self.adopted: list[_Adopted] = []
        self.late = False
        self.error: OSError | None = None

    def adoptStream(self, fd: int, _sockaddr: Any, family: int, protocol: Any, _proxy_header: Any = None) -> None:
        """Connect a protocol to a descriptor."""
        if self.error is not None:
            os.close(fd)
            raise self.error
        transport = _Adopted(fd, family, protocol)
        self.adopted.append(transport)
        if self.late:
            self.callLater(0, protocol.makeConnection, transport)
        else:
            protocol.makeConnection(transport)


class _FakeLauncherClient:
    """LauncherClient that keeps connections until the test starts their processes."""

    full = False
    ready, failing = True, False

    def __init__(self) -> None:
        self.waiting: dict[int, tuple[bytes, socket.socket]] = {}
        self.signals: list[tuple[int, int]] = []

    def start(self, connection_id: int, environment: bytes, fd: int) -> None:
        self.waiting[connection_id] = environment, socket.socket(fileno=fd)

    def drop(self, connection_id: int) -> bool:
        found = self.waiting.pop(connection_id, None)
        if found is not None:
            found[1].close()
        return found is not None

    def signal(self, connection_id: int, signal_number: int) -> None:
        self.signals.append((connection_id, signal_number))


class _Client:
    """A client and the transports of its connection.

    Attributes:
        below: the daemon's transport of the client's connection.
        handler: the handler's end of the pair of sockets.
    """

    def __init__(self, daemon: _Daemon, tls: TlsClient) -> None:
        self._daemon = daemon
        self.tls = tls
        self.below = daemon.take()
        self.handler: Any = None
        self._delivered = 0

    def send(self, data: bytes = b"", *, ends: bool = False) -> _Client:
        """Send data, and receive the answers."""
        wire = self.tls.send(data, ends=ends)
        if wire and not self.below.lost:
            self.below.bytes_in += len(wire)
            self.below.protocol.dataReceived(wire)
        return self.receive()

    def receive(self) -> _Client:
        """Receive the data that was sent since the last call."""
        self._daemon.reactor.advance(0)
        wire, self._delivered = self.below.sent[self._delivered :], len(self.below.sent)
        self.tls.receive(wire)
        return self

    def handshake(self) -> _Client:
        """Do the handshake."""
        return self.send().send().send()

    @property
    def pair(self) -> _Adopted:
        """The daemon's end of the pair."""
        return self._daemon.reactor.adopted[self._daemon.reactor.adopted.index(self.below) + 1]

    def handler_writes(self, data: bytes = b"", *, ends: bool = False) -> None:
        """Write as the handler, and let the client receive it."""
        if data:
            self.pair.protocol.dataReceived(data)
        if ends:
            self.pair.protocol.readConnectionLost()
        self.receive()


class _Daemon:
    """A SpawnedTracker with TLS, and the objects that it uses."""

    def __init__(self, service: Service) -> None:
        self.reactor = _Reactor()
        self.lines: list[str] = []
        self.names = FakeResolver()
        self.budget = DescriptorBudget(100, self.reactor)
        self.launcher_client = _FakeLauncherClient()
        files = FakeFiles({**FILES, "/c/welcome": b"welcome\n"})
        log_writer = LogWriter(list_sink(self.lines), TextFormat(stamped=False))
        context = ConnectionContext(
            self.reactor, log_writer, files, self.names, self.budget, GlobalLimit(), clock=self.reactor.seconds
        )
        self.service_admission = ServiceAdmission(context, service)
        self.side = ServiceTls(self.reactor, files, self.service_admission.counters)
        self.side.prepare(service)()
        self.tracker = SpawnedTracker(
            service,
            context,
            self.service_admission,
            lambda _tracker: self.launcher_client,  # type: ignore[arg-type, return-value]
            self.side,
        )
        self.tracker.start_timeouts(self.reactor.callLater)
        self._clients: list[_Client] = []
        self.listener = socket.create_server(("127.0.0.1", 0))

    def take(self) -> _Adopted:
        """Accept a connection; return its transport."""
        with socket.create_connection(self.listener.getsockname()):
            accepted, name = self.listener.accept()
        before = len(self.reactor.adopted)
        self.tracker.take(accepted.detach(), name, socket.AF_INET)
        return self.reactor.adopted[before]

    def connect(self, tls: TlsClient | None = None) -> _Client:
        """Connect a client that sends nothing yet."""
        self._clients.append(_Client(self, tls or TlsClient()))
        return self._clients[-1]

    def serve(self, tls: TlsClient | None = None) -> _Client:
        """Connect a client, do its handshake and start its handler."""
        client = self.connect(tls).handshake()
        number = len(self._clients)
        _, client.handler = self.launcher_client.waiting.pop(number)
        self.tracker.process_started(Started(number, 500))
        return client

    def fields(self, event: str) -> dict[str, str]:
        """Return the fields of the only line of an event."""
        (line,) = [line for line in self.lines if line.startswith(event + " ")]
        return dict(word.partition("=")[::2] for word in line.split()[1:])

    def events(self) -> list[str]:
        """Return the events of the lines."""
        return [line.split()[0] for line in self.lines]

    def close(self) -> None:
        """Close the remaining sockets."""
        for number in list(self.launcher_client.waiting):
            self.launcher_client.drop(number)
        for client in self._clients:
            if client.handler is not None:
                client.handler.close()
        for transport in self.reactor.adopted:
            transport.sock.close()
        self.listener.close()


@pytest.fixture
def started() -> Iterator[Callable[..., _Daemon]]:
    """Function that creates a tracker for options of a service."""
    made: list[_Daemon] = []

    def make(**options: str) -> _Daemon:
        made.append(_Daemon(tls_service(CAT, **options)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def _lose(transport: StreamDouble, cause: Exception) -> None:
    if not transport.lost:
        transport.lose(Failure(cause))


def test_log_lines(started: Callable[..., _Daemon]) -> None:
    """A connection has one id, one accept line with pid and TLS version, and one end line with the encrypted bytes."""
    daemon = started(log_on_success="PID,HOST,EXIT,TRAFFIC")
    client = daemon.connect()
    # Its own descriptor, and those of the pair that it will need.
    assert (daemon.lines, daemon.budget.open) == ([], 3)
    client.handshake()
    assert (daemon.lines, daemon.budget.open) == ([], 3)
    daemon.launcher_client.drop(1)
    daemon.tracker.process_started(Started(1, 500))
    assert daemon.budget.open == 2
    accept = daemon.fields("accept")
    assert (accept["id"], accept["pid"], accept["tls"], accept["count"]) == ("1", "500", "TLSv1.3", "1")
    client.send(b"question")
    client.handler_writes(b"answer", ends=True)
    daemon.tracker.process_ended(Ended(1, 3 << 8, 0.25, 0.125))
    assert client.tls.got_close_notify
    assert daemon.events() == ["accept"]
    client.send(ends=True)
    end = daemon.fields("end")
    assert (end["id"], end["reason"], end["exit"], end["user"]) == ("1", "done", "3", "0.250")
    assert (end["in"], end["out"]) == (str(client.below.bytes_in), str(client.below.bytes_out))
    assert (client.pair.sent, client.tls.received) == (b"question", b"answer")
    assert (daemon.budget.open, daemon.tracker.connections) == (0, {})
    daemon.reactor.advance(60)
    assert not daemon.reactor.getDelayedCalls()


def test_environment_of_the_handler(started: Callable[..., _Daemon]) -> None:
    """The environment has the client's address, TLS parameters and certificate; the log has them as well."""
    daemon = started(tls_client_ca="/c/clients")
    daemon.serve(TlsClient(ANNA))
    client = daemon.connect(TlsClient(ANNA)).handshake()
    environment, _ = daemon.launcher_client.waiting[2]
    values = dict(item.split("=", 1) for item in environment.decode().split("\0"))
    assert values["TCPREMOTEIP"] == "127.0.0.1"
    assert values["TCPCONNNUM"] == "2"
    assert values["SSL_PROTOCOL"] == "TLSv1.3"
    assert values["SSL_TLS_SNI"] == "localhost"
    assert values["SSL_CLIENT_VERIFY"] == "SUCCESS"
    assert values["SSL_CLIENT_S_DN"] == "CN=anna.example.org"
    assert values["SSL_CLIENT_I_DN"] == "CN=Clients"
    assert "DNS:anna.example.org" in values["SSL_CLIENT_SAN"]
    assert daemon.fields("accept")["subject"] == '"CN=anna.example.org"'
    facts = daemon.tracker.connections[2].info()
    assert (facts["tls"], facts["subject"], facts["in"]) == ("TLSv1.3", "CN=anna.example.org", client.below.bytes_in)


def test_launcher_does_not_count_tls() -> None:
    """With TLS the daemon counts the bytes: the launcher keeps no copy of the socket."""
    for service, holds in [
        (tls_service(CAT, log_on_success="TRAFFIC"), False),
        (service_of(f"{CAT} log_on_success=TRAFFIC"), True),
    ]:
        spec = launch_spec(service, DaemonAccount((1024, 4096)))
        assert (spec.hold, bool(spec.identity.handler_limits)) == (holds, holds)


def test_no_process_without_a_handshake(started: Callable[..., _Daemon]) -> None:
    """A failed handshake is logged once, with the reason."""
    daemon = started()
    client = daemon.connect()
    facts = daemon.tracker.connections[1].info()
    assert (facts["tls"], facts["state"]) == ("handshake", "handshake")
    client.below.protocol.dataReceived(b"NONSENSE\r\n")
    client.below.lose(Failure(ConnectionDone()))
    assert not daemon.launcher_client.waiting
    assert daemon.events() == ["accept", "fail", "end"]
    assert daemon.fields("fail")["reason"]
    assert daemon.fields("end")["reason"] == "handshake"
    assert daemon.budget.open == 0
    assert daemon.tracker.counters.failures == 1


def test_client_without_data(started: Callable[..., _Daemon]) -> None:
    """A client that connects and closes does not count as a failure."""
    daemon = started()
    daemon.connect().below.lose(Failure(ConnectionDone()))
    assert daemon.events() == ["accept", "end"]
    assert daemon.fields("end")["reason"] == "handshake"


@pytest.mark.parametrize("late", [False, True])
def test_data_with_the_end_of_the_handshake(started: Callable[..., _Daemon], late: bool) -> None:
    """Data sent before the handler exists reaches it."""
    daemon = started()
    client = daemon.connect()
    daemon.reactor.late = late
    client.send()
    # The end of the handshake and data in one piece.
    client.tls.receive(b"")
    client.send(b"early")
    client.send(b"bird")
    assert client.pair.sent == b"earlybird"


def test_host_name_before_the_handshake(started: Callable[..., _Daemon]) -> None:
    """A client refused by its host name gets no handshake and no accept line; an admitted one is logged with it."""
    daemon = started(only_from=".example.org", resolve="yes")
    for name in ("eve.example.net", "anna.example.org"):
        with socket.create_connection(daemon.listener.getsockname()) as client:
            accepted, address = daemon.listener.accept()
            daemon.tracker.take(accepted.detach(), address, socket.AF_INET)
            assert daemon.reactor.adopted == []
            daemon.names.answer(name)
            if name == "eve.example.net":
                assert client.recv(1) == b""
                assert (daemon.events(), daemon.budget.open, daemon.tracker.connections) == (["refuse"], 0, {})
            daemon.names.answer(None)
    (transport,) = daemon.reactor.adopted
    tls = TlsClient()
    for _ in range(3):
        transport.protocol.dataReceived(tls.send())
        tls.receive(transport.sent)
        transport.sent = b""
    assert b"TCPREMOTEHOST=anna.example.org" in daemon.launcher_client.waiting[2][0]
    daemon.tracker.connections[2].log_accept()
    assert daemon.fields("accept")["host"] == "anna.example.org"


def test_slot_is_released_at_the_end_of_the_connection(started: Callable[..., _Daemon]) -> None:
    """With instances=1 the next client waits until the client before has all its output and is closed."""
    daemon = started(instances="1", on_limit="queue")
    client = daemon.serve()
    assert not daemon.tracker.may_accept()
    client.handler_writes(b"bye", ends=True)
    daemon.tracker.process_ended(Ended(1, 0))
    assert not daemon.tracker.may_accept()
    client.send(ends=True)
    assert daemon.tracker.may_accept()


def test_banner_is_encrypted(started: Callable[..., _Daemon]) -> None:
    """The banner is sent after the handshake, encrypted."""
    daemon = started(banner="/c/welcome")
    client = daemon.connect().handshake()
    assert client.tls.received == b"welcome\n"


@pytest.mark.parametrize("well", [True, False])
def test_answer_after_the_end_of_input(started: Callable[..., _Daemon], well: bool) -> None:
    """A closure alert or FIN ends the handler's input, and it can answer; after both ends the connection closes."""
    daemon = started()
    client = daemon.serve()
    # Without half-close a transport closes at the FIN.
    assert all(IHalfCloseableProtocol.providedBy(each.protocol) for each in (client.below, client.pair))
    client.send(b"all", ends=well)
    if not well:
        client.below.protocol.readConnectionLost()
    assert (client.pair.sent, client.pair.write_closed, client.pair.lost) == (b"all", True, "")
    client.handler_writes(b"answer")
    assert client.tls.received == b"answer"
    client.handler_writes(ends=True)
    assert client.tls.got_close_notify
    assert (client.below.lost, client.pair.lost) == ("done", "done")
    assert daemon.events() == ["accept"]
    daemon.tracker.process_ended(Ended(1, 0))
    assert daemon.fields("end")["reason"] == "done"


def test_handler_that_closes_its_output(started: Callable[..., _Daemon]) -> None:
    """A handler that has closed its output gets further input; its exit closes the connection."""
    daemon = started()
    client = daemon.serve()
    client.handler_writes(b"talk", ends=True)
    assert client.tls.got_close_notify
    client.send(b"more")
    assert client.pair.sent == b"more"
    assert client.below.lost == ""
    daemon.tracker.process_ended(Ended(1, 0))
    assert client.pair.lost == "done"
    # The client has some time to close.
    daemon.reactor.advance(LINGER_SECONDS - 0.1)
    assert (client.below.lost, daemon.events()) == ("", ["accept"])
    client.send(b"nobody hears this")
    daemon.reactor.advance(0.1)
    assert (client.below.lost, daemon.events()) == ("done", ["accept", "end"])


def test_last_output_of_a_handler_arrives(started: Callable[..., _Daemon]) -> None:
    """Output that is unread at the exit of the handler arrives, also at a client that reads slowly."""
    daemon = started()
    client = daemon.serve()
    client.below.room = 10
    daemon.tracker.process_ended(Ended(1, 0))
    client.pair.protocol.dataReceived(b"x" * 50_000)
    assert not client.pair.reading
    assert (client.below.lost, daemon.events()) == ("", ["accept"])
    client.below.drain()
    assert client.pair.reading
    client.handler_writes(b"last", ends=True)
    assert client.tls.received == b"x" * 50_000 + b"last"
    assert client.tls.got_close_notify
    client.below.drain()
    client.send(ends=True)
    assert client.below.lost == "done"
    assert daemon.events() == ["accept", "end"]


def test_output_of_a_handler_that_leaves_input_unread(started: Callable[..., _Daemon]) -> None:
    """A handler that exits with unread input resets its socket; its output before that arrives."""
    daemon = started()
    client = daemon.serve()
    client.send(b"a long question")
    client.handler.sendall(b"no")
    client.handler.close()
    client.pair.lose(Failure(ConnectionLost()))
    client.receive()
    assert client.tls.received == b"no"
    assert client.tls.got_close_notify
    daemon.tracker.process_ended(Ended(1, 0))
    client.send(ends=True)
    assert daemon.fields("end")["reason"] == "done"


def test_end_of_output_while_paused(started: Callable[..., _Daemon]) -> None:
    """If the end is reported while reading is paused, the output before it arrives."""
    daemon = started()
    client = daemon.serve()
    client.send(b"question")
    client.handler.sendall(b"answer")
    client.handler_writes(ends=True)
    assert client.tls.received == b"answer"
    assert client.tls.got_close_notify


def test_client_resets(started: Callable[..., _Daemon]) -> None:
    """The handler's socket is closed at once, and the end line is written after the handler's exit."""
    daemon = started()
    client = daemon.serve()
    client.below.lose(Failure(ConnectionLost()))
    assert client.pair.lost == "aborted"
    assert client.handler.recv(1) == b""
    assert (daemon.events(), daemon.budget.open) == (["accept"], 0)
    assert daemon.tracker.connections[1].traffic() == (-1, -1)
    daemon.tracker.process_ended(Ended(1, signal.SIGPIPE))
    assert daemon.fields("end")["exit"] == "SIGPIPE"


def test_handler_reads_input_after_the_client_closed(started: Callable[..., _Daemon]) -> None:
    """The handler can still read all input, and its output is discarded up to a limit."""
    daemon = started()
    client = daemon.serve()
    client.pair.room = 10
    client.send(b"x" * 20_000)
    client.below.lose(Failure(ConnectionDone()))
    assert (client.pair.lost, client.pair.write_closed, client.pair.reading) == ("", True, True)
    client.pair.protocol.dataReceived(b"thanks")
    client.pair.drain()
    assert client.pair.lost == "done"
    second = daemon.serve()
    second.pair.room = 10
    second.send(b"x" * 20_000)
    second.below.lose(Failure(ConnectionDone()))
    second.pair.protocol.dataReceived(b"x" * 65_537)
    assert second.pair.lost == "aborted"


def test_back_pressure(started: Callable[..., _Daemon]) -> None:
    """A client that does not read pauses its handler, a handler that does not read pauses its client."""
    daemon = started()
    client = daemon.serve()
    client.below.room = client.pair.room = 10
    client.handler_writes(b"x" * 20_000)
    assert not client.pair.reading
    client.below.drain()
    assert client.pair.reading
    client.send(b"x" * 20_000)
    assert not client.below.reading
    for _ in range(2):
        # One record at a time.
        client.pair.drain()
        daemon.reactor.advance(0)
    assert client.below.reading


def test_client_sends_after_the_exit_of_its_handler(started: Callable[..., _Daemon]) -> None:
    """Its data is discarded up to a limit; then it is not read any more, and it is closed."""
    daemon = started()
    client = daemon.serve()
    client.handler_writes(ends=True)
    daemon.tracker.process_ended(Ended(1, 0))
    client.send(b"x" * 65_536)
    assert client.below.reading
    client.send(b"x")
    assert not client.below.reading
    daemon.reactor.advance(LINGER_SECONDS)
    assert client.below.lost == "done"


def test_ended_connections_are_freed(started: Callable[..., _Daemon]) -> None:
    """Ended connections are freed without the garbage collector."""
    daemon = started()
    client = daemon.serve()
    daemon.tracker.process_ended(Ended(1, 0))
    client.handler_writes(b"bye", ends=True)
    client.send(ends=True)
    assert daemon.events() == ["accept", "end"]
    gc.collect()
    gc.disable()
    try:
        for transport in daemon.reactor.adopted:
            transport.sock.close()
            del transport.protocol
        daemon.reactor.adopted.clear()
        client.below = transport
        kinds = (TlsTerminator, ClientEnd, HandlerEnd)
        assert [each for each in gc.get_objects() if isinstance(each, kinds)] == []
    finally:
        gc.enable()


def test_kicked_in_the_handshake(started: Callable[..., _Daemon]) -> None:
    """A connection in its handshake is closed; there is no process to end."""
    daemon = started()
    client = daemon.connect()
    client.send()
    daemon.tracker.connections[1].abort("kicked")
    assert client.below.lost == "aborted"
    assert daemon.fields("end")["reason"] == "kicked"
    assert (daemon.events(), daemon.budget.open) == (["accept", "end"], 0)


def test_kicked_before_there_is_a_transport(started: Callable[..., _Daemon]) -> None:
    """A connection is closed although its transport is made in the next iteration of the reactor."""
    daemon = started()
    daemon.reactor.late = True
    client = daemon.connect()
    daemon.tracker.connections[1].abort("kicked")
    assert daemon.events() == ["accept"]
    daemon.reactor.advance(0)
    assert client.below.lost == "aborted"
    assert daemon.events() == ["accept", "end"]
    assert daemon.budget.open == 0


def test_drain_closes_handshakes(started: Callable[..., _Daemon]) -> None:
    """drain() closes connections in their handshakes, and waits for handlers."""
    daemon = started()
    client = daemon.serve()
    shaking = daemon.connect()
    for session in list(daemon.tracker.connections.values()):
        session.drain()
    assert (client.below.lost, shaking.below.lost) == ("", "aborted")
    assert list(daemon.tracker.connections) == [1]


@pytest.mark.parametrize("taken", [True, False])
def test_kicked_with_a_handler(started: Callable[..., _Daemon], taken: bool) -> None:
    """The handler gets SIGTERM; its last output arrives if the client reads it in time."""
    daemon = started()
    client = daemon.serve()
    daemon.tracker.connections[1].abort("kicked")
    assert (daemon.launcher_client.signals, client.below.lost) == ([(1, signal.SIGTERM)], "")
    client.below.room = 10
    client.handler_writes(b"good bye, and thank you", ends=True)
    daemon.tracker.process_ended(Ended(1, signal.SIGTERM))
    assert client.tls.received == b"good bye, and thank you"
    if taken:
        client.below.drain()
    else:
        daemon.reactor.advance(KILL_SECONDS)
    assert client.below.lost == ("done" if taken else "aborted")
    end = daemon.fields("end")
    assert (end["reason"], end["exit"]) == ("kicked", "SIGTERM")


def test_idle_timeout_after_the_exit_of_the_handler(started: Callable[..., _Daemon]) -> None:
    """A client that does not read the last output is closed after idle_timeout."""
    daemon = started(idle_timeout="60s")
    client = daemon.serve()
    client.below.room = 10
    client.handler_writes(b"you never read this", ends=True)
    daemon.tracker.process_ended(Ended(1, 0))
    daemon.reactor.pump([1.0] * 70)
    assert client.below.lost == "aborted"
    end = daemon.fields("end")
    assert (end["reason"], end["exit"]) == ("idle", "0")


def test_client_of_a_killed_handler_is_closed_at_once(started: Callable[..., _Daemon]) -> None:
    """After SIGKILL the connection is closed without waiting for the client."""
    daemon = started()
    client = daemon.serve()
    daemon.tracker.connections[1].abort("kicked")
    daemon.reactor.advance(KILL_SECONDS)
    daemon.tracker.process_ended(Ended(1, signal.SIGKILL))
    assert client.below.lost == "aborted"
    assert daemon.fields("end")["reason"] == "kicked"


@pytest.mark.parametrize("handshake_done", [False, True])
def test_first_byte_timeout_ignores_the_handshake(started: Callable[..., _Daemon], handshake_done: bool) -> None:
    """The handshake does not count as input, so that first_byte_timeout applies to it as well."""
    daemon = started(first_byte_timeout="5s")
    client = daemon.serve() if handshake_done else daemon.connect().send()
    daemon.reactor.pump([0.5] * 12)
    if handshake_done:
        assert daemon.launcher_client.signals == [(1, signal.SIGTERM)]
        client.handler_writes(ends=True)
        daemon.tracker.process_ended(Ended(1, signal.SIGTERM))
        client.send(ends=True)
    assert daemon.fields("end")["reason"] == "first_byte"
    assert client.below.lost


def test_without_descriptors_there_is_no_handler(
    started: Callable[..., _Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without descriptors for the pair the connection is closed cleanly, and the fail line has the reason."""
    daemon = started()
    client = daemon.connect()

    def no_pair() -> Any:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket, "socketpair", no_pair)
    client.handshake()
    assert client.tls.got_close_notify
    client.send(ends=True)
    assert client.below.lost == "done"
    assert daemon.fields("end")["reason"] == "failed"
    assert "can't start it: Too many open files" in daemon.lines[1]
    assert daemon.budget.open == 0


def test_error_in_adopting_the_pair(started: Callable[..., _Daemon]) -> None:
    """If the reactor can't adopt the daemon's end, the connection is closed cleanly, and the reason is logged."""
    daemon = started()
    client = daemon.connect()
    daemon.reactor.error = OSError(errno.ENOMEM, "no")
    client.handshake()
    assert daemon.fields("fail")["id"] == "1"
    client.send(ends=True)
    assert client.below.lost == "done"
    assert daemon.budget.open == 0


def test_client_that_closes_at_once(started: Callable[..., _Daemon]) -> None:
    """It is logged as a client that has sent nothing."""
    daemon = started()
    daemon.reactor.error = OSError(errno.EINVAL, "no")
    with pytest.raises(IndexError):
        daemon.connect()
    assert daemon.events() == ["accept", "end"]
    assert daemon.budget.open == 0


def test_handler_that_can_not_be_started(started: Callable[..., _Daemon]) -> None:
    """The client gets a closure alert."""
    daemon = started()
    client = daemon.connect().handshake()
    daemon.launcher_client.drop(1)
    daemon.tracker.start_failed(1, errno.ENOENT)
    client.handler_writes(ends=True)
    assert client.tls.got_close_notify
    client.send(ends=True)
    assert daemon.events() == ["accept", "fail", "end"]
    assert daemon.fields("end")["reason"] == "failed"
    assert daemon.budget.open == 0


@pytest.mark.parametrize("gone", [False, True])
def test_client_ends_before_the_pair_exists(started: Callable[..., _Daemon], gone: bool) -> None:
    """The input still reaches the handler, except after a reset."""
    daemon = started()
    client = daemon.connect()
    daemon.reactor.late = True
    client.send()
    wire = client.tls.send() + client.tls.send(b"remember me")
    client.below.protocol.dataReceived(wire)
    if gone:
        client.below.lose(Failure(ConnectionLost()))
    else:
        client.below.protocol.readConnectionLost()
    for _ in range(3):
        daemon.reactor.advance(0)
    assert (client.pair.sent, client.pair.lost) == ((b"", "done") if gone else (b"remember me", ""))
    assert client.pair.write_closed is not gone
    assert daemon.launcher_client.waiting[1]


def test_invalid_record(started: Callable[..., _Daemon]) -> None:
    """The fail line has the reason, and the handler's socket is closed."""
    daemon = started()
    client = daemon.serve()
    client.below.protocol.dataReceived(b"NONSENSE\r\n" * 10)
    _lose(client.below, ConnectionDone())
    assert client.pair.lost
    daemon.tracker.process_ended(Ended(1, 0))
    assert daemon.events() == ["accept", "fail", "end"]


def test_reload_applies_to_new_connections(started: Callable[..., _Daemon]) -> None:
    """Open connections keep TLS or plain text; new ones are handed over at once, or begin a handshake."""
    daemon = started()
    client = daemon.serve()
    plain = service_of(CAT)
    daemon.side.prepare(plain)()
    daemon.tracker.retune(plain)
    with socket.create_connection(daemon.listener.getsockname()):
        accepted, name = daemon.listener.accept()
    daemon.tracker.take(accepted.detach(), name, socket.AF_INET)
    assert b"SSL_" not in daemon.launcher_client.waiting[2][0]
    client.send(b"still here")
    assert client.pair.sent == b"still here"
    client.handler_writes(b"yes")
    assert client.tls.received == b"yes"
