"""Admission of connections to a service: Admission.admit() returns a ConnectionSlot or a Refusal.

Checks run in the order that reveals and costs least. A client that is refused by its address learns nothing else and
uses no count and no token. Then come time and load, which are the same for every client; then the counts; then the
rates, last because checking them consumes tokens. A refused client takes no token. The host name is looked up after
all that, while the slot is held, so pending lookups are counted and limited like connections.

    slot = admission.admit(peer, now)
    if isinstance(slot, Refusal): ...
    if slot.needs_host_name: refusal = slot.check_host_name(name)   # after the lookup
    slot.release()                                                  # at the end of the connection
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
    """Limit on the connections of the daemon (--max-connections), and the callbacks that wait for room.

    It counts clients, not descriptors: a connection that was handed to a process costs the daemon no descriptor.

    Args:
        max_connections: the limit; None for none.

    Attributes:
        open: the number of admitted connections.
        limit: the limit as a number, UNLIMITED for none.
        max_connections: the limit; None for none.
        refusal: the refusal of a client that arrives at the limit.
    """

    __slots__ = ("_waiting", "limit", "max_connections", "open", "refusal")

    def __init__(self, max_connections: int | None = None) -> None:
        self.open = 0
        self._waiting: dict[Admission, Callable[[], None]] = {}
        self.retune(max_connections)

    def retune(self, max_connections: int | None = None) -> None:
        """Set another limit and call the waiting callbacks for which there is room now.

        Args:
            max_connections: the limit; None for none.
        """
        self.max_connections = max_connections
        self.limit = UNLIMITED if max_connections is None else max_connections
        rule = AccessRule(f"--max-connections {'none' if max_connections is None else max_connections}", _COMMAND_LINE)
        self.refusal = Refusal(RefusalReason.GLOBAL, f"{max_connections} connections are open in total", rule)
        self._wake(list(self._waiting))

    def call_when_not_full(self, admission: Admission, callback: Callable[[], None] | None) -> None:
        """Call `callback` once as soon as an admission is not full, perhaps at once; None removes the callback."""
        if callback is None:
            self._waiting.pop(admission, None)
        else:
            self._waiting[admission] = callback
            self._wake([admission])

    def recheck(self, admission: Admission) -> None:
        """Call the callback of an admission if it waits and the admission's own limit has risen."""
        self._wake([admission])

    def release(self, admission: Admission) -> None:
        """Count the end of a connection of an admission and call the callbacks for which there is room now."""
        self.open -= 1
        if self._waiting:
            # Below the global limit every service has room; else only the service of this connection.
            self._wake(list(self._waiting) if self.open + 1 >= self.limit else [admission])

    def _wake(self, admissions: list[Admission]) -> None:
        """Call and remove the callbacks of those admissions that wait and are not full."""
        for admission in admissions:
            if admission in self._waiting and not admission.full:
                self._waiting.pop(admission)()


class ConnectionSlot:
    """The place of one admitted connection in all counts, until it is released.

    Attributes:
        peer: the client's address, without port.
        needs_host_name: whether check_host_name() has to be called before the connection is served.
        source: the source that the connection counts for; None if sources are not counted.
    """

    __slots__ = ("_admission", "needs_host_name", "peer", "source")

    def __init__(self, admission: Admission, peer: str, source: int | None, needs_host_name: bool) -> None:
        self._admission = admission
        self.peer = peer
        self.source = source
        self.needs_host_name = needs_host_name

    def check_host_name(self, name: str | None) -> Refusal | None:
        """Check the client's confirmed host name, None if it has none.

        Returns:
            The refusal, with the slot released, or None.
        """
        self.needs_host_name = False
        refusal = self._admission.check_host_name(self.peer, name)
        if refusal is not None:
            self.release()
        return refusal

    def release(self) -> None:
        """Free the slot; later calls do nothing, since a connection may end in several ways at once."""
        self._admission.release(self)


class Admission:
    """Admission control of one service: its rules and its admitted connections.

    Args:
        rules: the rules of the service.
        global_limit: shared by all services.
        wall_clock: returns the time of day in seconds since 1970, for access_times.
        load: returns the load average, for max_load. Both are called for each client, so they should be cheap.
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
        # In the order of admission; a dict costs a third of what a set does.
        self._slots: dict[ConnectionSlot, None] = {}
        self._rate_limiter = RateLimiter(rules)
        self.retune(rules)

    def retune(self, rules: AccessRules) -> None:
        """Replace the rules. Admitted connections stay and are counted by the new rules."""
        self.rules = rules
        self._conditions = AccessConditions(rules, self._wall_clock, self._load)
        self._rate_limiter.retune(rules)
        self._max_open = UNLIMITED if rules.instances is None else rules.instances
        self._sources = SourceMask(rules.per_source_prefix)
        self._refusals = {
            RefusalReason.INSTANCES: rules.refusal(RefusalReason.INSTANCES, f"{rules.instances} connections are open"),
            RefusalReason.PER_SOURCE: rules.refusal(
                RefusalReason.PER_SOURCE, f"{rules.per_source} connections are open from this source"
            ),
        }
        self._max_per_source = rules.per_source
        # The open connections by source; empty if sources are not counted.
        self._open_by_source: dict[int, int] = {}
        for slot in self._slots:
            slot.source = (
                None
                if self._max_per_source is None
                else self._count_source(self._sources.of(address_number(slot.peer)))
            )
        # Only the global limit has to be checked.
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
        """The number of admitted connections."""
        return len(self._slots)

    @property
    def full(self) -> bool:
        """Whether a limit leaves no room for any client: a listener then stops accepting instead of refusing."""
        return len(self._slots) >= self._max_open or self.global_limit.open >= self.global_limit.limit

    def call_when_not_full(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` once as soon as this is not full, at once if it is not; None removes the callback."""
        self.global_limit.call_when_not_full(self, callback)

    def admit(self, peer: str, now: float) -> ConnectionSlot | Refusal:
        """Admit or refuse a connection.

        Args:
            peer: the address, without port, as the system writes it; empty at a UNIX socket.
            now: seconds of any clock, which may go back.

        Raises:
            ValueError: the peer is not an address.
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
        """Admit or refuse a connection of a service that has conditions or limits of its own."""
        number = address_number(peer)
        needs_host_name = False
        conditions = self._conditions
        acl = conditions.acl
        if acl is not None:
            verdict = acl.by_address(number)
            needs_host_name = verdict.by_name
            if verdict.refusal is not None and not needs_host_name:
                return verdict.refusal
        source = self._sources.of(number)
        refusal = (None if conditions.unconditional else conditions.check()) or self._over_limit(source)
        if refusal is None and not self._rate_limiter.idle:
            refusal = self._rate_limiter.take(source, now)
        if refusal is not None:
            return refusal
        self.global_limit.open += 1
        counted = None if self._max_per_source is None else self._count_source(source)
        slot = ConnectionSlot(self, peer, counted, needs_host_name)
        self._slots[slot] = None
        return slot

    def _over_limit(self, source: int) -> Refusal | None:
        """Return the refusal by the global limit, instances or per_source; None if there is room."""
        global_limit = self.global_limit
        if global_limit.open >= global_limit.limit:
            return global_limit.refusal
        if len(self._slots) >= self._max_open:
            return self._refusals[RefusalReason.INSTANCES]
        if self._max_per_source is not None and self._open_by_source.get(source, 0) >= self._max_per_source:
            return self._refusals[RefusalReason.PER_SOURCE]
        return None

    def _count_source(self, source: int) -> int:
        """Count a connection of a source, and return the source."""
        self._open_by_source[source] = self._open_by_source.get(source, 0) + 1
        return source

    def check_host_name(self, peer: str, name: str | None) -> Refusal | None:
        """Return the refusal of a peer with this confirmed host name by the current lists; None if it is admitted."""
        acl = self._conditions.acl
        return None if acl is None else acl.by_name(address_number(peer), name).refusal

    def release(self, slot: ConnectionSlot) -> None:
        """Free a slot; do nothing if it is free already."""
        if slot not in self._slots:
            return
        del self._slots[slot]
        if slot.source is not None:
            count = self._open_by_source[slot.source] - 1
            if count:
                self._open_by_source[slot.source] = count
            else:
                del self._open_by_source[slot.source]
        self.global_limit.release(self)
