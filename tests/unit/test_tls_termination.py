"""Clients with TLS whose handlers are processes, in memory: the test is the launcher client and the handler."""

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
from svcd.process.messages import Ended
from svcd.protocols.base import LINGER_SECONDS
from svcd.supervisor.daemon_account import DaemonAccount
from svcd.supervisor.launch_spec import launch_spec
from svcd.tls.service_tls import ServiceTls
from svcd.tls.termination import ClientEnd, HandlerEnd, TlsTerminator
from tests.doubles import LOCAL_PEER, PEER, FakeFiles, FakeReactor, FakeResolver, StreamDouble, list_sink, service_of
from tests.tls import ANNA, FILES, TlsClient, tls_service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from svcd.config.service import Service

CAT = "cat 7/tcp server=/bin/cat"


class _Adopted(StreamDouble):
    """Transport of a descriptor, which stays open until its protocol has been notified of the end."""

    def __init__(self, descriptor: int, family: int, protocol: Any) -> None:
        super().__init__(protocol, peer=LOCAL_PEER if family == socket.AF_UNIX else PEER)
        self.sock = socket.socket(family, fileno=descriptor)
        self.sock.setblocking(False)

    def getHandle(self) -> Any:
        """The socket."""
        return self.sock

    def lose(self, reason: Failure, word: str = "lost") -> None:
        """The connection ends."""
        super().lose(reason, word)
        self.sock.close()


class _Reactor(FakeReactor):
    """Has transports of its own for connected sockets.

    Attributes:
        late: whether protocols are told of them in the next turn.
        mistake: raised instead, if there is one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.adopted: list[_Adopted] = []
        self.late = False
        self.mistake: OSError | None = None

    def adoptStream(self, descriptor: int, _name: Any, family: int, protocol: Any, _relay: Any = None) -> None:
        """Make one."""
        if self.mistake is not None:
            os.close(descriptor)
            raise self.mistake
        transport = _Adopted(descriptor, family, protocol)
        self.adopted.append(transport)
        if self.late:
            self.callLater(0, protocol.makeConnection, transport)
        else:
            protocol.makeConnection(transport)


class _Link:
    """What a keeper asks of its link."""

    full = False
    ready, failing = True, False

    def __init__(self) -> None:
        self.waiting: dict[int, tuple[bytes, socket.socket]] = {}
        self.signals: list[tuple[int, int]] = []

    def start(self, number: int, environment: bytes, descriptor: int) -> None:
        self.waiting[number] = environment, socket.socket(fileno=descriptor)

    def drop(self, number: int) -> bool:
        found = self.waiting.pop(number, None)
        if found is not None:
            found[1].close()
        return found is not None

    def signal(self, number: int, number_of_signal: int) -> None:
        self.signals.append((number, number_of_signal))


class _Client:
    """A client, and both transports of its connection.

    Attributes:
        below: the client's transport.
        handler: the socket that the handler has.
    """

    def __init__(self, daemon: _Daemon, tls: TlsClient) -> None:
        self._daemon = daemon
        self.tls = tls
        self.below = daemon.take()
        self.handler: Any = None
        self._delivered = 0

    def send(self, data: bytes = b"", *, ends: bool = False) -> _Client:
        """Send data and take the answers."""
        wire = self.tls.send(data, ends=ends)
        if wire and not self.below.lost:
            self.below.bytes_in += len(wire)
            self.below.protocol.dataReceived(wire)
        return self.receive()

    def receive(self) -> _Client:
        """Take what was sent since."""
        self._daemon.reactor.advance(0)
        wire, self._delivered = self.below.sent[self._delivered :], len(self.below.sent)
        self.tls.receive(wire)
        return self

    def handshake(self) -> _Client:
        """The handshake."""
        return self.send().send().send()

    @property
    def pair(self) -> _Adopted:
        """The daemon's end of the pair."""
        return self._daemon.reactor.adopted[self._daemon.reactor.adopted.index(self.below) + 1]

    def handler_says(self, data: bytes = b"", *, ends: bool = False) -> None:
        """Write as the handler; the client takes it."""
        if data:
            self.pair.protocol.dataReceived(data)
        if ends:
            self.pair.protocol.readConnectionLost()
        self.receive()


class _Daemon:
    """A keeper, and everything around it."""

    def __init__(self, service: Service) -> None:
        self.reactor = _Reactor()
        self.lines: list[str] = []
        self.names = FakeResolver()
        self.budget = DescriptorBudget(100, self.reactor)
        self.launcher_client = _Link()
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
        """A connection comes; its transport."""
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
        """Connect a client, do its handshake and start its handler, whose number is that of the connection."""
        client = self.connect(tls).handshake()
        number = len(self._clients)
        _, client.handler = self.launcher_client.waiting.pop(number)
        self.tracker.process_started(number, 500)
        return client

    def fields(self, event: str) -> dict[str, str]:
        """Of the one line of an event."""
        (line,) = [line for line in self.lines if line.startswith(event + " ")]
        return dict(word.partition("=")[::2] for word in line.split()[1:])

    def events(self) -> list[str]:
        """Of the lines."""
        return [line.split()[0] for line in self.lines]

    def close(self) -> None:
        """Close what the test left."""
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
    """Make a daemon with a service."""
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


def test_a_connection_is_one_to_everybody(started: Callable[..., _Daemon]) -> None:
    """One number, one accept line with the process and the TLS, one end line with what went over the wire."""
    daemon = started(log_on_success="PID,HOST,EXIT,TRAFFIC")
    client = daemon.connect()
    # Its descriptor, and those of the pair that it is going to need.
    assert (daemon.lines, daemon.budget.open) == ([], 3)
    client.handshake()
    assert (daemon.lines, daemon.budget.open) == ([], 3)
    daemon.launcher_client.drop(1)
    daemon.tracker.process_started(1, 500)
    assert daemon.budget.open == 2
    accept = daemon.fields("accept")
    assert (accept["id"], accept["pid"], accept["tls"], accept["count"]) == ("1", "500", "TLSv1.3", "1")
    client.send(b"question")
    client.handler_says(b"answer", ends=True)
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


def test_the_handler_knows_what_the_handshake_found_out(started: Callable[..., _Daemon]) -> None:
    """Its environment has the client's address, TLS and certificate; the log has them as well."""
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


def test_the_launcher_need_not_count() -> None:
    """With TLS the daemon does; the launcher holds no socket, and programs are started the fast way."""
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


def test_a_client_that_only_looks_in(started: Callable[..., _Daemon]) -> None:
    """A client that connects and closes is no failure."""
    daemon = started()
    daemon.connect().below.lose(Failure(ConnectionDone()))
    assert daemon.events() == ["accept", "end"]
    assert daemon.fields("end")["reason"] == "handshake"


@pytest.mark.parametrize("late", [False, True])
def test_what_comes_with_the_handshake_is_not_lost(started: Callable[..., _Daemon], late: bool) -> None:
    """A client need not wait for its handler."""
    daemon = started()
    client = daemon.connect()
    daemon.reactor.late = late
    client.send()
    # The end of the handshake and more in one piece.
    client.tls.receive(b"")
    client.send(b"early")
    client.send(b"bird")
    assert client.pair.sent == b"earlybird"


def test_a_name_comes_before_the_handshake(started: Callable[..., _Daemon]) -> None:
    """A client refused by name gets no handshake and no log entry; an accepted one is logged by its name."""
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


def test_a_place_is_free_when_the_connection_is_over(started: Callable[..., _Daemon]) -> None:
    """With one place the next client waits until the one before has all that its handler wrote, and is gone."""
    daemon = started(instances="1", on_limit="queue")
    client = daemon.serve()
    assert not daemon.tracker.may_accept()
    client.handler_says(b"bye", ends=True)
    daemon.tracker.process_ended(Ended(1, 0))
    assert not daemon.tracker.may_accept()
    client.send(ends=True)
    assert daemon.tracker.may_accept()


def test_a_banner_is_said_in_tls(started: Callable[..., _Daemon]) -> None:
    """In the clear it would end the handshake."""
    daemon = started(banner="/c/welcome")
    client = daemon.connect().handshake()
    assert client.tls.received == b"welcome\n"


@pytest.mark.parametrize("well", [True, False])
def test_a_client_that_is_done_gets_its_answers(started: Callable[..., _Daemon], well: bool) -> None:
    """A closure alert or a FIN ends the handler's input, and it can answer; with both ended, all closes."""
    daemon = started()
    client = daemon.serve()
    # Else a transport closes at the FIN.
    assert all(IHalfCloseableProtocol.providedBy(each.protocol) for each in (client.below, client.pair))
    client.send(b"all", ends=well)
    if not well:
        client.below.protocol.readConnectionLost()
    assert (client.pair.sent, client.pair.write_closed, client.pair.lost) == (b"all", True, "")
    client.handler_says(b"answer")
    assert client.tls.received == b"answer"
    client.handler_says(ends=True)
    assert client.tls.got_close_notify
    assert (client.below.lost, client.pair.lost) == ("done", "done")
    assert daemon.events() == ["accept"]
    daemon.tracker.process_ended(Ended(1, 0))
    assert daemon.fields("end")["reason"] == "done"


def test_a_handler_that_only_listens(started: Callable[..., _Daemon]) -> None:
    """A handler that has closed its output gets further input; its exit closes the connection."""
    daemon = started()
    client = daemon.serve()
    client.handler_says(b"talk", ends=True)
    assert client.tls.got_close_notify
    client.send(b"more")
    assert client.pair.sent == b"more"
    assert client.below.lost == ""
    daemon.tracker.process_ended(Ended(1, 0))
    assert client.pair.lost == "done"
    # There is some time for the client to close.
    daemon.reactor.advance(LINGER_SECONDS - 0.1)
    assert (client.below.lost, daemon.events()) == ("", ["accept"])
    client.send(b"nobody hears this")
    daemon.reactor.advance(0.1)
    assert (client.below.lost, daemon.events()) == ("done", ["accept", "end"])


def test_what_a_handler_wrote_last_arrives(started: Callable[..., _Daemon]) -> None:
    """Its end may be known before all that it wrote was read; a client that reads slowly gets it, too."""
    daemon = started()
    client = daemon.serve()
    client.below.room = 10
    daemon.tracker.process_ended(Ended(1, 0))
    client.pair.protocol.dataReceived(b"x" * 50_000)
    assert not client.pair.reading
    assert (client.below.lost, daemon.events()) == ("", ["accept"])
    client.below.drain()
    assert client.pair.reading
    client.handler_says(b"last", ends=True)
    assert client.tls.received == b"x" * 50_000 + b"last"
    assert client.tls.got_close_notify
    client.below.drain()
    client.send(ends=True)
    assert client.below.lost == "done"
    assert daemon.events() == ["accept", "end"]


def test_an_answer_survives_an_unread_question(started: Callable[..., _Daemon]) -> None:
    """A handler that ends with input unread breaks its socket; what it wrote before arrives all the same."""
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


def test_an_end_that_overtakes_the_last_words(started: Callable[..., _Daemon]) -> None:
    """Where the end is found while nothing is read, what was written before arrives all the same."""
    daemon = started()
    client = daemon.serve()
    client.send(b"question")
    client.handler.sendall(b"answer")
    client.handler_says(ends=True)
    assert client.tls.received == b"answer"
    assert client.tls.got_close_notify


def test_a_client_that_resets(started: Callable[..., _Daemon]) -> None:
    """Its handler's socket is closed at once, and the end of the connection is logged after the handler's exit."""
    daemon = started()
    client = daemon.serve()
    client.below.lose(Failure(ConnectionLost()))
    assert client.pair.lost == "aborted"
    assert client.handler.recv(1) == b""
    assert (daemon.events(), daemon.budget.open) == (["accept"], 0)
    assert daemon.tracker.connections[1].traffic() == (-1, -1)
    daemon.tracker.process_ended(Ended(1, signal.SIGPIPE))
    assert daemon.fields("end")["exit"] == "SIGPIPE"


def test_a_client_that_is_gone_is_heard_to_the_end(started: Callable[..., _Daemon]) -> None:
    """Its handler can still read all that came, and write a little into the void meanwhile, but not for ever."""
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


def test_each_reader_holds_back_the_other(started: Callable[..., _Daemon]) -> None:
    """A deaf client stops its handler, a deaf handler its client."""
    daemon = started()
    client = daemon.serve()
    client.below.room = client.pair.room = 10
    client.handler_says(b"x" * 20_000)
    assert not client.pair.reading
    client.below.drain()
    assert client.pair.reading
    client.send(b"x" * 20_000)
    assert not client.below.reading
    for _ in range(2):
        # A record at a time.
        client.pair.drain()
        daemon.reactor.advance(0)
    assert client.below.reading


def test_a_client_that_goes_on_when_nobody_listens(started: Callable[..., _Daemon]) -> None:
    """It costs no memory and soon no time, and is closed."""
    daemon = started()
    client = daemon.serve()
    client.handler_says(ends=True)
    daemon.tracker.process_ended(Ended(1, 0))
    client.send(b"x" * 65_536)
    assert client.below.reading
    client.send(b"x")
    assert not client.below.reading
    daemon.reactor.advance(LINGER_SECONDS)
    assert client.below.lost == "done"


def test_what_is_over_leaves_nothing(started: Callable[..., _Daemon]) -> None:
    """No memory has to wait until garbage is looked for."""
    daemon = started()
    client = daemon.serve()
    daemon.tracker.process_ended(Ended(1, 0))
    client.handler_says(b"bye", ends=True)
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
    """There is no process to be ended."""
    daemon = started()
    client = daemon.connect()
    client.send()
    daemon.tracker.connections[1].abort("kicked")
    assert client.below.lost == "aborted"
    assert daemon.fields("end")["reason"] == "kicked"
    assert (daemon.events(), daemon.budget.open) == (["accept", "end"], 0)


def test_kicked_before_there_is_a_transport(started: Callable[..., _Daemon]) -> None:
    """A reactor may make the transport in its next iteration only."""
    daemon = started()
    daemon.reactor.late = True
    client = daemon.connect()
    daemon.tracker.connections[1].abort("kicked")
    assert daemon.events() == ["accept"]
    daemon.reactor.advance(0)
    assert client.below.lost == "aborted"
    assert daemon.events() == ["accept", "end"]
    assert daemon.budget.open == 0


def test_a_drained_service_waits_for_handlers_only(started: Callable[..., _Daemon]) -> None:
    """A connection in its handshake is closed."""
    daemon = started()
    client = daemon.serve()
    shaking = daemon.connect()
    for session in list(daemon.tracker.connections.values()):
        session.drain()
    assert (client.below.lost, shaking.below.lost) == ("", "aborted")
    assert list(daemon.tracker.connections) == [1]


@pytest.mark.parametrize("taken", [True, False])
def test_kicked_with_a_handler(started: Callable[..., _Daemon], taken: bool) -> None:
    """The handler is killed as any; its last output arrives, if the client takes it in time."""
    daemon = started()
    client = daemon.serve()
    daemon.tracker.connections[1].abort("kicked")
    assert (daemon.launcher_client.signals, client.below.lost) == ([(1, signal.SIGTERM)], "")
    client.below.room = 10
    client.handler_says(b"good bye, and thank you", ends=True)
    daemon.tracker.process_ended(Ended(1, signal.SIGTERM))
    assert client.tls.received == b"good bye, and thank you"
    if taken:
        client.below.drain()
    else:
        daemon.reactor.advance(KILL_SECONDS)
    assert client.below.lost == ("done" if taken else "aborted")
    end = daemon.fields("end")
    assert (end["reason"], end["exit"]) == ("kicked", "SIGTERM")


def test_kicked_when_its_handler_has_ended(started: Callable[..., _Daemon]) -> None:
    """A client that does not read the last output does not stay for ever."""
    daemon = started(idle_timeout="60s")
    client = daemon.serve()
    client.below.room = 10
    client.handler_says(b"you never read this", ends=True)
    daemon.tracker.process_ended(Ended(1, 0))
    daemon.reactor.pump([1.0] * 70)
    assert client.below.lost == "aborted"
    end = daemon.fields("end")
    assert (end["reason"], end["exit"]) == ("idle", "0")


def test_a_killed_handlers_client_is_closed_at_once(started: Callable[..., _Daemon]) -> None:
    """It had its time."""
    daemon = started()
    client = daemon.serve()
    daemon.tracker.connections[1].abort("kicked")
    daemon.reactor.advance(KILL_SECONDS)
    daemon.tracker.process_ended(Ended(1, signal.SIGKILL))
    assert client.below.lost == "aborted"
    assert daemon.fields("end")["reason"] == "kicked"


@pytest.mark.parametrize("shaken", [False, True])
def test_the_first_byte_is_the_clients_own(started: Callable[..., _Daemon], shaken: bool) -> None:
    """The handshake does not count as input, so first_byte_timeout limits it as well."""
    daemon = started(first_byte_timeout="5s")
    client = daemon.serve() if shaken else daemon.connect().send()
    daemon.reactor.pump([0.5] * 12)
    if shaken:
        assert daemon.launcher_client.signals == [(1, signal.SIGTERM)]
        client.handler_says(ends=True)
        daemon.tracker.process_ended(Ended(1, signal.SIGTERM))
        client.send(ends=True)
    assert daemon.fields("end")["reason"] == "first_byte"
    assert client.below.lost


def test_without_descriptors_there_is_no_handler(
    started: Callable[..., _Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's connection closes cleanly, and the log has the reason."""
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


def test_a_reactor_without_room_for_the_pair(started: Callable[..., _Daemon]) -> None:
    """The same."""
    daemon = started()
    client = daemon.connect()
    daemon.reactor.mistake = OSError(errno.ENOMEM, "no")
    client.handshake()
    assert daemon.fields("fail")["id"] == "1"
    client.send(ends=True)
    assert client.below.lost == "done"
    assert daemon.budget.open == 0


def test_a_client_that_was_gone_at_once(started: Callable[..., _Daemon]) -> None:
    """It is logged as one that has sent nothing."""
    daemon = started()
    daemon.reactor.mistake = OSError(errno.EINVAL, "no")
    with pytest.raises(IndexError):
        daemon.connect()
    assert daemon.events() == ["accept", "end"]
    assert daemon.budget.open == 0


def test_a_handler_that_can_not_be_started(started: Callable[..., _Daemon]) -> None:
    """Its client gets a closure alert."""
    daemon = started()
    client = daemon.connect().handshake()
    daemon.launcher_client.drop(1)
    daemon.tracker.start_failed(1, errno.ENOENT)
    client.handler_says(ends=True)
    assert client.tls.got_close_notify
    client.send(ends=True)
    assert daemon.events() == ["accept", "fail", "end"]
    assert daemon.fields("end")["reason"] == "failed"
    assert daemon.budget.open == 0


@pytest.mark.parametrize("gone", [False, True])
def test_a_client_that_is_done_before_the_pair_is_there(started: Callable[..., _Daemon], gone: bool) -> None:
    """Its input reaches the handler all the same; after a reset there is none."""
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


def test_a_client_that_breaks_tls(started: Callable[..., _Daemon]) -> None:
    """The log has the reason, and its handler's socket is closed."""
    daemon = started()
    client = daemon.serve()
    client.below.protocol.dataReceived(b"NONSENSE\r\n" * 10)
    _lose(client.below, ConnectionDone())
    assert client.pair.lost
    daemon.tracker.process_ended(Ended(1, 0))
    assert daemon.events() == ["accept", "fail", "end"]


def test_a_reload_is_about_those_who_come(started: Callable[..., _Daemon]) -> None:
    """Open connections stay as they are; new ones are handed over in the clear, or begin a handshake."""
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
    client.handler_says(b"yes")
    assert client.tls.received == b"yes"
