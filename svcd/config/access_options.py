"""The options that limit access, and the types of their values."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache

from svcd.access.types import NO_RATE, PrefixLengths, Rate, SourcePattern, TimeRange
from svcd.addresses import LOCAL, V6
from svcd.config.option_info import option
from svcd.config.value_types import COUNT, PATH, UNLIMITED, ValueType, choice, choices, require

__all__ = ["HOURS", "LIMIT", "LOAD", "PREFIXES", "PROXIES", "RATE", "SOURCES", "ZONE", "AccessOptions"]


_LABEL = "[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
#: A host name (RFC 1123, section 2.1, and underscores) whose last label is not a number; or a dot and a domain.
_NAME = re.compile(rf"\.?(?:{_LABEL}\.)*(?=[^.]*[a-z]){_LABEL}\.?")
_MAX_NAME = 255


@lru_cache(maxsize=8192)
def _read_source(word: str) -> SourcePattern:
    """Read one entry. Cached: entries recur in many lines, and each time that a file is read."""
    name = word.lower()
    if re.fullmatch(r"[0-9.]+(/[0-9]{1,2})?", word):
        return _range(word, ipaddress.IPv4Network(_with_wildcards(word), strict=False))
    if ":" in word:
        return _range(word, ipaddress.IPv6Network("::/0" if word == "::" else word, strict=False))
    if len(name) > _MAX_NAME or not _NAME.fullmatch(name):
        raise ValueError
    return SourcePattern(word, name=name.removesuffix("."))


def _with_wildcards(word: str) -> str:
    """Return an IPv4 network: trailing zeros of an address are wildcards (xinetd.conf(5), only_from)."""
    if "/" in word:
        return word
    if word == "0.0.0.0":  # noqa: S104 - nothing is bound here
        return "0.0.0.0/0"
    zeros = (len(word) - len(re.sub(r"(\.0)+$", "", word))) // 2
    return f"{word}/{32 - 8 * zeros}"


def _range(word: str, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> SourcePattern:
    if "%" in word:
        raise ValueError
    first, last = int(network.network_address), int(network.broadcast_address)
    if network.version == 4:
        return SourcePattern(word, first, last)
    if first >> 32 == last >> 32 == 0xFFFF:
        # IPv4-mapped addresses are IPv4 addresses, as in svcd.addresses.address_number.
        return SourcePattern(word, first & 0xFFFF_FFFF, last & 0xFFFF_FFFF)
    return SourcePattern(word, first | V6, last | V6)


def _read_sources(word: str) -> tuple[SourcePattern, ...]:
    # An empty value means no client (xinetd.conf(5)).
    return tuple(map(_read_source, word.split(","))) if word else ()


def _write_list(values: tuple[object, ...]) -> str:
    return ",".join(map(str, values))


SOURCES: ValueType[tuple[SourcePattern, ...]] = ValueType(
    "sources",
    "a comma-separated list of addresses, networks such as 10.0.0.0/8 or fd00::/8, host names and .domains; or nothing",
    _read_sources,
    _write_list,
)


def _read_proxy(word: str) -> SourcePattern:
    if word == "local":
        return SourcePattern(word, LOCAL, LOCAL)
    source = _read_source(word)
    # Proxies are trusted by their addresses only: a name server must not decide that.
    require(not source.name)
    return source


PROXIES: ValueType[tuple[SourcePattern, ...]] = ValueType(
    "proxies",
    "a comma-separated list of addresses, networks such as 10.0.0.0/8 or fd00::/8, and local for all clients of a UNIX "
    "socket; or none",
    lambda word: () if word == "none" else tuple(map(_read_proxy, word.split(","))),
    lambda values: _write_list(values) or "none",
)

_DAY_MINUTES = 24 * 60


def _read_span(word: str) -> TimeRange:
    match = re.fullmatch("([0-9]{1,2}):([0-9]{2})-([0-9]{1,2}):([0-9]{2})", word)
    if match is None:
        raise ValueError
    start_hour, start_minute, end_hour, end_minute = map(int, match.groups())
    start, end = start_hour * 60 + start_minute, end_hour * 60 + end_minute
    if start_minute > 59 or end_minute > 59 or start >= _DAY_MINUTES or end > _DAY_MINUTES or start == end:
        raise ValueError
    return TimeRange(start, end)


HOURS: ValueType[tuple[TimeRange, ...]] = ValueType(
    "hours",
    "a comma-separated list of time ranges such as 8:00-18:00; 22:00-6:00 spans midnight",
    lambda word: tuple(map(_read_span, word.split(","))),
    _write_list,
)


def _read_rate(word: str) -> Rate:
    if word == "none":
        return NO_RATE
    match = re.fullmatch("([0-9]{1,7})/([smh])", word)
    if match is None or not int(match[1]):
        raise ValueError
    return Rate(int(match[1]), {"s": 1, "m": 60, "h": 3600}[match[2]])


RATE: ValueType[Rate] = ValueType(
    "rate", "a number per second, minute or hour: 10/s, 100/m, 1000/h; or none", _read_rate, str
)


def _read_prefixes(word: str) -> PrefixLengths:
    match = re.fullmatch("/([0-9]{1,2}),/([0-9]{1,3})", word)
    if match is None or not (1 <= int(match[1]) <= 32 and 1 <= int(match[2]) <= 128):
        raise ValueError
    return PrefixLengths(int(match[1]), int(match[2]))


PREFIXES: ValueType[PrefixLengths] = ValueType(
    "prefixes", "an IPv4 and an IPv6 prefix length, such as /32,/64", _read_prefixes, str
)

LIMIT: ValueType[int] = ValueType(
    "limit",
    f"{COUNT.accepts}; or none",
    lambda word: UNLIMITED if word == "none" else COUNT.read(word),
    lambda value: "none" if value == UNLIMITED else str(value),
)


def _read_load(word: str) -> float | None:
    if word == "none":
        return None
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,2})?", word) or not float(word):
        raise ValueError
    return float(word)


LOAD: ValueType[float | None] = ValueType(
    "load",
    "a load average such as 2.5; or none",
    _read_load,
    lambda value: f"{value:g}" if value else "none",
    takes_none=True,
)


def _read_zone(word: str) -> str:
    if not re.fullmatch("[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*", word):
        raise ValueError
    return word


ZONE: ValueType[str] = ValueType("zone", "a time zone such as Europe/Berlin or UTC", _read_zone, str)


@dataclass(frozen=True, kw_only=True)
class AccessOptions:
    """The access options, a base class of ServiceOptions, which has the slots.

    UNLIMITED means no limit, and NO_RATE no limit of a rate; None means that the option is not set.
    """

    __slots__ = ()

    only_from: tuple[SourcePattern, ...] | None = option(
        SOURCES, None, "access", "any",
        "Allowed clients. An empty value denies all clients. An IPv4 address with trailing zeros is a network, as "
        "in xinetd: 10.0.0.0 is 10.0.0.0/8, 0.0.0.0 every IPv4 address. The most specific match in only_from and "
        "no_access wins: an address before a host name, a host name before a .domain, a .domain before a network. A "
        "host name matches if a reverse lookup returns it and a forward lookup confirms it; a client without a "
        "confirmed name matches no name. Over udp a host name stands for its addresses, which are looked up at the "
        "start and every five minutes, and a .domain is a mistake. Default: all clients.",
        xinetd="only_from",
        systemd="IPAddressAllow=",
        example="echo 7/tcp only_from=10.0.0.0/8,fd00::/8,.example.org",
    )  # fmt: skip
    no_access: tuple[SourcePattern, ...] = option(
        SOURCES, (), "access", "any",
        "Denied clients, in the same form as only_from. Of two equally specific matches, the one in no_access wins.",
        xinetd="no_access",
        systemd="IPAddressDeny=",
        example="echo 7/tcp no_access=10.1.2.3",
    )  # fmt: skip
    access_times: tuple[TimeRange, ...] = option(
        HOURS, (), "access", "any",
        "Times of day at which clients are allowed. Default: always.",
        xinetd="access_times",
        example="echo 7/tcp access_times=8:00-12:00,13:00-18:00",
    )  # fmt: skip
    access_zone: str = option(
        ZONE, "", "access", "any",
        "Time zone of access_times. Default: the machine's.",
        example="echo 7/tcp access_times=8:00-18:00 access_zone=Europe/Berlin",
    )  # fmt: skip
    max_load: float | None = option(
        LOAD, None, "access", "any",
        "Refuse all clients while the one-minute load average is at or above this value.",
        xinetd="max_load",
        example="chargen 19/tcp max_load=4",
    )  # fmt: skip
    proxy_protocol: tuple[SourcePattern, ...] = option(
        PROXIES, (), "access", "stream",
        "Proxies that send a PROXY protocol header, version 1 or 2, at the start of each connection. Rules, limits "
        "and logs use the client address from the header. Bytes from other peers are treated as data.",
        example="http 8080/tcp proxy_protocol=127.0.0.1,::1",
    )  # fmt: skip

    instances: int | None = option(
        LIMIT, None, "limits", "stream",
        "Maximum number of concurrent connections of the service. Default: 64 for spawned services, none for others.",
        xinetd="instances",
        systemd="MaxConnections=",
        example="echo 7/tcp instances=100",
    )  # fmt: skip
    per_source: int = option(
        LIMIT, UNLIMITED, "limits", "stream",
        "Maximum number of concurrent connections of the service from one source. At a UNIX socket a source is a user "
        "(SO_PEERCRED).",
        xinetd="per_source",
        systemd="MaxConnectionsPerSource=",
        example="echo 7/tcp per_source=5",
    )  # fmt: skip
    per_source_prefix: PrefixLengths = option(
        PREFIXES, PrefixLengths(), "limits", "any",
        "Prefix lengths of a source: all addresses with the same leading bits are one source. At a UNIX socket a "
        "source is a user.",
        example="echo 7/tcp per_source=5 per_source_prefix=/24,/56",
    )  # fmt: skip
    on_limit: str = option(
        choice("refuse", "queue"), "refuse", "limits", "stream",
        "Action for connections over a limit (instances, --max-connections): refuse closes them, queue makes them "
        "wait until another connection ends.",
        example="echo 7/tcp instances=100 on_limit=queue",
    )  # fmt: skip
    rate: Rate = option(
        RATE, NO_RATE, "limits", "any",
        "Maximum rate of connections, or of datagrams, of the service. Clients over the rate are refused until the "
        "rate allows the next one.",
        xinetd="cps",
        systemd="TriggerLimitBurst=, TriggerLimitIntervalSec=",
        example="echo 7/tcp rate=50/s",
    )  # fmt: skip
    per_source_rate: Rate | None = option(
        RATE, None, "limits", "any",
        "Maximum rate from one source. Default: 1000/s for built-ins over udp, none for others.",
        example="echo 7/tcp per_source_rate=10/m",
    )  # fmt: skip
    rate_burst: int | None = option(
        COUNT, None, "limits", "any",
        "Maximum burst after a pause, for both rates. Default: the number in the rate.",
        example="echo 7/tcp rate=50/s rate_burst=200",
    )  # fmt: skip

    banner: str = option(
        PATH, "", "log", "stream",
        "File sent to every client first, of at most 64 KiB, or 16 KiB for spawned services and tcpmux.",
        xinetd="banner",
        example="echo 7/tcp banner=/etc/issue.net",
    )  # fmt: skip
    banner_success: str = option(
        PATH, "", "log", "stream",
        "File sent to allowed clients.",
        xinetd="banner_success",
        example="echo 7/tcp banner_success=/etc/motd",
    )  # fmt: skip
    banner_fail: str = option(
        PATH, "", "log", "stream",
        "File sent to refused clients.",
        xinetd="banner_fail",
        example="echo 7/tcp only_from=10.0.0.0/8 banner_fail=/etc/issue.net",
    )  # fmt: skip
    log_on_failure: tuple[str, ...] = option(
        choices("HOST", "ATTEMPT"), ("HOST",), "log", "any",
        "Contents of the refuse log lines: the address of the first refused client (HOST), or only the number of "
        "attempts (ATTEMPT). Each reason has at most one line per second, with the number of refusals. With none, the "
        "lines are not written.",
        xinetd="log_on_failure",
        example="echo 7/tcp log_on_failure=ATTEMPT",
    )  # fmt: skip
