"""Redirect to HTTPS."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Literal

import pytest

from svcd.protocols.http.https_redirect import HttpsRedirect
from svcd.protocols.http.response import GET_AND_HEAD, Response, text_response
from svcd.wire.http_request import HttpError, HttpRequest
from tests.doubles import PEER


class _Challenges:
    """Handler of challenges."""

    methods = GET_AND_HEAD
    streams: Literal[False] = False

    def respond(self, request: HttpRequest, peer: object) -> Response:
        """Return the target."""
        assert peer == PEER
        return text_response(HTTPStatus.OK, "text/plain", request.target.decode())


def _reply(target: bytes, host: bytes | None = b"a.example", method: str = "GET") -> Any:
    fields = {} if host is None else {b"host": host}
    transport: Any = None
    return HttpsRedirect(_Challenges()).respond(
        HttpRequest(method, target, fields, "1.1", keep_alive=True), PEER, transport
    )


@pytest.mark.parametrize(
    ("target", "host", "location"),
    [
        (b"/", b"a.example", "https://a.example/"),
        (b"/a/b?c=d&e", b"a.example:8080", "https://a.example/a/b?c=d&e"),
        (b"//other.example/a", b"a.example", "https://a.example//other.example/a"),
        (b'/\xc3\xa9%20"<', b"a.example", "https://a.example/%C3%A9%20%22%3C"),
        (b"/", b"[::1]", "https://[::1]/"),
        (b"/", b"[::1]:80", "https://[::1]/"),
        (b"http://b.example:80/c?d", b"a.example", "https://b.example/c?d"),
        (b"/.well-known/acme-challenge", b"a.example", "https://a.example/.well-known/acme-challenge"),
        (b"/.well-known/other", b"a.example", "https://a.example/.well-known/other"),
    ],
)
def test_a_redirect(target: bytes, host: bytes, location: str) -> None:
    """The Location has the host without its port, and the target; it can't name another host."""
    reply = _reply(target, host)
    assert (reply.status, reply.fields["Location"]) == (HTTPStatus.MOVED_PERMANENTLY, location)


def test_other_methods() -> None:
    """The redirect of another method than GET and HEAD keeps the method."""
    assert _reply(b"/", method="HEAD").status == HTTPStatus.MOVED_PERMANENTLY
    assert _reply(b"/", method="POST").status == HTTPStatus.PERMANENT_REDIRECT


@pytest.mark.parametrize("target", [b"/.well-known/acme-challenge/token", b"/.well-known//acme%2dchallenge/./token"])
def test_a_challenge(target: bytes) -> None:
    """Requests below /.well-known/acme-challenge/ are served, however they are spelled, with the methods of files."""
    assert _reply(target).content == target
    with pytest.raises(HttpError) as caught:
        _reply(target, method="DELETE")
    assert caught.value.status == HTTPStatus.METHOD_NOT_ALLOWED


@pytest.mark.parametrize(
    ("target", "host"), [(b"/", None), (b"/", b""), (b"/", b":80"), (b"*", b"a"), (b"/../a", b"a")]
)
def test_a_request_that_can_not_be_redirected(target: bytes, host: bytes | None) -> None:
    """A request without a host, or with a bad target, gets 400."""
    with pytest.raises(HttpError) as caught:
        _reply(target, host)
    assert caught.value.status == HTTPStatus.BAD_REQUEST
