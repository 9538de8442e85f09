"""Headers of the PROXY protocol (HAProxy's proxy-protocol.txt), in which a proxy sends the address of a client.

`header` returns a ProxyHeader, or None while the header is incomplete; all data belongs to it then. It raises
ValueError, with the reason, as soon as the data can't become a valid header. Each call gets all data from the beginning
of the connection, at most MOST bytes, and reads each byte a bounded number of times. `line` makes a header of version
1, `block` a header of version 2.
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

#: The longest accepted header, in bytes. Version 2 permits 65551, but the specification requires that a header fits
#: into the smallest TCP segment, 536 bytes. nginx has the same limit.
MOST = 4096
#: The longest header of version 1, with its line end (section 2.1).
_MOST_LINE = 107
_LINES = (b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN")
_END = b"\r\n"
# Numbers without leading zeros.
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
#: After the signature: version and command, family and transport, the length of the rest (section 2.2).
_FIXED = struct.Struct("!12sBBH")
_VERSION, _LOCAL, _PROXY = 0x20, 0x20, 0x21
_INET, _INET6, _UNIX = 1, 2, 3
_STREAM, _DGRAM = 1, 2
#: The layout of the addresses, by family.
_ADDRESSES = {_INET: struct.Struct("!4s4sHH"), _INET6: struct.Struct("!16s16sHH"), _UNIX: struct.Struct("!108s108s")}
_TLV = struct.Struct("!BH")
_CRC32C = 0x03
_CHECKSUM = struct.Struct("!I")

#: An address in the form of the socket module: (host, port), and for IPv6 (host, port, 0, 0).
SocketAddress: TypeAlias = tuple[str, int] | tuple[str, int, int, int]
#: The address of an end of a connection: host and port; None without such an address, as for a UNIX socket.
End: TypeAlias = tuple[str, int] | None


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """Header of the PROXY protocol.

    Attributes:
        size: the size of the header, in bytes.
        source: the address of the client; None for a connection of the proxy itself (LOCAL) or a client without a TCP
            address. Then both addresses are those of the connection itself, as the specification requires.
        destination: the address to which the client has connected; None if the source is None.
    """

    size: int
    source: SocketAddress | None = None
    destination: SocketAddress | None = None


def header(data: bytes) -> ProxyHeader | None:
    """Return the header at the beginning of data; None if it is incomplete.

    Raises:
        ValueError: there is no header, or an invalid one.
    """
    if data.startswith(_SIGNATURE[: len(data)]):
        return _binary(data)
    if any(each.startswith(data[: len(each)]) for each in _LINES):
        return _text(data)
    raise ValueError("there is no PROXY header")


def _text(data: bytes) -> ProxyHeader | None:
    end = data.find(_END, 0, _MOST_LINE)
    unknown = data.startswith(_LINES[2])
    if unknown and data[len(_LINES[2]) : len(_LINES[2]) + 1] not in (b"", b" ", b"\r"):
        raise ValueError("the protocol is not TCP4, TCP6 or UNKNOWN")
    if end < 0:
        if len(data) >= _MOST_LINE or (b"\n" in data and not unknown):
            raise ValueError(f"the first line has no CRLF within {_MOST_LINE} bytes")
        return None
    size = end + len(_END)
    if unknown:
        # The rest of the line must be ignored.
        return ProxyHeader(size)
    narrow = data.startswith(_LINES[0])
    match = (_LINE_4 if narrow else _LINE_6).fullmatch(data, 0, end)
    if match is None:
        raise ValueError("the line does not have two addresses and two ports")
    source, destination, source_port, destination_port = (each.decode("ascii") for each in match.groups())
    if max(int(source_port), int(destination_port)) > _HIGHEST_PORT:
        raise ValueError("a port of the line is invalid")
    if narrow:
        return ProxyHeader(size, (source, int(source_port)), (destination, int(destination_port)))
    try:
        # In canonical form, as all addresses in svcd.
        source_host, destination_host = (str(ipaddress.IPv6Address(each)) for each in (source, destination))
    except ValueError:
        raise ValueError("an address of the line is invalid") from None
    return ProxyHeader(size, (source_host, int(source_port), 0, 0), (destination_host, int(destination_port), 0, 0))


def _binary(data: bytes) -> ProxyHeader | None:
    command = data[12:13]
    if command and command[0] not in (_LOCAL, _PROXY):
        raise ValueError("the version or the command is unknown")
    if len(data) < _FIXED.size:
        return None
    _, _, kind, length = _FIXED.unpack_from(data)
    size = _FIXED.size + length
    if size > MOST:
        raise ValueError(f"the header has {size} bytes, more than {MOST}")
    if command[0] == _LOCAL:
        # The rest of the header must be ignored.
        return ProxyHeader(size) if len(data) >= size else None
    family, transport = divmod(kind, 16)
    if family > _UNIX or transport > _DGRAM:
        raise ValueError("the address family or the transport is unknown")
    addresses = _ADDRESSES.get(family) if transport else None
    if addresses is not None and length < addresses.size:
        raise ValueError("the header is shorter than its addresses")
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
        # This takes a fifth of the time of ipaddress.
        source_host, destination_host = ("{}.{}.{}.{}".format(*each) for each in (source, destination))
        return ProxyHeader(size, (source_host, source_port), (destination_host, destination_port))
    source_host, destination_host = (str(ipaddress.IPv6Address(each)) for each in (source, destination))
    return ProxyHeader(size, (source_host, source_port, 0, 0), (destination_host, destination_port, 0, 0))


def _check(whole: bytes, start: int) -> None:
    """Check the TLVs after the addresses: they end with the header, and a checksum is correct."""
    sums = [(begin, end) for kind, begin, end in _values(whole, start) if kind == _CRC32C]
    if not sums:
        return
    begin, end = sums[0]
    if len(sums) > 1 or end - begin != _CHECKSUM.size:
        raise ValueError("the checksum does not have four bytes")
    if _CHECKSUM.pack(crc32c(whole[:begin] + bytes(_CHECKSUM.size) + whole[end:])) != whole[begin:end]:
        raise ValueError("the checksum is wrong")


def _values(whole: bytes, start: int) -> Iterator[tuple[int, int, int]]:
    """Yield the type, the start and the end of each TLV after the addresses."""
    while start < len(whole):
        begin = start + _TLV.size
        if begin > len(whole):
            raise ValueError("a value after the addresses is truncated")
        kind, length = _TLV.unpack_from(whole, start)
        start = begin + length
        if start > len(whole):
            raise ValueError("a value after the addresses is truncated")
        yield kind, begin, start


@cache
def _table() -> tuple[int, ...]:
    numbers = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (0x82F6_3B78 if number & 1 else 0)  # noqa: PLW2901 - it becomes the entry
        numbers.append(number)
    return tuple(numbers)


def crc32c(data: bytes) -> int:
    """Return the CRC32c of data (RFC 9260, appendix A), which the standard library lacks."""
    table, value = _table(), 0xFFFF_FFFF
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFF_FFFF


def line(source: End, destination: End) -> bytes:
    """Return a header of version 1; it is UNKNOWN for a client without an address.

    Args:
        source: the address of the client; an IPv4-mapped address is written as IPv4.
        destination: the address to which the client has connected.
    """
    if source is None or destination is None:
        return b"PROXY UNKNOWN\r\n"
    one, other = _alike(source[0], destination[0])
    return f"PROXY TCP{one.version} {one} {other} {source[1]} {destination[1]}\r\n".encode()


def block(source: End, destination: End) -> bytes:
    """Return a header of version 2; it is LOCAL for a client without an address.

    Args:
        source: as in line().
        destination: as in line().
    """
    if source is None or destination is None:
        # Of the forms for such a client in version 2 (UNIX, UNSPEC, LOCAL), both HAProxy and nginx accept only LOCAL.
        return _FIXED.pack(_SIGNATURE, _LOCAL, 0, 0)
    one, other = _alike(source[0], destination[0])
    family = _INET if one.version == 4 else _INET6
    addresses = _ADDRESSES[family].pack(one.packed, other.packed, source[1], destination[1])
    return _FIXED.pack(_SIGNATURE, _PROXY, family << 4 | _STREAM, len(addresses)) + addresses


def _alike(one: str, other: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...]:
    """Return two addresses in one family, without scopes, which are valid on the local machine only."""
    both = [ipaddress.ip_address(each.partition("%")[0]) for each in (one, other)]
    fours = [each if each.version == 4 else each.ipv4_mapped for each in both]
    if fours[0] is not None and fours[1] is not None:
        return fours[0], fours[1]
    sixes = [ipaddress.IPv6Address(f"::ffff:{each}") if each.version == 4 else each for each in both]
    return sixes[0], sixes[1]
