"""Environment variables of an HTTP request (RFC 3875, section 4.1), for CGI programs.

They are bytes as in the message to the launcher, NAME=VALUE separated by NULs (svcd.process.environment), with the
octets of the request unchanged. The launcher adds those that depend on the program: SCRIPT_FILENAME, PATH_TRANSLATED.

AUTH_TYPE, REMOTE_USER and REMOTE_IDENT are never set: the server has no HTTP authentication. A body with chunked
transfer coding has no CONTENT_LENGTH, since it is passed on before its length is known; the end of the standard input
is its end. The RFC asks for a length, which would need the whole body first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from svcd.addresses import unmapped
from svcd.wire.http_request import authority

if TYPE_CHECKING:
    from collections.abc import Mapping

    from svcd.wire.http_request import HttpRequest

__all__ = ["REQUEST_VARIABLES", "RequestConnection", "request_environment"]

#: What each variable contains, by name, for the reference documentation.
REQUEST_VARIABLES: Mapping[str, str] = {
    "CONTENT_LENGTH": "Length of the body in bytes; not set without a body, or if it has chunked transfer coding.",
    "CONTENT_TYPE": "Media type of the body, as the client sent it.",
    "DOCUMENT_ROOT": "The directory of root=, if it is set.",
    "GATEWAY_INTERFACE": "`CGI/1.1`.",
    "HTTPS": "`on` over TLS.",
    "HTTP_*": "The field of the request with this name, such as HTTP_USER_AGENT; of Authorization, "
    "Proxy-Authorization, Proxy, and names with other characters than letters, digits and hyphens there are none.",
    "PATH_INFO": "The part of the path after the program, decoded; not set if there is none.",
    "PATH_TRANSLATED": "PATH_INFO as a path below root=, if both are set.",
    "QUERY_STRING": "The part of the target after the question mark, not decoded; may be empty.",
    "REDIRECT_STATUS": "`200`, which php-cgi requires.",
    "REMOTE_ADDR": "Address of the client.",
    "REMOTE_HOST": "Host name of the client with resolve=yes, otherwise its address.",
    "REMOTE_PORT": "Port of the client.",
    "REQUEST_METHOD": "The method.",
    "REQUEST_SCHEME": "`http` or `https`.",
    "REQUEST_URI": "The target, as the client sent it.",
    "SCRIPT_FILENAME": "The path of the program.",
    "SCRIPT_NAME": "The part of the path that names the program, decoded.",
    "SERVER_ADDR": "Address of the server.",
    "SERVER_NAME": "Host that the client requested, without a port; otherwise the address of the server.",
    "SERVER_PORT": "Port of the server.",
    "SERVER_PROTOCOL": "`HTTP/1.1` or `HTTP/1.0`.",
    "SERVER_SOFTWARE": "`svcd`.",
}

#: Names of fields that become variables. Others could stand for the same variable as the name of another field.
_FIELD = re.compile(rb"[a-z0-9-]+")
#: Fields that are no HTTP_ variables: those with a variable of their own, credentials (section 4.1.18), fields that
#: the server has removed, and Proxy, for which many libraries use the variable (httpoxy, CVE-2016-5385).
_OMITTED = frozenset({
    b"authorization", b"connection", b"content-length", b"content-type", b"keep-alive", b"proxy",
    b"proxy-authorization", b"te", b"trailer", b"transfer-encoding", b"upgrade",
})  # fmt: skip
#: How many names of fields are kept with their variables; clients use few different ones.
_KNOWN_NAMES = 256
_variables: dict[bytes, bytes] = {}
#: The number of connections that are kept with their variables.
_KNOWN_CONNECTIONS = 256


@dataclass(frozen=True, slots=True)
class RequestConnection:
    """The connection of a request, for its variables.

    Attributes:
        server: the address and port of the server; None at a UNIX socket.
        client: the address and port of the client; None at a UNIX socket.
        tls: the variables of TLS; None without TLS.
    """

    server: tuple[str, int] | None
    client: tuple[str, int] | None
    tls: Mapping[str, str] | None = None

    def variables(self) -> list[bytes]:
        """Return the variables that all requests of the connection share, except REMOTE_HOST."""
        return self._make() if self.tls is not None else _plain_variables(self)

    def _make(self) -> list[bytes]:
        values = {"GATEWAY_INTERFACE": "CGI/1.1", "SERVER_SOFTWARE": "svcd", "REDIRECT_STATUS": "200"}
        if self.server is not None:
            values |= {"SERVER_ADDR": unmapped(self.server[0]), "SERVER_PORT": str(self.server[1])}
        else:
            # The RFC requires a port.
            values["SERVER_PORT"] = "80" if self.tls is None else "443"
        if self.client is not None:
            values |= {"REMOTE_ADDR": unmapped(self.client[0]), "REMOTE_PORT": str(self.client[1])}
        else:
            values["REMOTE_ADDR"] = ""
        values["REQUEST_SCHEME"] = "http" if self.tls is None else "https"
        if self.tls is not None:
            values |= {"HTTPS": "on", **self.tls}
        return [f"{name}={value}".encode(errors="surrogateescape") for name, value in values.items()]


@lru_cache(_KNOWN_CONNECTIONS)
def _plain_variables(connection: RequestConnection) -> list[bytes]:
    return connection._make()


def request_environment(request: HttpRequest, connection: RequestConnection, remote_host: str = "") -> list[bytes]:
    """Return the variables of a request, without those of its path.

    Args:
        request: the request.
        connection: its connection.
        remote_host: the host name of the client; empty for its address.

    Raises:
        HttpError: 400, the target has an invalid host.
    """
    target = request.target
    values = [
        *connection.variables(),
        b"REQUEST_METHOD=" + request.method.encode("ascii"),
        b"REQUEST_URI=" + target,
        b"QUERY_STRING=" + target.partition(b"#")[0].partition(b"?")[2],
        b"SERVER_PROTOCOL=HTTP/" + request.version.encode("ascii"),
        b"SERVER_NAME=" + _server_name(request, connection),
        b"REMOTE_HOST=" + (remote_host or (unmapped(connection.client[0]) if connection.client else "")).encode(),
    ]
    for name, value in request.fields.items():
        variable = _variables.get(name)
        if variable is None:
            variable = _variable(name)
        if variable:
            values.append(variable + value)
    return values


def _variable(name: bytes) -> bytes:
    """Return the beginning of the variable of a field, with the equals sign; empty if it has no variable."""
    if name in (b"content-length", b"content-type"):
        found = name.upper().replace(b"-", b"_") + b"="
    elif name in _OMITTED or not _FIELD.fullmatch(name):
        found = b""
    else:
        found = b"HTTP_" + name.upper().replace(b"-", b"_") + b"="
    if len(_variables) < _KNOWN_NAMES:
        _variables[name] = found
    return found


def _server_name(request: HttpRequest, connection: RequestConnection) -> bytes:
    """Return the host that a request names, else the address of the server (section 4.1.14)."""
    host = authority(request)
    # An address of IPv6 is in brackets, and has colons within.
    name, colon, port = host.rpartition(b":")
    if colon and not port.endswith(b"]"):
        host = name
    if host:
        return host
    if connection.server is None:
        return b"localhost"
    address = unmapped(connection.server[0])
    return (f"[{address}]" if ":" in address else address).encode()
