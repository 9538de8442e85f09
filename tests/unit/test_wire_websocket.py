"""WebSocket handshakes and frames: tables of cases as the Autobahn test suite has them, by its sections."""

from __future__ import annotations

import struct
import tracemalloc
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcd.wire.websocket_frames import CloseCode, Frame, FrameReader, Opcode, WebSocketError
from svcd.wire.websocket_handshake import (
    Agreement,
    DeflateOffer,
    HandshakeError,
    HandshakeReader,
    Negotiation,
    http_response,
)
from tests.websocket import HANDSHAKE, MOST, deflated, frame, fuzz, read_by_svcd, received, request

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def _accept(head: bytes, rules: Negotiation | None = None) -> Agreement:
    found = HandshakeReader().feed(head)
    assert found is not None
    return (rules or Negotiation()).accept(found[0])


# Handshakes


def test_the_handshake_of_the_rfc() -> None:
    """The example of RFC 6455, section 1.3, gets its accept key; there is no other field than the required ones."""
    assert _accept(HANDSHAKE).response == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    )


@pytest.mark.parametrize("cut", range(1, len(HANDSHAKE)))
def test_a_request_in_two_pieces(cut: int) -> None:
    """A request may be cut anywhere; the bytes after its head are returned as they are."""
    reader = HandshakeReader()
    assert not reader.begun
    assert reader.feed(HANDSHAKE[:cut]) is None
    assert reader.begun
    found = reader.feed(HANDSHAKE[cut:] + b"\x81\x80GET / HTTP/1.1\r\n\r\n")
    assert found is not None
    assert found[1] == b"\x81\x80GET / HTTP/1.1\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (HANDSHAKE.replace(b"GET", b"HEAD"), 405),
        (HANDSHAKE.replace(b"GET", b"OPTIONS"), 405),
        (request(Upgrade=None), 426),
        (request(Upgrade="h2c"), 426),
        (request(Connection="keep-alive"), 426),
        (request(Connection=None), 426),
        (request(Sec_WebSocket_Version=None), 426),
        (request(Sec_WebSocket_Version="8"), 426),
        (request(Sec_WebSocket_Version="13, 8"), 426),
        (request(Sec_WebSocket_Key=None), 400),
        (request(Sec_WebSocket_Key="dGhlIHNhbXBsZQ=="), 400),
        (request(Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ"), 400),
        (request(Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ==") .replace(b"ub25", b"u\xe925"), 400),
        (request(Host=None), 400),
        (HANDSHAKE.replace(b"HTTP/1.1", b"HTTP/1.0"), 400),
        (request("/../x"), 400),
        (request("/%00"), 400),
        (request("chat"), 400),
        (request(X="y" * 17_000), 431),
        (b"GET /" + b"x" * 9000 + HANDSHAKE[5:], 414),
        (b"hello\r\n\r\n", 400),
        (HANDSHAKE.replace(b"Upgrade: w", b"Upgrade : w"), 400),
    ],
)  # fmt: skip
def test_refused_handshakes(head: bytes, status: int) -> None:
    """A request that is no handshake gets the status that tells why (RFC 6455, sections 4.2.1 and 4.4)."""
    with pytest.raises(HandshakeError) as caught:
        _accept(head)
    assert caught.value.status == status
    response = caught.value.response
    assert response.startswith(f"HTTP/1.1 {status} ".encode())
    assert (b"Sec-WebSocket-Version: 13\r\n" in response) == (status == 426)
    assert (b"\r\nAllow: GET\r\n" in response) == (status == 405)


@pytest.mark.parametrize(
    "head",
    [
        request(Upgrade="WebSocket"),
        request(Upgrade="h2c, websocket"),
        request(Connection="keep-alive, upgrade"),
        request("http://a.example/x"),
        request("/a%20b?c=d#e"),
    ],
)
def test_accepted_handshakes(head: bytes) -> None:
    """Tokens are compared without case, also in lists; a target may have the absolute form."""
    assert _accept(head).response.startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize(
    ("path", "target", "found"),
    [
        ("", "/", ("", "/")),
        ("", "/a%20b/c?d", ("", "/a b/c")),
        ("/chat", "/chat", ("/chat", "")),
        ("/chat", "/chat?x", ("/chat", "")),
        ("/chat", "/chat/", ("/chat", "/")),
        ("/chat", "/chat/room", ("/chat", "/room")),
        ("/chat", "/chats", None),
        ("/chat", "/", None),
        ("/chat", "/Chat", None),
        ("/", "/x", ("", "/x")),
        ("/a/", "/a/b", ("/a", "/b")),
        ("/a/", "/a", None),
    ],
)
def test_paths(path: str, target: str, found: tuple[str, str] | None) -> None:
    """A service has its path and those below it."""
    if found is None:
        with pytest.raises(HandshakeError) as caught:
            _accept(request(target), Negotiation(path=path))
        assert caught.value.status == HTTPStatus.NOT_FOUND
    else:
        agreement = _accept(request(target), Negotiation(path=path))
        assert (agreement.script_name, agreement.path_info) == found


@pytest.mark.parametrize(
    ("origins", "origin", "accepted"),
    [
        ((), None, True),
        ((), "http://a.example", True),
        ((), "https://A.example", True),
        ((), "http://b.example", False),
        ((), "http://a.example:8080", False),
        ((), "null", False),
        (("https://b.example",), "https://b.example", True),
        (("https://b.example",), "http://b.example", False),
        (("https://b.example",), "http://a.example", False),
        (("https://b.example",), None, True),
        (("null",), "null", True),
        (("*",), "null", True),
        (("*",), "https://c.example", True),
    ],
)
def test_origins(origins: tuple[str, ...], origin: str | None, accepted: bool) -> None:
    """Pages of other sites are refused, unless they are named (RFC 6455, section 10.2)."""
    rules, head = Negotiation(origins=frozenset(origins)), request(Origin=origin)
    if accepted:
        assert _accept(head, rules)
    else:
        with pytest.raises(HandshakeError) as caught:
            _accept(head, rules)
        assert caught.value.status == HTTPStatus.FORBIDDEN


@pytest.mark.parametrize(
    ("offered", "chosen"), [("b, a", "b"), ("c,a", "a"), ("c", ""), (None, ""), ("A", ""), ("a", "a")]
)
def test_subprotocols(offered: str | None, chosen: str) -> None:
    """The first offered subprotocol that the service has is chosen."""
    agreement = _accept(request(Sec_WebSocket_Protocol=offered), Negotiation(protocols=("a", "b")))
    assert agreement.protocol == chosen
    assert (f"Sec-WebSocket-Protocol: {chosen}\r\n".encode() in agreement.response) == bool(chosen)


@pytest.mark.parametrize(
    ("offer", "deflate"),
    [
        (None, None),
        ("x-webkit-deflate-frame", None),
        ("permessage-deflate", DeflateOffer()),
        ("permessage-deflate; client_max_window_bits", DeflateOffer(None, True)),
        ("permessage-deflate; client_max_window_bits=10", DeflateOffer(None, True)),
        ("permessage-deflate; server_no_context_takeover; client_no_context_takeover", DeflateOffer()),
        ("permessage-deflate; server_max_window_bits=10", DeflateOffer(10)),
        ('permessage-deflate; server_max_window_bits="9"', DeflateOffer(9)),
        # zlib has no such window.
        ("permessage-deflate; server_max_window_bits=8", None),
        ("permessage-deflate; server_max_window_bits=8, permessage-deflate", DeflateOffer()),
        ("permessage-deflate; server_max_window_bits=16", None),
        ("permessage-deflate; server_max_window_bits=7", None),
        ("permessage-deflate; server_max_window_bits", None),
        ("permessage-deflate; server_max_window_bits=x", None),
        ("permessage-deflate; client_max_window_bits=99", None),
        ("permessage-deflate; client_no_context_takeover=1", None),
        ("permessage-deflate; client_no_context_takeover; client_no_context_takeover", None),
        ("permessage-deflate; unknown", None),
        ("foo, permessage-deflate;server_max_window_bits=12;client_max_window_bits", DeflateOffer(12, True)),
    ],
)  # fmt: skip
def test_offers_of_compression(offer: str | None, deflate: DeflateOffer | None) -> None:
    """The first offer that can be used is accepted, others are declined (RFC 7692, sections 5 and 7.1)."""
    head = request(Sec_WebSocket_Extensions=offer)
    agreement = _accept(head, Negotiation(deflate=True))
    assert agreement.deflate == deflate
    answer = b"" if deflate is None else f"Sec-WebSocket-Extensions: {deflate.answer}\r\n".encode()
    assert answer in agreement.response
    assert (b"Extensions" in agreement.response) == bool(answer)
    assert _accept(head).deflate is None


def test_responses_over_http() -> None:
    """A response without WebSocket is whole, and closes the connection."""
    assert http_response(HTTPStatus.FORBIDDEN, b"no\n", {"A": "b"}) == (
        b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 3\r\n"
        b"Connection: close\r\nA: b\r\n\r\nno\n"
    )


# Frames

_GREEK = "κόσμε".encode()
_CLOSE = struct.Struct("!H")


def _close(code: int, reason: bytes = b"") -> bytes:
    return frame(0x88, _CLOSE.pack(code) + reason)


#: Frames of a client, with what they come to: messages and control frames, and the status that ends the connection.
_CASES: dict[str, tuple[bytes, list[tuple[int, bytes]], int]] = {
    # 1. Framing: all forms of the length.
    **{
        f"1.1 text of {size}": (frame(0x81, b"*" * size), [(TEXT, b"*" * size)], 0)
        for size in (0, 125, 126, 127, 128, 1000, 4999, MOST)
    },
    **{
        f"1.2 binary of {size}": (frame(0x82, b"\xfe" * size), [(BINARY, b"\xfe" * size)], 0)
        for size in (0, 125, 126, 127, 128, 1000, MOST)
    },
    "5.2 length in two bytes instead of one": (b"\x81\xfe\x00\x05" + bytes(9), [], 1002),
    "5.2 length in eight bytes instead of two": (b"\x82\xff" + struct.pack("!Q", 300) + bytes(304), [], 1002),
    "5.2 length with its highest bit": (b"\x82\xff" + struct.pack("!Q", 1 << 63) + bytes(8), [], 1002),
    "5.1 text without a mask": (frame(0x81, b"a", mask=None), [], 1002),
    "5.1 ping without a mask": (frame(0x89, b"", mask=None), [], 1002),
    "5.3 masks of zeros": (frame(0x81, b"abc", mask=bytes(4)), [(TEXT, b"abc")], 0),
    # 2. Pings and Pongs.
    "2.1 empty ping": (frame(0x89), [(PING, b"")], 0),
    "2.4 ping of 125 bytes": (frame(0x89, b"\xfe" * 125), [(PING, b"\xfe" * 125)], 0),
    "2.5 ping of 126 bytes": (frame(0x89, b"\xfe" * 126), [], 1002),
    "2.7 unsolicited pong": (frame(0x8A) + frame(0x8A, b"x"), [(PONG, b""), (PONG, b"x")], 0),
    "2.10 ten pings": (b"".join(frame(0x89, b"%d" % n) for n in range(10)), [(PING, b"%d" % n) for n in range(10)], 0),
    # 3. Reserved bits.
    **{
        f"3.{bits} reserved bits, opcode {opcode}": (frame(0x80 | bits << 4 | opcode, b"x"), [], 1002)
        for bits in range(1, 8)
        for opcode in (TEXT, BINARY, PING, CLOSE)
    },
    "3.2 after a message": (frame(0x81, b"a") + frame(0xA1, b"b") + frame(0x89), [(TEXT, b"a")], 1002),
    # 4. Opcodes.
    **{
        f"4 opcode {opcode}": (frame(0x81, b"a") + frame(0x80 | opcode, b"x"), [(TEXT, b"a")], 1002)
        for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
    },
    # 5. Fragmentation.
    "5.1 ping in fragments": (frame(0x09, b"a") + frame(0x80, b"b"), [], 1002),
    "5.2 pong in fragments": (frame(0x0A, b"a"), [], 1002),
    "5.3 text in fragments": (frame(0x01, b"a") + frame(0x80, b"b"), [(TEXT, b"ab")], 0),
    "5.6 ping between fragments": (
        frame(0x01, b"a") + frame(0x89, b"p") + frame(0x80, b"b"), [(PING, b"p"), (TEXT, b"ab")], 0,
    ),
    "5.9 continuation of nothing": (frame(0x80, b"a") + frame(0x81, b"b"), [], 1002),
    "5.12 continuation of nothing that goes on": (frame(0x00, b"a"), [], 1002),
    "5.15 continuation after a message": (frame(0x01, b"a") + frame(0x80) + frame(0x80), [(TEXT, b"a")], 1002),
    "5.18 message within a message": (frame(0x01, b"a") + frame(0x81, b"b"), [], 1002),
    "5.19 many fragments and pings": (
        (frame(0x01, b"a") + frame(0x00, b"b")) + frame(0x89, b"1") + frame(0x00, b"c") + frame(0x89, b"2")
        + frame(0x80, b"d"), [(PING, b"1"), (PING, b"2"), (TEXT, b"abcd")], 0,
    ),
    "5.20 empty fragments": (frame(0x02) + frame(0x00) + frame(0x80), [(BINARY, b"")], 0),
    # 6. UTF-8.
    "6.1 empty text in fragments": (frame(0x01) + frame(0x00) + frame(0x80), [(TEXT, b"")], 0),
    "6.2 text": (frame(0x81, _GREEK), [(TEXT, _GREEK)], 0),
    "6.2 a character in two fragments": (frame(0x01, _GREEK[:1]) + frame(0x80, _GREEK[1:]), [(TEXT, _GREEK)], 0),
    **{
        f"6.3 invalid text {text.hex()}": (frame(0x81, text), [], 1007)
        for text in (
            _GREEK + b"\xed\xa0\x80edited", b"\x80", b"\xbf", b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf0\x80\x80\xaf",
            b"\xf8\x88\x80\x80\x80", b"\xfc\x84\x80\x80\x80\x80", b"\xfe", b"\xff", b"\xed\xbf\xbf",
            b"\xf4\x90\x80\x80", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xc1\xbf",
        )
    },
    **{
        f"6.22 valid text {text.hex()}": (frame(0x81, text), [(TEXT, text)], 0)
        for text in (
            b"\x00", b"\x7f", b"\xc2\x80", b"\xdf\xbf", b"\xe0\xa0\x80", b"\xef\xbf\xbf", b"\xf0\x90\x80\x80",
            b"\xf4\x8f\xbf\xbf", b"\xed\x9f\xbf", b"\xee\x80\x80", b"\xef\xbf\xbe", b"\xf0\x9f\xbf\xbe",
        )
    },
    "6.4 invalid in a fragment, before the end": (frame(0x01, _GREEK) + frame(0x00, b"\xf4\x90"), [], 1007),
    "6.4 incomplete at the end": (frame(0x01, b"a") + frame(0x80, b"\xc3"), [], 1007),
    "6.5 invalid as binary": (frame(0x82, b"\xff\xfe"), [(BINARY, b"\xff\xfe")], 0),
    # 7. Closing.
    "7.1 after the close": (frame(0x81, b"a") + _close(1000) + frame(0x81, b"b"),
                            [(TEXT, b"a"), (CLOSE, _CLOSE.pack(1000))], 0),
    "7.3 no status": (frame(0x88), [(CLOSE, _CLOSE.pack(1005))], 0),
    "7.3 half a status": (frame(0x88, b"\x03"), [], 1002),
    "7.3 longest reason": (_close(1000, b"*" * 123), [(CLOSE, _CLOSE.pack(1000) + b"*" * 123)], 0),
    "7.3 too long reason": (_close(1000, b"*" * 124), [], 1002),
    "7.5 invalid reason": (_close(1000, b"\xff"), [], 1007),
    **{
        f"7.7 status {code}": (_close(code), [(CLOSE, _CLOSE.pack(code))], 0)
        for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)
    },
    **{
        f"7.9 status {code}": (_close(code), [], 1002)
        for code in (0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999, 5000, 65_535)
    },
    "7 close between fragments": (frame(0x01, b"a") + _close(1001), [(CLOSE, _CLOSE.pack(1001))], 0),
    # 9. Limits.
    "9.1 one byte too many": (frame(0x81, b"*" * (MOST + 1)), [], 1009),
    "9.2 refused by its length": (frame(0x82, b"", length=1 << 40), [], 1009),
    "9.3 too many fragments": (frame(0x01, b"*" * MOST) + frame(0x80, b"*"), [], 1009),
    "9.4 fragments of one byte": (
        frame(0x02, b"*") + frame(0x00, b"*") * 998 + frame(0x80, b"*"), [(BINARY, b"*" * 1000)], 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", _CASES)
@pytest.mark.parametrize("size", [1, 3, 1 << 20])
def test_frames(case: str, size: int) -> None:
    """Frames come to the same, in whichever pieces they arrive."""
    data, done, code = _CASES[case]
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    assert read_by_svcd(pieces) == (done, code)


_LONG = b"lorem ipsum " * 400
#: The same with compression.
_COMPRESSED: dict[str, tuple[bytes, list[tuple[int, bytes]], int]] = {
    "12.1 text": (frame(0xC1, deflated(b"Hello")), [(TEXT, b"Hello")], 0),
    "12.2 long binary": (frame(0xC2, deflated(_LONG)), [(BINARY, _LONG)], 0),
    "12.3 not compressed": (frame(0x81, b"plain") + frame(0xC1, deflated(b"x")), [(TEXT, b"plain"), (TEXT, b"x")], 0),
    "12.4 empty": (frame(0xC1, b"\x00"), [(TEXT, b"")], 0),
    "12.5 in fragments, with a ping": (
        frame(0x41, deflated(_LONG)[:9]) + frame(0x89, b"p") + frame(0x00, deflated(_LONG)[9:20])
        + frame(0x80, deflated(_LONG)[20:]), [(PING, b"p"), (TEXT, _LONG)], 0,
    ),
    "7.2.3.1 of RFC 7692": (frame(0xC1, bytes.fromhex("f248cdc9c90700")), [(TEXT, b"Hello")], 0),
    "7.2.3.2 of RFC 7692, with the window of the message before": (
        frame(0xC1, bytes.fromhex("f248cdc9c90700")) + frame(0xC1, bytes.fromhex("f200110000")),
        [(TEXT, b"Hello")], 1007,
    ),
    "7.2.3.3 of RFC 7692, not compressed by DEFLATE": (
        frame(0xC1, bytes.fromhex("000500faff48656c6c6f00")), [(TEXT, b"Hello")], 0,
    ),
    "7.2.3.4 of RFC 7692, a final block": (frame(0xC1, bytes.fromhex("f348cdc9c9070000")), [(TEXT, b"Hello")], 0),
    "7.2.3.5 of RFC 7692, two blocks": (
        frame(0xC1, bytes.fromhex("f24805000000ffffcac9c90700")), [(TEXT, b"Hello")], 0,
    ),
    "13 RSV1 on a continuation": (frame(0x41, b"\xf2") + frame(0xC0, b"\x48"), [], 1002),
    "13 RSV1 on a ping": (frame(0xC9, b""), [], 1002),
    "13 RSV2": (frame(0xE1, deflated(b"a")), [], 1002),
    "13 not DEFLATE": (frame(0xC1, b"\xff\xff\xff"), [], 1007),
    "13 invalid text": (frame(0xC1, deflated(b"\xff")), [], 1007),
    "13 longest message": (frame(0xC2, deflated(b"*" * MOST)), [(BINARY, b"*" * MOST)], 0),
    "13 one byte too many": (frame(0xC2, deflated(b"*" * (MOST + 1))), [], 1009),
    "13 bomb": (frame(0xC2, deflated(bytes(50_000_000))), [], 1009),
    "13 bomb in blocks": (frame(0x42, deflated(bytes(MOST))) + frame(0x80, b"\x00\x00\xff\xff" + deflated(b"*")),
                          [], 1009),
}  # fmt: skip


@pytest.mark.parametrize("case", _COMPRESSED)
@pytest.mark.parametrize("size", [1, 100, 1 << 20])
def test_compressed_frames(case: str, size: int) -> None:
    """Compressed messages come to the same, in whichever pieces they arrive."""
    data, done, code = _COMPRESSED[case]
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    assert read_by_svcd(pieces, deflate=True) == (done, code)


def test_memory_of_a_bomb() -> None:
    """A small message that becomes a large one takes little memory."""
    bomb = frame(0xC2, deflated(bytes(100_000_000)))
    assert len(bomb) < 110_000
    tracemalloc.start()
    try:
        assert read_by_svcd([bomb], deflate=True, most=1 << 20) == ([], 1009)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_no_message_is_buffered_before_its_limit_is_checked() -> None:
    """A message is refused by the length that its frame states, before any of its bytes arrive."""
    reader = FrameReader(MOST)
    reader.feed(frame(0x82, b"", length=MOST + 1))
    with pytest.raises(WebSocketError) as caught:
        reader.receive()
    assert caught.value.code == CloseCode.TOO_BIG
    assert str(MOST) in str(caught.value)


@given(st.binary(max_size=70_000), st.sampled_from([TEXT, BINARY]))
def test_messages_of_the_server(payload: bytes, opcode: int) -> None:
    """Messages of the server are one frame with the shortest form of the length."""
    assert received(FrameReader(1).message(opcode, payload)) == [(0x80 | opcode, payload)]


@pytest.mark.parametrize("window", [None, 9])
def test_compressed_messages_of_the_server(window: int | None) -> None:
    """A compressed message has RSV1 in its frame, and can be read on its own."""
    reader = FrameReader(MOST, DeflateOffer(window))
    for _ in range(2):
        (first, payload), *others = received(reader.message(TEXT, _LONG))
        assert (first, others) == (0xC1, [])
        assert len(payload) < 200
        assert read_by_svcd([frame(first, payload)], deflate=True) == ([(TEXT, _LONG)], 0)


def test_control_frames_of_the_server() -> None:
    """Control frames have their payload; the reason of a Close frame is cut at a character."""
    assert received(FrameReader.control(Opcode.PONG, b"x" * 125)) == [(0x8A, b"x" * 125)]
    assert received(FrameReader.close(None)) == [(0x88, b"")]
    assert received(FrameReader.close(1000)) == [(0x88, b"\x03\xe8")]
    (cut,) = received(FrameReader.close(1011, "é" * 62))
    assert cut.payload[2:].decode() == "é" * 61


def test_a_whole_message_at_once() -> None:
    """A read that is exactly one message needs no buffer; any other read is left to feed()."""
    reader = FrameReader(MOST)
    assert reader.whole_message(frame(0x81, b"abc")) == Frame(TEXT, b"abc")
    assert reader.whole_message(frame(0x82, b"a" * 200)) == Frame(BINARY, b"a" * 200)
    for data in (frame(0x81, b"abc") + b"\x81", frame(0x81, b"abc")[:-1], frame(0x01, b"a"), frame(0x89), b"", b"\x81"):
        assert reader.whole_message(data) is None
    with pytest.raises(WebSocketError):
        reader.whole_message(frame(0x81, b"\xff"))
    reader.feed(frame(0x01, b"a"))
    assert reader.receive() == Frame(TEXT, b"a", finished=False)
    assert reader.whole_message(frame(0x81, b"abc")) is None


def test_mutated_frames() -> None:
    """svcd and wsproto agree on mutated frames; tests/websocket.py compares as many as it is asked for."""
    fuzz(2000, seed=15)
