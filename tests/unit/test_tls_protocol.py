"""TLS between a transport and a protocol: what passes, what waits, and every way to end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol, IHandshakeListener, ISSLTransport
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

from svcd.protocols.base import LINGER_SECONDS
from svcd.protocols.chargen import ChargenProtocol
from svcd.protocols.echo import EchoProtocol
from svcd.reactor.core import UvReactor
from svcd.tls.handshakes import HANDSHAKE_SECONDS
from tests.doubles import LogCatcher
from tests.tls import ANNA, CLIENTS, TlsClient, TlsPair

if TYPE_CHECKING:
    from collections.abc import Callable

DATA = bytes(range(256)) * 1000
SIZES = [1, 4095, 4096, 16_384, 16_385, 100_000]


class Plain(Protocol):
    """Protocol that records its input."""

    transport: Any

    def __init__(self, made: Callable[[Any], object] | None = None) -> None:
        self.told: list[str] = []
        self.received = b""
        self.reason: Any = None
        self._made = made

    def connectionMade(self) -> None:
        """Remember it."""
        self.told.append("made")
        if self._made is not None:
            self._made(self.transport)

    def dataReceived(self, data: bytes) -> None:
        """Keep it."""
        self.received += data

    def connectionLost(self, reason: Any = None) -> None:
        """Remember why."""
        self.told.append("lost")
        self.reason = reason.value


@implementer(IHalfCloseableProtocol)
class Half(Plain):
    """The same with half-close."""

    def readConnectionLost(self) -> None:
        """Remember it."""
        self.told.append("read lost")

    def writeConnectionLost(self) -> None:
        """Remember it."""
        self.told.append("write lost")


def test_the_inner_protocol_begins_after_the_handshake() -> None:
    """Nothing is built before the handshake is done; then the protocol knows the client's identity."""
    inner = Plain()
    pair = TlsPair(inner, TlsClient(ANNA), tls_client_ca="/c/clients")
    pair.exchange()
    assert (pair.tls.version, inner.told) == ("", [])
    pair.handshake()
    assert (pair.tls.version, inner.told) == ("TLSv1.3", ["made"])
    assert inner.transport.tls_identity.subject == "CN=anna.example.org"
    assert inner.transport.tls_identity is inner.transport.tls_identity
    assert inner.transport.getPeerCertificate().to_cryptography() == ANNA.certificate
    assert inner.transport.getHandle().get_servername() == b"localhost"
    assert inner.transport.getPeer() == pair.below.getPeer()
    assert inner.transport.negotiatedProtocol is None
    assert not hasattr(inner.transport, "startTLS")
    assert ISSLTransport.providedBy(inner.transport)
    assert pair.counters.handshakes == {"TLSv1.3": 1}


def test_alpn() -> None:
    """What was agreed on is what Twisted's protocols ask for."""
    client = TlsClient(setup=lambda context: context.set_alpn_protos([b"a", b"b"]))
    assert TlsPair(client=client, tls_alpn="b").handshake().tls.negotiatedProtocol == b"b"


def test_a_listener_for_the_handshake_is_told() -> None:
    """IHandshakeListener.handshakeCompleted() is called."""

    @implementer(IHandshakeListener)
    class Listener(Plain):
        def handshakeCompleted(self) -> None:
            self.told.append("shaken")

    inner = Listener()
    TlsPair(inner).handshake()
    assert inner.told == ["made", "shaken"]


@pytest.mark.parametrize("piece", [0, 1, 7, 1000])
@pytest.mark.parametrize("size", SIZES)
def test_what_is_sent_arrives(size: int, piece: int) -> None:
    """Data of any size comes back, however it was cut on its way."""
    if size > 20_000 and 0 < piece < 1000:
        pytest.skip("no new case")
    pair = TlsPair(EchoProtocol()).handshake(piece)
    data = bytes(range(256)) * (size // 256 + 1)
    pair.exchange(data[:size], piece=piece)
    pair.turn()
    assert pair.client.received == data[:size]
    pair.exchange(ends=True, piece=piece)
    assert pair.client.got_close_notify
    assert pair.below.lost == "done"


@given(st.lists(st.tuples(st.binary(max_size=20_000), st.integers(1, 50_000)), max_size=6))
def test_any_data_in_any_pieces(talk: list[tuple[bytes, int]]) -> None:
    """What the service gets is what the client sent, and the client gets all of it back."""
    inner = EchoProtocol()
    pair = TlsPair(inner).handshake()
    for data, piece in talk:
        pair.exchange(data, piece=piece)
    pair.turn()
    assert pair.client.received == b"".join(data for data, _ in talk)


def test_data_behind_the_handshake() -> None:
    """What a client sends with the last word of its handshake is served."""
    inner = Plain()
    pair = TlsPair(inner)
    pair.exchange()
    wire = pair.client.send() + pair.client.send(b"early", ends=True)
    pair.feed(wire)
    assert inner.received == b"early"
    assert pair.below.lost == "done"


def test_tls_1_2() -> None:
    """Clients without TLS 1.3 are served, as long as they are allowed."""
    client = TlsClient(setup=lambda context: context.set_max_proto_version(SSL.TLS1_2_VERSION))
    pair = TlsPair(EchoProtocol(), client).handshake()
    pair.exchange(b"x" * 50_000, ends=True)
    assert pair.tls.version == "TLSv1.2"
    assert (pair.client.received, pair.client.got_close_notify) == (b"x" * 50_000, True)


# Writing.


def test_answers_to_one_piece_go_out_at_once() -> None:
    """Small writes while input is handed over share a record and a write."""
    inner = Plain()
    pair = TlsPair(inner).handshake()
    inner.dataReceived = lambda data: inner.transport.writeSequence([data[:1], data[1:]] * 3)  # type: ignore[method-assign]
    writes = pair.below.writes
    pair.exchange(b"ab")
    assert pair.below.writes == writes + 1
    assert pair.client.received == b"ababab"


def test_small_writes_wait_for_each_other() -> None:
    """At other times they share a record with those of the same turn of the reactor."""
    inner = Plain()
    pair = TlsPair(inner).handshake()
    writes = pair.below.writes
    for _ in range(10):
        inner.transport.write(b"x" * 100)
    assert pair.below.writes == writes
    pair.turn()
    assert (pair.below.writes, len(pair.client.received)) == (writes + 1, 1000)


def test_much_does_not_wait() -> None:
    """A large write goes out at once, behind what waits; many small ones do, too."""
    inner = Plain()
    pair = TlsPair(inner).handshake()
    inner.transport.write(b"a")
    inner.transport.write(memoryview(b"b" * 100_000))
    pair.deliver()
    assert pair.client.received == b"a" + b"b" * 100_000
    writes = pair.below.writes
    for _ in range(100):
        inner.transport.write(b"c" * 1000)
    assert pair.below.writes > writes
    pair.turn()
    assert pair.client.received[100_001:] == b"c" * 100_000


def test_answers_to_much_go_out_bit_by_bit() -> None:
    """OpenSSL's buffers never shrink: so they hold a slice of the answer, however much came at once."""
    pair = TlsPair(EchoProtocol()).handshake()
    connection = pair.tls._connection
    encrypt, read_records = connection.encrypt, connection.read_records
    held, most = 0, 0

    def count(data: bytes | memoryview) -> int:
        nonlocal held, most
        size = encrypt(data)
        held += size
        most = max(most, held)
        return size

    def let_go() -> bytes:
        nonlocal held
        held = 0
        return read_records()

    connection.encrypt, connection.read_records = count, let_go  # type: ignore[method-assign]
    pair.exchange(DATA)
    assert pair.client.received == DATA
    assert most <= 40_000


def test_a_producer_that_writes_until_it_is_stopped() -> None:
    """It is stopped, also while input is handed over: what waits for the transport has a bound."""

    class Producer:
        produces = True
        written = 0

        def pauseProducing(self) -> None:
            self.produces = False

        def resumeProducing(self) -> None:
            """Enough."""

        def stopProducing(self) -> None:
            """Enough."""

        def produce(self, data: bytes) -> None:
            while self.produces and self.written < 10_000_000:
                inner.transport.write(data * 10_000)
                self.written += 10_000

    inner, producer = Plain(), Producer()
    pair = TlsPair(inner, room=65_536).handshake()
    inner.transport.registerProducer(producer, True)
    inner.dataReceived = producer.produce  # type: ignore[method-assign]
    pair.exchange(b"x")
    assert producer.written < 500_000
    assert len(pair.client.received) == producer.written


def test_only_bytes_are_sent() -> None:
    """Writing text raises TypeError at once."""
    inner = Plain()
    TlsPair(inner).handshake()
    with pytest.raises(TypeError):
        inner.transport.write("text")


# The end.


@pytest.mark.parametrize("by", ["alert", "transport", "both"])
def test_a_client_that_has_no_more_to_say_is_answered(by: str) -> None:
    """A closure alert, the end of the transport, and one after the other are one end of input; output goes on."""
    inner = Half()
    pair = TlsPair(inner).handshake()
    pair.exchange(b"question", ends=by != "transport")
    if by != "alert":
        pair.tls.readConnectionLost()
    assert (inner.received, inner.told) == (b"question", ["made", "read lost"])
    inner.transport.write(b"answer")
    inner.transport.loseConnection()
    pair.deliver()
    assert (pair.client.received, pair.client.got_close_notify) == (b"answer", True)
    assert pair.below.lost == "done"
    assert isinstance(inner.reason, ConnectionDone)


def test_data_after_the_closure_alert_is_ignored() -> None:
    """It must be (RFC 8446, 6.1); much of it is no longer read."""
    inner = Half()
    pair = TlsPair(inner).handshake()
    pair.exchange(ends=True)
    pair.feed(b"x" * 65_536)
    assert pair.below.reading
    pair.feed(b"x")
    assert not pair.below.reading
    assert inner.received == b""


def test_a_protocol_that_knows_no_half_close_ends_with_its_client() -> None:
    """Data written so far still arrives; the producer is stopped."""
    stopped: list[str] = []

    class Producer:
        def stopProducing(self) -> None:
            stopped.append("yes")

    inner = Plain(lambda transport: transport.registerProducer(Producer(), True))
    pair = TlsPair(inner).handshake()
    inner.transport.write(b"answer")
    pair.exchange(ends=True)
    assert (pair.client.received, pair.client.got_close_notify) == (b"answer", True)
    assert (stopped, pair.below.producer, pair.below.lost) == (["yes"], None, "done")


def test_the_server_ends_first() -> None:
    """Written data arrives, then the closure alert, then the transport ends; later writes are discarded."""
    inner = Plain()
    pair = TlsPair(inner).handshake()
    inner.transport.write(b"bye")
    inner.transport.loseConnection()
    inner.transport.loseConnection()
    inner.transport.write(b"no more")
    pair.turn()
    assert (pair.client.received, pair.client.got_close_notify, pair.below.lost) == (b"bye", True, "done")


def test_input_behind_the_end_is_not_handed_over() -> None:
    """After loseConnection() no input is delivered."""
    inner = Plain()
    pair = TlsPair(inner).handshake()

    def end(data: bytes) -> None:
        del data
        inner.told.append("data")
        inner.transport.loseConnection()

    inner.dataReceived = end  # type: ignore[method-assign]
    pair.feed(pair.client.send(b"1") + pair.client.send(b"2"))
    assert inner.told == ["made", "data", "lost"]


def test_the_server_closes_its_side() -> None:
    """The client gets the closure alert and can go on sending; the transport's output is closed as well."""
    inner = Half()
    pair = TlsPair(inner).handshake()
    inner.transport.write(b"all")
    inner.transport.loseWriteConnection()
    inner.transport.write(b"more")
    pair.deliver()
    assert (pair.client.received, pair.client.got_close_notify, pair.below.write_closed) == (b"all", True, True)
    assert inner.told == ["made", "write lost"]
    pair.exchange(b"still there")
    assert inner.received == b"still there"
    pair.exchange(ends=True)
    assert inner.told[-1] == "read lost"
    inner.transport.loseConnection()
    assert pair.below.lost == "done"


@pytest.mark.parametrize("how", ["loseConnection", "loseWriteConnection"])
def test_the_end_waits_for_a_producer(how: str) -> None:
    """What a producer has still to produce comes before the closure alert."""

    class Pulled:
        left = 3

        def resumeProducing(self) -> None:
            inner.transport.write(b"%d" % self.left)
            self.left -= 1
            if not self.left:
                inner.transport.unregisterProducer()

        def stopProducing(self) -> None:
            """Nothing to do."""

    inner = Half()
    pair = TlsPair(inner).handshake()
    inner.transport.registerProducer(Pulled(), False)
    with pytest.raises(RuntimeError):
        inner.transport.registerProducer(Pulled(), False)
    getattr(inner.transport, how)()
    for _ in range(3):
        pair.turn()
        assert not pair.client.got_close_notify or pair.client.received == b"321"
        if not pair.below.lost:
            pair.below.drain()
    assert (pair.client.received, pair.client.got_close_notify) == (b"321", True)


def test_a_loss_is_told_as_it_was() -> None:
    """The inner protocol gets the reason of the transport, and later writes are discarded."""
    inner = Plain()
    pair = TlsPair(inner).handshake()
    transport = inner.transport
    transport.write(b"never sent")
    pair.below.lose(Failure(ConnectionLost()))
    assert isinstance(inner.reason, ConnectionLost)
    transport.write(b"too late")
    transport.loseConnection()
    transport.loseWriteConnection()
    pair.clock.advance(1)
    assert pair.tls.failure_text == ""


def test_a_producer_that_comes_too_late_is_told_to_stop() -> None:
    """As with any transport; a registered producer is stopped once."""
    stopped: list[str] = []

    class Producer:
        def stopProducing(self) -> None:
            stopped.append("yes")

    inner = Plain()
    pair = TlsPair(inner).handshake()
    transport = inner.transport
    pair.below.lose(Failure(ConnectionDone()))
    transport.registerProducer(Producer(), True)
    transport.unregisterProducer()
    assert stopped == ["yes"]


def test_to_consume_no_more_ends_the_connection() -> None:
    """As Twisted's consumers have it."""
    inner = Plain(lambda transport: transport.registerProducer(ChargenProtocol(), True))
    pair = TlsPair(inner).handshake()
    inner.transport.stopConsuming()
    pair.deliver()
    assert (pair.client.got_close_notify, pair.below.lost, pair.below.producer) == (True, "done", None)


def test_an_abort_is_below() -> None:
    """To abort is to end the transport at once."""
    inner = Plain()
    pair = TlsPair(inner).handshake()
    inner.transport.abortConnection()
    assert pair.below.lost == "aborted"
    assert isinstance(inner.reason, ConnectionAborted)


# Back-pressure.


def test_a_protocol_that_wants_no_input_gets_none() -> None:
    """What came meanwhile waits, in order; nothing more is read before it was handed over."""
    inner = Half()
    pair = TlsPair(inner).handshake()
    inner.transport.pauseProducing()
    assert not pair.below.reading
    data = bytes(range(256)) * 1000
    pair.feed(pair.client.send(data))
    pair.feed(pair.client.send(b"and more"))
    assert inner.received == b""
    pair.tls.readConnectionLost()
    assert inner.told == ["made"]
    inner.transport.resumeProducing()
    assert (inner.received, pair.below.reading) == (b"", False)
    pair.turn()
    assert inner.received == data + b"and more"
    assert inner.told == ["made", "read lost"]


def test_input_can_be_stopped_at_any_record() -> None:
    """Between two records of one piece, too; and the transport is read again when all was handed over."""
    inner = Plain()
    pair = TlsPair(inner).handshake()
    sizes = []

    def stop(data: bytes) -> None:
        sizes.append(len(data))
        inner.transport.pauseProducing()

    inner.dataReceived = stop  # type: ignore[method-assign]
    pair.feed(pair.client.send(b"x" * 100_000))
    while not pair.below.reading and len(sizes) < 20:
        seen = len(sizes)
        inner.transport.resumeProducing()
        inner.transport.resumeProducing()
        pair.turn()
        assert len(sizes) <= seen + 1
    assert (sum(sizes), max(sizes)) == (100_000, 16_384)


def test_to_pause_and_resume_in_one_go() -> None:
    """Nothing is lost, and reading goes on."""
    inner = Plain()
    pair = TlsPair(inner).handshake()

    def both(data: bytes) -> None:
        inner.received += data
        inner.transport.pauseProducing()
        inner.transport.resumeProducing()

    inner.dataReceived = both  # type: ignore[method-assign]
    pair.feed(pair.client.send(b"x" * 100_000))
    pair.turn()
    assert (inner.received, pair.below.reading) == (b"x" * 100_000, True)


def test_a_client_that_does_not_read_is_not_read() -> None:
    """Echo stops when its answers are not taken, with a bounded rest, and goes on when they are."""
    pair = TlsPair(EchoProtocol(), room=100_000).handshake()
    data = bytes(range(256)) * 1600
    wire = pair.client.send(data)
    sent = 0
    while pair.below.reading:
        pair.feed(wire[sent : sent + 65_536])
        sent += 65_536
    assert pair.below.pending < 200_000
    for _ in range(100):
        pair.below.drain()
        pair.turn()
        if pair.below.reading:
            pair.feed(wire[sent : sent + 65_536])
            sent += 65_536
    pair.deliver()
    assert pair.client.received == data


def test_chargen_waits_for_its_client() -> None:
    """A pull producer is asked again when the transport has room, not before."""
    pair = TlsPair(ChargenProtocol(), room=0).handshake()
    pair.turn()
    first = len(pair.client.received)
    assert first
    pair.turn()
    assert len(pair.client.received) == first
    pair.below.drain()
    pair.turn()
    assert len(pair.client.received) == 2 * first
    pair.exchange(ends=True)
    assert not pair.client.got_close_notify
    pair.tls.drain()
    pair.deliver()
    assert pair.client.got_close_notify


# Handshakes that fail.


def test_plain_http_at_a_tls_port() -> None:
    """The log gets a clear word; the client gets an alert and time to read it."""
    inner = Plain()
    pair = TlsPair(inner)
    pair.feed(b"GET / HTTP/1.1\r\n\r\n")
    assert pair.tls.failure_text == "http request"
    assert pair.below.sent.startswith(b"HTTP/1.0 400 ")
    assert pair.below.write_closed
    lost = [pair.below.lost]
    pair.feed(b"x" * 70_000)
    assert not pair.below.reading
    pair.clock.advance(LINGER_SECONDS)
    assert [*lost, pair.below.lost] == ["", "done"]
    assert (inner.told, pair.counters.handshakes_failed) == ([], {"tls": 1})


def test_a_failed_handshake_ends_with_the_client() -> None:
    """If the client closes after the alert, the connection closes without waiting any longer."""
    pair = TlsPair()
    pair.feed(b"hello, is anybody there?")
    pair.tls.readConnectionLost()
    assert pair.below.lost == "done"
    assert not pair.clock.getDelayedCalls() or pair.clock.getDelayedCalls()[0].getTime() == HANDSHAKE_SECONDS


def test_a_client_that_does_not_trust_us() -> None:
    """The client's alert fails the handshake."""
    pair = TlsPair(client=TlsClient(trusts=False))
    with pytest.raises(SSL.Error):
        pair.handshake()
    wire = b""
    while not wire:
        wire = pair.client.tls.bio_read(1000)
    pair.feed(wire)
    assert pair.tls.failure_text == "tlsv1 alert unknown ca"


def test_a_client_without_the_certificate_it_needs() -> None:
    """It gets an alert with the reason."""
    pair = TlsPair(tls_client_ca="/c/clients")
    with pytest.raises(SSL.Error) as failure:
        pair.handshake()
    assert failure.value.args[0][0][-1] == "tlsv13 alert certificate required"
    assert pair.tls.failure_text == "peer did not return a certificate"


def test_a_client_with_a_name_that_is_not_wanted() -> None:
    """It is refused after its handshake, with a closure alert."""
    inner = Plain()
    pair = TlsPair(inner, TlsClient(ANNA), tls_client_ca="/c/clients", tls_client_names="berta.example.org").handshake()
    assert "tls_client_names" in pair.tls.failure_text
    assert (pair.client.got_close_notify, inner.told, pair.tls.version) == (True, [], "")
    assert pair.counters.handshakes_failed == {"client": 1}


@pytest.mark.parametrize("how", ["end", "loss"])
def test_a_client_that_leaves_in_the_handshake(how: str) -> None:
    """It counts as a failure, except for a client that has sent nothing, as a port scan does."""
    for wire, text in ((b"", ""), (b"\x16\x03\x01", "the client has closed" if how == "end" else "connection lost")):
        pair = TlsPair()
        pair.feed(wire)
        if how == "end":
            pair.tls.readConnectionLost()
            assert pair.below.lost == "done"
        else:
            pair.below.lose(Failure(ConnectionLost()))
        assert pair.tls.failure_text == text
        assert pair.counters.handshakes_failed == ({"closed": 1} if text else {})


def test_a_client_that_takes_its_leave_in_the_handshake() -> None:
    """Its closure alert ends it."""
    pair = TlsPair(client=TlsClient(setup=lambda context: context.set_max_proto_version(SSL.TLS1_2_VERSION)))
    pair.exchange()
    pair.feed(b"\x15\x03\x03\x00\x02\x01\x00")
    assert (pair.below.lost, pair.tls.failure_text) == ("done", "the client has closed")


def test_a_handshake_takes_its_time_at_most() -> None:
    """Each is ended 30 seconds after it began, by one timer for all; those that are done stay."""
    first = TlsPair()
    handshakes = first.tls._handshakes
    clock = first.clock
    clock.advance(10)
    second = TlsPair()
    second.clock = clock
    second.tls._handshakes = handshakes
    handshakes.begin(second.tls)
    assert len(clock.getDelayedCalls()) == 1
    clock.advance(HANDSHAKE_SECONDS - 10)
    assert (first.below.lost, second.below.lost) == ("aborted", "")
    assert first.tls.failure_text == "it was not done in 30 seconds"
    assert first.counters.handshakes_failed == {"timeout": 1}
    second.handshake()
    clock.advance(HANDSHAKE_SECONDS)
    assert second.below.lost == ""
    assert not clock.getDelayedCalls()


def test_a_handshake_gives_way_to_another_connection() -> None:
    """The one that began first does, after half a second; one that is done does not."""
    pair = TlsPair()
    handshakes = pair.tls._handshakes
    pair.clock.advance(0.4)
    assert not handshakes.evict()
    pair.clock.advance(0.1)
    assert handshakes.evict()
    assert (pair.below.lost, pair.tls.end_reason) == ("aborted", "evicted")
    assert "ran out" in pair.tls.failure_text
    assert pair.counters.handshakes_failed == {"timeout": 1}
    assert not handshakes.evict()
    done = TlsPair()
    done.handshake()
    done.clock.advance(1)
    assert not done.tls._handshakes.evict()


def test_a_service_that_wants_no_connection() -> None:
    """The client gets a closure alert."""
    pair = TlsPair()
    pair.tls._build_inner = lambda: None
    pair.handshake()
    assert (pair.client.got_close_notify, pair.below.lost) == (True, "done")
    assert pair.tls.failure_text == "the service wants no connection"


@pytest.mark.parametrize("raised", [ZeroDivisionError("no luck"), SystemExit(3)])
def test_a_service_that_can_not_make_its_protocol(raised: BaseException) -> None:
    """What it raises is the reason for the log, and the end of this connection alone."""

    def build() -> None:
        raise raised

    pair = TlsPair()
    pair.tls._build_inner = build
    pair.handshake()
    assert (pair.client.got_close_notify, pair.below.lost) == (True, "done")
    assert pair.tls.failure_text.startswith(f"build raises {type(raised).__name__}: ")


@pytest.mark.parametrize("when", ["made", "later"])
def test_ctrl_c_is_not_the_connection_s(when: str) -> None:
    """KeyboardInterrupt gets through the service's protocol to the daemon, when it is made and when it goes on."""

    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    inner = Plain()
    pair = TlsPair(inner)
    if when == "made":
        pair.tls._build_inner = interrupted
        with pytest.raises(KeyboardInterrupt):
            pair.handshake()
    else:
        pair.handshake()
        inner.transport.pauseProducing()
        pair.feed(pair.client.send(b"x"))
        inner.dataReceived = interrupted  # type: ignore[method-assign,assignment]
        inner.transport.resumeProducing()
        with pytest.raises(KeyboardInterrupt):
            pair.clock.advance(0)
        assert not pair.tls.inner_raised


# What goes wrong later.


def test_what_is_no_tls_ends_the_connection() -> None:
    """A record that does not hold what it should is a loss for the inner protocol, and has a reason for the log."""
    inner = Plain()
    pair = TlsPair(inner).handshake()
    inner.transport.write(b"waits, and can't be sent any more")
    pair.feed(b"\x17\x03\x03\x00\x20" + b"x" * 32)
    assert pair.below.lost == "done"
    assert isinstance(inner.reason, ConnectionLost)
    assert pair.tls.failure_text == "TLS: decryption failed or bad record mac"
    with pytest.raises(SSL.Error, match="bad record mac"):
        pair.deliver()


@pytest.mark.parametrize("size", [10, 100_000])
def test_what_can_not_be_encrypted_ends_the_connection(size: int) -> None:
    """After a failed write the connection closes without waiting for it."""
    inner = Plain()
    pair = TlsPair(inner).handshake()

    def fail(_data: object) -> int:
        raise SSL.Error([("SSL routines", "", "internal error")])

    pair.tls._connection.encrypt = fail  # type: ignore[method-assign]
    inner.transport.write(b"x" * size)
    inner.transport.loseConnection()
    assert (pair.below.lost, pair.tls.failure_text) == ("done", "TLS: internal error")
    assert isinstance(inner.reason, ConnectionLost)


def test_a_mistake_of_the_inner_protocol_is_the_transports_matter() -> None:
    """Its exceptions reach the caller, as without TLS."""
    inner = Plain()
    pair = TlsPair(inner).handshake()
    inner.dataReceived = lambda _data: 1 / 0  # type: ignore[method-assign,assignment]
    with pytest.raises(ZeroDivisionError):
        pair.exchange(b"x")


def test_a_mistake_with_input_that_waited() -> None:
    """There is no caller then: the exception is logged, and the connection ends."""
    inner = Plain()
    pair = TlsPair(inner).handshake()
    inner.transport.pauseProducing()
    pair.feed(pair.client.send(b"x"))
    inner.dataReceived = lambda _data: 1 / 0  # type: ignore[method-assign,assignment]
    inner.transport.resumeProducing()
    with LogCatcher() as log:
        pair.clock.advance(0)
    assert (pair.tls.inner_raised, pair.below.lost) == (True, "aborted")
    assert log.failures[0].check(ZeroDivisionError)


def test_a_client_that_asks_for_endless_answers_of_tls() -> None:
    """OpenSSL answers each key update, so a client that reads none of the answers is ended."""

    class Chatty:
        """OpenSSL connection with records to send after any input."""

        def feed(self, data: bytes) -> None:
            self.said = b"y" * len(data)

        def decrypt(self) -> None:
            """Nothing for the protocol."""

        def read_records(self) -> bytes:
            said, self.said = self.said, b""
            return said

    pair = TlsPair(Plain()).handshake()
    pair.tls._connection = Chatty()
    pair.feed(b"x" * 60_000, 10_000)
    lost = [pair.below.lost]
    pair.feed(b"x" * 6000)
    assert [*lost, pair.below.lost] == ["", "aborted"]
    assert pair.tls.failure_text == "TLS: too many key updates"


def test_a_long_certificate() -> None:
    """The tickets that end a handshake have the client's certificate in them, twice: that is no flood."""
    anna = CLIENTS.sign("anna.example.org", *(f"{number}.a-long-name.of.many.example.org" for number in range(1000)))
    pair = TlsPair(Plain(), TlsClient(anna), tls_client_ca="/c/clients").handshake()
    assert len(pair.below.sent) > 65_536
    pair.exchange(b"hi")
    assert (pair.tls.version, pair.below.lost) == ("TLSv1.3", "")


def test_who_aborts_hears_no_more() -> None:
    """Not even what came in one piece with what made it abort."""

    class Aborting(Plain):
        def dataReceived(self, data: bytes) -> None:
            super().dataReceived(data)
            self.transport.abortConnection()
            self.transport.write(b"unheard")

    pair = TlsPair(inner := Aborting()).handshake()
    sent = len(pair.below.sent)
    pair.below.abortConnection = lambda: None  # type: ignore[method-assign]
    pair.feed(pair.client.send(b"one") + pair.client.send(b"two"))
    assert (inner.received, len(pair.below.sent)) == (b"one", sent)


def test_the_reactor_calls_soon() -> None:
    """svcd's reactor has call_soon(), which handshakes prefer to callLater(0)."""
    assert callable(UvReactor.call_soon)
