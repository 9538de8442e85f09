"""HTTP request parsing: every split, every limit, and request smuggling."""

from __future__ import annotations

import contextlib
import itertools
import sys
import tracemalloc
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcd.wire.http_request import (
    MOST_BODY,
    MOST_FIELDS,
    MOST_HEAD,
    MOST_TARGET,
    SLICE,
    HttpError,
    HttpLimits,
    HttpRequest,
    KnownHeads,
    RequestReader,
    authority,
    path_segments,
)

SAMPLES = {
    "get": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "fields": b"GET /x?y=1 HTTP/1.1\r\nHOST:a\r\nAccept:  */* \r\nCookie: a\r\ncookie: b\r\nEmpty:\r\n\r\n",
    "pipelined": b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nHEAD /2 HTTP/1.1\r\nHost: a\r\n\r\nGET /3 HTTP/1.0\r\n\r\n",
    "absolute": b"GET http://a:80/b?c HTTP/1.1\r\nHost: a\r\n\r\n",
    "old and kept": b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /b HTTP/1.0\r\n\r\n",
    "chunked": b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
               b"3\r\nabc\r\n10;ext=1\r\n0123456789abcdef\r\n0\r\nTrailer: x\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
    "length": b"PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
    "upgrade": b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
               b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n",
    "h2c": b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
           b"HTTP2-Settings: AAMAAABk\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    "blank lines before": b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
}  # fmt: skip
TARGETS = {
    "get": [b"/"],
    "fields": [b"/x?y=1"],
    "pipelined": [b"/1", b"/2", b"/3"],
    "absolute": [b"http://a:80/b?c"],
    "old and kept": [b"/", b"/b"],
    "blank lines before": [b"/", b"/b"],
}


def _fed(data: bytes, *cuts: int, step: int = SLICE) -> list[HttpRequest]:
    """Return the requests in bytes that are fed in pieces."""
    reader = RequestReader()
    requests = []
    edges = [0, *cuts, len(data)]
    for begin, end in itertools.pairwise(edges):
        for position in range(begin, end, step):
            requests += reader.feed(data[position : min(end, position + step)])
            while reader.ready:
                requests += reader.feed(b"")
    return requests


def _status(data: bytes, step: int = SLICE) -> int:
    """Return the status of the error that bytes end with."""
    with pytest.raises(HttpError) as caught:
        _fed(data, step=step)
    return caught.value.status.value


@pytest.mark.parametrize("sample", SAMPLES)
def test_every_split_gives_the_same_requests(sample: str) -> None:
    """A request is the same when it is split in two at every point, or into single bytes."""
    data = SAMPLES[sample]
    whole = _fed(data)
    assert [request.target for request in whole] == TARGETS.get(sample, [b"/a", b"/b"])
    for cut in range(1, len(data)):
        assert _fed(data, cut) == whole
    assert _fed(data, step=1) == whole


def test_the_fields_of_a_request() -> None:
    """Field names are lower case, values are stripped, and repeated fields are joined."""
    (request,) = _fed(SAMPLES["fields"])
    assert request == HttpRequest(
        "GET",
        b"/x?y=1",
        {b"host": b"a", b"accept": b"*/*", b"cookie": b"a, b", b"empty": b""},
        "1.1",
        keep_alive=True,
    )


@pytest.mark.parametrize(
    ("data", "keep_alive"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: x, CLOSE\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", True),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", False),
    ],
)
def test_keep_alive(data: bytes, keep_alive: bool) -> None:
    """HTTP/1.1 is kept alive unless Connection says close; HTTP/1.0 only if it says keep-alive; CONNECT never."""
    (request,) = _fed(data)
    assert request.keep_alive is keep_alive


def _get(*fields: bytes, target: bytes = b"/") -> bytes:
    return b"".join([b"GET ", target, b" HTTP/1.1\r\nHost: a\r\n", *(field + b"\r\n" for field in fields), b"\r\n"])


@pytest.mark.parametrize("step", [SLICE, 1000, 7])
@pytest.mark.parametrize(
    ("data", "status"),
    [
        (_get(target=b"/" * (MOST_TARGET + 1)), 414),
        (_get(target=b"/" * 3 * MOST_HEAD), 414),
        (_get(b"X: " + b"y" * MOST_HEAD), 431),
        (_get(b"y" * MOST_HEAD + b": x"), 431),
        (_get(b"X: " + b"y" * 2 * MOST_HEAD)[:-4], 431),
        (_get(*[b"X: " + b"y" * 1000] * 40), 431),
        (_get(*[b"X: y"] * MOST_FIELDS), 431),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"y" * 2 * MOST_HEAD, 431),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"y" * 2 * MOST_HEAD, 431),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * MOST_FIELDS, 431),
    ],
)
def test_limits_of_a_head(data: bytes, status: int, step: int) -> None:
    """A target that is too long is 414, too many or too long fields are 431, at any split."""
    assert _status(data, step) == status


def test_other_limits() -> None:
    """Each limit of HttpLimits is a limit of its own."""
    limits = HttpLimits(target=5, head=60, fields=3, body=4)

    def status(data: bytes) -> int:
        reader = RequestReader(limits)
        with contextlib.suppress(HttpError):
            reader.feed(data)
        assert reader.ready
        with pytest.raises(HttpError) as caught:
            reader.feed(b"")
        return caught.value.status.value

    assert len(RequestReader(limits).feed(_get(b"A: b", b"C: d", target=b"/abcd"))) == 1
    assert status(_get(target=b"/abcde")) == 414
    assert status(_get(b"A: " + b"b" * 60)) == 431
    assert status(_get(b"A: b", b"A: b", b"A: b")) == 431
    assert status(_get(b"Content-Length: 5")) == 413
    assert status(_get(b"Transfer-Encoding: chunked") + b"5\r\nabcde\r\n") == 413


@pytest.mark.parametrize("extra", [0, 1])
def test_the_longest_target(extra: int) -> None:
    """A target of MOST_TARGET bytes is accepted; a longer one is not."""
    data = _get(target=b"/" * (MOST_TARGET + extra))
    if extra:
        assert _status(data) == 414
    else:
        assert len(_fed(data)) == 1


@pytest.mark.parametrize("extra", [0, 1])
def test_the_most_fields(extra: int) -> None:
    """MOST_FIELDS fields are accepted; more are not."""
    data = _get(*[b"X: y"] * (MOST_FIELDS - 1 + extra))
    if extra:
        assert _status(data) == 431
    else:
        assert len(_fed(data)) == 1


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("chunked", [False, True])
def test_the_largest_body(extra: int, chunked: bool) -> None:
    """A body of MOST_BODY bytes is read and discarded; a larger one is 413."""
    size = MOST_BODY + extra
    opening = b"POST / HTTP/1.1\r\nHost: a\r\n"
    if chunked:
        data = opening + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % size + b"x" * size + b"\r\n0\r\n\r\n"
    else:
        data = opening + b"Content-Length: %d\r\n\r\n" % size + b"x" * size
    if extra:
        assert _status(data) == 413
    else:
        assert len(_fed(data)) == 1


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: \r\nHost: \r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nHost: a b\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505),
        (b"GET /\r\n\r\n", 505),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"hello\r\n", 400),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", 400),
        # Request smuggling (RFC 9112, section 11.2).
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\nabcd", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4, 4\r\n\r\nabcd", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n", 400),
    ],
)
def test_malformed_requests(data: bytes, status: int) -> None:
    """Bad syntax, a missing or second Host, other versions and request smuggling are errors, at any split."""
    assert _status(data) == status
    assert _status(data, 1) == status


_HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: %d\r\n\r\n" % len(_HIDDEN) + _HIDDEN,
        b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(_HIDDEN) + _HIDDEN + b"\r\n0\r\n\r\n",
    ],
)
@pytest.mark.parametrize("step", [SLICE, 1])
def test_the_body_of_an_upgrade_is_never_a_request(body: bytes, step: int) -> None:
    """The body of a request for an upgrade is read as its body, and the request after it is a request."""
    data = b"POST /a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n" + body + SAMPLES["get"]
    requests = _fed(data, step=step)
    assert [(request.target, request.keep_alive) for request in requests] == [(b"/a", True), (b"/", True)]
    assert _content(requests[0]) == (_HIDDEN, True)


def test_what_follows_a_request_for_an_upgrade_is_read_later() -> None:
    """A request for an upgrade is the last of a call; the bytes after it may be taken for the other protocol."""
    data = SAMPLES["get"] + SAMPLES["upgrade"].replace(b"GET /b", b"\x81\x00\x00")
    reader = RequestReader()
    assert [request.target for request in reader.feed(data)] == [b"/", b"/a"]
    assert reader.ready
    assert reader.take_rest().startswith(b"\x81\x00\x00")
    assert not reader.ready
    with pytest.raises(HttpError):
        reader.feed(SAMPLES["get"])


def _content(request: HttpRequest) -> tuple[bytes, bool]:
    """Return the body of a request, and whether it is whole."""
    assert request.body is not None
    pieces: list[bytes] = []
    ends: list[bool] = []
    request.body.start(pieces.append, ends.append)
    while request.body.deliver():
        pass
    return b"".join(pieces), ends == [True]


@pytest.mark.parametrize("step", [SLICE, 1])
def test_the_content_of_a_body(step: int) -> None:
    """A body has the content of its chunks or its length, without framing and trailers."""
    chunked, length = _fed(SAMPLES["chunked"], step=step)[0], _fed(SAMPLES["length"], step=step)[0]
    assert _content(chunked) == (b"abc0123456789abcdef", True)
    assert _content(length) == (b"hello", True)


@pytest.mark.parametrize(
    "rest", [b"x", SAMPLES["get"] * 2, b"GET /b HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n", b"\r\n"]
)
def test_known_heads(rest: bytes) -> None:
    """Bytes that were parsed before give the same requests and errors as with a parser alone, in any order."""
    known = KnownHeads()
    pieces = [SAMPLES["get"], SAMPLES["fields"], rest, SAMPLES["get"], SAMPLES["get"][:9], SAMPLES["get"][9:], rest]

    def outcome(known: KnownHeads | None) -> list[HttpRequest | HTTPStatus]:
        reader = RequestReader(known=known)
        found: list[HttpRequest | HTTPStatus] = []
        for piece in pieces:
            try:
                found += reader.feed(piece)
            except HttpError as error:
                found.append(error.status)
        return found

    expected = outcome(None)
    assert outcome(known) == expected
    assert outcome(known) == expected
    assert known.get(SAMPLES["get"]) is not None
    assert known.get(SAMPLES["get"] * 2) is None


def test_the_number_of_known_heads_is_limited() -> None:
    """At most 256 heads of at most 2,048 bytes are kept, and none of a request with a body."""
    known = KnownHeads()
    heads = [_get(target=b"/%d" % number) for number in range(300)]
    large, with_body = _get(b"X: " + b"y" * 2048), SAMPLES["length"][: SAMPLES["length"].index(b"GET")]
    for each in (*heads, large, with_body):
        RequestReader(known=known).feed(each)
    assert sum(known.get(each) is not None for each in heads) == 256
    assert known.get(large) is known.get(with_body) is None


def test_an_error_after_a_request() -> None:
    """An error after a valid request is raised by the call after the one that returned the request."""
    reader = RequestReader()
    assert len(reader.feed(SAMPLES["get"] + b"nonsense\r\n\r\n")) == 1
    assert reader.ready
    with pytest.raises(HttpError):
        reader.feed(b"")
    with pytest.raises(HttpError):
        reader.feed(SAMPLES["get"])


_PIECES = st.sampled_from([
    b"GET / HTTP/1.1\r\n", b"POST /a HTTP/1.0\r\n", b"Host: a\r\n", b"\r\n", b"\n", b"Content-Length: 3\r\n", b"abc",
    b"Transfer-Encoding: chunked\r\n", b"3\r\nabc\r\n", b"0\r\n\r\n", b"Connection: upgrade\r\n", b"Upgrade: x\r\n",
    b"X: y\r\n", b" ", b"\0", b"CONNECT a:1 HTTP/1.1\r\n", b"HTTP/2.0", b"Connection: close\r\n", b"HEAD",
])  # fmt: skip


@given(st.one_of(st.binary(), st.lists(_PIECES, max_size=30).map(b"".join)), st.integers(1, 50))
def test_arbitrary_bytes(data: bytes, step: int) -> None:
    """Any bytes are requests or an HttpError, and the same at any split."""
    assert _outcome(data, step) == _outcome(data, SLICE)


def _outcome(data: bytes, step: int) -> list[HttpRequest] | HTTPStatus:
    try:
        return _fed(data, step=step)
    except HttpError as error:
        return error.status


def _feed_without_end(reader: RequestReader, byte: bytes) -> None:
    for _ in range(400):
        reader.feed(byte * SLICE)


@pytest.mark.parametrize(
    "endless",
    [
        b"A",
        b"\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;ext=",
        b"GET / HTTP/1.1\r\nHost: a",
        b"GET /",
    ],
)
def test_an_endless_request_takes_bounded_memory(endless: bytes) -> None:
    """A request without an end is refused before it uses more memory than a few heads."""
    reader = RequestReader()
    tracemalloc.start()
    try:
        reader.feed(endless)
        with pytest.raises(HttpError):
            _feed_without_end(reader, endless[-1:])
        assert tracemalloc.get_traced_memory()[1] < 20 * MOST_HEAD
    finally:
        tracemalloc.stop()


def test_many_upgrades_in_one_slice() -> None:
    """The parser is recreated for each upgrade without recursion."""
    request = b"GET / HTTP/1.0\r\nConnection: upgrade, keep-alive\r\nUpgrade: x\r\n\r\n"
    data = request * (SLICE // len(request))
    assert len(_fed(data)) == SLICE // len(request) < sys.getrecursionlimit() // 4


@pytest.mark.parametrize(
    ("target", "segments"),
    [
        (b"/", [""]),
        (b"//", [""]),
        (b"/.", [""]),
        (b"/./", [""]),
        (b"/a", ["a"]),
        (b"/a/", ["a", ""]),
        (b"/a//b", ["a", "b"]),
        (b"//a///b//", ["a", "b", ""]),
        (b"/./a/./b/.", ["a", "b", ""]),
        (b"/a?b=/../c", ["a"]),
        (b"/a#b", ["a"]),
        (b"/%61%2E%62", ["a.b"]),
        (b"/%c3%a9", ["é"]),
        (b"/%C3%A9/\xc3\xa9", ["é", "é"]),
        (b"/a%20b+c", ["a b+c"]),
        (b"/%25", ["%"]),
        (b"/%252e%252e", ["%2e%2e"]),
        (b"/...", ["..."]),
        (b"/..a", ["..a"]),
        (b"/%3f", ["?"]),
        (b"http://host", [""]),
        (b"http://host/", [""]),
        (b"HTTPS://host/a/b?c", ["a", "b"]),
        (b"http://host?a/b", [""]),
        (b"http://host#a/b", [""]),
        (b"/http://b", ["http:", "b"]),
    ],
)
def test_the_segments_of_a_path(target: bytes, segments: list[str]) -> None:
    """Segments are decoded once; query, empty segments and `.` are removed; a directory ends with an empty one."""
    assert path_segments(target) == segments


@pytest.mark.parametrize(
    "target",
    [
        b"",
        b"*",
        b"a",
        b"?a",
        b"ftp://host/a",
        b"://host/a",
        b"/..",
        b"/../a",
        b"/a/..",
        b"/%2e%2e/a",
        b"/.%2E",
        b"/%00",
        b"/a%0a",
        b"/a%7f",
        b"/\x01",
        b"/a\\b",
        b"/a%5cb",
        b"/a%2fb",
        b"/a%2Fb",
        b"/%",
        b"/%2",
        b"/%zz",
        b"/% 1",
        b"/%+1",
        b"/%-1",
        b"/a%2/b",
        b"/%ff",
        b"/\xff",
        b"/%c0%ae",
        b"/%ed%a0%80",
        b"http://host/../a",
    ],
)
def test_malformed_paths(target: bytes) -> None:
    """Segments that lead up, encoded slashes, control characters, bad escapes and bad UTF-8 are 400."""
    with pytest.raises(HttpError) as caught:
        path_segments(target)
    assert caught.value.status == HTTPStatus.BAD_REQUEST


_SEGMENTS = st.sampled_from(
    [b"/", b".", b"..", b"%2e", b"%2f", b"%5c", b"%00", b"%", b"a", b"?", b"#", b"\xc3", b"http://"]
)


@given(st.one_of(st.binary(), st.lists(_SEGMENTS).map(b"".join)))
def test_arbitrary_paths(target: bytes) -> None:
    """Any bytes are segments without slashes, NUL and `..`, or an HttpError."""
    segments = [""]
    with contextlib.suppress(HttpError):
        segments = path_segments(target)
    assert all(segment not in ("", ".", "..") for segment in segments[:-1])
    assert segments[-1] not in (".", "..")
    assert not any(character in "/\\\0" for segment in segments for character in segment)


@pytest.mark.parametrize(
    ("host", "good"),
    [
        (b"", True),
        (b"a", True),
        (b"a.example.org.:80", True),
        (b"a_b-c~d:", True),
        (b":80", True),
        (b"127.0.0.1:8080", True),
        (b"[::1]", True),
        (b"[2001:db8::192.0.2.1]:80", True),
        (b"[v7.a:b]", True),
        (b"%41.example", True),
        (b"a b", False),
        (b"a/b", False),
        (b"a@b", False),
        (b"a,b", True),
        (b"a?b", False),
        (b"a#b", False),
        (b"a\\b", False),
        (b"a:b", False),
        (b"a:80:80", False),
        (b"%4", False),
        (b"%zz", False),
        (b"::1", False),
        (b"[::1", False),
        (b"[::1]x", False),
        (b"[1:2]", False),
        (b"[::1%25lo]", False),
        (b"<a>", False),
        (b"\xc3\xa9", False),
    ],
)
def test_the_host_field(host: bytes, good: bool) -> None:
    """A Host that is no host and port is 400 in every version (RFC 9112, section 3.2); an empty one is accepted."""
    for version in (b"1.1", b"1.0"):
        data = b"GET / HTTP/" + version + b"\r\nHost: " + host + b"\r\n\r\n"
        reader = RequestReader()
        if good:
            assert [request.fields[b"host"] for request in reader.feed(data)] == [host]
        else:
            with pytest.raises(HttpError, match="400"):
                reader.feed(data)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"/", b"field"),
        (b"/http://other/", b"field"),
        (b"http://other/", b"other"),
        (b"http://other:80?x", b"other:80"),
        (b"HTTPS://[::1]:8/x", b"[::1]:8"),
        (b"http://user@other/", None),
    ],
)
def test_the_authority_of_a_request(target: bytes, expected: bytes | None) -> None:
    """The authority of a target in absolute form takes precedence over Host (RFC 9112, section 3.2.2)."""
    request = HttpRequest("GET", target, {b"host": b"field"}, "1.1", keep_alive=True)
    if expected is None:
        with pytest.raises(HttpError, match="400"):
            authority(request)
    else:
        assert authority(request) == expected


@pytest.mark.parametrize("split", range(1, 60))
def test_the_progress_of_a_request(split: int) -> None:
    """`begun` is true from the first byte of a request to its last, and `body_bytes` counts its body."""
    head, body = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n", b"b" * 20
    reader = RequestReader()
    assert not reader.begun
    reader.feed(b"\r\n")
    assert not reader.begun
    reader.feed((head + body)[:split])
    assert (reader.begun, reader.body_bytes) == (True, max(0, split - len(head)))
    assert reader.room == (SLICE if split < len(head) else max(SLICE, 20 - reader.body_bytes))
    assert len(reader.feed((head + body)[split:])) == (split < len(head))
    assert not reader.begun
