"""Responses of CGI programs: the table of their forms (RFC 3875, section 6), at every split of the bytes."""

from __future__ import annotations

import pytest

from svcd.wire.cgi_response import MOST_CGI_FIELDS, MOST_CGI_HEAD, CgiError, CgiHead, CgiHeadReader

PLAIN = (("Content-Type", "text/plain"),)

#: Output, the head, and the content that follows it.
HEADS = {
    "document (6.2.1)": (b"Content-Type: text/plain\n\nhi", CgiHead(200, "", PLAIN), b"hi"),
    "line ends CRLF (2.2, NL)": (b"Content-Type: text/plain\r\n\r\nhi", CgiHead(200, "", PLAIN), b"hi"),
    "line ends mixed": (b"Content-Type: text/plain\r\nX-A: b\n\r\nhi", CgiHead(200, "", (*PLAIN, ("X-A", "b"))), b"hi"),
    "content that looks like a head": (
        b"Content-Type: text/plain\n\n\nA: b\n\n",
        CgiHead(200, "", PLAIN),
        b"\nA: b\n\n",
    ),
    "no content": (b"Content-Type: text/plain\n\n", CgiHead(200, "", PLAIN), b""),
    "names in any case (6.3)": (
        b"cONTENT-tYPE:text/plain\n\n",
        CgiHead(200, "", (("cONTENT-tYPE", "text/plain"),)),
        b"",
    ),
    "blanks around a value": (b"Content-Type: \t text/plain \t\n\n", CgiHead(200, "", PLAIN), b""),
    "empty value": (b"Status: 200\nX-Empty:\n\n", CgiHead(200, "", (("X-Empty", ""),)), b""),
    "value beyond ASCII": (b"Status: 200\nX-A: \xe9\n\n", CgiHead(200, "", (("X-A", "\xe9"),)), b""),
    "repeated field": (
        b"Status: 200\nSet-Cookie: a=1\nSet-Cookie: b=2\n\n",
        CgiHead(200, "", (("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"))),
        b"",
    ),
    "status (6.3.3)": (b"Status: 404 Not here\nContent-Type: text/plain\n\n", CgiHead(404, "Not here", PLAIN), b""),
    "status without a phrase": (b"Status: 503\n\nbusy", CgiHead(503), b"busy"),
    "status of no RFC": (b"Status: 599 Odd\n\n", CgiHead(599, "Odd"), b""),
    "length": (
        b"Content-Type: text/plain\nContent-Length: 2\n\nhi",
        CgiHead(200, "", (*PLAIN, ("Content-Length", "2")), content_length=2),
        b"hi",
    ),
    "local redirect (6.2.2)": (b"Location: /a/b?c=d\n\n", CgiHead(200, local_target=b"/a/b?c=d"), b""),
    "client redirect (6.2.3)": (b"Location: http://a/\n\n", CgiHead(302, "", (("Location", "http://a/"),)), b""),
    "client redirect with document (6.2.4)": (
        b"Location: https://a/\nStatus: 301 Moved\nContent-Type: text/plain\n\nmoved",
        CgiHead(301, "Moved", (("Location", "https://a/"), *PLAIN)),
        b"moved",
    ),
    "client redirect to a path, by its status": (
        b"Status: 303 See Other\nLocation: /a\n\n",
        CgiHead(303, "See Other", (("Location", "/a"),)),
        b"",
    ),
    "client redirect to a path, by other fields": (
        b"Set-Cookie: a=1\nLocation: /a\n\n",
        CgiHead(302, "", (("Set-Cookie", "a=1"), ("Location", "/a"))),
        b"",
    ),
    "fields of the server (6.3.4)": (
        b"Content-Type: text/plain\nConnection: close\nTransfer-Encoding: chunked\nDate: x\nServer: y\nTE: z\n\n",
        CgiHead(200, "", PLAIN),
        b"",
    ),
    "extension fields (6.3.5)": (b"X-CGI-Hint: 1\nContent-Type: text/plain\n\n", CgiHead(200, "", PLAIN), b""),
    "created with a relative location": (
        b"Status: 201 Created\nLocation: new\n\n",
        CgiHead(201, "Created", (("Location", "new"),)),
        b"",
    ),
}

#: Output that is no response, and a part of the error.
BAD = {
    "no CGI field (6.3)": (b"X-A: b\n\n", "neither a Content-Type nor a Location nor a Status"),
    "no field at all": (b"\nhi", "neither"),
    "text": (b"hello world\n\n", "invalid header line"),
    "HTTP status line": (b"HTTP/1.1 200 OK\nContent-Type: a/b\n\n", "invalid header line: b'HTTP/1.1 200 OK'"),
    "blank before the colon": (b"Content-Type : a/b\n\n", "invalid header line"),
    "folded line": (b"Content-Type: a/b;\n c=d\n\n", "invalid header line"),
    "empty name": (b": a\nStatus: 200\n\n", "invalid header line"),
    "NUL in a value": (b"Content-Type: a\0b\n\n", "invalid header line"),
    "carriage return in a value": (b"Content-Type: a\rX: y\n\n", "invalid header line"),
    "name beyond ASCII": (b"Status: 200\nX-\xe9: a\n\n", "invalid header line"),
    "two Status": (b"Status: 200\nStatus: 404\n\n", "two Status fields"),
    "two Content-Type": (b"Content-Type: a/b\ncontent-type: a/b\n\n", "two content-type fields"),
    "two Location": (b"Location: /a\nLocation: /b\n\n", "two Location fields"),
    "two Content-Length": (b"Status: 200\nContent-Length: 1\nContent-Length: 1\n\n", "two Content-Length fields"),
    "length with a sign": (b"Status: 200\nContent-Length: +1\n\n", "invalid Content-Length"),
    "length of nothing": (b"Status: 200\nContent-Length:\n\n", "invalid Content-Length"),
    "status of an interim response": (b"Status: 101 Switching\n\n", "invalid Status"),
    "status of four digits": (b"Status: 2000\n\n", "invalid Status"),
    "status without a number": (b"Status: OK\n\n", "invalid Status"),
    "relative location": (b"Location: a/b\n\n", "neither a path nor a URL"),
    "empty location": (b"Location:\n\n", "neither a path nor a URL"),
    "many fields": (b"Status: 200\n" + b"A: b\n" * MOST_CGI_FIELDS + b"\n", "more than 100 header fields"),
    "large field": (b"Status: 200\nA: " + b"b" * MOST_CGI_HEAD + b"\n\n", "larger than 32768 bytes"),
    "endless head": (b"Status: 200\nA: " + b"b" * MOST_CGI_HEAD, "larger than 32768 bytes"),
}


@pytest.mark.parametrize(("output", "head", "content"), HEADS.values(), ids=HEADS)
def test_a_head_is_read_at_every_split(output: bytes, head: CgiHead, content: bytes) -> None:
    """A head is complete with the last byte of its blank line, in whatever pieces it comes."""
    size = len(output) - len(content)
    for split in range(len(output) + 1):
        reader = CgiHeadReader()
        found = reader.feed(output[:split])
        rest = reader.rest
        if found is None:
            assert split < size
            found = reader.feed(output[split:])
            assert reader.rest == content
        else:
            assert rest == output[size:split]
        assert found == head


@pytest.mark.parametrize(("output", "reason"), BAD.values(), ids=BAD)
def test_other_output_is_an_error(output: bytes, reason: str) -> None:
    """Output that is no CGI response is an error whose text says why."""
    with pytest.raises(CgiError, match=reason.replace("(", r"\(")):
        CgiHeadReader().feed(output)


def test_an_early_end_is_an_error() -> None:
    """The error of output that ends early says whether there was any."""
    reader = CgiHeadReader()
    assert "without a response" in str(reader.end())
    assert reader.feed(b"Status: 200\n") is None
    assert "within the header" in str(reader.end())


@pytest.mark.parametrize(("status", "has"), [(200, True), (404, True), (204, False), (304, False)])
def test_some_statuses_have_no_content(status: int, has: bool) -> None:
    """204 and 304 responses have no content, whatever a program writes."""
    assert CgiHead(status).has_content is has
