"""The places of the status service, and what is answered there. Nothing can be changed through it.

It listens on the loopback interface unless told otherwise. A page of somebody else's, in a browser on this machine,
must not read it all the same: by a name of its own that it makes stand for 127.0.0.1 (DNS rebinding). So what comes
over the loopback interface must ask for an address or for a name without a dot, as localhost is one.
"""

from __future__ import annotations

import ipaddress
import json
import time
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING

from twisted.internet.address import IPv4Address, IPv6Address

from svcd.addresses import unmapped
from svcd.protocols.http.response import Response, text_response
from svcd.protocols.http.server import HttpFactory
from svcd.protocols.status.cache import RenderCache
from svcd.protocols.status.data import view
from svcd.protocols.status.metric_families import families
from svcd.protocols.status.page import ICON, POLICY, page
from svcd.wire.http_negotiation import media_type, takes_gzip
from svcd.wire.http_request import HttpError, HttpRequest, authority, path_segments
from svcd.wire.openmetrics import OPENMETRICS, TEXT, openmetrics, text

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IAddress, IReactorTime

    from svcd.metrics.snapshot import MetricsSource
    from svcd.protocols.http.connections import HttpTimeouts

__all__ = ["StatusFactory", "StatusResource"]

#: For every answer (https://www.w3.org/TR/CSP3/, https://fetch.spec.whatwg.org/): it is what it says, it is nobody
#: else's to show, it is old at once.
_FIELDS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
#: So many answers to small questions about clients are remembered: few clients ask, and often.
_KNOWN = 16
_METRICS = {"text/plain": TEXT, "application/openmetrics-text": OPENMETRICS}
_KINDS = tuple(_METRICS)


class StatusResource:
    """Answers `/`, `/status.json`, `/metrics`, `/healthz` and `/readyz`.

    Args:
        observed: what the daemon counted.
        clock: seconds, monotonic.
    """

    def __init__(self, observed: MetricsSource, clock: Callable[[], float] = time.monotonic) -> None:
        self._observed = observed
        shown = RenderCache(lambda: page(view(observed)), clock)
        data = RenderCache(lambda: json.dumps(view(observed), separators=(",", ":")).encode(), clock)
        self._metrics = {
            kind: _CachedResponse(RenderCache(make, clock), _METRICS[kind], vary="Accept, Accept-Encoding")
            for kind, make in (
                ("text/plain", lambda: text(families(observed.snapshot()))),
                ("application/openmetrics-text", lambda: openmetrics(families(observed.snapshot()))),
            )
        }
        self._places: dict[str, Callable[[HttpRequest], Response]] = {
            "": _CachedResponse(shown, "text/html; charset=utf-8", POLICY).respond,
            "status.json": _CachedResponse(data, "application/json").respond,
            "metrics": self._scrape,
            "healthz": lambda _request: _plain(HTTPStatus.OK, "ok"),
            "readyz": self._ready,
            "icon.svg": lambda _request: _response(ICON, "image/svg+xml", "default-src 'none'"),
        }

    def respond(self, request: HttpRequest, peer: IAddress) -> Response:
        """What stands at the request's target.

        Raises:
            HttpError: 404 where nothing does, 421 for a name that is not ours.
        """
        here = isinstance(peer, IPv4Address | IPv6Address) and _is_loopback(peer.host)
        if here and not _may_be_ours(authority(request)):
            raise HttpError(HTTPStatus.MISDIRECTED_REQUEST)
        segments = _segments(request.target)
        place = self._places.get(segments[0]) if len(segments) == 1 else None
        if place is None:
            raise HttpError(HTTPStatus.NOT_FOUND)
        return place(request)

    def _scrape(self, request: HttpRequest) -> Response:
        return self._metrics[media_type(request.fields.get(b"accept", b""), _KINDS)].respond(request)

    def _ready(self, _request: HttpRequest) -> Response:
        state = self._observed.state
        return _plain(HTTPStatus.OK if state == "ready" else HTTPStatus.SERVICE_UNAVAILABLE, state)


class _CachedResponse:
    """A place whose answer is made now and then, and is the same object as long as it is the same answer."""

    def __init__(
        self, rendering: RenderCache, content_type: str, policy: str = "", *, vary: str = "Accept-Encoding"
    ) -> None:
        self._rendering = rendering
        self._content_type = content_type
        self._policy = policy
        self._vary = vary
        # Compressed or not.
        self._last: dict[bool, Response] = {}

    def respond(self, request: HttpRequest) -> Response:
        """The answer, compressed for who takes that."""
        packed = takes_gzip(request.fields.get(b"accept-encoding", b""))
        content = self._rendering.answer(packed=packed)
        response = self._last.get(packed)
        if response is None or response.content is not content:
            response = self._last[packed] = _response(content, self._content_type, self._policy)
            response.fields["Vary"] = self._vary
            if packed:
                response.fields["Content-Encoding"] = "gzip"
        return response


def _response(content: bytes, content_type: str, policy: str = "") -> Response:
    fields = {"Content-Type": content_type, "Content-Length": str(len(content)), **_FIELDS}
    if policy:
        fields["Content-Security-Policy"] = policy
    return Response(HTTPStatus.OK, fields, content)


def _plain(status: HTTPStatus, word: str) -> Response:
    response = text_response(status, "text/plain", f"{word}\n")
    response.fields.update(_FIELDS)
    return response


@lru_cache(_KNOWN)
def _segments(target: bytes) -> tuple[str, ...]:
    return tuple(path_segments(target))


@lru_cache(_KNOWN)
def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(unmapped(host).partition("%")[0]).is_loopback


@lru_cache(_KNOWN)
def _may_be_ours(host: bytes) -> bool:
    """Whether a Host field can't be a name in the public DNS; an old client's request has none."""
    name = host.decode("latin-1").rstrip(".").lower()
    if name.startswith("["):
        return True
    name = name.rpartition(":")[0] if ":" in name else name
    name = name.rstrip(".")
    if "." not in name or name.endswith(".localhost"):
        return True
    try:
        ipaddress.IPv4Address(name)
    except ValueError:
        return False
    return True


class StatusFactory(HttpFactory):
    """Makes the connections of the status service; what charts need is kept while one of its listeners is open.

    Args:
        observed: what the daemon counted.
        clock: the reactor.
        timeouts: how long connections may wait.
    """

    def __init__(self, observed: MetricsSource, clock: IReactorTime, timeouts: HttpTimeouts | None = None) -> None:
        super().__init__(StatusResource(observed), clock, timeouts=timeouts)
        self._observed = observed

    def startFactory(self) -> None:
        """The first listener begins."""
        super().startFactory()
        self._observed.watch(self.clock.callLater)

    def stopFactory(self) -> None:
        """The last listener is gone."""
        super().stopFactory()
        self._observed.unwatch()
