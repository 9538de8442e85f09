"""The routes of the status service, which is read-only.

The service listens on the loopback interface by default. A foreign web page in a browser on this machine must not read
it by a host name of its own that resolves to 127.0.0.1 (DNS rebinding). So the Host field of a request over the
loopback interface must be an address or a name without a dot, such as localhost.
"""

from __future__ import annotations

import ipaddress
import json
import time
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Literal

from twisted.internet.address import IPv4Address, IPv6Address

from svcd.addresses import unmapped
from svcd.protocols.http.response import GET_AND_HEAD, Response, text_response
from svcd.protocols.http.server import HttpFactory
from svcd.protocols.status.cache import RenderCache
from svcd.protocols.status.data import status_data
from svcd.protocols.status.metric_families import families
from svcd.protocols.status.page import ICON, POLICY, page
from svcd.wire.http_negotiation import media_type, takes_gzip
from svcd.wire.http_request import HttpError, HttpRequest, authority, path_segments
from svcd.wire.openmetrics import OPENMETRICS, TEXT, openmetrics, text

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IAddress, IReactorTime

    from svcd.metrics.snapshot import MetricsSource
    from svcd.protocols.http.context import HttpSettings

__all__ = ["StatusFactory", "StatusResource"]

#: The fields of every response (https://www.w3.org/TR/CSP3/, https://fetch.spec.whatwg.org/): no content sniffing, no
#: use by other origins, no caching.
_FIELDS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
#: The size of the caches of values computed from requests: there are few clients, and they repeat their requests.
_KNOWN = 16
_METRICS = {"text/plain": TEXT, "application/openmetrics-text": OPENMETRICS}
_MEDIA_TYPES = tuple(_METRICS)


class StatusResource:
    """A Handler that responds to `/`, `/status.json`, `/metrics`, `/healthz` and `/readyz`.

    Args:
        metrics: the source of the metrics.
        clock: returns a monotonic time, in seconds.
    """

    methods = GET_AND_HEAD
    streams: Literal[False] = False

    def __init__(self, metrics: MetricsSource, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics_source = metrics
        shown = RenderCache(lambda: page(status_data(metrics)), clock)
        data = RenderCache(lambda: json.dumps(status_data(metrics), separators=(",", ":")).encode(), clock)
        self._metrics = {
            kind: _CachedResponse(RenderCache(make, clock), _METRICS[kind], vary="Accept, Accept-Encoding")
            for kind, make in (
                ("text/plain", lambda: text(families(metrics.snapshot()))),
                ("application/openmetrics-text", lambda: openmetrics(families(metrics.snapshot()))),
            )
        }
        self._routes: dict[str, Callable[[HttpRequest], Response]] = {
            "": _CachedResponse(shown, "text/html; charset=utf-8", POLICY).respond,
            "status.json": _CachedResponse(data, "application/json").respond,
            "metrics": self._scrape,
            "healthz": lambda _request: _plain(HTTPStatus.OK, "ok"),
            "readyz": self._ready,
            "icon.svg": lambda _request: _response(ICON, "image/svg+xml", "default-src 'none'"),
        }

    def respond(self, request: HttpRequest, peer: IAddress) -> Response:
        """Return the response for the target of a request.

        Raises:
            HttpError: 404 for an unknown path, 421 for a Host field that is not local.
        """
        here = isinstance(peer, IPv4Address | IPv6Address) and _is_loopback(peer.host)
        if here and not _is_local_name(authority(request)):
            raise HttpError(HTTPStatus.MISDIRECTED_REQUEST)
        segments = _segments(request.target)
        place = self._routes.get(segments[0]) if len(segments) == 1 else None
        if place is None:
            raise HttpError(HTTPStatus.NOT_FOUND)
        return place(request)

    def _scrape(self, request: HttpRequest) -> Response:
        return self._metrics[media_type(request.fields.get(b"accept", b""), _MEDIA_TYPES)].respond(request)

    def _ready(self, _request: HttpRequest) -> Response:
        state = self._metrics_source.state
        return _plain(HTTPStatus.OK if state == "ready" else HTTPStatus.SERVICE_UNAVAILABLE, state)


class _CachedResponse:
    """A route whose response is cached: the Response is the same object until its content is rendered again."""

    def __init__(
        self, rendering: RenderCache, content_type: str, policy: str = "", *, vary: str = "Accept-Encoding"
    ) -> None:
        self._rendering = rendering
        self._content_type = content_type
        self._policy = policy
        self._vary = vary
        # By whether it is compressed.
        self._last: dict[bool, Response] = {}

    def respond(self, request: HttpRequest) -> Response:
        """Return the response, compressed if the client accepts gzip."""
        compressed = takes_gzip(request.fields.get(b"accept-encoding", b""))
        content = self._rendering.answer(compressed=compressed)
        response = self._last.get(compressed)
        if response is None or response.content is not content:
            response = self._last[compressed] = _response(content, self._content_type, self._policy)
            response.fields["Vary"] = self._vary
            if compressed:
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
def _is_local_name(host: bytes) -> bool:
    """Return whether a Host field is empty (HTTP/1.0), an address, or a name that is not in the public DNS."""
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
    """The factory of the status service. The samples of the charts are taken while it has a listener.

    Args:
        metrics: the source of the metrics.
        clock: the reactor.
        settings: the settings of the service.
    """

    def __init__(self, metrics: MetricsSource, clock: IReactorTime, settings: HttpSettings | None = None) -> None:
        super().__init__(StatusResource(metrics), clock, settings)
        self._metrics_source = metrics

    def startFactory(self) -> None:
        """Start to take samples, with the first listener."""
        super().startFactory()
        self._metrics_source.watch(self.clock.callLater)

    def stopFactory(self) -> None:
        """Stop taking samples, with the last listener."""
        super().stopFactory()
        self._metrics_source.unwatch()
