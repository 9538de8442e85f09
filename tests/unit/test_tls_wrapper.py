"""TlsWrapper: log lines, counters, and the effect of a reload."""

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
        """Close the connection."""
        self.transport.unregisterProducer()
        self.transport.loseConnection()


class _Wrappers:
    """A TrackingFactory with TLS, and the objects that it uses."""

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
        """Apply new options, as a reload does."""
        commit = self.side.prepare(service)
        commit()
        self.tracker.retune(service)
        self.tracker.replace_factory(self.side.wrap_factory(self.factory), TlsWrapper if self.side.handshakes else None)


class _Connection:
    """A client and its wrapper."""

    def __init__(self, tracker: Any, client: TlsClient, peer: IAddress) -> None:
        self.client = client
        self.wrapper: Any = tracker.buildProtocol(peer)
        self.below = StreamDouble(self.wrapper, peer=peer)
        self.wrapper.makeConnection(self.below)
        self._delivered = 0

    def send(self, data: bytes = b"", *, ends: bool = False) -> None:
        """Send data, and receive the answers."""
        wire = self.client.send(data, ends=ends)
        self.below.bytes_in += len(wire)
        self.wrapper.dataReceived(wire)
        wire, self._delivered = self.below.sent[self._delivered :], len(self.below.sent)
        self.client.receive(wire)

    def handshake(self) -> _Connection:
        """Do the handshake."""
        self.send()
        self.send()
        self.send()
        return self


def _fields(line: str) -> dict[str, str]:
    return dict(word.partition("=")[::2] for word in line.split()[1:])


def test_accept_line_has_the_version() -> None:
    """The accept line waits for the handshake and has the TLS version; the end line counts encrypted bytes."""
    wrappers = _Wrappers()
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
def test_accept_line_has_the_subject(as_json: bool) -> None:
    """The accept line has the subject of the client's certificate; `-` without a certificate."""
    wrappers = _Wrappers(tls_service(tls_client_ca="/c/clients", tls_client="optional"), as_json=as_json)
    wrappers.connect(ANNA).handshake()
    wrappers.connect().handshake()
    found = [json.loads(line) if as_json else _fields(line) for line in wrappers.lines]
    wanted = ["CN=anna.example.org", "-"] if as_json else ['"CN=anna.example.org"', "-"]
    assert [each["subject"] for each in found] == wanted


def test_no_subject_without_clients_in_the_log() -> None:
    """Without HOST, or with anonymized addresses, neither the log nor svcctl shows the subject."""
    options = {"tls_client_ca": "/c/clients"}
    for wrappers in (
        _Wrappers(tls_service(**options, log_on_success="EXIT")),
        _Wrappers(tls_service(**options), short=True),
    ):
        connection = wrappers.connect(ANNA).handshake()
        assert "subject" not in wrappers.lines[0]
        assert "subject" not in connection.wrapper.info()


@pytest.mark.parametrize("first", ["name", "handshake"])
def test_accept_line_waits_for_the_host_name(first: str) -> None:
    """With resolve=yes the accept line waits for both handshake and host name, in any order."""
    wrappers = _Wrappers(tls_service("echo 7/tcp resolve=yes"))
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


def test_descriptors_are_reserved_during_the_handshake() -> None:
    """A connection reserves all its descriptors at the accept; after the handshake they are counted when opened."""
    wrappers = _Wrappers()
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


def test_end_reason_of_the_protocol() -> None:
    """The end line has the end_reason of the protocol in place of the transport's reason."""
    wrappers = _Wrappers()
    connection = wrappers.connect().handshake()
    connection.wrapper._protocol.inner.end_reason = "keepalive"
    connection.wrapper.connectionLost(Failure(ConnectionDone()))
    assert _fields(wrappers.lines[-1])["reason"] == "keepalive"


def test_failed_handshake_is_logged() -> None:
    """The fail line has the reason, the end line has reason=handshake, and both are counted."""
    wrappers = _Wrappers()
    connection = wrappers.connect()
    connection.wrapper.dataReceived(b"GET / HTTP/1.0\r\n\r\n")
    connection.wrapper.readConnectionLost()
    assert [line.split()[0] for line in wrappers.lines] == ["accept", "fail", "end"]
    assert wrappers.lines[0].endswith(" tls=-")
    assert wrappers.lines[1] == 'fail service=echo/tcp peer=192.0.2.1:40000 id=1 reason="http request"'
    assert _fields(wrappers.lines[2])["reason"] == "handshake"
    counters = wrappers.registry.counters("echo/tcp")
    assert (counters.failures, counters.ended, counters.handshakes_failed) == (1, {"handshake": 1}, {"tls": 1})


def test_client_without_data_is_not_a_failure() -> None:
    """A client that closes without sending data, as many monitors do, has no fail line."""
    wrappers = _Wrappers()
    wrappers.connect().wrapper.readConnectionLost()
    assert [line.split()[0] for line in wrappers.lines] == ["accept", "end"]
    assert _fields(wrappers.lines[1])["reason"] == "handshake"
    assert wrappers.registry.counters("echo/tcp").failures == 0


@pytest.mark.parametrize(
    ("how", "reason"), [("loss", "lost"), ("raised", "error"), ("failed", "failed"), ("broken", "failed")]
)
def test_other_ends(how: str, reason: str) -> None:
    """After the handshake the reasons are those without TLS; an invalid record is a failure."""
    wrappers = _Wrappers()
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
    assert wrappers.registry.counters("echo/tcp").failures == (reason != "lost")


def test_closure_alert_at_a_unix_socket() -> None:
    """After a closure alert the end of a UNIX socket, which Twisted reports as ConnectionLost, has reason=done."""
    wrappers = _Wrappers(tls_service("echo /run/e/unix"))
    connections = [wrappers.connect(peer=LOCAL_PEER).handshake() for _ in range(2)]
    connections[0].send(b"x")
    connections[1].wrapper._protocol.inner.readConnectionLost = lambda: None
    connections[1].send(ends=True)
    for connection in connections:
        connection.below.lose(Failure(ConnectionLost()))
    ends = [_fields(line)["reason"] for line in wrappers.lines if line.startswith("end ")]
    assert ends == ["lost", "done"]


def test_banner_is_encrypted() -> None:
    """The banner is sent after the handshake, before all other output."""
    wrappers = _Wrappers(tls_service("echo 7/tcp banner=/c/welcome"))
    connection = wrappers.connect()
    assert connection.below.sent == b""
    connection.handshake()
    connection.send(b"x")
    assert connection.client.received == b"welcome\nx"


def test_refused_client_gets_no_handshake() -> None:
    """A refused client gets neither a handshake nor a banner, which would be unencrypted."""
    wrappers = _Wrappers(tls_service("echo 7/tcp no_access=192.0.2.0/24 banner_fail=/c/welcome"))
    assert wrappers.tracker.buildProtocol(PEER) is None
    assert wrappers.lines[0].split()[0] == "refuse"


def test_first_byte_timeout_ignores_the_handshake() -> None:
    """The bytes of the handshake do not count for first_byte_timeout."""
    wrappers = _Wrappers()
    connection = wrappers.connect().handshake()
    assert connection.wrapper.traffic()[0] == 0
    connection.send(b"x")
    assert connection.wrapper.traffic()[0] == connection.below.bytes_in


def test_first_byte_timeout_ends_a_handshake() -> None:
    """first_byte_timeout applies during the handshake."""
    wrappers = _Wrappers(tls_service("echo 7/tcp first_byte_timeout=2s"))
    wrappers.tracker.start_timeouts(wrappers.clock.callLater)
    connection = wrappers.connect()
    connection.send()
    wrappers.clock.pump([0.1] * 25)
    assert connection.below.lost == "aborted"
    assert [line.split()[0] for line in wrappers.lines] == ["accept", "end"]
    assert _fields(wrappers.lines[1])["reason"] == "first_byte"


def test_idle_timeout_counts_encrypted_bytes() -> None:
    """Any encrypted bytes reset idle_timeout, and nothing else does."""
    wrappers = _Wrappers(tls_service("echo 7/tcp idle_timeout=2s"))
    wrappers.tracker.start_timeouts(wrappers.clock.callLater)
    talking, silent = wrappers.connect().handshake(), wrappers.connect().handshake()
    for _ in range(30):
        wrappers.clock.pump([0.1])
        if not talking.below.lost:
            talking.send(b"x")
    assert (talking.below.lost, silent.below.lost) == ("", "aborted")
    assert _fields(wrappers.lines[-1])["reason"] == "idle"


def test_handshake_timeout() -> None:
    """A handshake is limited also without a timeout of the service, and the reason is logged."""
    wrappers = _Wrappers()
    connection = wrappers.connect()
    connection.send()
    wrappers.clock.advance(30)
    assert connection.below.lost == "aborted"
    assert '"the handshake was not complete within 30 seconds"' in wrappers.lines[1]
    assert _fields(wrappers.lines[2])["reason"] == "handshake"


def test_info() -> None:
    """info() has the TLS version, and the client's subject if the service requests certificates."""
    connection = _Wrappers(tls_service(tls_client_ca="/c/clients")).connect(ANNA)
    facts = connection.wrapper.info()
    assert (facts["tls"], facts["state"]) == ("handshake", "handshake")
    facts = connection.handshake().wrapper.info()
    assert facts["state"] == "open"
    assert (facts["tls"], facts["sni"], facts["subject"]) == ("TLSv1.3", "localhost", "CN=anna.example.org")
    assert facts["cipher"].startswith("TLS_AES_")


def test_drain() -> None:
    """drain() aborts handshakes; a protocol with drain() closes by itself, with a closure alert."""
    wrappers = _Wrappers()
    shaking, shaken = wrappers.connect(), wrappers.connect().handshake()
    shaking.wrapper.drain()
    shaken.wrapper.drain()
    assert (shaking.below.lost, shaken.below.lost) == ("aborted", "done")
    ends = [_fields(line)["reason"] for line in wrappers.lines if line.startswith("end ")]
    assert ends == ["shutdown", "done"]
    assert not [line for line in wrappers.lines if line.startswith("fail ")]


def test_ended_connections_are_freed() -> None:
    """Wrapper, protocols and TLS connection are freed without the garbage collector."""
    import gc
    import weakref

    wrappers = _Wrappers()
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


def test_reload_enables_and_disables_tls() -> None:
    """The change applies to new connections; open ones stay as they are, and their lines have the same fields."""
    wrappers = _Wrappers(service_of("echo 7/tcp resolve=yes"))
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


def test_reload_with_another_certificate() -> None:
    """New connections get the new certificate."""
    wrappers = _Wrappers()
    wrappers.retune(tls_service(tls_min="1.3"))
    old = wrappers.connect(setup=lambda context: context.set_max_proto_version(SSL.TLS1_2_VERSION))
    with pytest.raises(SSL.Error, match="protocol version"):
        old.handshake()
