"""The PROXY protocol (HAProxy's proxy-protocol.txt): the header by which a proxy says whose connection it passes on.

`header` returns a Header, or None as long as the data is the beginning of one and all of it therefore belongs to it;
it raises ValueError, with what is wrong, as soon as the data can't become one. It is given everything from the
beginning each time, MOST bytes at most, and looks at each byte a bounded number of times. `line` makes a header of
version 1, `block` one of version 2.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MOST", "End", "ProxyHeader", "SocketAddress", "block", "crc32c", "header", "line"]

#: The longest header that is taken, in bytes. Version 2 could have 65551, but the specification wants a header to fit
#: in the smallest TCP segment, 536 bytes, and nginx takes as many as this.
MOST = 4096
#: The longest of version 1, with its end (section 2.1).
_MOST_LINE = 107
_LINES = (b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN")
_END = b"\r\n"
# Numbers without zeros before them.
_OCTET = rb"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_V4 = rb"(%b(?:\.%b){3})" % (_OCTET, _OCTET)
_V6 = rb"([0-9A-Fa-f:.]+)"
_PORT = rb"(0|[1-9][0-9]{0,4})"
_LINE_4, _LINE_6 = (
    re.compile(b" ".join((start, address, address, _PORT, _PORT)))
    for start, address in ((b"PROXY TCP4", _V4), (b"PROXY TCP6", _V6))
)
_HIGHEST_PORT = 65_535

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
#: Behind it: version and command, family and transport, the length of what follows (section 2.2).
_FIXED = struct.Struct("!12sBBH")
_VERSION, _LOCAL, _PROXY = 0x20, 0x20, 0x21
_INET, _INET6, _UNIX = 1, 2, 3
_STREAM, _DGRAM = 1, 2
#: By family: what the addresses take.
_ADDRESSES = {_INET: struct.Struct("!4s4sHH"), _INET6: struct.Struct("!16s16sHH"), _UNIX: struct.Struct("!108s108s")}
_TLV = struct.Struct("!BH")
_CRC32C = 0x03
_CHECKSUM = struct.Struct("!I")

#: An address as the socket module has it: (host, port), and for IPv6 (host, port, 0, 0).
SocketAddress: TypeAlias = tuple[str, int] | tuple[str, int, int, int]
#: An end of a connection that a header is made for: host and port; None if it has none, as at a UNIX socket.
End: TypeAlias = tuple[str, int] | None


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """What a proxy says of a connection.

    Attributes:
        size: of the header, in bytes.
        source: the client's address; None if it is the proxy that speaks (LOCAL), or a client that has no address of
            TCP: then both ends are those of the connection itself, as the specification wants it.
        destination: where the client has connected to; None where the source is.
    """

    size: int
    source: SocketAddress | None = None
    destination: SocketAddress | None = None


def header(data: bytes) -> ProxyHeader | None:
    """The header that data begins with.

    Raises:
        ValueError: there is none, or it is broken.
    """
    if data.startswith(_SIGNATURE[: len(data)]):
        return _binary(data)
    if any(each.startswith(data[: len(each)]) for each in _LINES):
        return _text(data)
    raise ValueError("it begins with no PROXY header")


def _text(data: bytes) -> ProxyHeader | None:
    end = data.find(_END, 0, _MOST_LINE)
    unknown = data.startswith(_LINES[2])
    if unknown and data[len(_LINES[2]) : len(_LINES[2]) + 1] not in (b"", b" ", b"\r"):
        raise ValueError("its protocol is none of TCP4, TCP6 and UNKNOWN")
    if end < 0:
        if len(data) >= _MOST_LINE or (b"\n" in data and not unknown):
            raise ValueError(f"its first line has no CRLF within {_MOST_LINE} bytes")
        return None
    size = end + len(_END)
    if unknown:
        # What else the line says must be ignored.
        return ProxyHeader(size)
    narrow = data.startswith(_LINES[0])
    match = (_LINE_4 if narrow else _LINE_6).fullmatch(data, 0, end)
    if match is None:
        raise ValueError("its line has not two addresses and two ports")
    source, destination, source_port, destination_port = (each.decode("ascii") for each in match.groups())
    if max(int(source_port), int(destination_port)) > _HIGHEST_PORT:
        raise ValueError("a port of its line is none")
    if narrow:
        return ProxyHeader(size, (source, int(source_port)), (destination, int(destination_port)))
    try:
        # In the one spelling that it has elsewhere.
        far, near = (str(ipaddress.IPv6Address(each)) for each in (source, destination))
    except ValueError:
        raise ValueError("an address of its line is none") from None
    return ProxyHeader(size, (far, int(source_port), 0, 0), (near, int(destination_port), 0, 0))


def _binary(data: bytes) -> ProxyHeader | None:
    command = data[12:13]
    if command and command[0] not in (_LOCAL, _PROXY):
        raise ValueError("its version or its command is unknown")
    if len(data) < _FIXED.size:
        return None
    _, _, kind, length = _FIXED.unpack_from(data)
    size = _FIXED.size + length
    if size > MOST:
        raise ValueError(f"it has {size} bytes, more than {MOST}")
    if command[0] == _LOCAL:
        # Nothing else of it counts.
        return ProxyHeader(size) if len(data) >= size else None
    family, transport = divmod(kind, 16)
    if family > _UNIX or transport > _DGRAM:
        raise ValueError("its address family or its transport is unknown")
    addresses = _ADDRESSES.get(family) if transport else None
    if addresses is not None and length < addresses.size:
        raise ValueError("it is shorter than its addresses")
    if len(data) < size:
        return None
    if addresses is None:
        return ProxyHeader(size)
    _check(data[:size], _FIXED.size + addresses.size)
    if family == _UNIX or transport != _STREAM:
        return ProxyHeader(size)
    return _located(size, family, addresses.unpack_from(data, _FIXED.size))


def _located(size: int, family: int, addresses: tuple[Any, ...]) -> ProxyHeader:
    source, destination, source_port, destination_port = addresses
    if family == _INET:
        # A fifth of the time that ipaddress takes.
        far, near = ("{}.{}.{}.{}".format(*each) for each in (source, destination))
        return ProxyHeader(size, (far, source_port), (near, destination_port))
    far, near = (str(ipaddress.IPv6Address(each)) for each in (source, destination))
    return ProxyHeader(size, (far, source_port, 0, 0), (near, destination_port, 0, 0))


def _check(whole: bytes, start: int) -> None:
    """Look through what follows the addresses: it has to end where the header does, and a checksum to be right."""
    sums = [(begin, end) for kind, begin, end in _values(whole, start) if kind == _CRC32C]
    if not sums:
        return
    begin, end = sums[0]
    if len(sums) > 1 or end - begin != _CHECKSUM.size:
        raise ValueError("its checksum is none of four bytes")
    if _CHECKSUM.pack(crc32c(whole[:begin] + bytes(_CHECKSUM.size) + whole[end:])) != whole[begin:end]:
        raise ValueError("its checksum is wrong")


def _values(whole: bytes, start: int) -> Iterator[tuple[int, int, int]]:
    """The type of each value behind the addresses, and where it begins and ends."""
    while start < len(whole):
        begin = start + _TLV.size
        if begin > len(whole):
            raise ValueError("a value behind its addresses is cut off")
        kind, length = _TLV.unpack_from(whole, start)
        start = begin + length
        if start > len(whole):
            raise ValueError("a value behind its addresses is cut off")
        yield kind, begin, start


@cache
def _table() -> tuple[int, ...]:
    numbers = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (0x82F6_3B78 if number & 1 else 0)  # noqa: PLW2901 - it is what is made
        numbers.append(number)
    return tuple(numbers)


def crc32c(data: bytes) -> int:
    """The checksum of SCTP (RFC 9260, appendix A), which Python's library lacks."""
    table, value = _table(), 0xFFFF_FFFF
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFF_FFFF


def line(source: End, destination: End) -> bytes:
    """A header of version 1; who has no address is UNKNOWN.

    Args:
        source: the client; an IPv4-mapped address is told as IPv4.
        destination: where it has connected to.
    """
    if source is None or destination is None:
        return b"PROXY UNKNOWN\r\n"
    one, other = _alike(source[0], destination[0])
    return f"PROXY TCP{one.version} {one} {other} {source[1]} {destination[1]}\r\n".encode()


def block(source: End, destination: End) -> bytes:
    """A header of version 2; who has no address is not told of.

    Args:
        source: as of line().
        destination: the same.
    """
    if source is None or destination is None:
        # Of all that version 2 has for such a client (UNIX, UNSPEC, LOCAL) haproxy and nginx both take this alone.
        return _FIXED.pack(_SIGNATURE, _LOCAL, 0, 0)
    one, other = _alike(source[0], destination[0])
    family = _INET if one.version == 4 else _INET6
    addresses = _ADDRESSES[family].pack(one.packed, other.packed, source[1], destination[1])
    return _FIXED.pack(_SIGNATURE, _PROXY, family << 4 | _STREAM, len(addresses)) + addresses


def _alike(one: str, other: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...]:
    """Two addresses in one family, without their scopes, which mean something only where they are from."""
    both = [ipaddress.ip_address(each.partition("%")[0]) for each in (one, other)]
    fours = [each if each.version == 4 else each.ipv4_mapped for each in both]
    if fours[0] is not None and fours[1] is not None:
        return fours[0], fours[1]
    sixes = [ipaddress.IPv6Address(f"::ffff:{each}") if each.version == 4 else each for each in both]
    return sixes[0], sixes[1]
