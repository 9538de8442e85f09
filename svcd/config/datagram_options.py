"""The options that say how datagrams are answered."""

from __future__ import annotations

from dataclasses import dataclass

from svcd.config.option_info import option
from svcd.config.value_types import YES_NO

__all__ = ["DatagramOptions"]


@dataclass(frozen=True, kw_only=True)
class DatagramOptions:
    """A part of Options, which has the slots for all its parts."""

    __slots__ = ()

    amplify: bool = option(
        YES_NO, False, "udp", "udp",
        "Let an answer be larger than its question. With no it has as many bytes at most, or 28 if that is more: a "
        "forged question then brings its victim no more than it cost.",
    )  # fmt: skip
    answer_service_ports: bool = option(
        YES_NO, False, "udp", "udp",
        "Answer questions from ports below 1024 and from those of the daemon's own datagram services, too. Two "
        "services that answer each other never end.",
    )  # fmt: skip
