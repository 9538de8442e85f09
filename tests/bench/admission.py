"""`python -m tests.bench.admission`: the cost of access control, in µs for each client, and its memory, in bytes.

Clients come from 100,000 sources in random order; each is admitted and released: half of each figure is the release.
"""

from __future__ import annotations

import gc
import random
import time
import tracemalloc
from typing import TYPE_CHECKING

from svcd.access.acl import Acl
from svcd.access.admission import Admission, ConnectionSlot, GlobalLimit
from svcd.access.datagrams import DatagramFilter
from svcd.access.rate_limit import MAX_SOURCES, SourceTokenBuckets
from svcd.access.refusal_log import RefusalAggregator
from svcd.access.rules import AccessRules
from svcd.access.types import PrefixLengths, Rate
from svcd.addresses import address_number
from svcd.config.access_options import HOURS, RATE, SOURCES

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["main"]

_SOURCES = 100_000
_ROUNDS = 5


def _peers(rng: random.Random, *, six: bool = False) -> list[str]:
    if six:
        return [f"2001:db8:{rng.randrange(1 << 16):x}:{rng.randrange(1, 1 << 16):x}::7" for _ in range(_SOURCES)]
    return [f"10.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(1, 255)}" for _ in range(_SOURCES)]


def _thousand_rules(rng: random.Random) -> AccessRules:
    """Return rules with networks of every length, addresses and names; 10.0.0.0/8 and 2001:db8::/32 are admitted."""
    texts: tuple[list[str], list[str]] = (["10.0.0.0/8", "2001:db8::/32"], ["host.example", ".guests.example"])
    for number in range(996):
        bits = rng.randint(12, 32)
        address = f"{rng.choice((10, 172, 192))}.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(1, 255)}"
        texts[number % 2].append(f"{address}/{bits}")
    only_from, no_access = (SOURCES.read(",".join(each)) for each in texts)
    return AccessRules(
        only_from=only_from,
        no_access=no_access,
        access_times=HOURS.read("0:00-12:00,12:00-24:00"),
        max_load=100.0,
        instances=1_000_000,
        per_source=1000,
        per_source_prefix=PrefixLengths(24, 64),
        rate=RATE.read("9999999/s"),
        per_source_rate=RATE.read("1000/s"),
    )


def _cost(visit: Callable[[str], object], peers: list[str]) -> float:
    """Return the median of the rounds, in µs for each peer."""
    costs = []
    for _ in range(_ROUNDS):
        gc.collect()
        started = time.perf_counter()
        for peer in peers:
            visit(peer)
        costs.append((time.perf_counter() - started) / len(peers) * 1e6)
    return sorted(costs)[_ROUNDS // 2]


def _admission_visit(rules: AccessRules) -> Callable[[str], object]:
    admission = Admission(rules, GlobalLimit(1_000_000), wall_clock=time.time, load=lambda: 0.5)
    clock = time.monotonic
    refused = RefusalAggregator()

    def visit(peer: str) -> None:
        found = admission.admit(peer, clock())
        if isinstance(found, ConnectionSlot):
            found.release()
        else:
            refused.add(found, peer, clock())

    return visit


def _datagram_visit(rules: AccessRules) -> Callable[[str], object]:
    datagram_filter = DatagramFilter(rules, wall_clock=time.time, load=lambda: 0.5)
    datagram_filter.set_local_addresses({7777, 9999}, {"10.255.255.255"})
    clock = time.monotonic
    refusal = datagram_filter.refusal
    return lambda peer: refusal(peer, 40_000, clock())


def _costs() -> list[tuple[str, float]]:
    rng = random.Random(5)
    four, six, one = _peers(rng), _peers(rng, six=True), ["10.1.2.3"] * _SOURCES
    rules = _thousand_rules(rng)
    plain = AccessRules(per_source_rate=Rate(1000, 1))
    clock = time.monotonic
    return [
        ("the loop around it: a call and a look at the clock", _cost(lambda _peer: clock(), four)),
        ("open door: admit and release", _cost(_admission_visit(AccessRules()), four)),
        ("1,000 rules, all limits and rates, IPv4: admit and release", _cost(_admission_visit(rules), four)),
        ("1,000 rules, all limits and rates, IPv6: admit and release", _cost(_admission_visit(rules), six)),
        ("datagram, no rate, one sender", _cost(_datagram_visit(AccessRules()), one)),
        ("datagram, 1000/s for each source, one sender (a flood)", _cost(_datagram_visit(plain), one)),
        ("datagram, 1000/s for each source, 100,000 senders", _cost(_datagram_visit(plain), four)),
        ("datagram, 1,000 rules, 100,000 senders", _cost(_datagram_visit(rules), four)),
    ]


def _bytes() -> list[tuple[str, float]]:
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    buckets = SourceTokenBuckets(Rate(1, 1), 10)
    for source in range(MAX_SOURCES + MAX_SOURCES // 2 - 1):
        buckets.take(source + (1 << 24), 1.0 + source * 1e-6)
    table, entries = tracemalloc.get_traced_memory()[0] - before, len(buckets)
    before = tracemalloc.get_traced_memory()[0]
    rules = _thousand_rules(random.Random(5))
    middle = tracemalloc.get_traced_memory()[0]
    acl = Acl(rules)
    compiled = tracemalloc.get_traced_memory()[0] - middle
    acl.by_address(address_number("10.0.0.1"))
    tracemalloc.stop()
    return [
        (f"table of sources, full with {entries}: bytes", table),
        ("the same, for each source", table / entries),
        ("1,000 rules as they are read", middle - before),
        ("1,000 rules, compiled", compiled),
    ]


def main() -> None:
    """Measure and print the costs."""
    for text, cost in _costs():
        print(f"{cost:10.3f} µs  {text}")
    for text, size in _bytes():
        print(f"{size:10.0f}     {text}")


if __name__ == "__main__":
    main()
