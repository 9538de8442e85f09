"""Redirect of all requests to HTTPS, except the challenges by which an authority checks the host (RFC 8555, 8.3)."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from svcd.protocols.http.response import error_response, respond_with
from svcd.wire.http_request import HttpError, authority, path_segments

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress

    from svcd.interfaces import StreamTransport
    from svcd.protocols.http.response import Handler, Reply, Response, StreamHandler
    from svcd.wire.http_request import HttpRequest

__all__ = ["HttpsRedirect"]

_CHALLENGES = [".well-known", "acme-challenge"]
#: The characters of a request target that need no escape in a Location field (RFC 3986, section 2).
_SAFE = "%/:?#[]@!$&'()*+,;=-._~"


class HttpsRedirect:
    """A StreamHandler that redirects to the same target at the default port of HTTPS.

    Args:
        challenges: responds to requests below /.well-known/acme-challenge/.
    """

    streams: Literal[True] = True
    methods = None

    def __init__(self, challenges: Handler | StreamHandler) -> None:
        self._challenges = challenges

    def respond(self, request: HttpRequest, peer: IAddress, transport: StreamTransport) -> Reply:
        """Return the redirect of a request, or the response to a challenge.

        Raises:
            HttpError: 400 for a request without a host, or with a bad target.
        """
        segments = path_segments(request.target)
        if segments[:2] == _CHALLENGES and len(segments) > 2:
            return respond_with(self._challenges, request, peer, transport)
        return _redirect(request)


def _redirect(request: HttpRequest) -> Response:
    host = authority(request).decode("ascii")
    name = host.rpartition(":")[0] if ":" in host.rpartition("]")[2] else host
    if not name:
        raise HttpError(HTTPStatus.BAD_REQUEST)
    target = request.target
    if not target.startswith(b"/"):
        # The absolute form; path_segments() has checked it.
        target = b"/" + target.partition(b"://")[2].partition(b"/")[2]
    # Other methods must stay the same at the new place, which 301 does not guarantee (RFC 9110, section 15.4.9).
    moved = HTTPStatus.MOVED_PERMANENTLY if request.method in ("GET", "HEAD") else HTTPStatus.PERMANENT_REDIRECT
    response = error_response(moved)
    response.fields["Location"] = f"https://{name}{quote(target, safe=_SAFE)}"
    return response
