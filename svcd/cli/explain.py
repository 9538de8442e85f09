"""`svcctl explain`: whether a service would admit a client, by the services file alone, and the rule that decides."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from svcd.access.acl import Acl
from svcd.access.explain import ExplainQuery, StepOutcome, explain
from svcd.access.rules import RefusalReason
from svcd.addresses import LOCAL_CLIENT, address_number, unmapped
from svcd.config.statement import nearest
from svcd.connections.access_rules import rules_of
from svcd.errors import UsageError
from svcd.host.host_addresses import system_numbers_of
from svcd.host.reverse_resolver import confirmed_system_host_of
from svcd.model import SocketType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import tzinfo

    from svcd.access.explain import Step
    from svcd.access.rules import AccessRules
    from svcd.config.service import Config, Service

__all__ = ["Explanation", "explained", "explanation", "moment_of", "services_named"]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Result of a dry run of an admission.

    Attributes:
        service: the service.
        address: the address of the client, as given.
        moment: the time of the dry run, in seconds since 1970.
        zone: the time zone of the rules; None for the machine's.
        steps: the checks, up to the one that refuses.
    """

    service: Service
    address: str
    moment: float
    zone: tzinfo | None
    steps: Sequence[Step]

    @property
    def admitted(self) -> bool:
        """Whether the client would be admitted, as far as the services file decides."""
        return self.steps[-1].outcome is not StepOutcome.REFUSES

    @property
    def verdict(self) -> str:
        """The result as text."""
        verdict = _verdict(self.steps)
        header = self.steps[0].check is RefusalReason.PROXY
        return f"if its PROXY header has no client: {verdict}" if header else verdict

    @property
    def certificate(self) -> str:
        """What an admitted client needs for TLS; empty if it needs no certificate."""
        return "".join(_certificate(self.service)) if self.admitted else ""

    def lines(self) -> Iterator[str]:
        """Yield the lines of the explanation."""
        clock = datetime.fromtimestamp(self.moment, self.zone)
        zone = self.service.options.access_zone or clock.astimezone().tzname()
        kind = "a datagram" if self.service.net.shape is SocketType.DATAGRAM else "a connection"
        yield f"{kind} to {self.service.id} from {self.address}, {clock:%a %Y-%m-%d %H:%M} {zone}:"
        yield from _table(self.steps)
        yield self.verdict
        if self.certificate:
            yield self.certificate


def services_named(config: Config, name: str) -> list[Service]:
    """Return the services of a name: one for name/protocol, all with the name otherwise.

    Raises:
        UsageError: there is no such service, or it is disabled.
    """
    found = [service for service in config.services if name in (service.id, service.name)]
    if not found:
        names = [known for service in config.services for known in (service.id, service.name)]
        hint = nearest(name, names) or "; svcctl names lists the services"
        raise UsageError(f"the file has no service {name!r}{hint}")
    enabled = [service for service in found if not service.options.disable]
    if not enabled:
        raise UsageError(f"{found[0].id} is disabled ({found[0].locations['disable']}), so it admits no client")
    return enabled


def moment_of(text: str | None, rules: AccessRules) -> float:
    """Return a moment in seconds since 1970; a time without a zone is in the time zone of the rules.

    Raises:
        UsageError: it is not a time.
    """
    if text is None:
        return time.time()
    try:
        if re.fullmatch("[0-9]{1,2}:[0-9]{2}", text):
            hour, minute = map(int, text.split(":"))
            moment = datetime.now(rules.zone).replace(hour=hour, minute=minute, second=0, microsecond=0)
        else:
            moment = datetime.fromisoformat(text)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=rules.zone)
        # Times at the limits of the years can't be converted to all time zones.
        datetime.fromtimestamp(moment.timestamp(), rules.zone).astimezone()
        return moment.timestamp()
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            f"--at takes a time such as 18:30, 2026-01-31T18:30 or 2026-01-31T18:30+01:00, not {text!r}"
        ) from None


def explanation(
    service: Service,
    address: str,
    at: str | None,
    host_of: Callable[[str], str | None] = confirmed_system_host_of,
    addresses_of: Callable[[str], frozenset[int]] = system_numbers_of,
) -> tuple[bool, list[str]]:
    """Return whether a client would be admitted, and the lines of the explanation; the arguments of explained()."""
    found = explained(service, address, at, host_of, addresses_of)
    return found.admitted, list(found.lines())


def explained(
    service: Service,
    address: str,
    at: str | None,
    host_of: Callable[[str], str | None] = confirmed_system_host_of,
    addresses_of: Callable[[str], frozenset[int]] = system_numbers_of,
) -> Explanation:
    """Return the explanation for a client of a service.

    Args:
        service: the service.
        address: the address of the client, with or without brackets; LOCAL_CLIENT at a UNIX socket.
        at: the moment, as moment_of reads it; None for now.
        host_of: looks up its confirmed name; called only if a rule needs it.
        addresses_of: looks up the host names in the rules of a datagram service; raises OSError.

    Raises:
        UsageError: the address or the time is invalid.
    """
    peer = _peer(service, address)
    rules = rules_of(service)
    if rules.resolved is not None:
        rules = replace(rules, resolved={name: _numbers(name, addresses_of) for name in rules.host_names})
    datagram = service.net.shape is SocketType.DATAGRAM
    looked_up = Acl(rules).by_address(address_number(peer)).by_name
    query = ExplainQuery(
        peer=peer,
        moment=moment_of(at, rules),
        name=host_of(unmapped(peer)) if looked_up and peer else None,
        looked_up=looked_up,
        # The load at another time is unknown.
        load=os.getloadavg()[0] if at is None else None,
        datagram=datagram,
    )
    return Explanation(service, address, query.moment, rules.zone, explain(rules, query))


def _numbers(name: str, addresses_of: Callable[[str], frozenset[int]]) -> frozenset[int]:
    """Return the addresses of a host name; none if the lookup fails."""
    try:
        return addresses_of(name)
    except (OSError, UnicodeError):
        return frozenset()


def _certificate(service: Service) -> Iterator[str]:
    """Return the line for the client certificate, which is required after admission and unknown to the file."""
    options = service.options
    if options.tls_client_ca is not None:
        needs = (
            "needs a client certificate"
            if options.tls_client == "required"
            else "may send a client certificate, which must be valid"
        )
        words = [
            word for word in service.words() if word.startswith(("tls_client_ca=", "tls_client_names=", "tls_crl="))
        ]
        yield f"over TLS it {needs}: {' '.join(words)}"


def _peer(service: Service, address: str) -> str:
    # Clients of proxies have addresses, also at a UNIX socket.
    if service.net.local != (address == LOCAL_CLIENT) and not (service.net.local and service.options.proxy_protocol):
        text = f"clients of {service.id} have no address; use {LOCAL_CLIENT}"
        raise UsageError(text if service.net.local else f"clients of {service.id} have an address, not {LOCAL_CLIENT}")
    if address == LOCAL_CLIENT:
        return ""
    peer = address.removeprefix("[").removesuffix("]")
    try:
        address_number(peer)
    except ValueError:
        peer = ""
    if not peer:
        raise UsageError(f"{address!r} is not an IP address; write it as 192.0.2.1 or 2001:db8::1")
    return peer


def _table(steps: Sequence[Step]) -> Iterator[str]:
    texts = [(step.check.value, step.outcome.value, step.text) for step in steps]
    widths = [max(len(row[column]) for row in texts) for column in range(3)]
    for step, row in zip(steps, texts, strict=True):
        columns = "  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True))
        yield f"  {columns}  {_decider(step)}".rstrip()


def _decider(step: Step) -> str:
    """Return the rule, unless the text of the step names it, and its location."""
    rule = step.rule
    if rule is None:
        return ""
    return str(rule.location) if rule.location is not None and rule.text in step.text else str(rule)


def _verdict(steps: Sequence[Step]) -> str:
    last = steps[-1]
    if last.outcome is StepOutcome.REFUSES:
        return f"refused: {last.check}, by {last.rule}" if last.rule else f"refused: {last.check}, {last.text}"
    # If an address depends on its name, the step of the name has the details; the step of a proxy has its own.
    detailed = (RefusalReason.ADDRESS, RefusalReason.PROXY)
    open_ones = [
        step.check.value for step in steps if step.outcome is StepOutcome.DEPENDS and step.check not in detailed
    ]
    return f"admitted, depending on: {', '.join(open_ones)}" if open_ones else "admitted"
