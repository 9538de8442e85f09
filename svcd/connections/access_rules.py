"""Access rules of a service from its options, with the defaults of options that are not given."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from svcd.access.rules import AccessRules
from svcd.access.types import Rate
from svcd.config.value_types import UNLIMITED
from svcd.model import SocketType

if TYPE_CHECKING:
    from svcd.config.service import Service

__all__ = ["instances_of", "rules_of", "zone_of"]

#: Default of instances for spawned services.
_SPAWNED_INSTANCES = 64
#: Default of per_source_rate for built-in UDP services: answers per second.
_ANSWERS = Rate(1000, 1)


def rules_of(service: Service) -> AccessRules:
    """Return the access rules of a service.

    Raises:
        OSError, KeyError: the machine no longer has the time zone of the service.
    """
    options = service.options
    source_rate = options.per_source_rate
    if source_rate is None and service.net.shape is SocketType.DATAGRAM and not (service.net.local or service.spawned):
        source_rate = _ANSWERS
    rules = AccessRules(
        only_from=options.only_from,
        no_access=options.no_access,
        proxy_protocol=options.proxy_protocol,
        access_times=options.access_times,
        zone=zone_of(service),
        max_load=options.max_load,
        instances=instances_of(service),
        per_source=_limit(options.per_source),
        per_source_prefix=options.per_source_prefix,
        rate=_rate(options.rate),
        per_source_rate=_rate(source_rate),
        rate_burst=options.rate_burst,
        # At a UNIX socket the sender's address can't be forged.
        amplify=options.amplify or service.net.local,
        answer_service_ports=options.answer_service_ports,
        locations=service.locations,
    )
    if service.net.shape is SocketType.STREAM:
        return rules
    # At a UNIX socket no host name has an address.
    return replace(rules, resolved=dict.fromkeys(rules.host_names, ()) if service.net.local else {})


def instances_of(service: Service) -> int | None:
    """Return the limit of a service's connections, by its option or by default; None for no limit."""
    instances = service.options.instances
    if instances is None and service.spawned:
        return _SPAWNED_INSTANCES
    return _limit(instances)


def zone_of(service: Service) -> ZoneInfo | None:
    """Return the time zone of a service's access_times; None for that of the machine.

    Raises:
        OSError, KeyError: the machine no longer has the time zone.
    """
    zone = service.options.access_zone
    return ZoneInfo(zone) if zone else None


def _limit(value: int | None) -> int | None:
    return None if value == UNLIMITED else value


def _rate(value: Rate | None) -> Rate | None:
    return value if value is not None and value.count else None
