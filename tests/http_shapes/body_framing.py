"""Length of request bodies: Content-Length, Transfer-Encoding, chunks (RFC 9112, sections 6 and 7; RFC 9110, 8.6)."""

from __future__ import annotations

from tests.http_shapes.shape import Shape, closed, get, kept, post, waiting

__all__ = ["BODY_FRAMING"]

_CHUNKED = "Transfer-Encoding: chunked"
_NEXT = get("/file.txt")


def _length(value: str, body: str = "hello") -> bytes:
    return post(f"Content-Length: {value}", body=body)


def _chunks(body: str) -> bytes:
    return post(_CHUNKED, body=body)


def _bad_chunks(name: str, body: str, section: str = "9112 7.1") -> Shape:
    return closed(section, name, _chunks(body) + _NEXT, 400)


_LENGTHS = (
    kept("9112 6.2", "a body, and another request", _length("5") + _NEXT, 405, 200),
    kept("9112 6.2", "a body of GET is read and dropped", get("/", "Content-Length: 5") + b"hello" + _NEXT, 200, 200),
    kept("9112 6.2", "a body of HEAD", get("/", "Content-Length: 5", method="HEAD") + b"hello" + _NEXT, 200, 200),
    kept("9112 6.2", "a body that looks like a request",
         get("/", f"Content-Length: {len(_NEXT)}") + _NEXT + _NEXT, 200, 200),
    kept("9112 6.2", "a length of 0", _length("0", "") + _NEXT, 405, 200),
    kept("9112 6.3", "no length, no body", post() + _NEXT, 405, 200),
    kept("9110 8.6", "leading zeros", _length("0005") + _NEXT, 405, 200),
    kept("9110 8.6", "whitespace around the length", _length("\t 5 \t") + _NEXT, 405, 200),
    closed("9110 8.6", "an empty length", _length(""), 400),
    closed("9110 8.6", "a negative length", _length("-5"), 400),
    closed("9110 8.6", "a length with a plus sign", _length("+5"), 400),
    closed("9110 8.6", "a fraction", _length("5.0"), 400),
    closed("9110 8.6", "an exponent", _length("5e0"), 400),
    closed("9110 8.6", "a hexadecimal length", _length("0x5"), 400),
    closed("9110 8.6", "a letter in the length", _length("5a"), 400),
    closed("9110 8.6", "an underscore in the length", _length("0_5"), 400),
    closed("9110 8.6", "a blank in the length", _length("5 5"), 400),
    closed("9110 8.6", "a quoted length", _length('"5"'), 400),
    closed("9110 8.6", "digits above ASCII", _length("\xb2"), 400),
    closed("9110 8.6", "a length of 2^64", _length("18446744073709551616"), 400),
    closed("9110 8.6", "a length of 2^64 + 5", _length("18446744073709551621"), 400),
    closed("9110 8.6", "a length of 100 digits", _length("9" * 100), 400),
    closed("9112 6.3", "two lengths that differ", post("Content-Length: 5", "Content-Length: 6", body="hello!"), 400),
    closed("9112 6.3", "the same length twice", post("Content-Length: 5", "Content-Length: 5", body="hello"), 400),
    closed("9112 6.3", "a list of different lengths", _length("5, 6"), 400),
    closed("9112 6.3", "a list of equal lengths", _length("5, 5"), 400),
    closed("9112 6.3", "a list with an empty element", _length("5,"), 400),
    closed("9110 15.5.14", "a body of 2 MB",
           get("/", "Content-Length: 2000000") + b"x" * 2_000_000, 413),
    waiting("9112 6.2", "a body that is not complete", _length("6")),
)  # fmt: skip
_CODINGS = (
    closed("9112 6.1", "a length and chunks", post("Content-Length: 5", _CHUNKED, body="0\r\n\r\n"), 400),
    closed("9112 6.1", "chunks and a length", post(_CHUNKED, "Content-Length: 5", body="0\r\n\r\n"), 400),
    closed("9112 6.1", "chunks and a length of 0", post(_CHUNKED, "Content-Length: 0", body="0\r\n\r\n"), 400),
    closed("9112 6.1", "chunks and a length, for GET", get("/", "Content-Length: 5", _CHUNKED) + b"0\r\n\r\n", 400),
    closed("9112 6.1", "a length and an unknown coding", post("Content-Length: 5", "Transfer-Encoding: x"), 400),
    closed("9112 6.1", "chunks in HTTP/1.0",
           get("/", _CHUNKED, "Connection: keep-alive", method="POST", version="HTTP/1.0") + b"0\r\n\r\n", 400),
    closed("9112 6.1", "chunks twice", post("Transfer-Encoding: chunked, chunked", body="0\r\n\r\n"), 400),
    closed("9112 6.1", "chunks twice, in two fields", post(_CHUNKED, _CHUNKED, body="0\r\n\r\n"), 400),
    closed("9112 6.3", "chunks are not the last coding", post("Transfer-Encoding: chunked, gzip", body="0\r\n\r\n"),
           400),
    closed("9112 6.3", "another coding alone", post("Transfer-Encoding: gzip", body="hello"), 400),
    closed("9112 7", "identity, which is no coding any more", post("Transfer-Encoding: identity", body="hello"), 400),
    closed("9112 7", "identity and a length",
           post("Transfer-Encoding: identity", "Content-Length: 5", body="hello"), 400),
    closed("9112 7", "a name that ends with chunked", post("Transfer-Encoding: xchunked", body="0\r\n\r\n"), 400),
    closed("9112 7", "a name that begins with chunked", post("Transfer-Encoding: chunkedx", body="0\r\n\r\n"), 400),
    closed("9112 7", "a quoted coding", post('Transfer-Encoding: "chunked"', body="0\r\n\r\n"), 400),
    closed("9112 7", "chunks with a parameter", post("Transfer-Encoding: chunked;a=b", body="0\r\n\r\n"), 400),
    closed("9112 7", "two words", post("Transfer-Encoding: x chunked", body="0\r\n\r\n"), 400),
    closed("9112 7", "an empty coding", post("Transfer-Encoding:", body="hello"), 400),
    closed("9112 7", "a vertical tab before the coding", post("Transfer-Encoding: \x0bchunked", body="0\r\n\r\n"), 400),
    closed("9112 7", "a byte above ASCII in the coding", post("Transfer-Encoding: \xa0chunked", body="0\r\n\r\n"), 400),
    closed("9112 6.1", "a known coding below chunks", post("Transfer-Encoding: gzip, chunked", body="0\r\n\r\n"), 501),
    kept("9112 7", "the coding in upper case", post("Transfer-Encoding: CHUNKED", body="0\r\n\r\n") + _NEXT, 405, 200),
    kept("9112 6.1", "blanks around the coding", post("Transfer-Encoding:  chunked  ", body="0\r\n\r\n") + _NEXT,
           405, 200),
    kept("9112 6.1", "a tab before the coding", post("Transfer-Encoding: \tchunked", body="0\r\n\r\n") + _NEXT,
           405, 200),
    # This is whitespace as well; llhttp takes none there, and no client sends it.
    closed("9112 6.1", "a tab after the coding", post("Transfer-Encoding: chunked\t", body="0\r\n\r\n"), 400),
    kept("9112 6.1", "another name", post("Transfer_Encoding: chunked") + _NEXT, 405, 200),
)  # fmt: skip
_CHUNKS = (
    kept("9112 7.1", "a chunk", _chunks("5\r\nhello\r\n0\r\n\r\n") + _NEXT, 405, 200),
    kept("9112 7.1", "chunks of GET are read and dropped", get("/", _CHUNKED) + b"1\r\nx\r\n0\r\n\r\n" + _NEXT,
         200, 200),
    kept("9112 7.1", "two chunks", _chunks("3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n") + _NEXT, 405, 200),
    kept("9112 7.1", "no chunk but the last", _chunks("0\r\n\r\n") + _NEXT, 405, 200),
    kept("9112 7.1", "a size in lower case", _chunks("a\r\n0123456789\r\n0\r\n\r\n") + _NEXT, 405, 200),
    kept("9112 7.1", "a size in upper case", _chunks("A\r\n0123456789\r\n0\r\n\r\n") + _NEXT, 405, 200),
    kept("9112 7.1", "a size with zeros", _chunks("0005\r\nhello\r\n000\r\n\r\n") + _NEXT, 405, 200),
    kept("9112 7.1", "a chunk that looks like the end", _chunks("5\r\n0\r\n\r\n\r\n0\r\n\r\n") + _NEXT, 405, 200),
    kept("9112 7.1", "a chunk with a request", _chunks(f"{len(_NEXT):x}\r\n{_NEXT.decode()}\r\n0\r\n\r\n") + _NEXT,
         405, 200),
    kept("9112 7.1.1", "an extension", _chunks("5;a\r\nhello\r\n0\r\n\r\n") + _NEXT, 405, 200),
    kept("9112 7.1.1", "an extension with a value", _chunks("5;a=b\r\nhello\r\n0;c=d\r\n\r\n") + _NEXT, 405, 200),
    kept("9112 7.1.1", "an extension with a quoted value", _chunks('5;a="b c"\r\nhello\r\n0\r\n\r\n') + _NEXT,
           405, 200),
    kept("9112 7.1.2", "a trailer", _chunks("0\r\nX: y\r\n\r\n") + _NEXT, 405, 200),
    # Clients must not send fields of framing and of connections as trailers; llhttp heeds them.
    closed("9110 6.5.1", "a length as a trailer", _chunks("0\r\nContent-Length: 50\r\n\r\n") + _NEXT, 400),
    closed("9110 6.5.1", "a transfer coding as a trailer", _chunks("0\r\nTransfer-Encoding: x\r\n\r\n") + _NEXT, 400),
    closed("9110 6.5.1", "close as a trailer", _chunks("0\r\nConnection: close\r\n\r\n") + _NEXT, 405),
    _bad_chunks("an empty size", "\r\nhello\r\n0\r\n\r\n"),
    _bad_chunks("a size that is no number", "g\r\nhello\r\n0\r\n\r\n"),
    _bad_chunks("a size with 0x", "0x5\r\nhello\r\n0\r\n\r\n"),
    _bad_chunks("a negative size", "-5\r\nhello\r\n0\r\n\r\n"),
    _bad_chunks("a size with a plus sign", "+5\r\nhello\r\n0\r\n\r\n"),
    _bad_chunks("a size with an underscore", "0_5\r\nhello\r\n0\r\n\r\n"),
    _bad_chunks("a blank before the size", " 5\r\nhello\r\n0\r\n\r\n"),
    _bad_chunks("a blank after the size", "5 \r\nhello\r\n0\r\n\r\n"),
    _bad_chunks("a tab after the size", "5\t\r\nhello\r\n0\r\n\r\n"),
    _bad_chunks("a comma after the size", "5,\r\nhello\r\n0\r\n\r\n"),
    _bad_chunks("a size of 2^64", "10000000000000000\r\nhello\r\n0\r\n\r\n"),
    _bad_chunks("a size of 2^64 + 5", "10000000000000005\r\nhello\r\n0\r\n\r\n"),
    _bad_chunks("a size of 1,000 digits", "f" * 1000 + "\r\nhello\r\n0\r\n\r\n"),
    _bad_chunks("a chunk that is too short", "6\r\nhello\r\n0\r\n\r\n"),
    _bad_chunks("a chunk that is too long", "4\r\nhello\r\n0\r\n\r\n"),
    _bad_chunks("no line end after a chunk", "5\r\nhello0\r\n\r\n"),
    _bad_chunks("LF after a size", "5\nhello\r\n0\r\n\r\n"),
    _bad_chunks("CR after a size", "5\rhello\r\n0\r\n\r\n"),
    _bad_chunks("CR CR LF after a size", "5\r\r\nhello\r\n0\r\n\r\n"),
    _bad_chunks("LF after a chunk", "5\r\nhello\n0\r\n\r\n"),
    _bad_chunks("CR after a chunk", "5\r\nhello\r0\r\n\r\n"),
    _bad_chunks("any two bytes after a chunk", "5\r\nhelloXX0\r\n\r\n"),
    _bad_chunks("LF after the last size", "5\r\nhello\r\n0\n\r\n"),
    _bad_chunks("LF after the body", "5\r\nhello\r\n0\r\n\n"),
    _bad_chunks("LF in an extension", "5;a\nb\r\nhello\r\n0\r\n\r\n", "9112 7.1.1"),
    _bad_chunks("CR in an extension", "5;a\rb\r\nhello\r\n0\r\n\r\n", "9112 7.1.1"),
    _bad_chunks("NUL in an extension", "5;a\x00\r\nhello\r\n0\r\n\r\n", "9112 7.1.1"),
    _bad_chunks("LF in a quoted value", '5;a="\n"\r\nhello\r\n0\r\n\r\n', "9112 7.1.1"),
    _bad_chunks("a trailer without a colon", "0\r\nX\r\n\r\n", "9112 7.1.2"),
    _bad_chunks("a blank before the colon of a trailer", "0\r\nX : y\r\n\r\n", "9112 7.1.2"),
    _bad_chunks("LF after a trailer", "0\r\nX: y\n\r\n", "9112 7.1.2"),
    _bad_chunks("a folded trailer", "0\r\nX: y\r\n z\r\n\r\n", "9112 7.1.2"),
    closed("6585 5", "101 trailers", _chunks("0\r\n" + "X: y\r\n" * 101 + "\r\n"), 431),
    waiting("9112 8", "a chunk that is not complete", _chunks("5\r\nhel")),
    waiting("9112 8", "no last chunk", _chunks("5\r\nhello\r\n")),
    waiting("9112 8", "no end of the trailers", _chunks("5\r\nhello\r\n0\r\nX: y\r\n")),
)  # fmt: skip

BODY_FRAMING = (*_LENGTHS, *_CODINGS, *_CHUNKS)
