"""What a reload changes: the way from where services listened to where they are to listen. Nothing is done here."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from svcd.config.options import TABLE

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterator, Sequence

    from svcd.config.endpoints import Endpoint
    from svcd.config.service import Service

__all__ = ["ReloadPlan", "diff", "socket_key"]


@dataclass(frozen=True, slots=True)
class ReloadPlan:
    """What is to be done, in the order of the new file; what is closed in the order of the old one.

    Attributes:
        kept: sockets that stay open, by what they served and what they are to serve.
        opened: sockets that are not there yet; some perhaps where one is closed.
        closed: sockets that nothing asks for any more, or that can't serve what asks for them.
        added, removed: services.
        changed: services by what they were and what they are to be.
        same: services of which nothing changes.
        contested: sockets that can't be opened, each with the one of another service that gets its address.
    """

    kept: tuple[tuple[Endpoint, Endpoint], ...]
    opened: tuple[Endpoint, ...]
    closed: tuple[Endpoint, ...]
    added: tuple[Service, ...]
    removed: tuple[Service, ...]
    changed: tuple[tuple[Service, Service], ...]
    same: tuple[Service, ...]
    contested: tuple[tuple[Endpoint, Endpoint], ...] = ()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.opened or self.closed or self.added or self.removed or self.changed)

    def lines(self) -> Iterator[str]:
        """For people: `+` what comes, `-` what goes, `~` what changes and how."""
        for service in self.removed:
            yield f"- {service.id}"
        for service in self.added:
            yield f"+ {service.id}"
        for old, new in self.changed:
            yield f"~ {new.id}: " + ", ".join(_changes(old, new))
        for endpoint in self.closed:
            yield f"- {endpoint.service.id} on {endpoint.address}"
        for endpoint in self.opened:
            yield f"+ {endpoint.service.id} on {endpoint.address}"


def diff(old: Sequence[Endpoint], new: Sequence[Endpoint], hidden: Collection[Hashable] = ()) -> ReloadPlan:
    """The way from what runs to what is to run.

    A socket stays open when it has the same address and what only a new one could have: it may serve another service
    then. But one of a wait=yes service serves such services only, since programs share its file status flags: any other
    service gets a new one, once the old one is closed. A service is the same by its name and protocol.

    Args:
        old: where services listen.
        new: where services are to listen; of several that ask for one address the first gets it.
        hidden: sockets of the old ones that clients don't find any more, by their socket_key(); they don't stay.
    """
    before = {socket_key(endpoint): endpoint for endpoint in old}
    first: dict[Hashable, Endpoint] = {}
    for endpoint in new:
        first.setdefault(socket_key(endpoint), endpoint)
    kept = tuple(
        (was, endpoint)
        for endpoint in first.values()
        if (was := before.get(key := socket_key(endpoint))) and key not in hidden and _may_serve(was, endpoint)
    )
    after = {socket_key(endpoint) for _, endpoint in kept}
    were = {endpoint.service.id: endpoint.service for endpoint in old}
    are = {endpoint.service.id: endpoint.service for endpoint in new}
    both = [(were[name], service) for name, service in are.items() if name in were]
    changed = tuple((service, other) for service, other in both if service != other)
    other_now = {service.id for _, service in changed}
    return ReloadPlan(
        kept=kept,
        opened=tuple(endpoint for key, endpoint in first.items() if key not in after),
        closed=tuple(endpoint for endpoint in old if socket_key(endpoint) not in after),
        added=tuple(service for name, service in are.items() if name not in were),
        removed=tuple(service for name, service in were.items() if name not in are),
        changed=changed,
        same=tuple(service for _, service in both if service.id not in other_now),
        contested=tuple((each, has) for each in new if (has := first[socket_key(each)]) is not each),
    )


def _may_serve(old: Endpoint, new: Endpoint) -> bool:
    """Return whether the socket of one endpoint may serve another one of the same address."""
    return new.service.options.wait or not old.service.options.wait


def socket_key(endpoint: Endpoint) -> Hashable:
    """What two endpoints have in common that one socket can serve, one after the other."""
    service = endpoint.service
    # Of port 0 the kernel has made a port that is the service's own.
    port = service.port or service.id
    return (
        service.net.shape,
        endpoint.version,
        endpoint.host,
        port if endpoint.version else service.path,
        endpoint.version == 6 and service.options.v6only,
        bool(endpoint.version) and service.options.reuse_port,
        bool(endpoint.version) and service.options.mptcp,
        # The kernel fits a buffer to its connection no more, once it had a size.
        bool(endpoint.version) and (service.options.sndbuf is None, service.options.rcvbuf is None),
    )


def _changes(old: Service, new: Service) -> Iterator[str]:
    for name in ("port", "path", "runs"):
        was, is_now = getattr(old, name), getattr(new, name)
        if was != is_now:
            yield f"{name} {was} -> {is_now}"
    if old.aliases != new.aliases:
        yield "aliases"
    for field in fields(old.options):
        was, is_now = getattr(old.options, field.name), getattr(new.options, field.name)
        if was != is_now:
            yield f"{field.name} {_text(field.name, was)} -> {_text(field.name, is_now)}"


def _text(option: str, value: object) -> str:
    if value == TABLE[option].default:
        return TABLE[option].default_text or "default"
    return TABLE[option].kind.write(value)
