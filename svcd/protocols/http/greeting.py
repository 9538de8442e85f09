"""The page of an HTTP service without root=: it shows the client's host name, address and port."""

from __future__ import annotations

import html
from http import HTTPStatus
from typing import TYPE_CHECKING, Literal

from twisted.internet.address import IPv4Address, IPv6Address

from svcd.protocols.http.response import GET_AND_HEAD, Response, text_response
from svcd.wire.http_request import HttpError, HttpRequest, path_segments

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IAddress

    from svcd.interfaces import HostNameResolver

__all__ = ["GreetingPage"]

_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Hello from svcd</title>
<style>
:root {{ color-scheme: light dark; font: 1.1rem/1.6 system-ui, sans-serif }}
body {{ max-width: 32rem; margin: 15vh auto; padding: 0 1rem }}
dl {{ display: grid; grid-template-columns: auto 1fr; gap: .2rem 1.5rem }}
dt {{ opacity: .65 }}
dd {{ margin: 0; font-family: ui-monospace, monospace; overflow-wrap: anywhere }}
</style>
<h1>Hello, {host}!</h1>
<p>This is how the server sees you:</p>
<dl>
{rows}
</dl>
</html>
"""


class GreetingPage:
    """A Handler that responds to `/` with the page, and to other paths with 404.

    Args:
        resolver: looks up the client's host name.
    """

    methods = GET_AND_HEAD
    streams: Literal[False] = False

    def __init__(self, resolver: HostNameResolver) -> None:
        self._resolver = resolver

    def respond(self, request: HttpRequest, peer: IAddress) -> Response | Deferred[Response]:
        """Return the page for a client, once the lookup of its host name has ended.

        Raises:
            HttpError: 404 for another path than `/`.
        """
        if path_segments(request.target) != [""]:
            raise HttpError(HTTPStatus.NOT_FOUND)
        if not isinstance(peer, IPv4Address | IPv6Address):
            return _page("local user", {"Address": "a UNIX socket on this machine"})
        address, port = peer.host, str(peer.port)

        def named(host: str | None) -> Response:
            return _page(host or address, {"Host name": host or address, "Address": address, "Port": port})

        return self._resolver.host_of(address).addCallback(named)


def _page(host: str, facts: dict[str, str]) -> Response:
    rows = "\n".join(f"<dt>{name}</dt><dd>{html.escape(value)}</dd>" for name, value in facts.items())
    response = text_response(HTTPStatus.OK, "text/html", _PAGE.format(host=html.escape(host), rows=rows))
    response.fields["Cache-Control"] = "no-store"
    return response
