"""Request lines: methods, versions, whitespace and line ends (RFC 9112, sections 2.2 and 3; RFC 9110, section 9)."""

from __future__ import annotations

from tests.http_shapes.shape import HOST, closed, get, kept, lines, post, waiting

__all__ = ["REQUEST_LINES"]

_REST = lines(HOST, "")
_ALLOW = {"Allow": "GET, HEAD, OPTIONS"}

_VERSIONS = (
    closed("9110 2.5", "HTTP/2.0 is another major version", get(version="HTTP/2.0"), 505),
    # 505 is optional, and a server should take 1.2 as 1.1; no client sends these, and llhttp does not know them.
    closed("9110 2.5", "HTTP/3.0 is another major version", get(version="HTTP/3.0"), 400),
    closed("9110 2.5", "HTTP/0.9 is another major version", get(version="HTTP/0.9"), 505),
    closed("9110 2.5", "HTTP/1.2 is refused", get(version="HTTP/1.2"), 400),
    closed("9112 2.3", "a minor version of two digits", get(version="HTTP/1.10"), 400),
    closed("9112 2.3", "a major version of two digits", get(version="HTTP/01.1"), 400),
    closed("9112 2.3", "no minor version", get(version="HTTP/1"), 400),
    closed("9112 2.3", "no digits", get(version="HTTP/x.y"), 400),
    closed("9112 2.3", "the name in lower case", get(version="http/1.1"), 400),
    closed("9112 2.3", "another name", get(version="HTCPCP/1.0"), 400),
    closed("9112 2.3", "a blank in the version", get(version="HTTP /1.1"), 400),
    closed("9112 2.3", "a comma in the version", get(version="HTTP/1,1"), 400),
    closed("9112 2.3", "text after the version", get(version="HTTP/1.1x"), 400),
    closed("9112 2.3", "a word after the version", get(version="HTTP/1.1 x"), 400),
    closed("9112 3", "a blank after the version", get(version="HTTP/1.1 "), 400),
    closed("9112 3", "no version, as in HTTP/0.9", b"GET /\r\n\r\n", 505),
    closed("9112 3", "no version, with fields", b"GET /\r\n" + _REST, 505),
    kept("9112 9.3", "1.1 is kept alive", get(), 200),
    closed("9112 9.3", "1.0 is not", get(version="HTTP/1.0"), 200),
)
_WHITESPACE = (
    closed("9112 3", "a blank before the method", b" " + get(), 400),
    closed("9112 3", "a tab before the method", b"\t" + get(), 400),
    # A recipient may take more than one blank.
    kept("9112 3", "two blanks after the method", b"GET  / HTTP/1.1\r\n" + _REST, 200),
    closed("9112 3", "a tab after the method", b"GET\t/ HTTP/1.1\r\n" + _REST, 400),
    kept("9112 3", "two blanks before the version", b"GET /  HTTP/1.1\r\n" + _REST, 200),
    closed("9112 3", "a tab before the version", b"GET /\tHTTP/1.1\r\n" + _REST, 400),
    closed("9112 3", "a blank in the target", get("/file.txt x"), 400),
    closed("9112 3", "a vertical tab as whitespace", b"GET\x0b/ HTTP/1.1\r\n" + _REST, 400),
    closed("9112 3", "a form feed as whitespace", b"GET /\x0cHTTP/1.1\r\n" + _REST, 400),
    closed("9112 3", "no blank after the method", b"GET/ HTTP/1.1\r\n" + _REST, 400),
    closed("9112 3", "no target", b"GET HTTP/1.1\r\n" + _REST, 400),
    closed("9112 3", "only a method", b"GET\r\n" + _REST, 400),
)
_LINE_ENDS = (
    kept("9112 2.2", "an empty line before the request", b"\r\n" + get(), 200),
    kept("9112 2.2", "an empty line between requests", get() + b"\r\n" + get(), 200, 200),
    closed("9112 2.2", "LF ends the request line", b"GET / HTTP/1.1\n" + _REST, 400),
    closed("9112 2.2", "LF ends a field", b"GET / HTTP/1.1\r\nHost: a\n\r\n", 400),
    closed("9112 2.2", "LF ends the head", b"GET / HTTP/1.1\r\nHost: a\r\n\n", 400),
    closed("9112 2.2", "LF ends all lines", b"GET / HTTP/1.1\nHost: a\n\n", 400),
    closed("9112 2.2", "CR ends the request line", b"GET / HTTP/1.1\rHost: a\r\n\r\n", 400),
    closed("9112 2.2", "CR ends a field", b"GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n", 400),
    closed("9112 2.2", "CR CR LF ends a line", b"GET / HTTP/1.1\r\r\n" + _REST, 400),
    closed("9112 2.2", "CR CR LF ends a field", b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", 400),
    closed("9112 2.2", "CR in the target", b"GET /\r HTTP/1.1\r\n" + _REST, 400),
    closed("9112 2.2", "LF in the target", b"GET /\n HTTP/1.1\r\n" + _REST, 400),
    closed("9112 2.2", "LF CR ends a field", b"GET / HTTP/1.1\r\nHost: a\n\r\r\n", 400),
    closed("9112 2.2", "whitespace before the first field", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
    closed("9112 2.2", "a byte order mark", b"\xef\xbb\xbf" + get(), 400),
    closed("9112 2.2", "a TLS handshake", b"\x16\x03\x01\x00\xf4\x01\x00\x00\xf0\x03\x03", 400),
    closed("9112 2.2", "zero bytes", bytes(64), 400),
    closed("9112 2.2", "a response", lines("HTTP/1.1 200 OK", "Content-Length: 0", ""), 400),
    closed("9112 2.2", "the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    waiting("9112 2.2", "nothing but an empty line", b"\r\n"),
    waiting("9112 3", "a part of a method", b"GE"),
    waiting("9112 3", "a part of the request line", b"GET /fi"),
    waiting("9112 5", "no end of the head", b"GET / HTTP/1.1\r\nHost: a\r\n"),
    waiting("9112 5", "half of the end of the head", b"GET / HTTP/1.1\r\nHost: a\r\n\r"),
)
_METHODS = (
    kept("9110 9.3.1", "GET", get("/file.txt"), 200, content=b"abcdefghijklmnopqrstuvwxyz"),
    kept("9110 9.3.2", "HEAD has the fields of GET and no content", get("/file.txt", method="HEAD"), 200,
         fields={"Content-Length": "26"}, content=b""),
    kept("9110 9.3.2", "HEAD of a missing file", get("/missing", method="HEAD"), 404, content=b""),
    kept("9110 9.3.2", "HEAD of a directory", get("/folder", method="HEAD"), 301, content=b""),
    kept("9110 9.3.2", "HEAD and GET", get("/file.txt", method="HEAD") + get("/empty.txt"), 200, 200, content=b""),
    kept("9110 9.3.3", "POST of a file", post("Content-Length: 0"), 405, fields=_ALLOW),
    kept("9110 9.3.4", "PUT", post("Content-Length: 3", body="abc", method="PUT"), 405, fields=_ALLOW),
    kept("9110 9.3.5", "DELETE", get(method="DELETE"), 405, fields=_ALLOW),
    closed("9110 9.3.6", "CONNECT", get("a:80", method="CONNECT"), 405, fields=_ALLOW),
    kept("9110 9.3.8", "TRACE", get(method="TRACE"), 405, fields=_ALLOW),
    kept("5789 2", "PATCH", post("Content-Length: 0", method="PATCH"), 405, fields=_ALLOW),
    kept("9110 9.1", "a method of WebDAV", get(method="PROPFIND"), 405, fields=_ALLOW),
    kept("9110 9.1", "a method of UPnP", get(method="M-SEARCH"), 405, fields=_ALLOW),
    kept("9110 15.5.6", "405 without a body in between", get(method="DELETE") + get(), 405, 200),
    closed("9110 9.3.2", "HEAD with an invalid field", get("/", "X Y: z", method="HEAD"), 400, content=b""),
    closed("9110 9.3.2", "HEAD with an invalid Host", get(method="HEAD", host="Host: a/b"), 400, content=b""),
    kept("9110 9.3.7", "OPTIONS of a file", get(method="OPTIONS"), 204, fields={**_ALLOW, "Content-Length": None}),
    kept("9110 9.3.7", "OPTIONS of the server", get("*", method="OPTIONS"), 204, fields=_ALLOW),
    kept("9110 9.3.7", "OPTIONS with a body", post("Content-Length: 3", body="abc", method="OPTIONS") + get(),
         204, 200),
    # 501 is asked for; a method that the parser does not know can't be told from garbage before its end has come.
    closed("9110 9.1", "an unknown method", get(method="FROBNICATE"), 400),
    closed("9110 9.1", "a method in lower case", get(method="get"), 400),
    closed("9110 9.1", "a method with a letter too many", get(method="GETS"), 400),
    closed("9110 5.6.2", "a method that is no token", get(method="G(T"), 400),
    closed("9110 5.6.2", "a method with a quote", get(method='GET"'), 400),
    closed("9112 3.1", "an empty method", get(method=""), 400),
)  # fmt: skip

REQUEST_LINES = (*_VERSIONS, *_WHITESPACE, *_LINE_ENDS, *_METHODS)
