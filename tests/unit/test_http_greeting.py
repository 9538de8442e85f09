"""HTML page that greets a client by its host name."""

from __future__ import annotations

import html
from html.parser import HTMLParser
from http import HTTPStatus

import pytest
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred

from svcd.protocols.http.greeting import GreetingPage
from svcd.protocols.http.response import Response
from svcd.wire.http_request import HttpError, HttpRequest
from tests.doubles import LOCAL_PEER, FakeResolver

V4 = IPv4Address("TCP", "192.0.2.1", 40_000)
V6 = IPv6Address("TCP", "2001:db8::1", 40_001)
HOSTILE = "<script>alert('&')</script>\"{0}"


def _request(target: bytes = b"/") -> HttpRequest:
    return HttpRequest("GET", target, {b"host": b"a"}, "1.1", keep_alive=True)


def _page(host: str | None, peer: IPv4Address | IPv6Address = V4) -> str:
    names = FakeResolver()
    answer = GreetingPage(names).respond(_request(), peer)
    assert isinstance(answer, Deferred)
    assert not answer.called
    assert names.queries[0][0] == peer.host
    found: list[Response] = []
    answer.addCallback(found.append)
    names.answer(host)
    (response,) = found
    assert response.status == HTTPStatus.OK
    assert response.fields["Content-Type"] == "text/html; charset=utf-8"
    assert response.fields["Content-Length"] == str(len(response.content))
    assert response.fields["Cache-Control"] == "no-store"
    return response.content.decode()


def test_a_client_is_greeted_by_its_name() -> None:
    """The page contains the host name, address and port of the client."""
    page = _page("host.example")
    assert "<h1>Hello, host.example!</h1>" in page
    assert "<dd>192.0.2.1</dd>" in page
    assert "<dd>40000</dd>" in page


@pytest.mark.parametrize("peer", [V4, V6])
def test_a_client_without_a_name_is_greeted_by_its_address(peer: IPv4Address | IPv6Address) -> None:
    """A client without a host name is greeted by its address."""
    assert f"<h1>Hello, {peer.host}!</h1>" in _page(None, peer)


def test_a_hostile_name_is_escaped() -> None:
    """A host name is escaped: a name server can't insert HTML."""
    tags: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002 - its signature
            tags.append(tag)

    page = _page(HOSTILE)
    Reader().feed(page)
    assert "script" not in tags
    assert html.escape(HOSTILE) in page


def test_a_local_client() -> None:
    """A client of a UNIX socket is greeted without a lookup."""
    names = FakeResolver()
    response = GreetingPage(names).respond(_request(), LOCAL_PEER)
    assert isinstance(response, Response)
    assert b"Hello, local user!" in response.content
    assert not names.queries


@pytest.mark.parametrize(("target", "status"), [(b"/x", 404), (b"/favicon.ico", 404), (b"/..", 400), (b"*", 400)])
def test_there_is_no_other_page(target: bytes, status: int) -> None:
    """Every target except / is an error, before any lookup."""
    names = FakeResolver()
    with pytest.raises(HttpError) as caught:
        GreetingPage(names).respond(_request(target), V4)
    assert caught.value.status == status
    assert not names.queries


def test_a_query_is_ignored() -> None:
    """A query in the target is ignored."""
    assert isinstance(GreetingPage(FakeResolver()).respond(_request(b"/?a=b"), V4), Deferred)
