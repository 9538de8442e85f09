"""Rules for answering datagrams. The sender address can be forged, so an answer must not amplify or loop.

- The payload of an answer is at most as long as that of its question, or 28 bytes if that is more, unless amplify=yes:
  28 bytes are the IPv4 and UDP headers of the question itself, so not even an empty question gets more back than it
  cost, and daytime and time (RFC 867, 868) fit in it.
- Ports of services are not answered unless answer_service_ports=yes: those below 1024 (RFC 6335, section 6) and those
  of the daemon's own datagram services. Two services that answer each other, after one forged question, never end.
- Addresses that are not unicast are never answered: unspecified, multicast, broadcast.
- A source gets a limited number of answers a second (per_source_rate). That bounds a loop on any other port.

Host names of only_from and no_access stand for the addresses that were looked up beforehand (svcd.access.acl).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from typing import TYPE_CHECKING

from svcd.access.conditions import AccessConditions
from svcd.access.rate_limit import RateLimiter, SourceMask
from svcd.access.rules import Refusal, RefusalReason
from svcd.addresses import V6, address_number

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from collections.abc import Set as AbstractSet
    from datetime import tzinfo

    from svcd.access.rules import AccessRules

__all__ = ["NOT_UNICAST", "QUESTION_HEADER", "DatagramFilter", "is_not_unicast"]

#: The bytes of an IPv4 header without options (RFC 791) and a UDP header (RFC 768).
QUESTION_HEADER = 28
_LARGEST_DATAGRAM = 65_535
_FIRST_CLIENT_PORT = 1024
#: How many senders are cached by the text of their address; then the cache is cleared. About 150 bytes each.
_MAX_CACHED = 16_384

# Starts and ends of the ranges that are not unicast, as numbers: 0.0.0.0/8 (RFC 1122, 3.2.1.3),
# 224.0.0.0/4 (RFC 5771), 255.255.255.255 (RFC 919), :: and ff00::/8 (RFC 4291, 2.5.2 and 2.7).
_EDGES = (0, 1 << 24, 0xE000_0000, 0xF000_0000, 0xFFFF_FFFF, 1 << 32, V6, V6 + 1, V6 | 0xFF << 120, V6 << 1)

#: The refusal of a sender with an address in one of these ranges.
NOT_UNICAST = Refusal(RefusalReason.ADDRESS, "it is not a unicast address")


def is_not_unicast(number: int) -> bool:
    """Return whether an address, given as a number, cannot be that of a single host."""
    return bisect_right(_EDGES, number) % 2 == 1


class DatagramFilter:
    """Decides which questions of a datagram service are answered.

    Args:
        rules: the rules of the service.
        wall_clock: returns the time of day in seconds since 1970, for access_times.
        load: returns the load average, for max_load.
    """

    __slots__ = (
        "_broadcasts",
        "_conditions",
        "_first_port",
        "_load",
        "_port_refusal",
        "_rate_limited",
        "_rate_limiter",
        "_rules",
        "_service_ports",
        "_sources",
        "_unconditional",
        "_verdicts",
        "_wall_clock",
    )  # fmt: skip

    def __init__(self, rules: AccessRules, *, wall_clock: Callable[[], float], load: Callable[[], float]) -> None:
        self._wall_clock = wall_clock
        self._load = load
        self._rate_limiter = RateLimiter(rules)
        self._service_ports: AbstractSet[int] = frozenset()
        self._broadcasts: frozenset[int] = frozenset()
        self.retune(rules)

    def retune(self, rules: AccessRules) -> None:
        """Replace the rules."""
        if rules.resolved is None:
            rules = replace(rules, resolved={})
        self._rules = rules
        self._conditions = AccessConditions(rules, self._wall_clock, self._load)
        self._rate_limiter.retune(rules)
        self._unconditional = self._conditions.unconditional
        self._rate_limited = not self._rate_limiter.idle
        self._sources = SourceMask(rules.per_source_prefix)
        # A datagram to port 0 can't be sent.
        self._first_port = 1 if rules.answer_service_ports else _FIRST_CLIENT_PORT
        self._port_refusal = rules.refusal(RefusalReason.PORT, "it comes from a service port", "answer_service_ports")
        # By the text of an address: its source, or the refusal.
        self._verdicts: dict[str, int | Refusal] = {}

    def read_time_zone(self, zone: tzinfo | None) -> None:
        """Replace the time zone of access_times; None for the machine's own."""
        if self._rules.access_times:
            self.retune(replace(self._rules, zone=zone))

    @property
    def counts_sources(self) -> bool:
        """Whether the rate of each source is limited."""
        return self._rules.per_source_rate is not None

    def set_local_addresses(self, service_ports: AbstractSet[int], broadcasts: Collection[str]) -> None:
        """Set the ports of the daemon and the broadcast addresses of the machine.

        Args:
            service_ports: of all datagram services of the daemon; read anew for each question.
            broadcasts: the broadcast addresses of the machine's networks.
        """
        self._service_ports = service_ports
        self._broadcasts = frozenset(map(address_number, broadcasts))
        self._verdicts.clear()

    def refusal(self, host: str, port: int, now: float) -> Refusal | None:
        """Return why a question is not answered; None if it is, which takes a token of its source.

        Args:
            host: the sender's address as the system writes it.
            port: the sender's port.
            now: seconds of any clock, which may go back.

        Raises:
            ValueError: the host is not an address.
        """
        if port < self._first_port or (port in self._service_ports and not self._rules.answer_service_ports):
            return self._port_refusal
        source = self._verdicts.get(host)
        if source is None:
            source = self._classify(host)
        if isinstance(source, Refusal):
            return source
        if not self._unconditional:
            closed = self._conditions.check()
            if closed is not None:
                return closed
        return self._rate_limiter.take(source, now) if self._rate_limited else None

    def max_answer(self, question: int) -> int:
        """Return the longest payload that may answer a question of so many bytes."""
        if self._rules.amplify:
            return _LARGEST_DATAGRAM
        return max(question, QUESTION_HEADER)

    def _classify(self, host: str) -> int | Refusal:
        """Find the source of a sender or its refusal by address, and remember it."""
        if len(self._verdicts) >= _MAX_CACHED:
            self._verdicts.clear()
        number = address_number(host)
        found: int | Refusal = self._sources.of(number)
        if number in self._broadcasts or is_not_unicast(number):
            found = NOT_UNICAST
        elif self._conditions.acl is not None:
            found = self._conditions.acl.by_address(number).refusal or found
        self._verdicts[host] = found
        return found
