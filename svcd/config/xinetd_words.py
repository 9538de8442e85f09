"""Words of xinetd.conf(5) and inetd.conf(5) that a services file does not have, each with its replacement."""

from __future__ import annotations

import shlex

__all__ = ["block_remedy", "option_remedy", "protocol_remedy", "value_remedy"]

_RPC = "RPC services are not supported; run the program outside svcd, with rpcbind(8)"
_FLAGS = {
    "KEEPALIVE": "write keepalive=yes",
    "NODELAY": "remove it: nodelay=yes is the default",
    "NAMEINARGS": "write argv0=NAME",
    "IPV4": "write PORT/tcp4 or PORT/udp4",
    "IPV6": "write PORT/tcp6 or PORT/udp6",
    "REUSE": "remove it: svcd always does this",
    "NORETRY": "remove it: svcd never retries a failed start",
    "NOLIBWRAP": "remove it: svcd does not read hosts.allow",
}
_ALL_FLAGS = (
    "KEEPALIVE is keepalive=yes, NODELAY is nodelay=yes, NAMEINARGS is argv0=NAME, IPv4 and IPv6 are PORT/tcp4 and "
    "PORT/tcp6; svcd has no other flags"
)
_TYPES = {
    "INTERNAL": "remove it, and name the built-in as the service or as an alias",
    "UNLISTED": "remove it: every line has a port",
    "TCPMUX": "write mux=yes",
    "TCPMUXPLUS": "write mux=yes",
    "RPC": _RPC,
}
_LOG = (
    "svcd writes one log for all services; set its destination with twistd --logfile FILE or --syslog, or "
    "with svcd --log-format journald"
)
_OPTIONS = {
    "server_args": "write the arguments after the program: server='/path/program arguments'",
    "cps": "write rate=NUMBER/s; there is no waiting time: the next client is accepted as soon as the rate allows",
    "socket_type": (
        "the protocol selects the socket type: PORT/tcp for stream, PORT/udp for dgram; raw and "
        "seqpacket are not supported"
    ),
    "protocol": "write it after the port, as in 7/tcp",
    "port": "write it before the protocol, as in 7/tcp",
    "flags": _ALL_FLAGS,
    "type": "INTERNAL: name the built-in as service or alias; UNLISTED: remove it; TCPMUX: write mux=yes; " + _RPC,
    "log_type": _LOG,
    "interface": "write bind=NAME",
    "libwrap": "write only_from= and no_access=; hosts.allow is not read",
    "rpc_version": _RPC,
    "rpc_number": _RPC,
    "mdns": "remove it; svcd registers nothing with mDNS",
    "deny_time": "SENSOR is not supported; write per_source_rate=, or no_access=",
    "rlimit_files": "write rlimit_nofile=NUMBER",
    "rlimit_rss": "Linux has no such limit; write rlimit_as=SIZE",
    "enabled": "write disable=yes on the lines of the other services",
    "disabled": "write disable=yes on the lines of these services",
    "include": "write a line: @include FILE",
    "includedir": "write a line: @include DIRECTORY/*",
    "socket": "write it after the port, as in 7/tcp",
}
_VALUES = {
    "USERID": "identification of users (RFC 1413) is not supported; remove it",
    "RECORD": "RECORD is not supported; remove it",
    "TRAFFIC": "TRAFFIC is a value of log_on_success",
}
_PROTOCOLS = {
    "sctp": "SCTP is not supported; remove or comment out the line",
    "dccp": "DCCP is not supported; remove or comment out the line",
    "vsock": "vsock is not supported; serve PORT/tcp or PATH/unix, and pass connections on with socat(1)",
    "mptcp": "write PORT/tcp and mptcp=yes",
    "udplite": "UDP-Lite is not supported; write PORT/udp",
    "stream": "write PORT/tcp, or PATH/unix",
    "dgram": "write PORT/udp, or PATH/unixgram",
    "seqpacket": "sequenced packets are not supported; write PATH/unix",
    "tcp46": "write PORT/tcp",
    "udp46": "write PORT/udp",
}


def option_remedy(name: str, value: str) -> str:
    """Return the replacement of an option of xinetd; empty for other words.

    Args:
        name: the name of the option.
        value: the value; empty if it is not known.
    """
    if name == "cps" and value:
        number = value.replace("/", " ").replace(",", " ").split()[0]
        return _OPTIONS[name].replace("NUMBER", number) if number.isdecimal() else _OPTIONS[name]
    if name == "server_args" and value:
        return f"write the arguments after the program: server={shlex.quote(f'/path/program {value}')}"
    known = {"flags": _FLAGS, "type": _TYPES}.get(name, {}).get(value.upper())
    return known or _OPTIONS.get(name, "")


def value_remedy(value: str) -> str:
    """Return the replacement of a value of xinetd; empty for other values."""
    words = value.replace(",", " ").split()
    if "UNLIMITED" in words:
        return "xinetd's UNLIMITED is written none"
    return next((_VALUES[word] for word in words if word in _VALUES), "")


def protocol_remedy(protocol: str, where: str) -> str:
    """Return the replacement of a protocol that svcd does not serve; empty for other words.

    Args:
        protocol: the word after the slash.
        where: the word before the slash.
    """
    if where == "rpc" or protocol.startswith("rpc"):
        return _RPC
    return _PROTOCOLS.get(protocol, "")


def block_remedy(first: str, second: str) -> str:
    """Return the replacement of a line of xinetd.conf(5) or inetd.conf(5), by its first words; empty for others."""
    if first in ("{", "}") or (first in ("service", "defaults") and "/" not in second):
        return "this is a block of xinetd.conf(5); write each service as one line: NAME PORT/PROTOCOL option=value ..."
    if first in ("include", "includedir") and "/" in second and second.startswith(("/", ".")):
        return _OPTIONS[first]
    if second in ("stream", "dgram", "seqpacket", "raw", "rdm"):
        return (
            "this is a line of inetd.conf(5); write it as: "
            f"{first} PORT/{'udp' if second == 'dgram' else 'tcp'} server='/path/program arguments' user=USER"
        )
    return ""
