"""The options of sockets, timeouts and datagrams."""

from __future__ import annotations

from dataclasses import dataclass

from svcd.config.option_info import option
from svcd.config.process_options import BUFFER_SIZE
from svcd.config.value_types import (
    COUNT,
    DURATION,
    MODE,
    OWNER,
    TIMEOUT,
    WORD,
    WORDS,
    YES_NO,
    ValueType,
    or_none,
    require,
)
from svcd.model import FileOwner

__all__ = ["DatagramOptions", "SocketOptions", "TimeoutOptions"]

#: Values of the field by the name of their code point (RFC 2474, RFC 2597, RFC 3246).
_CODE_POINTS = {
    **{f"CS{number}": number << 5 for number in range(8)},
    **{f"AF{row}{drop}": row << 5 | drop << 3 for row in range(1, 5) for drop in range(1, 4)},
    "EF": 0xB8,
}


def _read_tos(word: str) -> int:
    named = _CODE_POINTS.get(word.upper())
    if named is not None:
        return named
    require(word[:2] == "0x" or word == "0" or word[:1] != "0")
    value = int(word, 16 if word[:2] == "0x" else 10) if word.isascii() and word.isalnum() else -1
    # The last two bits are those of congestion notification (RFC 3168), which the kernel sets.
    require(0 <= value <= 0xFC and value % 4 == 0)
    return value


TOS: ValueType[int] = ValueType(
    "traffic class",
    "a code point (EF, CS0 to CS7, AF11 to AF43), or a multiple of 4 from 0 to 252, also as in 0x10",
    _read_tos,
    lambda value: f"0x{value:02x}" if value else "0",
)


@dataclass(frozen=True, kw_only=True)
class SocketOptions:
    """The socket options, a base class of ServiceOptions, which has the slots."""

    __slots__ = ()

    bind: tuple[str, ...] = option(
        WORDS, (), "listen", "inet",
        "Addresses, network interfaces or host names to listen on. Default: all addresses; for status the loopback "
        "addresses 127.0.0.1 and ::1.",
        xinetd="bind, interface",
        systemd="ListenStream=ADDRESS:PORT, BindToDevice=",
        example="echo 7/tcp bind=127.0.0.1,::1",
    )  # fmt: skip
    freebind: bool = option(
        YES_NO, False, "listen", "inet",
        "Bind to addresses that the machine does not have yet (IP_FREEBIND).",
        systemd="FreeBind=",
        example="echo 7/tcp bind=192.0.2.7 freebind=yes",
    )  # fmt: skip
    backlog: int = option(
        COUNT, 1024, "listen", "stream",
        "Maximum number of connections that the kernel queues until svcd accepts them (listen(2)).",
        systemd="Backlog=",
        example="echo 7/tcp backlog=4096",
    )  # fmt: skip
    v6only: bool = option(
        YES_NO, True, "listen", "inet",
        "With no, a tcp6 or udp6 service accepts IPv4 clients as well (IPV6_V6ONLY).",
        systemd="BindIPv6Only=",
        example="echo 7/tcp6 v6only=no",
    )  # fmt: skip
    keepalive: bool = option(
        YES_NO, False, "listen", "tcp",
        "Let the kernel probe idle connections and close dead ones (SO_KEEPALIVE).",
        xinetd="flags = KEEPALIVE",
        systemd="KeepAlive=",
        example="echo 7/tcp keepalive=yes",
    )  # fmt: skip
    nodelay: bool = option(
        YES_NO, True, "listen", "tcp",
        "Send small answers without delay (TCP_NODELAY).",
        xinetd="flags = NODELAY",
        systemd="NoDelay=",
        example="echo 7/tcp nodelay=no",
    )  # fmt: skip
    reuse_port: bool = option(
        YES_NO, False, "listen", "inet",
        "Share the port with other processes that set the same socket option (SO_REUSEPORT).",
        systemd="ReusePort=",
        example="echo 7/tcp reuse_port=yes",
    )  # fmt: skip
    mptcp: bool = option(
        YES_NO, False, "listen", "tcp",
        "Accept Multipath TCP (RFC 8684) as well as TCP. For a connection with several subflows the log may count the "
        "bytes of the first subflow only.",
        systemd="SocketProtocol=mptcp",
        example="echo 7/tcp mptcp=yes",
    )  # fmt: skip
    sndbuf: int | None = option(
        BUFFER_SIZE, None, "listen", "inet",
        "Size of the kernel's send buffer (SO_SNDBUF), at most net.core.wmem_max. The kernel allocates twice this "
        "size. Default: the kernel adapts the size to each connection.",
        systemd="SendBuffer=",
        example="chargen 19/tcp sndbuf=256K",
    )  # fmt: skip
    rcvbuf: int | None = option(
        BUFFER_SIZE, None, "listen", "inet",
        "Size of the kernel's receive buffer (SO_RCVBUF), at most net.core.rmem_max. A datagram service has one "
        "buffer for all clients. The kernel allocates twice this size.",
        systemd="ReceiveBuffer=",
        example="discard 9/udp rcvbuf=1M",
    )  # fmt: skip
    tos: int = option(
        TOS, 0, "listen", "inet",
        "Traffic class of the service's packets: the DS field of IP (IP_TOS, IPV6_TCLASS), by which routers may "
        "prioritize them.",
        systemd="IPTOS=",
        example="echo 7/tcp tos=0x10",
    )  # fmt: skip
    mode: int = option(
        MODE, 0o660, "listen", "local",
        "Permissions of the socket file.",
        systemd="SocketMode=",
        example="echo /run/svcd/echo.sock/unix mode=0666",
    )  # fmt: skip
    owner: FileOwner = option(
        OWNER, FileOwner(), "listen", "local",
        "User and group of the socket file, by name or number. Default: the daemon's.",
        systemd="SocketUser=, SocketGroup=",
        example="echo /run/svcd/echo.sock/unix owner=root:adm",
    )  # fmt: skip
    group: str = option(
        WORD, "", "listen", "group",
        "Group, by name or number. Spawned services: group of the process; default: the login group of its user. "
        "Other services: group of the socket file, as owner=:GROUP.",
        xinetd="group",
        systemd="Group=, SocketGroup=",
        example="echo /run/svcd/echo.sock/unix group=adm",
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
        "Close a connection on which no byte was transferred in either direction for this time. Unacknowledged output "
        "counts as idle.",
        example="echo 7/tcp idle_timeout=5m",
    )  # fmt: skip
    first_byte_timeout: float | None = option(
        or_none(TIMEOUT), None, "timeouts", "client first",
        "Close a connection whose client has sent no data for this time after connecting. The TLS handshake does not "
        "count as data.",
        example="echo 7/tcp first_byte_timeout=10s",
    )  # fmt: skip
    session_timeout: float | None = option(
        or_none(TIMEOUT), None, "timeouts", "session",
        "Maximum duration of a connection. When a timeout of a spawned service expires, the process group gets "
        "SIGTERM, and SIGKILL two seconds later; other connections are reset.",
        systemd="RuntimeMaxSec=",
        example="echo 7/tcp session_timeout=1h",
    )  # fmt: skip
    request_timeout: float | None = option(
        or_none(TIMEOUT), 30.0, "timeouts", "request",
        "Maximum time to receive a complete request. For a request body, each 500 bytes received add one second. With "
        "websocket= it is the time for the handshake.",
        example="http 80/tcp request_timeout=10s",
    )  # fmt: skip
    keepalive_timeout: float | None = option(
        or_none(TIMEOUT), 75.0, "timeouts", "http server",
        "Maximum time to wait for the next request after a response.",
        example="http 80/tcp keepalive_timeout=15s",
    )  # fmt: skip
    send_timeout: float | None = option(
        or_none(TIMEOUT), 60.0, "timeouts", "http server",
        "Close a connection when its client receives less than 500 bytes/s of an answer for this time.",
        example="http 80/tcp send_timeout=20s",
    )  # fmt: skip
    connect_timeout: float = option(
        DURATION, 10.0, "timeouts", "redirect",
        "Maximum time to connect to the redirect= server.",
        example="www 8080/tcp redirect=127.0.0.1:80 connect_timeout=3s",
    )  # fmt: skip
    start_timeout: float = option(
        DURATION, 30.0, "timeouts", "python code",
        "Maximum time for the import of the module. The other services are served meanwhile. A longer import breaks "
        "the service, which is tried again.",
        systemd="TimeoutStartSec=",
        example="chat 7010/tcp factory=chat:factory start_timeout=1m",
    )  # fmt: skip
    shutdown_timeout: float = option(
        DURATION, 10.0, "timeouts", "session",
        "Time that open connections have to end after svcd or the service is stopped. With wait=yes also the time "
        "between SIGTERM and SIGKILL for a process whose socket a reload takes away.",
        systemd="TimeoutStopSec=",
        example="echo 7/tcp shutdown_timeout=30s",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DatagramOptions:
    """The options of datagram services, a base class of ServiceOptions, which has the slots."""

    __slots__ = ()

    amplify: bool = option(
        YES_NO, False, "udp", "udp",
        "Allow answers that are longer than the question. With no, an answer has at most as many bytes as the "
        "question, or 28 bytes if that is more, so that questions with a forged sender cannot amplify an attack.",
        example="chargen 19/udp bind=127.0.0.1 amplify=yes",
    )  # fmt: skip
    answer_service_ports: bool = option(
        YES_NO, False, "udp", "udp",
        "Answer questions from ports below 1024 and from ports of the daemon's own datagram services. With no, they "
        "are ignored: two services that answer each other would never stop.",
        example="echo 7/udp bind=127.0.0.1 answer_service_ports=yes",
    )  # fmt: skip
