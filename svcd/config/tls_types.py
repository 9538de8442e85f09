"""The types of the values that TLS options have; as in kinds."""

from __future__ import annotations

import ipaddress
import re

from svcd.config.value_types import ValueType, require
from svcd.wire.certificates import ClientName, NameKind

__all__ = ["ALPN", "CLIENT_NAMES", "DAYS"]

_LABEL = "[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
#: A host name, whose first label may be a star in place of any single one: as certificates have them (RFC 6125, 6.4.3),
#: with at least two labels behind it.
_DNS = re.compile(rf"(?:\*\.{_LABEL}\.)?(?:{_LABEL}\.)*(?=[^.]*[a-z]){_LABEL}")
_EMAIL = re.compile(r"[^@\s,]+@[^@\s,]+")
#: A scheme and what it says (RFC 3986, 3).
_URI = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:[^\s,]+")
_MOST_DNS = 253
#: The length of a protocol's name is one byte (RFC 7301, 3.1).
_MOST_ALPN = 255


def _read_client_name(word: str) -> ClientName:
    try:
        return ClientName(NameKind.IP, str(ipaddress.ip_address(word)))
    except ValueError:
        pass
    if _URI.fullmatch(word):
        return ClientName(NameKind.URI, word)
    if _EMAIL.fullmatch(word):
        # Only the part behind the @ is the same in any case (RFC 5280, 7.5).
        local, _, host = word.rpartition("@")
        return ClientName(NameKind.EMAIL, f"{local}@{host.lower()}")
    name = word.lower()
    require(len(name) <= _MOST_DNS and _DNS.fullmatch(name))
    return ClientName(NameKind.DNS, name)


CLIENT_NAMES: ValueType[tuple[ClientName, ...]] = ValueType(
    "client names",
    "host names (or *.example.org for any one label), e-mail addresses, URIs and IP addresses with commas between them",
    lambda word: tuple(map(_read_client_name, word.split(","))),
    lambda names: ",".join(name.text for name in names),
)


def _read_alpn(word: str) -> tuple[str, ...]:
    if word == "none":
        return ()
    names = tuple(word.split(","))
    for name in names:
        require(re.fullmatch("[!-~]+", name) and len(name) <= _MOST_ALPN)
    return names


ALPN: ValueType[tuple[str, ...]] = ValueType(
    "protocols",
    "names of protocols as http/1.1 with commas between them, or none",
    _read_alpn,
    lambda names: ",".join(names) or "none",
)


def _read_days(word: str) -> int:
    match = re.fullmatch("([0-9]{1,4})d", word)
    require(match)
    assert match is not None  # noqa: S101 - for the type checker
    return int(match[1])


DAYS: ValueType[int] = ValueType("days", "a number of days as 14d", _read_days, lambda days: f"{days}d")
