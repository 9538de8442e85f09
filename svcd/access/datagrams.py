"""The rules for answering datagrams. Nobody vouches for the sender of one, so an answer must not become a weapon.

- An answer's payload is at most as long as its question's, or 28 bytes if that is more, unless amplify=yes: 28 bytes
  are the IPv4 and UDP headers of the question itself, so not even an empty question gets more back than it cost, and
  daytime and time (RFC 867, 868) fit in it.
- Ports of services are not answered unless answer_service_ports=yes: those below 1024 (RFC 6335, section 6) and those
  of the daemon's own datagram services. Two services that answer each other, after one forged question, never end.
- Addresses that are no single host's are never answered: unspecified, multicast, broadcast.
- A source gets so many answers a second (per_source_rate). It is what a loop costs on any other port.

Host names of only_from and no_access stand for the addresses that were found beforehand (svcd.access.acl).
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
#: How many senders are known by their text; then they are learned anew. About 150 bytes each.
_MAX_KNOWN = 16_384

# Where ranges begin and end of which no address is a single host's, by numbers: 0.0.0.0/8 (RFC 1122, 3.2.1.3),
# 224.0.0.0/4 (RFC 5771), 255.255.255.255 (RFC 919), :: and ff00::/8 (RFC 4291, 2.5.2 and 2.7).
_EDGES = (0, 1 << 24, 0xE000_0000, 0xF000_0000, 0xFFFF_FFFF, 1 << 32, V6, V6 + 1, V6 | 0xFF << 120, V6 << 1)

#: For a sender of one of those addresses.
NOT_UNICAST = Refusal(RefusalReason.ADDRESS, "it is no single host's address")


def is_not_unicast(number: int) -> bool:
    """Whether the address of a number can't be a single host's."""
    return bisect_right(_EDGES, number) % 2 == 1


class DatagramFilter:
    """Whether the questions of a datagram service are answered.

    Args:
        rules: the service's.
        wall_clock: the time of day, in seconds since 1970, for access_times.
        load: the load average, for max_load.
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
        """Take new rules."""
        if rules.resolved is None:
            rules = replace(rules, resolved={})
        self._rules = rules
        self._conditions = AccessConditions(rules, self._wall_clock, self._load)
        self._rate_limiter.retune(rules)
        self._unconditional = self._conditions.unconditional
        self._rate_limited = not self._rate_limiter.idle
        self._sources = SourceMask(rules.per_source_prefix)
        # Port 0 can't be answered.
        self._first_port = 1 if rules.answer_service_ports else _FIRST_CLIENT_PORT
        self._port_refusal = rules.refusal(RefusalReason.PORT, "services ask no questions", "answer_service_ports")
        # By the text of an address: its source, or why it is not answered.
        self._verdicts: dict[str, int | Refusal] = {}

    def read_time_zone(self, zone: tzinfo | None) -> None:
        """Take the time zone of access_times as it is now; None for the machine's own."""
        if self._rules.access_times:
            self.retune(replace(self._rules, zone=zone))

    @property
    def counts_sources(self) -> bool:
        """Whether it matters how often a source asks."""
        return self._rules.per_source_rate is not None

    def set_local_addresses(self, service_ports: AbstractSet[int], broadcasts: Collection[str]) -> None:
        """Take what is known of daemon and machine.

        Args:
            service_ports: of all datagram services of the daemon; looked at anew for each question.
            broadcasts: the broadcast addresses of the machine's networks.
        """
        self._service_ports = service_ports
        self._broadcasts = frozenset(map(address_number, broadcasts))
        self._verdicts.clear()

    def refusal(self, host: str, port: int, now: float) -> Refusal | None:
        """Why a question is not answered; None if it is, which takes a token of its source's.

        Args:
            host: the sender's address as the system writes it.
            port: the sender's.
            now: seconds, of any clock; it may even go back.

        Raises:
            ValueError: the host is no address.
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
        """The longest answer's payload to a question's, in bytes."""
        if self._rules.amplify:
            return _LARGEST_DATAGRAM
        return max(question, QUESTION_HEADER)

    def _classify(self, host: str) -> int | Refusal:
        if len(self._verdicts) >= _MAX_KNOWN:
            self._verdicts.clear()
        number = address_number(host)
        found: int | Refusal = self._sources.of(number)
        if number in self._broadcasts or is_not_unicast(number):
            found = NOT_UNICAST
        elif self._conditions.acl is not None:
            found = self._conditions.acl.by_address(number).refusal or found
        self._verdicts[host] = found
        return found
