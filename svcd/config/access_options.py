"""The options that say who may come in, how many, how fast, and what is said to whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from svcd.access.types import NO_RATE, PrefixLengths
from svcd.config.access_types import HOURS, LIMIT, LOAD, PREFIXES, PROXIES, RATE, SOURCES, ZONE
from svcd.config.option_info import option
from svcd.config.value_types import COUNT, PATH, UNLIMITED, choice, choices

if TYPE_CHECKING:
    from svcd.access.types import Rate, SourcePattern, TimeRange

__all__ = ["AccessOptions"]


@dataclass(frozen=True, kw_only=True)
class AccessOptions:
    """A part of Options, which has the slots for all its parts.

    A limit is kinds.UNLIMITED for none, a rate is terms.NO_RATE; None says that the line does not say.
    """

    __slots__ = ()

    only_from: tuple[SourcePattern, ...] | None = option(
        SOURCES, None, "who", "any",
        "Allowed clients. An empty value denies all clients. Of all entries here and in no_access the most specific "
        "match decides: an address before a host name, a host name before a .domain, a .domain before a network. A "
        "host name matches if a reverse lookup returns it and a forward lookup confirms it; a client without a "
        "confirmed name matches no name. Over udp a host name stands for its addresses, which are looked up at the "
        "start and every five minutes, and a .domain is a mistake. Default: all clients.",
        xinetd="only_from",
    )  # fmt: skip
    no_access: tuple[SourcePattern, ...] = option(
        SOURCES, (), "who", "any",
        "Who may not, as only_from; of two entries that are equally specific this one decides.",
        xinetd="no_access",
    )  # fmt: skip
    access_times: tuple[TimeRange, ...] = option(
        HOURS, (), "who", "any",
        "When clients may come in; default: always.",
        xinetd="access_times",
    )  # fmt: skip
    access_zone: str = option(
        ZONE, "", "who", "any",
        "Whose clock access_times are read from; default: the machine's.",
    )  # fmt: skip
    max_load: float | None = option(
        LOAD, None, "who", "any",
        "From this load average of a minute on nobody is let in.",
        xinetd="max_load",
    )  # fmt: skip
    proxy_protocol: tuple[SourcePattern, ...] = option(
        PROXIES, (), "who", "stream",
        "Proxies whose connections begin with a header of the PROXY protocol, version 1 or 2: the client that it names "
        "is the one that all else is about. A header of anybody else is data.",
    )  # fmt: skip

    instances: int | None = option(
        LIMIT, None, "how many", "stream",
        "How many connections the service may have at once; default: 64 for spawned services, else none.",
        xinetd="instances",
    )  # fmt: skip
    per_source: int = option(
        LIMIT, UNLIMITED, "how many", "stream",
        "How many of them may come from one source. At a UNIX socket a source is a user (SO_PEERCRED).",
        xinetd="per_source",
    )  # fmt: skip
    per_source_prefix: PrefixLengths = option(
        PREFIXES, PrefixLengths(), "how many", "any",
        "What a source is: all addresses with the same leading bits. At a UNIX socket it is a user.",
    )  # fmt: skip
    on_limit: str = option(
        choice("refuse", "queue"), "refuse", "how many", "stream",
        "Whether those who come while there are too many (instances, --max-connections) are refused, or wait until "
        "one ends.",
    )  # fmt: skip
    rate: Rate = option(
        RATE, NO_RATE, "how many", "any",
        "How many may come; who comes too fast is refused, and the next may come as soon as the rate allows.",
        xinetd="cps",
    )  # fmt: skip
    per_source_rate: Rate | None = option(
        RATE, None, "how many", "any",
        "How many of them from one source; default: 1000/s for built-ins over udp, else none.",
    )  # fmt: skip
    rate_burst: int | None = option(
        COUNT, None, "how many", "any",
        "How many may come at once after a pause, under both rates; default: the number in the rate.",
    )  # fmt: skip

    banner: str = option(
        PATH, "", "said", "stream",
        "File whose text every client gets first, of at most 64 KiB, or 16 KiB for spawned services and tcpmux.",
        xinetd="banner",
    )  # fmt: skip
    banner_success: str = option(
        PATH, "", "said", "stream",
        "File with a text for those who are let in.",
        xinetd="banner_success",
    )  # fmt: skip
    banner_fail: str = option(
        PATH, "", "said", "stream",
        "File with a text for those who are refused.",
        xinetd="banner_fail",
    )  # fmt: skip
    log_on_failure: tuple[str, ...] = option(
        choices("HOST", "ATTEMPT"), ("HOST",), "said", "any",
        "What is logged of those who are refused: the first one's address (HOST), or without it the attempts. There "
        "is a line a second at most for each reason, with how many they were. With none there is no such line.",
        xinetd="log_on_failure",
    )  # fmt: skip
