"""The options that say how long."""

from __future__ import annotations

from dataclasses import dataclass

from svcd.config.option_info import option
from svcd.config.value_types import DURATION, TIMEOUT, or_none

__all__ = ["TimeOptions"]


@dataclass(frozen=True, kw_only=True)
class TimeOptions:
    """A part of Options, which has the slots for all its parts.

    None of inetd's family ends a connection by itself, and RFC 862 to 864 let the client decide when: so there is no
    deadline unless somebody wants one. HTTP has some, as in every server of it.
    """

    __slots__ = ()

    idle_timeout: float | None = option(
        or_none(TIMEOUT), None, "how long", "watched",
        "End a connection on which no byte moves in either direction for so long; what a client does not take has "
        "not moved.",
    )  # fmt: skip
    first_byte_timeout: float | None = option(
        or_none(TIMEOUT), None, "how long", "asked",
        "End a connection whose client sends nothing at all for so long after it connects; what TLS needs to begin is "
        "nothing.",
    )  # fmt: skip
    session_timeout: float | None = option(
        or_none(TIMEOUT), None, "how long", "session",
        "How long a connection may last in all. When a deadline of a spawned service passes, the process group gets "
        "SIGTERM, and two seconds later SIGKILL; any other connection is reset.",
    )  # fmt: skip
    request_timeout: float | None = option(
        or_none(TIMEOUT), 30.0, "how long", "web",
        "How long a client may take for a whole request; for a body a second more for each 500 bytes that have come.",
    )  # fmt: skip
    keepalive_timeout: float | None = option(
        or_none(TIMEOUT), 75.0, "how long", "web",
        "How long a connection may wait for another request after an answer.",
    )  # fmt: skip
    send_timeout: float | None = option(
        or_none(TIMEOUT), 60.0, "how long", "web",
        "Close a connection when its client receives less than 500 bytes/s of an answer for this time.",
    )  # fmt: skip
    connect_timeout: float = option(
        DURATION, 10.0, "how long", "redirect",
        "How long the other server may take to accept a connection.",
    )  # fmt: skip
    start_timeout: float = option(
        DURATION, 30.0, "how long", "imported",
        "Maximum time for the import of the module. The other services are served meanwhile. A longer import breaks "
        "the service, which is tried again.",
    )  # fmt: skip
    shutdown_timeout: float = option(
        DURATION, 10.0, "how long", "session",
        "Time that open connections have to end after a request to stop. With wait=yes also the time between SIGTERM "
        "and SIGKILL for a process whose socket a reload takes away.",
    )  # fmt: skip
