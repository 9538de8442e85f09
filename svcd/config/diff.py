"""The difference between two configurations: the plan of a reload. Nothing is done here."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from svcd.config.options import TABLE

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence

    from svcd.config.endpoints import Endpoint
    from svcd.config.service import Service

__all__ = ["ReloadPlan", "as_configured", "diff", "socket_key"]


@dataclass(frozen=True, slots=True)
class ReloadPlan:
    """The changes of a reload, in the order of the new file; closed sockets in the order of the old one.

    Attributes:
        kept: sockets that stay open, each as its old and its new endpoint.
        opened: sockets to open, some perhaps at addresses where one is closed.
        closed: sockets to close: no service needs them, or they can't serve the one that does.
        added, removed: services.
        changed: changed services, each as it was and as it will be.
        same: services that don't change.
        contested: sockets that can't be opened, each with the socket of another service that gets its address.
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
        """Whether nothing changes."""
        return not (self.opened or self.closed or self.added or self.removed or self.changed)

    def lines(self) -> Iterator[str]:
        """Yield the changes as text: `+` for additions, `-` for removals, `~` for changes with their options."""
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
    """Return the plan that leads from the running services to those of a new file.

    A socket stays open if its address and the settings that can't be changed later are the same; it may then serve
    another service. But the socket of a wait=yes service can serve only such services, because programs share its file
    status flags: another service gets a new socket, after the old one is closed. Services are matched by their ids.

    Args:
        old: the endpoints of the running services.
        new: the endpoints of the new file; of several with the same address the first gets it.
        hidden: the socket_key() of old sockets that clients can't reach any more; these are closed.
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
    old_services = {endpoint.service.id: endpoint.service for endpoint in old}
    new_services = {endpoint.service.id: endpoint.service for endpoint in new}
    both = [(old_services[name], service) for name, service in new_services.items() if name in old_services]
    changed = tuple((service, other) for service, other in both if service != other)
    changed_ids = {service.id for _, service in changed}
    return ReloadPlan(
        kept=kept,
        opened=tuple(endpoint for key, endpoint in first.items() if key not in after),
        closed=tuple(endpoint for endpoint in old if socket_key(endpoint) not in after),
        added=tuple(service for name, service in new_services.items() if name not in old_services),
        removed=tuple(service for name, service in old_services.items() if name not in new_services),
        changed=changed,
        same=tuple(service for _, service in both if service.id not in changed_ids),
        contested=tuple((each, has) for each in new if (has := first[socket_key(each)]) is not each),
    )


def as_configured(plan: ReloadPlan, before: Mapping[str, Service], wanted: Iterable[Service]) -> ReloadPlan:
    """Return a plan whose services are those that were configured and will be, also those that can't be served.

    Args:
        plan: the changes of sockets, and of the services that have some.
        before: the services that were configured before, by id.
        wanted: the services of the new file, in its order.
    """
    after = {service.id: service for service in wanted}
    added = [service for name, service in after.items() if name not in before]
    changed = [(was, after[name]) for name, was in before.items() if name in after and after[name] != was]
    # A service that was broken, and can be served now as it was configured before, changes too.
    new = {service.id for service in added} | {service.id for _, service in changed}
    added += [service for service in plan.added if service.id not in new]
    changed += [
        (was, service) for was, service in plan.changed if service.id not in new and service == after.get(service.id)
    ]
    return replace(
        plan,
        added=tuple(added),
        removed=tuple(service for name, service in before.items() if name not in after),
        changed=tuple(changed),
    )


def _may_serve(old: Endpoint, new: Endpoint) -> bool:
    """Return whether the socket of an endpoint may serve another endpoint with the same address."""
    return new.service.options.wait or not old.service.options.wait


def socket_key(endpoint: Endpoint) -> Hashable:
    """Return a key that is equal for two endpoints if one socket can serve them, one after the other."""
    service = endpoint.service
    # For port 0 the kernel has picked a port that belongs to this service.
    port = service.port or service.id
    return (
        service.net.shape,
        endpoint.version,
        endpoint.host,
        port if endpoint.version else service.path,
        endpoint.version == 6 and service.options.v6only,
        bool(endpoint.version) and service.options.reuse_port,
        bool(endpoint.version) and service.options.mptcp,
        # After its size was set, the kernel no longer adapts a buffer to the connection.
        bool(endpoint.version) and (service.options.sndbuf is None, service.options.rcvbuf is None),
    )


def _changes(old: Service, new: Service) -> Iterator[str]:
    for name in ("port", "path", "runs"):
        was, now = getattr(old, name), getattr(new, name)
        if was != now:
            yield f"{name} {was} -> {now}"
    if old.aliases != new.aliases:
        yield "aliases"
    for field in fields(old.options):
        was, now = getattr(old.options, field.name), getattr(new.options, field.name)
        if was != now:
            yield f"{field.name} {_text(field.name, was)} -> {_text(field.name, now)}"


def _text(option: str, value: object) -> str:
    if value == TABLE[option].default:
        return TABLE[option].default_text or "default"
    return TABLE[option].value_type.write(value)
