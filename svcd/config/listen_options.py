"""The options of sockets, timeouts and datagrams."""

from __future__ import annotations

from dataclasses import dataclass

from svcd.config.option_info import option
from svcd.config.process_options import BUFFER_SIZE
from svcd.config.value_types import COUNT, DURATION, MODE, OWNER, TIMEOUT, WORD, WORDS, YES_NO, or_none
from svcd.model import FileOwner

__all__ = ["DatagramOptions", "SocketOptions", "TimeoutOptions"]


@dataclass(frozen=True, kw_only=True)
class SocketOptions:
    """The socket options, a base class of ServiceOptions, which has the slots."""

    __slots__ = ()

    bind: tuple[str, ...] = option(
        WORDS, (), "listen", "inet",
        "Addresses, network interfaces or host names to listen on, with commas between them; default: all addresses, "
        "and for status those of this machine alone, 127.0.0.1 and ::1.",
        xinetd="bind, interface",
    )  # fmt: skip
    freebind: bool = option(
        YES_NO, False, "listen", "inet",
        "Bind to addresses that the machine does not have yet (IP_FREEBIND).",
    )  # fmt: skip
    backlog: int = option(
        COUNT, 1024, "listen", "stream",
        "How many connections the kernel keeps waiting to be accepted.",
    )  # fmt: skip
    v6only: bool = option(
        YES_NO, True, "listen", "inet",
        "With no, a tcp6 or udp6 service takes IPv4 clients as well.",
    )  # fmt: skip
    keepalive: bool = option(
        YES_NO, False, "listen", "tcp",
        "Let the kernel probe silent connections and end dead ones.",
        xinetd="flags = KEEPALIVE",
    )  # fmt: skip
    nodelay: bool = option(
        YES_NO, True, "listen", "tcp",
        "Send small answers at once (TCP_NODELAY).",
        xinetd="flags = NODELAY",
    )  # fmt: skip
    reuse_port: bool = option(
        YES_NO, False, "listen", "inet",
        "Share the port with other processes that ask for it too (SO_REUSEPORT).",
    )  # fmt: skip
    mptcp: bool = option(
        YES_NO, False, "listen", "tcp",
        "Accept Multipath TCP (RFC 8684) as well as TCP. For a connection with several subflows the log may count the "
        "bytes of the first subflow only.",
    )  # fmt: skip
    sndbuf: int | None = option(
        BUFFER_SIZE, None, "listen", "inet",
        "Size of the kernel's buffer for what is sent to a client (SO_SNDBUF), at most net.core.wmem_max; it takes "
        "twice as much memory. Default: it fits itself to each connection.",
    )  # fmt: skip
    rcvbuf: int | None = option(
        BUFFER_SIZE, None, "listen", "inet",
        "The same for what comes from a client (SO_RCVBUF), or from all clients of a datagram service; no more than "
        "net.core.rmem_max.",
    )  # fmt: skip
    mode: int = option(
        MODE, 0o660, "listen", "local",
        "Permissions of the socket file.",
    )  # fmt: skip
    owner: FileOwner = option(
        OWNER, FileOwner(), "listen", "local",
        "User and group that own the socket file, by name or number; default: who runs the daemon.",
    )  # fmt: skip
    group: str = option(
        WORD, "", "listen", "group",
        "Group, by name or number: of a spawned service's process, which else has its user's; of the socket file "
        "of any other service, as owner=:GROUP.",
        xinetd="group",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TimeoutOptions:
    """The timeout options, a base class of ServiceOptions, which has the slots.

    By default only HTTP connections have timeouts: other super-servers end no connection by themselves, and in RFC 862
    to 864 the client decides when to end it.
    """

    __slots__ = ()

    idle_timeout: float | None = option(
        or_none(TIMEOUT), None, "timeouts", "counted",
        "End a connection on which no byte moves in either direction for so long; what a client does not take has "
        "not moved.",
    )  # fmt: skip
    first_byte_timeout: float | None = option(
        or_none(TIMEOUT), None, "timeouts", "client first",
        "End a connection whose client sends nothing at all for so long after it connects; what TLS needs to begin is "
        "nothing.",
    )  # fmt: skip
    session_timeout: float | None = option(
        or_none(TIMEOUT), None, "timeouts", "session",
        "How long a connection may last in all. When a deadline of a spawned service passes, the process group gets "
        "SIGTERM, and two seconds later SIGKILL; any other connection is reset.",
    )  # fmt: skip
    request_timeout: float | None = option(
        or_none(TIMEOUT), 30.0, "timeouts", "http server",
        "How long a client may take for a whole request; for a body a second more for each 500 bytes that have come.",
    )  # fmt: skip
    keepalive_timeout: float | None = option(
        or_none(TIMEOUT), 75.0, "timeouts", "http server",
        "How long a connection may wait for another request after an answer.",
    )  # fmt: skip
    send_timeout: float | None = option(
        or_none(TIMEOUT), 60.0, "timeouts", "http server",
        "Close a connection when its client receives less than 500 bytes/s of an answer for this time.",
    )  # fmt: skip
    connect_timeout: float = option(
        DURATION, 10.0, "timeouts", "redirect",
        "How long the other server may take to accept a connection.",
    )  # fmt: skip
    start_timeout: float = option(
        DURATION, 30.0, "timeouts", "python code",
        "Maximum time for the import of the module. The other services are served meanwhile. A longer import breaks "
        "the service, which is tried again.",
    )  # fmt: skip
    shutdown_timeout: float = option(
        DURATION, 10.0, "timeouts", "session",
        "Time that open connections have to end after a request to stop. With wait=yes also the time between SIGTERM "
        "and SIGKILL for a process whose socket a reload takes away.",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DatagramOptions:
    """The options of datagram services, a base class of ServiceOptions, which has the slots."""

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
