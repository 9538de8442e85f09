"""Wrapped connections with TLS: their log lines, their counters, and the effect of a reload."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from OpenSSL import SSL
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from svcd.access.admission import GlobalLimit
from svcd.connections.admission_queue import ServiceAdmission
from svcd.connections.context import ConnectionContext
from svcd.connections.descriptor_budget import DescriptorBudget
from svcd.connections.tls_wrapper import TlsWrapper
from svcd.connections.wrapper import TrackingFactory
from svcd.log.formats import JsonFormat, TextFormat
from svcd.log.writer import LogWriter
from svcd.metrics.registry import MetricsRegistry
from svcd.protocols.echo import EchoProtocol
from svcd.tls.service_tls import ServiceTls
from tests.doubles import LOCAL_PEER, PEER, FakeFiles, FakeReactor, FakeResolver, StreamDouble, list_sink, service_of
from tests.tls import ANNA, FILES, TlsClient, tls_service

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress

    from svcd.config.service import Service


class _Echo(EchoProtocol):
    """Echo that may have a failure_text."""

    failure_text = ""

    def drain(self) -> None:
        """Nothing is owed."""
        self.transport.unregisterProducer()
        self.transport.loseConnection()


class _Gates:
    """A keeper with everything around it."""

    def __init__(self, service: Service | None = None, *, as_json: bool = False, short: bool = False) -> None:
        service = service or tls_service()
        self.clock = FakeReactor()
        self.lines: list[str] = []
        self.names = FakeResolver()
        budget = DescriptorBudget(100, self.clock)
        form = (JsonFormat if as_json else TextFormat)(stamped=False)
        log_writer = LogWriter(list_sink(self.lines), form, anonymize=short)
        files = FakeFiles({**FILES, "/c/welcome": b"welcome\n"})
        self.registry = MetricsRegistry()
        context = ConnectionContext(
            self.clock, log_writer, files, self.names, budget, GlobalLimit(),
            registry=self.registry, clock=self.clock.seconds,
        )  # fmt: skip
        service_admission = ServiceAdmission(context, service)
        self.side = ServiceTls(self.clock, files, service_admission.counters)
        self.side.prepare(service)()
        self.factory = Factory.forProtocol(_Echo)
        self.tracker = TrackingFactory(
            service,
            context,
            service_admission,
            self.side.wrap_factory(self.factory),
            TlsWrapper if self.side.handshakes else None,
        )

    def connect(self, certificate: Any = None, *, peer: IAddress = PEER, **options: Any) -> _Connection:
        """Connect a client that sends nothing yet."""
        return _Connection(self.tracker, TlsClient(certificate, **options), peer)

    def retune(self, service: Service) -> None:
        """As a reload does."""
        commit = self.side.prepare(service)
        commit()
        self.tracker.retune(service)
        self.tracker.replace_factory(self.side.wrap_factory(self.factory), TlsWrapper if self.side.handshakes else None)


class _Connection:
    """A client and its gate."""

    def __init__(self, tracker: Any, client: TlsClient, peer: IAddress) -> None:
        self.client = client
        self.wrapper: Any = tracker.buildProtocol(peer)
        self.below = StreamDouble(self.wrapper, peer=peer)
        self.wrapper.makeConnection(self.below)
        self._delivered = 0

    def send(self, data: bytes = b"", *, ends: bool = False) -> None:
        """Send data and take the answers."""
        wire = self.client.send(data, ends=ends)
        self.below.bytes_in += len(wire)
        self.wrapper.dataReceived(wire)
        wire, self._delivered = self.below.sent[self._delivered :], len(self.below.sent)
        self.client.receive(wire)

    def handshake(self) -> _Connection:
        """The handshake."""
        self.send()
        self.send()
        self.send()
        return self


def _fields(line: str) -> dict[str, str]:
    return dict(word.partition("=")[::2] for word in line.split()[1:])


def test_the_log_says_which_tls() -> None:
    """The accept line waits for the handshake, and has the version of TLS; bytes are counted on the wire."""
    wrappers = _Gates()
    connection = wrappers.connect()
    assert isinstance(connection.wrapper, TlsWrapper)
    assert wrappers.lines == []
    connection.handshake()
    connection.send(b"hello", ends=True)
    assert wrappers.lines[0] == "accept service=echo/tcp peer=192.0.2.1:40000 id=1 count=1 tls=TLSv1.3"
    end = _fields(wrappers.lines[1])
    assert (end["reason"], end["in"], end["out"]) == (
        "done",
        str(connection.below.bytes_in),
        str(connection._delivered),
    )
    assert (connection.client.received, connection.client.got_close_notify) == (b"hello", True)
    counters = wrappers.registry.counters("echo/tcp")
    assert (counters.accepted, counters.ended, counters.handshakes) == (1, {"done": 1}, {"TLSv1.3": 1})


@pytest.mark.parametrize("as_json", [False, True])
def test_the_log_says_who_the_client_is(as_json: bool) -> None:
    """The accept line has the subject of the client's certificate; `-` without a certificate."""
    wrappers = _Gates(tls_service(tls_client_ca="/c/clients", tls_client="optional"), as_json=as_json)
    wrappers.connect(ANNA).handshake()
    wrappers.connect().handshake()
    found = [json.loads(line) if as_json else _fields(line) for line in wrappers.lines]
    wanted = ["CN=anna.example.org", "-"] if as_json else ['"CN=anna.example.org"', "-"]
    assert [each["subject"] for each in found] == wanted


def test_a_log_without_clients_has_no_subject() -> None:
    """Neither if the service's log leaves clients out, nor if the daemon shortens them; nor does svcctl show it."""
    options = {"tls_client_ca": "/c/clients"}
    for wrappers in (_Gates(tls_service(**options, log_on_success="EXIT")), _Gates(tls_service(**options), short=True)):
        connection = wrappers.connect(ANNA).handshake()
        assert "subject" not in wrappers.lines[0]
        assert "subject" not in connection.wrapper.info()


@pytest.mark.parametrize("first", ["name", "handshake"])
def test_the_accept_line_waits_for_the_name_as_well(first: str) -> None:
    """With resolve=yes it waits for both, whichever comes first."""
    wrappers = _Gates(tls_service("echo 7/tcp resolve=yes"))
    connection = wrappers.connect()
    if first == "name":
        wrappers.names.answer("client.example")
        assert wrappers.lines == []
        connection.handshake()
    else:
        connection.handshake()
        assert wrappers.lines == []
        wrappers.names.answer("client.example")
    (line,) = wrappers.lines
    assert " host=client.example " in line
    assert line.endswith(" tls=TLSv1.3")


def test_what_will_be_opened_is_counted_during_the_handshake() -> None:
    """A connection reserves all its descriptors at once; they are counted by their owners later."""
    wrappers = _Gates()
    share = wrappers.tracker.budget
    share.cost = 3
    connection = wrappers.connect()
    assert share.open == 3
    connection.handshake()
    assert share.open == 1
    connection.wrapper.connectionLost(Failure(ConnectionDone()))
    assert share.open == 0
    again = wrappers.connect()
    again.wrapper.connectionLost(Failure(ConnectionDone()))
    assert share.open == 0


def test_a_protocol_may_say_why_it_has_ended() -> None:
    """The end line has its word, and not that of what the transport saw."""
    wrappers = _Gates()
    connection = wrappers.connect().handshake()
    connection.wrapper._protocol.inner.end_reason = "keepalive"
    connection.wrapper.connectionLost(Failure(ConnectionDone()))
    assert _fields(wrappers.lines[-1])["reason"] == "keepalive"


def test_a_failed_handshake_has_a_line() -> None:
    """It has the reason, the connection ends with reason=handshake, and both are counted."""
    wrappers = _Gates()
    connection = wrappers.connect()
    connection.wrapper.dataReceived(b"GET / HTTP/1.0\r\n\r\n")
    connection.wrapper.readConnectionLost()
    assert [line.split()[0] for line in wrappers.lines] == ["accept", "fail", "end"]
    assert wrappers.lines[0].endswith(" tls=-")
    assert wrappers.lines[1] == 'fail service=echo/tcp peer=192.0.2.1:40000 id=1 reason="http request"'
    assert _fields(wrappers.lines[2])["reason"] == "handshake"
    counters = wrappers.registry.counters("echo/tcp")
    assert (counters.failures, counters.ended, counters.handshakes_failed) == (1, {"handshake": 1}, {"tls": 1})


def test_who_only_looks_whether_the_port_is_open_fails_nothing() -> None:
    """A client that comes and goes without a word has no fail line, since many monitors do so."""
    wrappers = _Gates()
    wrappers.connect().wrapper.readConnectionLost()
    assert [line.split()[0] for line in wrappers.lines] == ["accept", "end"]
    assert _fields(wrappers.lines[1])["reason"] == "handshake"
    assert wrappers.registry.counters("echo/tcp").failures == 0


@pytest.mark.parametrize(
    ("how", "reason"), [("loss", "lost"), ("raised", "error"), ("failed", "failed"), ("broken", "failed")]
)
def test_other_ends(how: str, reason: str) -> None:
    """After the handshake a connection ends as without TLS; what is no TLS any more is a failure."""
    wrappers = _Gates()
    connection = wrappers.connect().handshake()
    tls = connection.wrapper._protocol
    if how == "broken":
        connection.wrapper.dataReceived(b"\x17\x03\x03\x00\x20" + b"x" * 32)
    else:
        tls.inner_raised = how == "raised"
        tls.inner.failure_text = "no server" if how == "failed" else ""
        connection.below.lose(Failure(ConnectionLost()))
    assert _fields(wrappers.lines[-1])["reason"] == reason
    assert (wrappers.lines[1].split()[0] == "fail") == (reason == "failed")


def test_a_local_client_that_takes_its_leave_is_not_lost() -> None:
    """At a clean end of a UNIX socket poll(2) returns POLLHUP, which Twisted reports as a loss."""
    wrappers = _Gates(tls_service("echo /run/e/unix"))
    connections = [wrappers.connect(peer=LOCAL_PEER).handshake() for _ in range(2)]
    connections[0].send(b"x")
    connections[1].wrapper._protocol.inner.readConnectionLost = lambda: None
    connections[1].send(ends=True)
    for connection in connections:
        connection.below.lose(Failure(ConnectionLost()))
    ends = [_fields(line)["reason"] for line in wrappers.lines if line.startswith("end ")]
    assert ends == ["lost", "done"]


def test_the_banner_is_said_in_tls() -> None:
    """After the handshake, in front of everything."""
    wrappers = _Gates(tls_service("echo 7/tcp banner=/c/welcome"))
    connection = wrappers.connect()
    assert connection.below.sent == b""
    connection.handshake()
    connection.send(b"x")
    assert connection.client.received == b"welcome\nx"


def test_who_is_refused_gets_no_handshake() -> None:
    """Nor a text, which would be none in TLS."""
    wrappers = _Gates(tls_service("echo 7/tcp no_access=192.0.2.0/24 banner_fail=/c/welcome"))
    assert wrappers.tracker.buildProtocol(PEER) is None
    assert wrappers.lines[0].split()[0] == "refuse"


def test_the_first_byte_is_the_first_behind_the_handshake() -> None:
    """For first_byte_timeout the bytes of the handshake do not count."""
    wrappers = _Gates()
    connection = wrappers.connect().handshake()
    assert connection.wrapper.traffic()[0] == 0
    connection.send(b"x")
    assert connection.wrapper.traffic()[0] == connection.below.bytes_in


def test_first_byte_timeout_ends_a_handshake() -> None:
    """As the deadline that it is."""
    wrappers = _Gates(tls_service("echo 7/tcp first_byte_timeout=2s"))
    wrappers.tracker.start_timeouts(wrappers.clock.callLater)
    connection = wrappers.connect()
    connection.send()
    wrappers.clock.pump([0.1] * 25)
    assert connection.below.lost == "aborted"
    assert [line.split()[0] for line in wrappers.lines] == ["accept", "end"]
    assert _fields(wrappers.lines[1])["reason"] == "first_byte"


def test_idle_timeout_looks_at_the_wire() -> None:
    """Whatever moves in TLS is a sign of life, and nothing else is."""
    wrappers = _Gates(tls_service("echo 7/tcp idle_timeout=2s"))
    wrappers.tracker.start_timeouts(wrappers.clock.callLater)
    talking, silent = wrappers.connect().handshake(), wrappers.connect().handshake()
    for _ in range(30):
        wrappers.clock.pump([0.1])
        if not talking.below.lost:
            talking.send(b"x")
    assert (talking.below.lost, silent.below.lost) == ("", "aborted")
    assert _fields(wrappers.lines[-1])["reason"] == "idle"


def test_a_handshake_that_is_never_done() -> None:
    """It ends also without any timeout of the service, and the reason is logged."""
    wrappers = _Gates()
    connection = wrappers.connect()
    connection.send()
    wrappers.clock.advance(30)
    assert connection.below.lost == "aborted"
    assert '"it was not done in 30 seconds"' in wrappers.lines[1]
    assert _fields(wrappers.lines[2])["reason"] == "handshake"


def test_what_is_known_of_a_connection() -> None:
    """Its TLS and its client's subject, where the service asks for one."""
    connection = _Gates(tls_service(tls_client_ca="/c/clients")).connect(ANNA)
    facts = connection.wrapper.info()
    assert (facts["tls"], facts["state"]) == ("handshake", "handshake")
    facts = connection.handshake().wrapper.info()
    assert facts["state"] == "open"
    assert (facts["tls"], facts["sni"], facts["subject"]) == ("TLSv1.3", "localhost", "CN=anna.example.org")
    assert facts["cipher"].startswith("TLS_AES_")


def test_the_end_of_the_daemon() -> None:
    """Handshakes are aborted; a protocol with drain() closes by itself, with a closure alert."""
    wrappers = _Gates()
    shaking, shaken = wrappers.connect(), wrappers.connect().handshake()
    shaking.wrapper.drain()
    shaken.wrapper.drain()
    assert (shaking.below.lost, shaken.below.lost) == ("aborted", "done")
    ends = [_fields(line)["reason"] for line in wrappers.lines if line.startswith("end ")]
    assert ends == ["shutdown", "done"]
    assert not [line for line in wrappers.lines if line.startswith("fail ")]


def test_a_connection_leaves_nothing_behind() -> None:
    """Its gate, its protocols and its TLS are let go without the help of the garbage collector."""
    import gc
    import weakref

    wrappers = _Gates()
    gc.collect()
    gc.disable()
    try:
        connection = wrappers.connect().handshake()
        tls = connection.wrapper._protocol
        left = [weakref.ref(each) for each in (tls._connection, tls.inner)]
        connection.send(b"x", ends=True)
        del connection, tls
        assert [each() for each in left] == [None, None]
    finally:
        gc.enable()


def test_a_reload_turns_tls_on_and_off() -> None:
    """New connections have what holds then; those that are open go on, and their lines are as they were begun."""
    wrappers = _Gates(service_of("echo 7/tcp resolve=yes"))
    plain = wrappers.connect()
    plain.wrapper.dataReceived(b"plain")
    wrappers.retune(tls_service("echo 7/tcp resolve=yes"))
    wrappers.names.answer(None)
    encrypted = wrappers.connect().handshake()
    wrappers.names.answer(None)
    wrappers.retune(service_of("echo 7/tcp"))
    last = wrappers.connect()
    for connection in (plain, last):
        connection.wrapper.dataReceived(b"!")
    encrypted.send(b"secret", ends=True)
    assert (plain.below.sent, last.below.sent, encrypted.client.received) == (b"plain!", b"!", b"secret")
    accepted = [line for line in wrappers.lines if line.startswith("accept ")]
    assert [line.endswith(" tls=TLSv1.3") for line in accepted] == [False, True, False]


def test_a_reload_with_another_certificate() -> None:
    """New connections get it."""
    wrappers = _Gates()
    wrappers.retune(tls_service(tls_min="1.3"))
    old = wrappers.connect(setup=lambda context: context.set_max_proto_version(SSL.TLS1_2_VERSION))
    with pytest.raises(SSL.Error, match="protocol version"):
        old.handshake()
