"""What a datagram service must hold beyond the values of its options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svcd.model import SocketType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svcd.config.service import Service
    from svcd.model import ConfigProblem

__all__ = ["datagram_problems"]


def datagram_problems(service: Service) -> Iterator[ConfigProblem]:
    """Rules that could be kept only by looking up the name of each sender, who may be forged."""
    if service.net.shape is not SocketType.DATAGRAM or service.net.local:
        return
    for option in ("only_from", "no_access"):
        domains = [each.text for each in getattr(service.options, option) or () if each.name.startswith(".")]
        if domains:
            text = f"the names of senders are not looked up for {service.net}, so {domains[0]} means nobody"
            yield service.problem(option, f"{text}; name hosts, addresses or networks on the service's own line")
