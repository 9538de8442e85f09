"""The options that say where a service listens."""

from __future__ import annotations

from dataclasses import dataclass

from svcd.config.option_info import option
from svcd.config.process_types import BUFFER_SIZE
from svcd.config.value_types import COUNT, MODE, OWNER, WORD, WORDS, YES_NO
from svcd.model import FileOwner

__all__ = ["SocketOptions"]


@dataclass(frozen=True, kw_only=True)
class SocketOptions:
    """A part of Options, which has the slots for all its parts."""

    __slots__ = ()

    bind: tuple[str, ...] = option(
        WORDS, (), "where", "inet",
        "Addresses, network interfaces or host names to listen on, with commas between them; default: all addresses, "
        "and for status those of this machine alone, 127.0.0.1 and ::1.",
        xinetd="bind, interface",
    )  # fmt: skip
    freebind: bool = option(
        YES_NO, False, "where", "inet",
        "Bind to addresses that the machine does not have yet (IP_FREEBIND).",
    )  # fmt: skip
    backlog: int = option(
        COUNT, 1024, "where", "stream",
        "How many connections the kernel keeps waiting to be accepted.",
    )  # fmt: skip
    v6only: bool = option(
        YES_NO, True, "where", "inet",
        "With no, a tcp6 or udp6 service takes IPv4 clients as well.",
    )  # fmt: skip
    keepalive: bool = option(
        YES_NO, False, "where", "tcp",
        "Let the kernel probe silent connections and end dead ones.",
        xinetd="flags = KEEPALIVE",
    )  # fmt: skip
    nodelay: bool = option(
        YES_NO, True, "where", "tcp",
        "Send small answers at once (TCP_NODELAY).",
        xinetd="flags = NODELAY",
    )  # fmt: skip
    reuse_port: bool = option(
        YES_NO, False, "where", "inet",
        "Share the port with other processes that ask for it too (SO_REUSEPORT).",
    )  # fmt: skip
    mptcp: bool = option(
        YES_NO, False, "where", "tcp",
        "Accept Multipath TCP (RFC 8684) as well as TCP. For a connection with several subflows the log may count the "
        "bytes of the first subflow only.",
    )  # fmt: skip
    sndbuf: int | None = option(
        BUFFER_SIZE, None, "where", "inet",
        "Size of the kernel's buffer for what is sent to a client (SO_SNDBUF), at most net.core.wmem_max; it takes "
        "twice as much memory. Default: it fits itself to each connection.",
    )  # fmt: skip
    rcvbuf: int | None = option(
        BUFFER_SIZE, None, "where", "inet",
        "The same for what comes from a client (SO_RCVBUF), or from all clients of a datagram service; no more than "
        "net.core.rmem_max.",
    )  # fmt: skip
    mode: int = option(
        MODE, 0o660, "where", "local",
        "Permissions of the socket file.",
    )  # fmt: skip
    owner: FileOwner = option(
        OWNER, FileOwner(), "where", "local",
        "User and group that own the socket file, by name or number; default: who runs the daemon.",
    )  # fmt: skip
    group: str = option(
        WORD, "", "where", "group",
        "Group, by name or number: of a spawned service's process, which else has its user's; of the socket file "
        "of any other service, as owner=:GROUP.",
        xinetd="group",
    )  # fmt: skip
