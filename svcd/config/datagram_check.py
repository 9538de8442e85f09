"""What a datagram service must hold beyond the values of its options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svcd.model import Shape

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svcd.config.service import Service
    from svcd.model import Problem

__all__ = ["datagram_problems"]


def datagram_problems(service: Service) -> Iterator[Problem]:
    """Rules that nobody could keep without making each forged sender's name be looked up."""
    if service.net.shape is not Shape.DATAGRAM or service.spawned:
        return
    for option in ("only_from", "no_access"):
        names = [source.text for source in getattr(service.options, option) or () if source.name]
        if names:
            text = f"a datagram can't wait until {names[0]} is looked up; use addresses for {service.net}"
            yield service.problem(option, text)
