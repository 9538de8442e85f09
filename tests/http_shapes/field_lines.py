"""Field lines: names, values, whitespace, limits (RFC 9112, section 5; RFC 9110, section 5)."""

from __future__ import annotations

from tests.http_shapes.shape import closed, get, kept, waiting

__all__ = ["FIELD_LINES"]


def _with(*fields: str) -> bytes:
    return get("/", *fields)


_NAMES = (
    closed("9112 5.1", "a blank before the colon", _with("X : y"), 400),
    closed("9112 5.1", "a tab before the colon", _with("X\t: y"), 400),
    closed("9112 5.1", "a blank before the colon of Host", get(host="Host : a"), 400),
    closed("9112 5.1", "a blank before the colon of Content-Length", _with("Content-Length : 5"), 400),
    closed("9112 5.1", "a tab before the colon of Transfer-Encoding", _with("Transfer-Encoding\t: chunked"), 400),
    closed("9112 5", "no colon", _with("X"), 400),
    closed("9112 5", "a field without a name", _with(": y"), 400),
    closed("9112 5", "nothing but a colon", _with(":"), 400),
    closed("9110 5.1", "a blank in the name", _with("X Y: z"), 400),
    closed("9110 5.6.2", "parentheses in the name", _with("X(Y): z"), 400),
    closed("9110 5.6.2", "an at sign in the name", _with("X@Y: z"), 400),
    closed("9110 5.6.2", "a slash in the name", _with("X/Y: z"), 400),
    closed("9110 5.6.2", "a quote in the name", _with('X"Y: z'), 400),
    closed("9110 5.6.2", "brackets in the name", _with("X[Y]: z"), 400),
    closed("9110 5.6.2", "NUL in the name", _with("X\x00: z"), 400),
    closed("9110 5.6.2", "DEL in the name", _with("X\x7f: z"), 400),
    closed("9110 5.6.2", "a vertical tab in the name", _with("Content-Length\x0b: 5"), 400),
    closed("9110 5.6.2", "a byte above ASCII in the name", _with("X\xfc: z"), 400),
    kept("9110 5.6.2", "all marks of a token in the name", _with("!#$%&'*+-.^_`|~0Az: y"), 200),
    kept("9110 5.1", "an underscore is not a hyphen", _with("Content_Length: 5"), 200),
    kept("9110 5.1", "one letter", _with("X: y"), 200),
    kept("9110 5.1", "a name of 1,000 bytes", _with("X" * 1000 + ": y"), 200),
)
_VALUES = (
    kept("9110 5.5", "an empty value", _with("X:"), 200),
    kept("9110 5.5", "nothing but whitespace", _with("X: \t "), 200),
    kept("9112 5", "no blank after the colon", _with("X:y"), 200),
    kept("9112 5", "whitespace around the value", _with("X: \t y \t "), 200),
    kept("9110 5.5", "a tab in the value", _with("X: y\tz"), 200),
    kept("9110 5.5", "colons in the value", _with("X: y: z:"), 200),
    kept("9110 5.5", "bytes above ASCII in the value", _with("X: \xfc\xff"), 200),
    closed("9110 5.5", "NUL in the value", _with("X: y\x00z"), 400),
    closed("9110 5.5", "CR in the value", _with("X: y\rz"), 400),
    closed("9110 5.5", "LF in the value", _with("X: y\nz"), 400),
    closed("9110 5.5", "CR at the end of the value", _with("X: y\r"), 400),
    closed("9110 5.5", "a control character in the value", _with("X: y\x01z"), 400),
    closed("9110 5.5", "DEL in the value", _with("X: y\x7fz"), 400),
    closed("9112 5.2", "a folded line", _with("X: y", " z"), 400),
    closed("9112 5.2", "a line folded by a tab", _with("X: y", "\tz"), 400),
    closed("9112 5.2", "a folded line that is empty", _with("X: y", " "), 400),
    closed("9112 5.2", "a folded Content-Length", _with("Content-Length:", " 5"), 400),
    closed("9112 5.2", "a folded Transfer-Encoding", _with("Transfer-Encoding:", " chunked"), 400),
    kept("9110 5.3", "a field twice", _with("Accept: a/b", "Accept: c/d"), 200),
    kept("9110 5.6.1", "empty elements of a list", _with("Accept: ,a/b,,"), 200),
    kept("9110 10.1.4", "TE: trailers", _with("TE: trailers", "Connection: TE"), 200),
    kept("9110 7.6.2", "Max-Forwards", _with("Max-Forwards: 0"), 200),
    kept("9110 11.6.2", "credentials that nothing asked for", _with("Authorization: Basic YTpi"), 200),
)
_LIMITS = (
    kept("9110 5.4", "100 fields", _with(*["X: y"] * 99), 200),
    closed("6585 5", "101 fields", _with(*["X: y"] * 100), 431),
    kept("9110 5.4", "a value of 8,000 bytes", _with("X: " + "y" * 8000), 200),
    closed("6585 5", "a value of 40,000 bytes", _with("X: " + "y" * 40_000), 431),
    closed("6585 5", "a name of 40,000 bytes", _with("X" * 40_000 + ": y"), 431),
    closed("6585 5", "a head of 40,000 bytes", _with(*["X: " + "y" * 1000] * 40), 431),
    closed("6585 5", "a value that does not end", get("/", "X: " + "y" * 100_000)[:-4], 431),
    closed("6585 5", "fields that do not end", get("/", *["X: y"] * 10_000)[:-4], 431),
    waiting("9110 5.4", "a value of 8,000 bytes that may go on", get("/", "X: " + "y" * 8000)[:-4]),
)

FIELD_LINES = (*_NAMES, *_VALUES, *_LIMITS)
