"""Environment of a handler; it does not inherit the daemon's, so that no variable reaches it by accident.

The variables that all connections of a service share are a dict. Those of one connection are bytes, as in the message
to the launcher: NAME=VALUE, separated by NULs. The names are those of tcpserver (environment of ucspi-tcp); UNIXREMOTE*
are from ucspi-unix, REMOTE_HOST from xinetd, REMOTE_ADDR and REMOTE_PORT from systemd; PROXY_ADDR and PROXY_PORT are
svcd's own.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from svcd.addresses import unmapped
from svcd.net.peer_credentials import credentials

if TYPE_CHECKING:
    import pwd
    from collections.abc import Iterable, Mapping

    from svcd.wire.proxy_header import ProxyHeader

__all__ = [
    "PATH",
    "VARIABLES",
    "ConnectionAddresses",
    "local_proxy_environment",
    "proxy_environment",
    "service_environment",
    "tcp_environment",
    "unix_environment",
]

#: The search path of handlers of all users: a handler may need a program in an sbin directory, and an additional
#: directory grants no rights.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: What each variable contains, by name, for the reference documentation.
VARIABLES: Mapping[str, str] = {
    "PATH": f"`{PATH}`.",
    "SVCD_SERVICE": "Name of the service.",
    "HOME": "Home directory of the user (user=); not set for the user of the daemon.",
    "USER": "Name of the user (user=).",
    "LOGNAME": "Name of the user (user=).",
    "SHELL": "Login shell of the user (user=).",
    "PROTO": "`TCP` or `UNIX`.",
    "TCPLOCALIP": "Address of the server.",
    "TCPLOCALPORT": "Port of the server.",
    "TCPREMOTEIP": "Address of the client.",
    "TCPREMOTEPORT": "Port of the client.",
    "TCPREMOTEHOST": "Host name of the client, with resolve=yes; not set if it is not confirmed or not plausible.",
    "TCPLOCALHOST": "Host name of the address of the server, with resolve=yes.",
    "TCPCONNNUM": "Number of open connections of the service, including this one.",
    "REMOTE_HOST": "Address of the client, as xinetd sets it.",
    "REMOTE_ADDR": "Address of the client, as systemd sets it.",
    "REMOTE_PORT": "Port of the client, as systemd sets it.",
    "UNIXREMOTEPID": "Process at the other end of a UNIX socket.",
    "UNIXREMOTEUID": "User ID at the other end of a UNIX socket.",
    "UNIXREMOTEGID": "Group ID at the other end of a UNIX socket.",
    "PROXY_ADDR": "Address of the proxy, for a client behind a proxy (proxy_protocol=). The other variables are "
    "those of the client.",
    "PROXY_PORT": "Port of the proxy.",
    "SSL_PROTOCOL": "TLS version, such as `TLSv1.3`. The names of these variables are those of Apache's mod_ssl.",
    "SSL_CIPHER": "Cipher, as OpenSSL names it.",
    "SSL_TLS_SNI": "Host name that the client requested.",
    "SSL_CLIENT_VERIFY": "`SUCCESS` with a valid client certificate, `NONE` without a certificate.",
    "SSL_CLIENT_S_DN": "Subject of the client certificate (RFC 4514). Control characters are escaped, as in all "
    "variables of TLS.",
    "SSL_CLIENT_I_DN": "Issuer of the client certificate (RFC 4514).",
    "SSL_CLIENT_SAN": "Subject alternative names of the client certificate, separated by commas: `DNS:a.example`, "
    "`email:b@example`, `URI:spiffe://c/d`, `IP:192.0.2.1`.",
}

#: A host name as programs expect it (RFC 1123, section 2.1), also with the underscores that some networks use. The
#: operator of the client's name server chooses the name, and some programs pass it to a shell.
_HOST_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?").fullmatch


@dataclass(slots=True)
class ConnectionAddresses:
    """Socket addresses of both ends of a connection that is handed over to a process.

    Attributes:
        local, remote: the addresses of the daemon and the client, over TCP or from a PROXY header; local is None at a
            UNIX socket without a PROXY header.
        socket_local, socket_remote: the addresses of the socket itself over TCP; None at a UNIX socket.
        credentials: process, user and group at the other end of a UNIX socket (unix(7)).
        proxy_variables: environment variables about a proxy, each after a NUL.
        family: the address family of the socket.
        proxy_header: the PROXY header.
    """

    local: Any
    remote: Any
    socket_local: Any = None
    socket_remote: Any = None
    credentials: tuple[int, int, int] = (0, 0, 0)
    proxy_variables: bytes = b""
    family: int = socket.AF_INET
    proxy_header: ProxyHeader | None = None

    @classmethod
    def of(
        cls,
        fd: int,
        sockaddr: Any,  # noqa: ANN401 - a socket address
        family: int,
        proxy_header: ProxyHeader | None = None,
    ) -> ConnectionAddresses:
        """Return the addresses of a connection.

        Args:
            fd: the descriptor of the connection; borrowed.
            sockaddr: the client's socket address, from the PROXY header if it has one.
            family: the address family of the socket.
            proxy_header: the PROXY header.

        Raises:
            OSError: the client has already closed the connection.
        """
        local = None if proxy_header is None else proxy_header.destination
        sock = socket.SocketType(family, socket.SOCK_STREAM, 0, fd)
        try:
            if family == socket.AF_UNIX:
                peer = credentials(sock)
                variables = b"" if local is None else b"\0" + local_proxy_environment(*peer)
                return cls(local, sockaddr, None, None, peer, variables, family, proxy_header)
            own = sock.getsockname()
            if local is None:
                return cls(own, sockaddr, own, sockaddr, family=family, proxy_header=proxy_header)
            proxy = sock.getpeername()
            variables = b"\0" + proxy_environment(proxy[0], proxy[1])
            return cls(local, sockaddr, own, proxy, proxy_variables=variables, family=family, proxy_header=proxy_header)
        finally:
            sock.detach()

    def environment(self, count: int, remote_host: str | None = None, local_host: str | None = None) -> bytes:
        """Return the environment variables of the connection, separated by NUL.

        Args:
            count: the number of open connections of the service, including this one.
            remote_host: the client's host name, if it was looked up.
            local_host: the host name of the daemon's address, if it was looked up.
        """
        if self.local is None:
            return unix_environment(*self.credentials)
        local, remote = self.local, self.remote
        variables = tcp_environment(local[0], local[1], remote[0], remote[1], count, remote_host, local_host)
        return variables + self.proxy_variables


def service_environment(
    name: str,
    user: pwd.struct_passwd | None,
    env: Iterable[tuple[str, str]],
    passenv: Iterable[str],
    given: Mapping[str, str],
) -> dict[str, str]:
    """Return the variables that all connections of a service share.

    Args:
        name: the name of the service, for SVCD_SERVICE.
        user: the user of the handler, for HOME, USER, LOGNAME and SHELL; None for the daemon's user, or for a user id
            that passwd(5) does not have: then these variables are not set.
        env: the variables of env=; they override all others.
        passenv: the names of variables to pass on from the daemon; missing ones are not set.
        given: the daemon's environment.
    """
    values = {"PATH": PATH, "SVCD_SERVICE": name}
    if user is not None:
        shell = user.pw_shell or "/bin/sh"  # passwd(5)
        values |= {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name, "SHELL": shell}
    values |= {each: given[each] for each in passenv if each in given}
    values |= env
    return values


def tcp_environment(
    local_host: str,
    local_port: int,
    remote_host: str,
    remote_port: int,
    count: int,
    name: str | None = None,
    local_name: str | None = None,
) -> bytes:
    """Return the variables of a TCP connection, in about a microsecond.

    Args:
        local_host: the server's address; IPv4-mapped addresses are written as IPv4, as for the client.
        local_port: the server's port.
        remote_host: the client's address.
        remote_port: the client's port.
        count: the number of open connections of the service, including this one.
        name: the client's host name, if it was looked up; an implausible host name is omitted.
        local_name: the host name of the server's address, in the same way.
    """
    if ":" in local_host:
        local_host, remote_host = unmapped(local_host), unmapped(remote_host)
    named = f"TCPREMOTEHOST={name}\0" if name and _HOST_NAME(name) else ""
    local = f"TCPLOCALHOST={local_name}\0" if local_name and _HOST_NAME(local_name) else ""
    return (
        f"PROTO=TCP\0TCPLOCALIP={local_host}\0TCPLOCALPORT={local_port}\0"
        f"TCPREMOTEIP={remote_host}\0TCPREMOTEPORT={remote_port}\0{named}{local}TCPCONNNUM={count}\0"
        f"REMOTE_HOST={remote_host}\0REMOTE_ADDR={remote_host}\0REMOTE_PORT={remote_port}"
    ).encode()


def proxy_environment(host: str, port: int) -> bytes:
    """Return the additional variables of a connection through a proxy: the proxy's own address and port."""
    return f"PROXY_ADDR={unmapped(host)}\0PROXY_PORT={port}".encode()


def local_proxy_environment(pid: int, uid: int, gid: int) -> bytes:
    """Return the additional variables of a connection through a proxy at a UNIX socket: its process, user and group."""
    return f"UNIXREMOTEPID={pid}\0UNIXREMOTEUID={uid}\0UNIXREMOTEGID={gid}".encode()


def unix_environment(pid: int, uid: int, gid: int) -> bytes:
    """Return the variables of a connection to a UNIX socket: the client's process, user and group (SO_PEERCRED)."""
    return b"PROTO=UNIX\0" + local_proxy_environment(pid, uid, gid)
