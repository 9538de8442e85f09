"""Access by address and host name: the options only_from and no_access, compiled.

Of all entries of both lists that match a client the most specific one decides: an entry of only_from admits, an entry
of no_access refuses. Of two equally specific entries the one of no_access decides. If no entry matches, the client is
admitted, unless the service has an only_from. This is the manual's rule (xinetd.conf(5): "the one that is the better
match"); xinetd 2.3.15 itself refuses a client that is in both lists, however specific the entries are.

The order from most to least specific is: a single address, a host name, a .domain (longer names first), a network
(longer prefixes first). A name stands for a machine as an address does, but the owner of a domain decides which
machines have it, so an address in the services file precedes it. A domain precedes a network because rules by domain
are exceptions within a network: `only_from=10.0.0.0/8 no_access=.guests.example` must keep the guests out.

The host name of a connection's client comes from a reverse lookup that a forward lookup has confirmed. Verdict.by_name
shows beforehand whether that lookup is needed: only if an entry by name could change what the address alone decides.
A client without a name matches no entry by name and its address alone decides, so only_from=.example refuses it and
no_access=.example does not (as in xinetd and tcpserver).

For datagrams no name is looked up on arrival: a forged sender could make the daemon do that. The host names of their
rules are looked up forward, beforehand (AccessRules.resolved), and stand for the addresses found; an address that the
file itself names precedes those. While a host name of no_access has not been looked up, every client is refused.

The ranges of all entries are cut into pieces that do not overlap, each with its verdict. An address is then found by
bisection, in a fraction of a microsecond among thousands of rules however their prefixes are spread.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from svcd.access.rules import AccessRule, Refusal, RefusalReason
from svcd.addresses import LOCAL

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from svcd.access.rules import AccessRules

__all__ = ["Acl", "Verdict"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result of checking a client against both lists.

    Attributes:
        refusal: why the client is refused; None if it is admitted.
        rule: the rule that decided; None if there is no only_from and no entry matched.
        by_name: whether an entry by name could decide otherwise.
        if_no_host_name: if by_name, the refusal of a client without a name; None if it is admitted.
    """

    refusal: Refusal | None
    rule: AccessRule | None
    by_name: bool = False
    if_no_host_name: Refusal | None = None


#: Less than the number of every local user at a UNIX socket.
_FIRST = LOCAL - (1 << 33)

#: An entry of a list: whether it admits, and its rule.
_Entry = tuple[bool, AccessRule]


class Acl:
    """The lists only_from and no_access of one service, compiled.

    Args:
        rules: the rules of the service.
    """

    __slots__ = ("_entries_by_name", "_starts", "_verdicts")

    def __init__(self, rules: AccessRules) -> None:
        ranges: dict[tuple[int, int], _Entry] = {}
        self._entries_by_name: dict[str, _Entry] = {}
        # Of equally specific entries the first one stays, so no_access comes first.
        for option, admits in (("no_access", False), ("only_from", True)):
            for source, rule in rules.entries(option):
                if source.name:
                    self._entries_by_name.setdefault(source.name, (admits, rule))
                else:
                    ranges.setdefault((source.first, source.last), (admits, rule))
        unknown = None if rules.resolved is None else self._resolve(rules.resolved, ranges)
        if unknown is not None:
            self._starts, self._verdicts = [_FIRST], [Verdict(unknown, unknown.rule)]
            return
        # An entry by name matters only if it decides otherwise than the address: the first such entry of each list.
        nameless = {
            admits: Refusal(RefusalReason.NAME, f"it has no confirmed host name, and {rule.text} needs one", rule)
            for admits, rule in reversed(self._entries_by_name.values())
        }
        default = _verdict(None, nameless)
        if rules.only_from is not None:
            rule = AccessRule("only_from=" if not rules.only_from else "only_from", rules.locations.get("only_from"))
            text = "only_from is empty and admits no client" if not rules.only_from else "only_from does not match it"
            default = Verdict(Refusal(RefusalReason.ADDRESS, text, rule), rule, True in nameless, nameless.get(True))
        self._starts = [_FIRST]
        self._verdicts = [default]
        self._cut(ranges, nameless)

    def _resolve(
        self, resolved: Mapping[str, Collection[int]], ranges: dict[tuple[int, int], _Entry]
    ) -> Refusal | None:
        """Replace names by their addresses.

        Returns:
            The refusal of every client if a name in no_access has not been looked up, else None.
        """
        names, self._entries_by_name = self._entries_by_name, {}
        for name, entry in names.items():
            admits, rule = entry
            if name not in resolved and not admits:
                return Refusal(RefusalReason.NAME, f"{rule.text} has not been resolved", rule)
            for number in resolved.get(name, ()):
                ranges.setdefault((number, number), entry)
        return None

    def _cut(self, ranges: dict[tuple[int, int], _Entry], nameless: dict[bool, Refusal]) -> None:
        """Cut the ranges, which are nested or disjoint, into adjacent pieces."""
        outer = [(-1, self._verdicts[0])]
        for (first, last), entry in sorted(ranges.items(), key=lambda item: (item[0][0], -item[0][1])):
            while len(outer) > 1 and outer[-1][0] < first:
                self._append(outer.pop()[0] + 1, outer[-1][1])
            # A single address precedes every name.
            verdict = _verdict(entry, nameless if first != last else {})
            outer.append((last, verdict))
            self._append(first, verdict)
        while len(outer) > 1:
            self._append(outer.pop()[0] + 1, outer[-1][1])

    def _append(self, start: int, verdict: Verdict) -> None:
        """Add a piece that begins at an address; it replaces one that begins at the same address."""
        if self._starts[-1] == start:
            self._verdicts[-1] = verdict
        else:
            self._starts.append(start)
            self._verdicts.append(verdict)

    def by_address(self, number: int) -> Verdict:
        """Return the verdict on an address, given as a number (svcd.addresses.address_number)."""
        return self._verdicts[bisect_right(self._starts, number) - 1]

    def by_name(self, number: int, name: str | None) -> Verdict:
        """Return the verdict on an address and its confirmed host name.

        Args:
            number: the address as a number.
            name: the host name, in any case, with or without a trailing dot; None if there is none or it is not known.
        """
        verdict = self.by_address(number)
        if not verdict.by_name:
            return verdict
        if not name:
            return Verdict(
                verdict.if_no_host_name,
                verdict.rule if verdict.if_no_host_name is None else verdict.if_no_host_name.rule,
            )
        entry = self._entry_of_name(name.lower().strip("."))
        return Verdict(verdict.refusal, verdict.rule) if entry is None else _verdict(entry, {}, RefusalReason.NAME)

    def _entry_of_name(self, name: str) -> _Entry | None:
        """Return the entry for a lower-case host name, or for the longest domain above it; None if there is none."""
        found = self._entries_by_name.get(name)
        while found is None and name:
            name = name[1:].partition(".")[2] if name[0] == "." else name.partition(".")[2]
            name = name and f".{name}"
            found = self._entries_by_name.get(name)
        return found


def _verdict(
    entry: _Entry | None, nameless: dict[bool, Refusal], reason: RefusalReason = RefusalReason.ADDRESS
) -> Verdict:
    """Return the verdict of an entry. The host name can change it only if the other list has an entry by name."""
    if entry is None:
        return Verdict(None, None, False in nameless)
    admits, rule = entry
    refusal = None if admits else Refusal(reason, f"{rule.text} refuses it", rule)
    return Verdict(refusal, rule, (not admits) in nameless, None if admits else nameless.get(True))
