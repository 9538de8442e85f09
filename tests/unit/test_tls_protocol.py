"""TlsProtocol between a transport and an inner protocol: data, back-pressure, and the end of connections."""

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
        self.calls: list[str] = []
        self.received = b""
        self.reason: Any = None
        self._made = made

    def connectionMade(self) -> None:
        """Record the call."""
        self.calls.append("made")
        if self._made is not None:
            self._made(self.transport)

    def dataReceived(self, data: bytes) -> None:
        """Record the data."""
        self.received += data

    def connectionLost(self, reason: Any = None) -> None:
        """Record the call and the reason."""
        self.calls.append("lost")
        self.reason = reason.value


@implementer(IHalfCloseableProtocol)
class Half(Plain):
    """The same with half-close."""

    def readConnectionLost(self) -> None:
        """Record the call."""
        self.calls.append("read lost")

    def writeConnectionLost(self) -> None:
        """Record the call."""
        self.calls.append("write lost")


def test_inner_protocol_starts_after_the_handshake() -> None:
    """The inner protocol is built after the handshake, and its transport has the client's identity."""
    inner = Plain()
    pair = TlsPair(inner, TlsClient(ANNA), tls_client_ca="/c/clients")
    pair.exchange()
    assert (pair.tls.version, inner.calls) == ("", [])
    pair.handshake()
    assert (pair.tls.version, inner.calls) == ("TLSv1.3", ["made"])
    assert inner.transport.tls_identity.subject == "CN=anna.example.org"
    assert inner.transport.tls_identity is inner.transport.tls_identity
    assert inner.transport.getPeerCertificate().to_cryptography() == ANNA.certificate
    assert inner.transport.getHandle().get_servername() == b"localhost"
    assert inner.transport.getPeer() == pair.below.getPeer()
    assert inner.transport.negotiatedProtocol is None
    assert not hasattr(inner.transport, "startTLS")
    assert not hasattr(inner.transport, "send_file")
    assert ISSLTransport.providedBy(inner.transport)
    assert pair.counters.handshakes == {"TLSv1.3": 1}


def test_alpn() -> None:
    """negotiatedProtocol has the protocol selected by ALPN."""
    client = TlsClient(setup=lambda context: context.set_alpn_protos([b"a", b"b"]))
    assert TlsPair(client=client, tls_alpn="b").handshake().tls.negotiatedProtocol == b"b"


def test_handshake_listener() -> None:
    """IHandshakeListener.handshakeCompleted() is called."""

    @implementer(IHandshakeListener)
    class Listener(Plain):
        def handshakeCompleted(self) -> None:
            self.calls.append("shaken")

    inner = Listener()
    TlsPair(inner).handshake()
    assert inner.calls == ["made", "shaken"]


@pytest.mark.parametrize("piece", [0, 1, 7, 1000])
@pytest.mark.parametrize("size", SIZES)
def test_data_of_any_size(size: int, piece: int) -> None:
    """Data of any size is echoed, for any size of pieces."""
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
def test_random_data_in_random_pieces(talk: list[tuple[bytes, int]]) -> None:
    """The service gets the data of the client, and the client gets all of it back."""
    inner = EchoProtocol()
    pair = TlsPair(inner).handshake()
    for data, piece in talk:
        pair.exchange(data, piece=piece)
    pair.turn()
    assert pair.client.received == b"".join(data for data, _ in talk)


def test_data_with_the_end_of_the_handshake() -> None:
    """Data that a client sends together with the end of its handshake is delivered."""
    inner = Plain()
    pair = TlsPair(inner)
    pair.exchange()
    wire = pair.client.send() + pair.client.send(b"early", ends=True)
    pair.feed(wire)
    assert inner.received == b"early"
    assert pair.below.lost == "done"


def test_tls_1_2() -> None:
    """Clients without TLS 1.3 are served unless tls_min forbids it."""
    client = TlsClient(setup=lambda context: context.set_max_proto_version(SSL.TLS1_2_VERSION))
    pair = TlsPair(EchoProtocol(), client).handshake()
    pair.exchange(b"x" * 50_000, ends=True)
    assert pair.tls.version == "TLSv1.2"
    assert (pair.client.received, pair.client.got_close_notify) == (b"x" * 50_000, True)


# Writing


def test_writes_during_input_share_a_record() -> None:
    """Small writes during the delivery of input share a record and a write of the transport."""
    inner = Plain()
    pair = TlsPair(inner).handshake()
    inner.dataReceived = lambda data: inner.transport.writeSequence([data[:1], data[1:]] * 3)  # type: ignore[method-assign]
    writes = pair.below.writes
    pair.exchange(b"ab")
    assert pair.below.writes == writes + 1
    assert pair.client.received == b"ababab"


def test_small_writes_share_a_record() -> None:
    """At other times small writes of the same turn of the reactor share a record."""
    inner = Plain()
    pair = TlsPair(inner).handshake()
    writes = pair.below.writes
    for _ in range(10):
        inner.transport.write(b"x" * 100)
    assert pair.below.writes == writes
    pair.turn()
    assert (pair.below.writes, len(pair.client.received)) == (writes + 1, 1000)


def test_large_writes_are_sent_at_once() -> None:
    """A large write is sent at once, after waiting small ones; so are many small writes."""
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


def test_large_answers_are_sent_in_slices() -> None:
    """OpenSSL's buffers never shrink, so they hold one slice of the output at most, for any size of the input."""
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

    def take_records() -> bytes:
        nonlocal held
        held = 0
        return read_records()

    connection.encrypt, connection.read_records = count, take_records  # type: ignore[method-assign]
    pair.exchange(DATA)
    assert pair.client.received == DATA
    assert most <= 40_000


def test_producer_is_paused_during_input() -> None:
    """A producer is paused also during the delivery of input, which bounds the waiting output."""

    class Producer:
        produces = True
        written = 0

        def pauseProducing(self) -> None:
            self.produces = False

        def resumeProducing(self) -> None:
            """Record the call."""

        def stopProducing(self) -> None:
            """Record the call."""

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
    """write() raises TypeError for text."""
    inner = Plain()
    TlsPair(inner).handshake()
    with pytest.raises(TypeError):
        inner.transport.write("text")


# End of connections


@pytest.mark.parametrize("by", ["alert", "transport", "both"])
def test_end_of_input_is_a_half_close(by: str) -> None:
    """A closure alert, the end of the transport's input, or both are one end of input; output continues."""
    inner = Half()
    pair = TlsPair(inner).handshake()
    pair.exchange(b"question", ends=by != "transport")
    if by != "alert":
        pair.tls.readConnectionLost()
    assert (inner.received, inner.calls) == (b"question", ["made", "read lost"])
    inner.transport.write(b"answer")
    inner.transport.loseConnection()
    pair.deliver()
    assert (pair.client.received, pair.client.got_close_notify) == (b"answer", True)
    assert pair.below.lost == "done"
    assert isinstance(inner.reason, ConnectionDone)


def test_data_after_the_closure_alert_is_ignored() -> None:
    """Data after a closure alert is discarded (RFC 8446, 6.1); after 64 KiB the transport is not read any more."""
    inner = Half()
    pair = TlsPair(inner).handshake()
    pair.exchange(ends=True)
    pair.feed(b"x" * 65_536)
    assert pair.below.reading
    pair.feed(b"x")
    assert not pair.below.reading
    assert inner.received == b""


def test_end_of_input_without_half_close() -> None:
    """The connection of a protocol without half-close is closed after its output; its producer is stopped."""
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


def test_lose_connection() -> None:
    """Written data arrives, then the closure alert, and the transport is closed; later writes are discarded."""
    inner = Plain()
    pair = TlsPair(inner).handshake()
    inner.transport.write(b"bye")
    inner.transport.loseConnection()
    inner.transport.loseConnection()
    inner.transport.write(b"no more")
    pair.turn()
    assert (pair.client.received, pair.client.got_close_notify, pair.below.lost) == (b"bye", True, "done")


def test_no_input_after_lose_connection() -> None:
    """No input is delivered after loseConnection()."""
    inner = Plain()
    pair = TlsPair(inner).handshake()

    def end(data: bytes) -> None:
        del data
        inner.calls.append("data")
        inner.transport.loseConnection()

    inner.dataReceived = end  # type: ignore[method-assign]
    pair.feed(pair.client.send(b"1") + pair.client.send(b"2"))
    assert inner.calls == ["made", "data", "lost"]


def test_lose_write_connection() -> None:
    """The client gets the closure alert and can continue to send; the transport's output is closed as well."""
    inner = Half()
    pair = TlsPair(inner).handshake()
    inner.transport.write(b"all")
    inner.transport.loseWriteConnection()
    inner.transport.write(b"more")
    pair.deliver()
    assert (pair.client.received, pair.client.got_close_notify, pair.below.write_closed) == (b"all", True, True)
    assert inner.calls == ["made", "write lost"]
    pair.exchange(b"still there")
    assert inner.received == b"still there"
    pair.exchange(ends=True)
    assert inner.calls[-1] == "read lost"
    inner.transport.loseConnection()
    assert pair.below.lost == "done"


@pytest.mark.parametrize("how", ["loseConnection", "loseWriteConnection"])
def test_close_waits_for_the_producer(how: str) -> None:
    """The remaining output of a producer is sent before the closure alert."""

    class Pulled:
        left = 3

        def resumeProducing(self) -> None:
            inner.transport.write(b"%d" % self.left)
            self.left -= 1
            if not self.left:
                inner.transport.unregisterProducer()

        def stopProducing(self) -> None:
            """Do nothing."""

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


def test_reason_of_the_transport_is_passed_on() -> None:
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


def test_producer_registered_after_the_close_is_stopped() -> None:
    """A producer registered after the close is stopped, as with any transport; a registered one is stopped once."""
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


def test_stop_consuming() -> None:
    """stopConsuming() closes the connection, as with Twisted's transports."""
    inner = Plain(lambda transport: transport.registerProducer(ChargenProtocol(), True))
    pair = TlsPair(inner).handshake()
    inner.transport.stopConsuming()
    pair.deliver()
    assert (pair.client.got_close_notify, pair.below.lost, pair.below.producer) == (True, "done", None)


def test_abort_connection() -> None:
    """abortConnection() aborts the transport at once."""
    inner = Plain()
    pair = TlsPair(inner).handshake()
    inner.transport.abortConnection()
    assert pair.below.lost == "aborted"
    assert isinstance(inner.reason, ConnectionAborted)


# Back-pressure


def test_paused_protocol_gets_no_input() -> None:
    """Input during a pause waits in order; the transport is not read before it is delivered."""
    inner = Half()
    pair = TlsPair(inner).handshake()
    inner.transport.pauseProducing()
    assert not pair.below.reading
    data = bytes(range(256)) * 1000
    pair.feed(pair.client.send(data))
    pair.feed(pair.client.send(b"and more"))
    assert inner.received == b""
    pair.tls.readConnectionLost()
    assert inner.calls == ["made"]
    inner.transport.resumeProducing()
    assert (inner.received, pair.below.reading) == (b"", False)
    pair.turn()
    assert inner.received == data + b"and more"
    assert inner.calls == ["made", "read lost"]


def test_pause_between_records() -> None:
    """A pause between two records of one piece takes effect; the transport is read again after the delivery."""
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


def test_pause_and_resume_in_one_call() -> None:
    """Pausing and resuming in the same call loses no data, and reading continues."""
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


def test_client_that_does_not_read_is_not_read() -> None:
    """Echo pauses its input while its output is not sent, with bounded buffers, and then continues."""
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
    """A pull producer is called again only when the transport has room."""
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


# Failed handshakes


def test_plain_http_at_a_tls_port() -> None:
    """The failure has a clear reason; the client gets an alert and time to read it."""
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
    assert (inner.calls, pair.counters.handshakes_failed) == ([], {"tls": 1})


def test_client_closes_after_a_failed_handshake() -> None:
    """If the client closes after the alert, the connection is closed at once."""
    pair = TlsPair()
    pair.feed(b"hello, is anybody there?")
    pair.tls.readConnectionLost()
    assert pair.below.lost == "done"
    assert not pair.clock.getDelayedCalls() or pair.clock.getDelayedCalls()[0].getTime() == HANDSHAKE_SECONDS


def test_client_does_not_trust_the_certificate() -> None:
    """The client's alert fails the handshake."""
    pair = TlsPair(client=TlsClient(trusts=False))
    with pytest.raises(SSL.Error):
        pair.handshake()
    wire = b""
    while not wire:
        wire = pair.client.tls.bio_read(1000)
    pair.feed(wire)
    assert pair.tls.failure_text == "tlsv1 alert unknown ca"


def test_client_without_a_required_certificate() -> None:
    """The client gets an alert with the reason."""
    pair = TlsPair(tls_client_ca="/c/clients")
    with pytest.raises(SSL.Error) as failure:
        pair.handshake()
    assert failure.value.args[0][0][-1] == "tlsv13 alert certificate required"
    assert pair.tls.failure_text == "peer did not return a certificate"


def test_client_with_another_name() -> None:
    """A client that is not in tls_client_names is refused after its handshake, with a closure alert."""
    inner = Plain()
    pair = TlsPair(inner, TlsClient(ANNA), tls_client_ca="/c/clients", tls_client_names="berta.example.org").handshake()
    assert "tls_client_names" in pair.tls.failure_text
    assert (pair.client.got_close_notify, inner.calls, pair.tls.version) == (True, [], "")
    assert pair.counters.handshakes_failed == {"client": 1}


@pytest.mark.parametrize("how", ["end", "loss"])
def test_client_closes_in_its_handshake(how: str) -> None:
    """This counts as a failure, except if the client has sent nothing, as in a port scan."""
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


def test_closure_alert_in_the_handshake() -> None:
    """A closure alert during the handshake fails it."""
    pair = TlsPair(client=TlsClient(setup=lambda context: context.set_max_proto_version(SSL.TLS1_2_VERSION)))
    pair.exchange()
    pair.feed(b"\x15\x03\x03\x00\x02\x01\x00")
    assert (pair.below.lost, pair.tls.failure_text) == ("done", "the client has closed")


def test_handshake_timeout() -> None:
    """Each handshake is ended after 30 seconds, with one timer for all; completed ones are not affected."""
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
    assert first.tls.failure_text == "the handshake was not complete within 30 seconds"
    assert first.counters.handshakes_failed == {"timeout": 1}
    second.handshake()
    clock.advance(HANDSHAKE_SECONDS)
    assert second.below.lost == ""
    assert not clock.getDelayedCalls()


def test_eviction_of_handshakes() -> None:
    """The oldest handshake is evicted if it is older than 0.5 s; a completed one is not."""
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


def test_factory_without_a_protocol() -> None:
    """If buildProtocol() returns None, the client gets a closure alert."""
    pair = TlsPair()
    pair.tls._build_inner = lambda: None
    pair.handshake()
    assert (pair.client.got_close_notify, pair.below.lost) == (True, "done")
    assert pair.tls.failure_text == "the service declines the connection"


@pytest.mark.parametrize("raised", [ZeroDivisionError("no luck"), SystemExit(3)])
def test_exception_of_the_factory(raised: BaseException) -> None:
    """An exception of buildProtocol() is the failure_text, and ends this connection only."""

    def build() -> None:
        raise raised

    pair = TlsPair()
    pair.tls._build_inner = build
    pair.handshake()
    assert (pair.client.got_close_notify, pair.below.lost) == (True, "done")
    assert pair.tls.failure_text.startswith(f"build raises {type(raised).__name__}: ")


@pytest.mark.parametrize("when", ["made", "later"])
def test_keyboard_interrupt_reaches_the_daemon(when: str) -> None:
    """A KeyboardInterrupt in the inner protocol reaches the daemon: in its creation, and with pending input."""

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


# Errors after the handshake


def test_invalid_record() -> None:
    """An invalid record ends the connection with ConnectionLost for the inner protocol, and with a failure_text."""
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
def test_encryption_error(size: int) -> None:
    """After an error of OpenSSL in a write the connection is closed at once."""
    inner = Plain()
    pair = TlsPair(inner).handshake()

    def fail(_data: object) -> int:
        raise SSL.Error([("SSL routines", "", "internal error")])

    pair.tls._connection.encrypt = fail  # type: ignore[method-assign]
    inner.transport.write(b"x" * size)
    inner.transport.loseConnection()
    assert (pair.below.lost, pair.tls.failure_text) == ("done", "TLS: internal error")
    assert isinstance(inner.reason, ConnectionLost)


def test_exception_of_the_inner_protocol() -> None:
    """Exceptions in dataReceived() reach the transport, as without TLS."""
    inner = Plain()
    pair = TlsPair(inner).handshake()
    inner.dataReceived = lambda _data: 1 / 0  # type: ignore[method-assign,assignment]
    with pytest.raises(ZeroDivisionError):
        pair.exchange(b"x")


def test_exception_with_pending_input() -> None:
    """Without a call of the transport the exception is logged, and the connection is aborted."""
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


def test_too_many_key_updates() -> None:
    """OpenSSL answers each key update; the connection of a client that reads no answer is aborted."""

    class Chatty:
        """OpenSSL connection with records to send after any input."""

        def feed(self, data: bytes) -> None:
            self.pending = b"y" * len(data)

        def decrypt(self) -> None:
            """Return no plaintext."""

        def read_records(self) -> bytes:
            pending, self.pending = self.pending, b""
            return pending

    pair = TlsPair(Plain()).handshake()
    pair.tls._connection = Chatty()
    pair.feed(b"x" * 60_000, 10_000)
    lost = [pair.below.lost]
    pair.feed(b"x" * 6000)
    assert [*lost, pair.below.lost] == ["", "aborted"]
    assert pair.tls.failure_text == "TLS: too many key updates"


def test_a_long_certificate() -> None:
    """Session tickets with a long client certificate do not count as too many records."""
    anna = CLIENTS.sign("anna.example.org", *(f"{number}.a-long-name.of.many.example.org" for number in range(1000)))
    pair = TlsPair(Plain(), TlsClient(anna), tls_client_ca="/c/clients").handshake()
    assert len(pair.below.sent) > 65_536
    pair.exchange(b"hi")
    assert (pair.tls.version, pair.below.lost) == ("TLSv1.3", "")


def test_no_input_after_an_abort() -> None:
    """After abortConnection() no input is delivered, not even from the same piece."""

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


def test_call_soon() -> None:
    """If the reactor has call_soon(), handshakes use it in place of callLater(0)."""
    assert callable(UvReactor.call_soon)
