"""HTTP client (RFC 9110, 9112) for a single request; it writes the response while it receives it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, urljoin, urlsplit

from svcd import __version__
from svcd.clients.connect import connect, within
from svcd.errors import ServerError, UsageError
from svcd.wire.http_response import Head, ResponseError, ResponseReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcd.clients.stream import Stream
    from svcd.clients.target import Reactor, Target

__all__ = ["HttpQuery", "Url", "fetch", "parse_url"]

#: The characters of a URI that quoting leaves as they are (RFC 3986, section 2.2), and the percent sign.
_SAFE = "%/:?#[]@!$&'()*+,;=-._~"
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Url:
    """The parts of a URL.

    Attributes:
        secure: whether the scheme is https.
        host: the name or the address, without brackets.
        port: the port.
        authority: host and port in the form of the Host field.
        target: path and query (RFC 9112, section 3.2.1).
    """

    secure: bool
    host: str
    port: int
    authority: str
    target: str


def parse_url(text: str) -> Url:
    """Parse an http or https URL; the default scheme is http.

    Raises:
        UsageError: the text is not a valid URL.
    """
    if "://" not in text:
        text = f"http://{text}"
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise UsageError(f"{text}: {error}") from None
    try:
        port = parts.port
    except ValueError:
        raise UsageError(f"{text}: the port is not a number from 1 to 65535") from None
    if parts.scheme not in _PORTS:
        raise UsageError(f"{text}: the scheme {parts.scheme} is not supported; use http or https")
    if parts.username is not None:
        raise UsageError(f"names and passwords in a URL are not supported: {parts.scheme}://{parts.hostname}")
    if not parts.hostname or any(character <= " " for character in text) or port == 0:
        raise UsageError(f"{text!r} is not a URL")
    host = parts.hostname.replace("%25", "%")
    try:
        name = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        raise UsageError(f"{host!r} can't be the name of a host") from None
    authority = f"[{name.partition('%')[0]}]" if ":" in name else name
    usual = _PORTS[parts.scheme]
    target = quote(parts.path or "/", safe=_SAFE) + (f"?{quote(parts.query, safe=_SAFE)}" if parts.query else "")
    return Url(
        parts.scheme == "https",
        name,
        port or usual,
        authority if port in (None, usual) else f"{authority}:{port}",
        target,
    )


@dataclass(frozen=True, slots=True)
class HttpQuery:
    """The options of a request.

    Attributes:
        head: whether to request the head alone.
        include: whether to write the head, too.
        redirects: the maximum number of redirects to follow.
    """

    head: bool = False
    include: bool = False
    redirects: int = 0


_REDIRECTS = frozenset({301, 302, 303, 307, 308})


async def fetch(
    reactor: Reactor, url: str, query: HttpQuery, target_of: Callable[[Url], Target], write: Callable[[bytes], None]
) -> Head:
    """Fetch a URL.

    Args:
        reactor: makes the connections.
        url: the URL.
        query: the options of the request.
        target_of: returns the server of a URL.
        write: takes the body, piece by piece.

    Returns:
        The head of the response, which may be that of an error.

    Raises:
        UsageError: the URL is invalid.
        UnavailableError: the server can't be reached, or does not answer in time.
        ServerError: the response is not HTTP, or incomplete, or there are too many redirects.
    """
    current = parse_url(url)
    for _ in range(query.redirects + 1):
        target = target_of(current)
        stream = await connect(reactor, target)
        try:
            head = await _exchange(reactor, target, stream, current, query, write)
        finally:
            stream.close()
        location = _location(head, query)
        if location is None:
            return head
        current = _redirect_url(current, location)
    raise ServerError(f"the server redirects more than {query.redirects} times")


def _redirect_url(current: Url, location: str) -> Url:
    """Return the URL of a redirect.

    Raises:
        ServerError: the Location is invalid, or leads from https to http.
    """
    try:
        url = urljoin(f"{'https' if current.secure else 'http'}://{current.authority}{current.target}", location)
        found = parse_url(url)
    except (UsageError, ValueError) as error:
        raise ServerError(f"the server redirects to an invalid URL: {error}") from None
    if current.secure and not found.secure:
        raise ServerError(f"the server redirects from https to http, which is not secure: {url}")
    return found


def _location(head: Head, query: HttpQuery) -> str | None:
    """Return the Location of a redirect; None for another response."""
    location = head.field(b"location") if query.redirects and head.status in _REDIRECTS else None
    return None if location is None else location.decode("utf-8", "replace")


async def _exchange(
    reactor: Reactor, target: Target, stream: Stream, url: Url, query: HttpQuery, write: Callable[[bytes], None]
) -> Head:
    """Send the request, and write the response unless it is a redirect to follow."""
    fields = {"Host": url.authority, "User-Agent": f"svcctl/{__version__}", "Accept": "*/*", "Connection": "close"}
    lines = [
        f"{'HEAD' if query.head else 'GET'} {url.target} HTTP/1.1",
        *(f"{name}: {fields[name]}" for name in fields),
    ]
    await stream.write("".join(f"{line}\r\n" for line in [*lines, ""]).encode("ascii"))
    reader = ResponseReader(bodiless=query.head)
    head: Head | None = None
    while not reader.done:
        data = await within(reactor, target.timeout, stream.read(), f"{target} has sent no more data")
        try:
            found = reader.feed(data)
            if not data:
                reader.close()
        except ResponseError as error:
            raise ServerError(str(error)) from None
        for each in found:
            if isinstance(each, bytes):
                write(each)
                continue
            head = each
            if query.include:
                write(bytes(head))
            if _location(head, query) is not None:
                return head
    if head is None:
        raise ServerError("the server has closed the connection without an answer")
    return head
