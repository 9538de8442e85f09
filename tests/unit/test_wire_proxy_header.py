"""Headers of the PROXY protocol: parsing and formatting."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

import pytest

from svcd.wire.proxy_header import MOST, ProxyHeader, block, crc32c, header, line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from svcd.wire.proxy_header import End, SocketAddress

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V4 = ("192.0.2.1", 40_000), ("198.51.100.7", 443)
V6 = ("2001:db8::1", 40_000, 0, 0), ("2001:db8::7", 443, 0, 0)
INET = bytes([192, 0, 2, 1, 198, 51, 100, 7]) + struct.pack("!HH", 40_000, 443)
INET6 = bytes.fromhex("20010db8" + "00" * 11 + "01" + "20010db8" + "00" * 11 + "07") + struct.pack("!HH", 40_000, 443)
#: TLVs of haproxy's send-proxy-v2-ssl: TLS 1.3, its name and its cipher.
TLS = bytes.fromhex("20 0014 01 00000000 21 0007") + b"TLSv1.3" + bytes.fromhex("23 0002") + b"AE"
#: TLVs: an authority, a unique identifier and padding.
MORE = b"\x02\0\x07example\x05\0\x03abc\x04\0\0"


def _block(command: int, kind: int, body: bytes) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, kind, len(body)) + body


def _with_checksum(body: bytes, kind: int = 0x11) -> bytes:
    """Return a version 2 header with a correct CRC32C at its end."""
    whole = _block(0x21, kind, body + b"\x03\0\x04\0\0\0\0")
    return whole[:-4] + struct.pack("!I", crc32c(whole))


VALID: dict[str, tuple[bytes, tuple[SocketAddress | None, SocketAddress | None]]] = {
    "v1 TCP4": (b"PROXY TCP4 192.0.2.1 198.51.100.7 40000 443\r\n", V4),
    "v1 TCP6": (b"PROXY TCP6 2001:DB8:0:0::1 2001:db8::7 40000 443\r\n", V6),
    "v1 longest": (
        b"PROXY TCP6 " + b"ffff:" * 7 + b"ffff " + b"ffff:" * 7 + b"ffff 65535 65535\r\n",
        (("ffff:" * 7 + "ffff", 65_535, 0, 0), ("ffff:" * 7 + "ffff", 65_535, 0, 0)),
    ),
    "v1 UNKNOWN": (b"PROXY UNKNOWN\r\n", (None, None)),
    "v1 UNKNOWN with more": (b"PROXY UNKNOWN ffff:: \n\r anything 1 2\r\n", (None, None)),
    "v2 TCP4": (_block(0x21, 0x11, INET), V4),
    "v2 TCP6": (_block(0x21, 0x21, INET6), V6),
    "v2 with values": (_block(0x21, 0x11, INET + MORE + TLS), V4),
    "v2 with a checksum": (_with_checksum(INET + MORE), V4),
    "v2 longest": (_block(0x21, 0x21, INET6 + b"\x04" + struct.pack("!H", MOST - 55) + bytes(MOST - 55)), V6),
    "v2 UNIX": (_block(0x21, 0x31, bytes(216) + MORE), (None, None)),
    "v2 UDP": (_block(0x21, 0x12, INET), (None, None)),
    "v2 UNSPEC": (_block(0x21, 0, b""), (None, None)),
    "v2 UNSPEC with what must be ignored": (_block(0x21, 0x10, b"\x01\xff\xff"), (None, None)),
    "v2 LOCAL": (_block(0x20, 0, b""), (None, None)),
    "v2 LOCAL with what must be ignored": (_block(0x20, 0xFF, b"\x01\xff\xff"), (None, None)),
}


def test_the_longest_headers() -> None:
    """The headers named `longest` in VALID have the maximum length."""
    assert len(VALID["v1 longest"][0]) == 104
    assert len(VALID["v2 longest"][0]) == MOST


@pytest.mark.parametrize("name", VALID)
def test_a_header(name: str) -> None:
    """A header has its length and addresses, in the form of the socket module; data after it is ignored."""
    data, (source, destination) = VALID[name]
    assert header(data) == ProxyHeader(len(data), source, destination)
    assert header(data + b"PROXY more\r\n") == ProxyHeader(len(data), source, destination)


@pytest.mark.parametrize("name", VALID)
def test_a_part_of_a_header(name: str) -> None:
    """A part of a header, at every split, is incomplete and no error."""
    data, _ = VALID[name]
    assert [header(data[:size]) for size in range(len(data))] == [None] * len(data)


BROKEN = {
    "no header": b"GET / HTTP/1.1\r\n",
    "a line feed alone": b"PROXY TCP4 192.0.2.1 198.51.100.7 40000 443\n",
    "no end": b"PROXY UNKNOWN " + b"x" * 93,
    "an end too late": b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
    "another protocol": b"PROXY TCP5",
    "a longer protocol": b"PROXY UNKNOWNS",
    "small letters": b"proxy",
    "two spaces": b"PROXY TCP4  192.0.2.1 198.51.100.7 40000 443\r\n",
    "a space at the end": b"PROXY TCP4 192.0.2.1 198.51.100.7 40000 443 \r\n",
    "no port": b"PROXY TCP4 192.0.2.1 198.51.100.7 40000\r\n",
    "no addresses": b"PROXY TCP4 \r\n",
    "an octal address": b"PROXY TCP4 192.0.02.1 198.51.100.7 40000 443\r\n",
    "a large number": b"PROXY TCP4 192.0.2.256 198.51.100.7 40000 443\r\n",
    "IPv6 where IPv4 is said": b"PROXY TCP4 ::1 ::1 40000 443\r\n",
    "IPv4 where IPv6 is said": b"PROXY TCP6 192.0.2.1 198.51.100.7 40000 443\r\n",
    "a scope": b"PROXY TCP6 fe80::1%lo ::1 40000 443\r\n",
    "other digits": "PROXY TCP4 192.0.2.\u0661 198.51.100.7 40000 443\r\n".encode(),
    "a port with a zero": b"PROXY TCP4 192.0.2.1 198.51.100.7 040 443\r\n",
    "a large port": b"PROXY TCP4 192.0.2.1 198.51.100.7 40000 65536\r\n",
    "a sign": b"PROXY TCP4 192.0.2.1 198.51.100.7 +4 443\r\n",
    "version 1 in binary": SIGNATURE + b"\x11",
    "version 3": SIGNATURE + b"\x31",
    "another command": SIGNATURE + b"\x22",
    "another family": SIGNATURE + b"\x21\x41\0\0",
    "another transport": SIGNATURE + b"\x21\x13\0\0",
    "too long": SIGNATURE + b"\x21\x11" + struct.pack("!H", MOST - 15),
    "too long for LOCAL": SIGNATURE + b"\x20\0" + struct.pack("!H", MOST - 15),
    "too short for IPv4": SIGNATURE + b"\x21\x11\0\x0b",
    "too short for IPv6": SIGNATURE + b"\x21\x21\0\x23",
    "too short for UNIX": SIGNATURE + b"\x21\x31\0\xd7",
    "a value cut off": _block(0x21, 0x11, INET + b"\x04\0\x03xx"),
    "a value's length cut off": _block(0x21, 0x11, INET + b"\x04\0"),
    "a short checksum": _block(0x21, 0x11, INET + b"\x03\0\x02xx"),
    "a wrong checksum": _with_checksum(INET)[:-1] + bytes([_with_checksum(INET)[-1] ^ 1]),
    "a checksum of something else": _with_checksum(INET).replace(b"\xc0\0\x02\x01", b"\xc0\0\x02\x02"),
    "a wrong checksum where there is no address": _block(0x21, 0x31, bytes(216) + b"\x03\0\x04oops"),
    "two checksums": _with_checksum(INET + b"\x03\0\x04\0\0\0\0"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_headers(name: str) -> None:
    """A broken header is a ValueError with the reason."""
    data = BROKEN[name]
    with pytest.raises(ValueError, match=r"^(the|there|an?) "):
        header(data)


@pytest.mark.parametrize("name", ["no header", "another protocol", "a longer protocol", "version 3", "too long",
                                  "too short for IPv4", "another family"])  # fmt: skip
def test_a_header_is_refused_at_its_first_invalid_byte(name: str) -> None:
    """A header is refused at the byte that makes it invalid."""
    data = BROKEN[name]
    broken = [size for size in range(1, len(data) + 1) if not _is_open(data[:size])]
    assert broken[0] == (1 if name == "no header" else len(data))


def _is_open(data: bytes) -> bool:
    try:
        return header(data) is None
    except ValueError:
        return False


def test_crc32c() -> None:
    """CRC-32C has its check value, and those of the examples in RFC 3720, appendix B.4."""
    assert crc32c(b"123456789") == 0xE306_9283
    assert crc32c(bytes(32)) == 0x8A91_36AA
    assert crc32c(bytes(range(32))) == 0x46DD_794E


def _mutations(source: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(source.randrange(1, 4)):
        at = source.randrange(len(changed) + 1)
        match source.randrange(4):
            case 0 if at < len(changed):
                changed[at] = source.choice((0, 0x20, 0x0D, 0x0A, 0xFF, source.randrange(256)))
            case 1:
                del changed[at : at + source.randrange(1, 4)]
            case 2:
                changed[at:at] = source.randbytes(source.randrange(1, 4))
            case _:
                changed[at:] = changed[at:][::-1]
    return bytes(changed)


def test_mutated_headers() -> None:
    """A mutated header is refused, incomplete or parsed, and never longer than its data; nothing else is raised."""
    source = random.Random(20_261_121)
    small: Sequence[bytes] = [data for data, _ in VALID.values() if len(data) < 300]
    outcomes = {"refused": 0, "open": 0, "parsed": 0}
    for number in range(100_000):
        data = _mutations(source, small[number % len(small)])
        try:
            found = header(data)
        except ValueError:
            outcomes["refused"] += 1
            continue
        if found is None:
            outcomes["open"] += 1
            assert len(data) < MOST
        else:
            outcomes["parsed"] += 1
            assert found.size <= len(data)
            assert (found.source is None) == (found.destination is None)
    assert min(outcomes.values()) > 1000


@pytest.mark.parametrize(
    ("source", "destination", "text"),
    [
        (("192.0.2.1", 1), ("198.51.100.7", 2), b"PROXY TCP4 192.0.2.1 198.51.100.7 1 2\r\n"),
        (("2001:db8::1", 1), ("2001:db8::7", 2), b"PROXY TCP6 2001:db8::1 2001:db8::7 1 2\r\n"),
        (("fe80::1%eth0", 1), ("fe80::2%eth0", 2), b"PROXY TCP6 fe80::1 fe80::2 1 2\r\n"),
        (("::ffff:192.0.2.1", 1), ("::ffff:198.51.100.7", 2), b"PROXY TCP4 192.0.2.1 198.51.100.7 1 2\r\n"),
        (None, None, b"PROXY UNKNOWN\r\n"),
    ],
)
def test_formatting_of_a_header(source: End, destination: End, text: bytes) -> None:
    """A header has no scopes, mapped addresses as IPv4, and one family for both; version 2 has the same addresses."""
    assert line(source, destination) == text
    made, binary = header(text), header(block(source, destination))
    assert made is not None
    assert binary is not None
    assert (binary.source, binary.destination) == (made.source, made.destination)


def test_two_address_families() -> None:
    """An IPv4 address together with an IPv6 address is written as IPv4-mapped."""
    made = header(line(("192.0.2.1", 1), ("2001:db8::7", 2)))
    assert made is not None
    assert made.source == ("::ffff:c000:201", 1, 0, 0)


def test_a_header_without_addresses() -> None:
    """Without addresses version 2 is LOCAL, without data."""
    assert block(None, None) == _block(0x20, 0, b"")
