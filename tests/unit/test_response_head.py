"""Heads of HTTP responses."""

from __future__ import annotations

from http import HTTPStatus

from svcd.wire.response_head import StatusLine, head


def test_the_head_of_a_response() -> None:
    """A head has the status line, the fields in their order, and Connection unless it is empty."""
    assert head(HTTPStatus.OK, [("A", "b"), ("A", "c")], "keep-alive") == (
        b"HTTP/1.1 200 OK\r\nA: b\r\nA: c\r\nConnection: keep-alive\r\n\r\n"
    )
    assert head(HTTPStatus.NOT_FOUND, []) == b"HTTP/1.1 404 Not Found\r\n\r\n"


def test_a_status_that_is_not_registered() -> None:
    """A StatusLine may have any code; the phrase of a registered one is added if there is none."""
    assert head(StatusLine.of(299, "Fine"), []) == b"HTTP/1.1 299 Fine\r\n\r\n"
    assert StatusLine.of(404) == StatusLine(404, "Not Found")
    assert StatusLine.of(299) == StatusLine(299, "")
