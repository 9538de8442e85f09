"""Environment variables of a WebSocket handshake for handlers: those of CGI, and more.

They follow those of the connection (svcd.process.environment); of a name that occurs twice the last one counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from svcd.process.request_environment import REQUEST_VARIABLES, RequestConnection, request_environment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from svcd.process.environment import ConnectionAddresses
    from svcd.wire.websocket_handshake import Agreement

__all__ = ["WEBSOCKET_VARIABLES", "websocket_environment"]

#: Those of CGI, besides the variables of the connection that have the same names.
_OF_CGI = (
    "GATEWAY_INTERFACE", "HTTPS", "HTTP_*", "QUERY_STRING", "REQUEST_METHOD", "REQUEST_SCHEME", "REQUEST_URI",
    "SERVER_ADDR", "SERVER_NAME", "SERVER_PORT", "SERVER_PROTOCOL", "SERVER_SOFTWARE",
)  # fmt: skip
#: What each variable contains, by name, for the reference documentation.
WEBSOCKET_VARIABLES: Mapping[str, str] = {
    **{name: REQUEST_VARIABLES[name] for name in _OF_CGI},
    "PATH_INFO": "The path of the request below that of websocket_path=, decoded; without websocket_path= the whole "
    "path.",
    "SCRIPT_NAME": "The path of websocket_path=; empty without it.",
    "WEBSOCKET_PROTOCOL": "The subprotocol that was chosen of websocket_protocols=; empty for none.",
}


def websocket_environment(agreement: Agreement, addresses: ConnectionAddresses, tls: Mapping[str, str] | None) -> bytes:
    """Return the variables of a handshake, each after a NUL.

    Args:
        agreement: what the handshake has agreed on.
        addresses: the addresses of the connection.
        tls: the variables of TLS; None without TLS.
    """
    server, client = ((each[0], each[1]) if isinstance(each, tuple) else None for each in _ends(addresses))
    values = [
        *request_environment(agreement.request, RequestConnection(server, client, tls)),
        b"SCRIPT_NAME=" + agreement.script_name.encode(),
        b"PATH_INFO=" + agreement.path_info.encode(),
        b"WEBSOCKET_PROTOCOL=" + agreement.protocol.encode("ascii"),
    ]
    return b"".join(b"\0" + value for value in values)


def _ends(addresses: ConnectionAddresses) -> tuple[object, object]:
    return addresses.local, addresses.remote
