"""The door of a service: who comes gets a Ticket or a Refusal.

What is asked comes in the order that reveals and costs least. Whoever may not come at all, by address, learns nothing
else and uses up nothing: no count, no token. Then time and load, which are the same for everybody; then the counts;
then the rates, last because they alone are changed by asking. Who is refused takes no token. A host name is looked up
after all that, with the Ticket in hand: so lookups under way are counted and bounded like connections.

    ticket = door.admit(peer, now)
    if isinstance(ticket, Refusal): ...
    if ticket.awaits_name: refusal = ticket.named(name)      # once the lookup is over
    ticket.release()                                         # when the connection is over
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from svcd.access.conditions import AccessConditions
from svcd.access.rate_limit import RateLimiter, SourceMask
from svcd.access.rules import AccessRule, Refusal, RefusalReason
from svcd.addresses import address_number
from svcd.model import SourceLocation

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcd.access.rules import AccessRules

__all__ = ["UNLIMITED", "Admission", "ConnectionSlot", "GlobalLimit"]


#: More than there can be connections.
UNLIMITED = 1 << 62


_COMMAND_LINE = SourceLocation("the command line")


class GlobalLimit:
    """All connections of the daemon, and who waits until there is room for one more.

    They are people, not descriptors: a connection that was handed to a process costs the daemon none.

    Args:
        most: the global limit; None for none.

    Attributes:
        open: the connections that are let in.
        limit: how many may be.
        most: the same; None for no limit.
        refusal: for whoever comes at the limit.
    """

    __slots__ = ("_waiting", "limit", "max_connections", "open", "refusal")

    def __init__(self, most: int | None = None) -> None:
        self.open = 0
        self._waiting: dict[Admission, Callable[[], None]] = {}
        self.retune(most)

    def retune(self, most: int | None = None) -> None:
        """Take another limit, as the constructor does; those who wait go on if there is room now."""
        self.max_connections = most
        self.limit = UNLIMITED if most is None else most
        rule = AccessRule(f"--max-connections {'none' if most is None else most}", _COMMAND_LINE)
        self.refusal = Refusal(RefusalReason.GLOBAL, f"{most} connections are open in all", rule)
        self._wake(list(self._waiting))

    def call_when_not_full(self, admission: Admission, go_on: Callable[[], None] | None) -> None:
        """Call `go_on` once as soon as a door is not full, perhaps at once; None to wait no longer."""
        if go_on is None:
            self._waiting.pop(admission, None)
        else:
            self._waiting[admission] = go_on
            self._wake([admission])

    def recheck(self, admission: Admission) -> None:
        """A door's own limit may have risen."""
        self._wake([admission])

    def release(self, admission: Admission) -> None:
        """A connection that came by a door is gone."""
        self.open -= 1
        if self._waiting:
            # Room in the hall is room for everybody, room behind a door for those before it.
            self._wake(list(self._waiting) if self.open + 1 >= self.limit else [admission])

    def _wake(self, admissions: list[Admission]) -> None:
        for admission in admissions:
            if admission in self._waiting and not admission.full:
                self._waiting.pop(admission)()


class ConnectionSlot:
    """The right to be in, of one connection, until it is released.

    Attributes:
        peer: the client's address, without port.
        awaits_name: whether the client's name has the last word; nothing may be served before named() said so.
        source: what the connection counts for; None where sources are not counted.
    """

    __slots__ = ("_admission", "needs_host_name", "peer", "source")

    def __init__(self, admission: Admission, peer: str, source: int | None, awaits_name: bool) -> None:
        self._admission = admission
        self.peer = peer
        self.source = source
        self.needs_host_name = awaits_name

    def check_host_name(self, name: str | None) -> Refusal | None:
        """The client's name, found and confirmed, or None if there is none; with a Refusal the Ticket is released."""
        self.needs_host_name = False
        refusal = self._admission.check_host_name(self.peer, name)
        if refusal is not None:
            self.release()
        return refusal

    def release(self) -> None:
        """The connection is over. Later calls do nothing: the ways in which a connection can end may cross."""
        self._admission.release(self)


class Admission:
    """All that decides who comes in to one service, and who is in.

    Args:
        rules: the service's.
        global_limit: shared with all services.
        wall_clock: the time of day, in seconds since 1970, for access_times.
        load: the load average, for max_load. Both are called for each client, so they should be cheap.
    """

    __slots__ = (
        "_conditions",
        "_load",
        "_max_open",
        "_max_per_source",
        "_open_by_source",
        "_rate_limiter",
        "_refusals",
        "_slots",
        "_sources",
        "_unrestricted",
        "_wall_clock",
        "global_limit",
        "rules",
    )  # fmt: skip

    def __init__(
        self,
        rules: AccessRules,
        global_limit: GlobalLimit,
        *,
        wall_clock: Callable[[], float],
        load: Callable[[], float],
    ) -> None:
        self.global_limit = global_limit
        self._wall_clock = wall_clock
        self._load = load
        # In their order; as keys of a dict they cost a third of what a set does.
        self._slots: dict[ConnectionSlot, None] = {}
        self._rate_limiter = RateLimiter(rules)
        self.retune(rules)

    def retune(self, rules: AccessRules) -> None:
        """Take new rules. Whoever is in stays in, and counts by the new rules."""
        self.rules = rules
        self._conditions = AccessConditions(rules, self._wall_clock, self._load)
        self._rate_limiter.retune(rules)
        self._max_open = UNLIMITED if rules.instances is None else rules.instances
        self._sources = SourceMask(rules.per_source_prefix)
        self._refusals = {
            RefusalReason.INSTANCES: rules.refusal(RefusalReason.INSTANCES, f"{rules.instances} connections are open"),
            RefusalReason.PER_SOURCE: rules.refusal(
                RefusalReason.PER_SOURCE, f"{rules.per_source} connections are open from there"
            ),
        }
        self._max_per_source = rules.per_source
        # By source: how many are in; empty where that does not matter.
        self._open_by_source: dict[int, int] = {}
        for slot in self._slots:
            slot.source = None if self._max_per_source is None else self._count_source(self._source_of(slot.peer))
        # Nothing to be asked but whether the hall is full.
        self._unrestricted = (
            self._conditions.acl is None
            and self._conditions.unconditional
            and self._rate_limiter.idle
            and rules.instances is None
            and rules.per_source is None
        )
        self.global_limit.recheck(self)

    @property
    def open(self) -> int:
        """How many are in."""
        return len(self._slots)

    @property
    def full(self) -> bool:
        """Whether nobody can come in now, whoever it is: for a listener that rather rests than refuses."""
        return len(self._slots) >= self._max_open or self.global_limit.open >= self.global_limit.limit

    def call_when_not_full(self, go_on: Callable[[], None] | None) -> None:
        """Call `go_on` once as soon as this is not full, at once if it isn't; None to be called no longer."""
        self.global_limit.call_when_not_full(self, go_on)

    def open_from(self, peer: str) -> int:
        """How many of a peer's source are in, where sources are counted.

        Raises:
            ValueError: the peer is no address.
        """
        return self._open_by_source.get(self._source_of(peer), 0)

    def admit(self, peer: str, now: float) -> ConnectionSlot | Refusal:
        """Let somebody in, or not.

        Args:
            peer: the address, without port, as the system writes it; empty at a UNIX socket.
            now: seconds, of any clock; it may even go back.

        Raises:
            ValueError: the peer is no address.
        """
        if not self._unrestricted:
            return self._admit_checked(peer, now)
        global_limit = self.global_limit
        if global_limit.open >= global_limit.limit:
            return global_limit.refusal
        global_limit.open += 1
        slot = ConnectionSlot(self, peer, None, False)
        self._slots[slot] = None
        return slot

    def _admit_checked(self, peer: str, now: float) -> ConnectionSlot | Refusal:
        number = address_number(peer)
        awaits_name = False
        acl = self._conditions.acl
        if acl is not None:
            verdict = acl.by_address(number)
            awaits_name = verdict.by_name
            if verdict.refusal is not None and not awaits_name:
                return verdict.refusal
        source = self._sources.of(number)
        refusal = self._conditions.check() or self._over_limit(source)
        if refusal is None and not self._rate_limiter.idle:
            refusal = self._rate_limiter.take(source, now)
        if refusal is not None:
            return refusal
        self.global_limit.open += 1
        counted = None if self._max_per_source is None else self._count_source(source)
        slot = ConnectionSlot(self, peer, counted, awaits_name)
        self._slots[slot] = None
        return slot

    def _over_limit(self, source: int) -> Refusal | None:
        global_limit = self.global_limit
        if global_limit.open >= global_limit.limit:
            return global_limit.refusal
        if len(self._slots) >= self._max_open:
            return self._refusals[RefusalReason.INSTANCES]
        if self._max_per_source is not None and self._open_by_source.get(source, 0) >= self._max_per_source:
            return self._refusals[RefusalReason.PER_SOURCE]
        return None

    def _source_of(self, peer: str) -> int:
        return self._sources.of(address_number(peer))

    def _count_source(self, source: int) -> int:
        self._open_by_source[source] = self._open_by_source.get(source, 0) + 1
        return source

    def check_host_name(self, peer: str, name: str | None) -> Refusal | None:
        """What the lists, as they are now, say of a peer and its confirmed name."""
        acl = self._conditions.acl
        return None if acl is None else acl.by_name(address_number(peer), name).refusal

    def release(self, slot: ConnectionSlot) -> None:
        """Ticket.release()."""
        if slot not in self._slots:
            return
        del self._slots[slot]
        if slot.source is not None:
            here = self._open_by_source[slot.source] - 1
            if here:
                self._open_by_source[slot.source] = here
            else:
                del self._open_by_source[slot.source]
        self.global_limit.release(self)
