"""What deadlines must hold beyond their own values."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svcd.config.service import Service
    from svcd.model import ConfigProblem

__all__ = ["time_problems"]


def time_problems(service: Service) -> Iterator[ConfigProblem]:
    """Deadlines on the line of a service itself that can't be kept there; from @defaults they just do not apply."""
    if not service.options.wait:
        return
    for option in ("idle_timeout", "first_byte_timeout"):
        if service.has_own(option):
            text = "with wait=yes the process accepts the connections, and svcd sees none; use session_timeout"
            yield service.problem(option, text)
