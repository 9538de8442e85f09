"""Static files: conditional requests, byte ranges, precompressed files, types, and the cache of small files."""

from __future__ import annotations

import email
import email.utils
import itertools
import os
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.task import Clock

from svcd.protocols.http import file_cache
from svcd.protocols.http.response import Response
from svcd.protocols.http.server import HttpFactory
from svcd.protocols.http.static_files import FileSettings, StaticFiles
from svcd.wire.http_request import HttpError, HttpRequest
from tests.doubles import PEER, StreamDouble

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXT = bytes(range(97, 123)) * 4
LARGE = bytes(range(256)) * 1000
#: The time of the last change of the files, and the field that has it.
TIME, DATE = 1_000_000_000, "Sun, 09 Sep 2001 01:46:40 GMT"
SECOND = 1_000_000_000
#: CLOCK_REALTIME_COARSE of clock_gettime(2): the clock of file systems.
_COARSE = 5


def _later() -> int:
    """Return a time at which the files of a test have not been changed for long."""
    return time.time_ns() + 10 * SECOND


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a directory with files that were changed long ago."""
    for name, content in {
        "text.txt": TEXT,
        "large.bin": LARGE,
        "empty.txt": b"",
        "index.html": b"<p>main",
        "style.css": b"p {}",
        "style.css.gz": b"gzipped",
        "style.css.br": b"brotli",
        "sub/page.html": b"<p>page",
        "sub/page.html.zst": b"zstandard",
    }.items():
        _write(tmp_path / name, content)
    return tmp_path


def _write(path: Path, content: bytes, modified: int = TIME) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (modified, modified))


def _next_tick() -> None:
    """Wait until the kernel gives later changes another time, as `_later` says that it does: some milliseconds."""
    now = time.clock_gettime_ns(_COARSE)
    while time.clock_gettime_ns(_COARSE) == now:
        pass


def _files(root: Path, now: Callable[[], int] = _later, **settings: Any) -> StaticFiles:
    return StaticFiles(str(root), FileSettings(**settings), now=now)


def _respond(files: StaticFiles, path: str, fields: dict[str, str] | None = None, method: str = "GET") -> Response:
    given = {name.lower().encode(): value.encode("latin-1") for name, value in (fields or {}).items()}
    response = files.respond(HttpRequest(method, path.encode(), given, "1.1", keep_alive=True), PEER)
    assert isinstance(response, Response)
    return response


def _content(response: Response) -> bytes:
    content = response.content
    if response.body is not None:
        while piece := response.body.read():
            content += piece
        response.body.close()
    return content


@pytest.fixture(params=["/text.txt", "/large.bin"])
def path(request: pytest.FixtureRequest) -> str:
    """Return the path of a file: one that is kept in memory, and one that is not."""
    return str(request.param)


def _whole(path: str) -> bytes:
    return TEXT if path == "/text.txt" else LARGE


def test_fields_of_a_file(root: Path, path: str) -> None:
    """A file has its validators, and says that it has ranges."""
    response = _respond(_files(root, cache_control="max-age=60"), path)
    assert response.status == HTTPStatus.OK
    assert _content(response) == _whole(path)
    etag = response.fields.pop("ETag")
    assert etag.startswith('"')
    assert etag.endswith('"')
    assert response.fields == {
        "Content-Type": "text/plain; charset=utf-8" if path == "/text.txt" else "application/octet-stream",
        "Cache-Control": "max-age=60",
        "X-Content-Type-Options": "nosniff",
        "Last-Modified": DATE,
        "Accept-Ranges": "bytes",
        "Content-Length": str(len(_whole(path))),
    }


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("If-None-Match", "ETAG", 304),
        ("If-None-Match", 'W/"x", ETAG', 304),
        ("If-None-Match", '"x"', 200),
        ("If-Modified-Since", DATE, 304),
        ("If-Modified-Since", "Sun, 09 Sep 2001 01:46:39 GMT", 200),
        ("If-Match", "ETAG", 200),
        ("If-Match", '"x"', 412),
        ("If-Unmodified-Since", "Sun, 09 Sep 2001 01:46:39 GMT", 412),
    ],
)
def test_conditions(root: Path, path: str, method: str, field: str, value: str, status: int) -> None:
    """A conditional request is answered by 200, 304 or 412; 304 has the validator and no content."""
    files = _files(root, cache_control="no-cache")
    etag = _respond(files, path, method="HEAD").fields["ETag"]
    response = _respond(files, path, {field: value.replace("ETAG", etag)}, method)
    assert response.status == status
    content = _content(response)
    if status == 304:
        assert (response.fields, content) == ({"Cache-Control": "no-cache", "ETag": etag}, b"")


def test_a_condition_on_a_path_without_a_file(root: Path) -> None:
    """A condition does not apply to a response that is an error or a redirect (RFC 9110, section 13.2.1)."""
    files = _files(root)
    with pytest.raises(HttpError) as caught:
        _respond(files, "/none", {"If-Match": "*"})
    assert caught.value.status == HTTPStatus.NOT_FOUND
    assert _respond(files, "/sub", {"If-None-Match": "*"}).status == HTTPStatus.MOVED_PERMANENTLY


@pytest.mark.parametrize(
    ("ranges", "start", "stop"),
    [("0-9", 0, 10), ("10-", 10, None), ("-10", -10, None), ("0-", 0, None), ("5-99999999", 5, None), ("3-3", 3, 4)],
)
def test_a_range(root: Path, path: str, ranges: str, start: int, stop: int | None) -> None:
    """A range is answered by 206, with the bytes, their place and their number."""
    whole = _whole(path)
    response = _respond(_files(root), path, {"Range": f"bytes={ranges}"})
    content = _content(response)
    first = start % len(whole)
    assert (response.status, content) == (HTTPStatus.PARTIAL_CONTENT, whole[start:stop])
    assert response.fields["Content-Range"] == f"bytes {first}-{first + len(content) - 1}/{len(whole)}"
    assert response.fields["Content-Length"] == str(len(content))
    assert {"ETag", "Last-Modified", "Content-Type"} <= set(response.fields)


def test_several_ranges(root: Path, path: str) -> None:
    """Several ranges are answered by a multipart message with each part in order, and the whole length."""
    whole = _whole(path)
    response = _respond(_files(root), path, {"Range": "bytes=90-99,0-0,-2"})
    body = _content(response)
    assert response.status == HTTPStatus.PARTIAL_CONTENT
    assert response.fields["Content-Length"] == str(len(body))
    assert "Content-Range" not in response.fields
    message = email.message_from_bytes(f"Content-Type: {response.fields['Content-Type']}\r\n\r\n".encode() + body)
    assert message.get_content_type() == "multipart/byteranges"
    parts: Any = message.get_payload()
    assert [part["Content-Range"].split()[1].partition("/")[0] for part in parts] == [
        "90-99", "0-0", f"{len(whole) - 2}-{len(whole) - 1}",
    ]  # fmt: skip
    boundary = message.get_boundary()
    assert isinstance(boundary, str)
    raw = [part.partition(b"\r\n\r\n")[2] for part in body.split(b"\r\n--" + boundary.encode())[1:-1]]
    assert raw == [whole[90:100], whole[:1], whole[-2:]]


@pytest.mark.parametrize("ranges", ["items=0-1", "bytes=9-0", "bytes=0-,0-", "bytes=" + ",".join(["0-0"] * 40), "x"])
def test_a_range_that_is_ignored(root: Path, path: str, ranges: str) -> None:
    """A malformed or excessive Range field is ignored."""
    response = _respond(_files(root), path, {"Range": ranges})
    assert (response.status, _content(response)) == (HTTPStatus.OK, _whole(path))


@pytest.mark.parametrize("path", ["/text.txt", "/large.bin", "/empty.txt"])
def test_a_range_that_does_not_exist(root: Path, path: str) -> None:
    """A range after the end is 416, with the length."""
    response = _respond(_files(root), path, {"Range": "bytes=999999-"})
    assert response.status == 416
    assert response.fields["Content-Range"] == f"bytes */{(root / path[1:]).stat().st_size}"
    assert response.body is None


def test_a_range_of_head_is_ignored(root: Path, path: str) -> None:
    """Range is defined for GET only (RFC 9110, section 14.2)."""
    response = _respond(_files(root), path, {"Range": "bytes=0-9"}, "HEAD")
    _content(response)
    assert (response.status, response.fields["Content-Length"]) == (HTTPStatus.OK, str(len(_whole(path))))


@pytest.mark.parametrize(
    ("condition", "status"),
    [("ETAG", 206), ('"x"', 200), ("W/ETAG", 200), (DATE, 206), ("Sun, 09 Sep 2001 01:46:41 GMT", 200), ("x", 200)],
)
def test_if_range(root: Path, path: str, condition: str, status: int) -> None:
    """A download is continued only if the file is the same; otherwise it is sent whole."""
    files = _files(root)
    etag = _respond(files, path, method="HEAD").fields["ETag"]
    response = _respond(files, path, {"Range": "bytes=100-", "If-Range": condition.replace("ETAG", etag)})
    assert (response.status, _content(response)) == (status, _whole(path)[100 if status == 206 else 0 :])


def test_conditions_come_before_ranges(root: Path, path: str) -> None:
    """A range of a file that the client has is 304 (RFC 9110, section 13.2.2)."""
    files = _files(root)
    etag = _respond(files, path, method="HEAD").fields["ETag"]
    fields = {"Range": "bytes=0-9", "If-None-Match": etag}
    assert _respond(files, path, fields).status == HTTPStatus.NOT_MODIFIED
    assert _respond(files, path, {"Range": "bytes=0-9", "If-Match": '"x"'}).status == HTTPStatus.PRECONDITION_FAILED


# Precompressed files.


@pytest.mark.parametrize(
    ("path", "accepted", "coding", "content"),
    [
        ("/style.css", "gzip, deflate, br, zstd", "br", b"brotli"),
        ("/style.css", "gzip", "gzip", b"gzipped"),
        ("/style.css", "gzip;q=1, br;q=0.5", "gzip", b"gzipped"),
        ("/style.css", "zstd", None, b"p {}"),
        ("/style.css", "", None, b"p {}"),
        ("/style.css", "identity, br;q=0.5", None, b"p {}"),
        ("/sub/page.html", "br, zstd", "zstd", b"zstandard"),
        ("/style.css.gz", "gzip", None, b"gzipped"),
    ],
)
def test_precompressed_files(root: Path, path: str, accepted: str, coding: str | None, content: bytes) -> None:
    """The neighbour with the best accepted coding is sent, with the type of the file and an entity tag of its own."""
    files = _files(root)
    response = _respond(files, path, {"Accept-Encoding": accepted})
    assert (response.fields.get("Content-Encoding"), _content(response)) == (coding, content)
    if path.endswith(".gz"):
        assert response.fields["Content-Type"] == "application/gzip"
        assert "Vary" not in response.fields
        return
    assert response.fields["Vary"] == "Accept-Encoding"
    plain = _respond(files, path)
    assert plain.fields["Content-Type"] == response.fields["Content-Type"]
    assert (plain.fields["ETag"] == response.fields["ETag"]) is (coding is None)
    condition = {"Accept-Encoding": accepted, "If-None-Match": response.fields["ETag"]}
    assert _respond(files, path, condition).fields["Vary"] == "Accept-Encoding"
    assert _respond(files, path, {"If-None-Match": response.fields["ETag"]}).status == (304 if coding is None else 200)
    part = _respond(files, path, {"Accept-Encoding": accepted, "Range": "bytes=1-2"})
    assert (_content(part), part.fields.get("Content-Encoding")) == (content[1:3], coding)


def test_a_file_without_neighbours_does_not_vary(root: Path) -> None:
    """Vary is sent only for a file that has neighbours."""
    assert "Vary" not in _respond(_files(root), "/text.txt", {"Accept-Encoding": "br, gzip"}).fields


def test_an_index_has_neighbours(root: Path) -> None:
    """The neighbour of an index file is sent for its directory."""
    _write(root / "index.html.gz", b"gzipped index")
    response = _respond(_files(root), "/", {"Accept-Encoding": "gzip"})
    assert (response.content, response.fields["Content-Type"]) == (b"gzipped index", "text/html; charset=utf-8")


def test_neighbours_that_are_not_used(root: Path, tmp_path: Path) -> None:
    """A neighbour that is older than the file, a directory, a FIFO or a symbolic link is not sent."""
    files = _files(root)
    _write(root / "old.txt", b"new text", TIME + 1)
    _write(root / "old.txt.gz", b"outdated")
    for name in ("folder", "fifo", "link"):
        _write(root / f"{name}.txt", b"text")
    (root / "folder.txt.gz").mkdir()
    os.mkfifo(root / "fifo.txt.gz")
    (root / "link.txt.gz").symlink_to(tmp_path / "style.css.gz")
    for name, content in {"old": b"new text", "folder": b"text", "fifo": b"text", "link": b"text"}.items():
        response = _respond(files, f"/{name}.txt", {"Accept-Encoding": "gzip"})
        assert (response.content, response.fields.get("Content-Encoding")) == (content, None)


def test_a_compressed_file_alone_is_not_found(root: Path) -> None:
    """Without the file itself its neighbour is no answer."""
    (root / "style.css").unlink()
    with pytest.raises(HttpError):
        _respond(_files(root), "/style.css", {"Accept-Encoding": "gzip"})


# Types.


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.woff2", "font/woff2"),
        ("a.webp", "image/webp"),
        ("A.HTML", "text/html; charset=utf-8"),
        ("a.js", "text/javascript; charset=utf-8"),
        ("a.mjs", "text/javascript; charset=utf-8"),
        ("a.svg", "image/svg+xml"),
        ("a.wasm", "application/wasm"),
        ("a.tar.gz", "application/gzip"),
        ("a.mine", "application/x-mine"),
        ("a.MINE", "application/x-mine"),
        ("a.txt", "text/x-own; charset=utf-8"),
        ("a.fixed", "text/plain;charset=latin1"),
        ("data:text,a.css", "text/css; charset=utf-8"),
        ("mine", "application/octet-stream"),
        ("a.unknown", "application/octet-stream"),
    ],
)
def test_types(root: Path, name: str, expected: str) -> None:
    """The type is that of types=, or a known one; texts have a charset."""
    _write(root / name, b"x")
    types = {"mine": "application/x-mine", "txt": "text/x-own", "fixed": "text/plain;charset=latin1"}
    assert _respond(_files(root, types=types), f"/{name}").fields["Content-Type"] == expected


# The cache.


def test_a_hit_returns_the_same_objects(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that has not changed is answered by the same object, for 200 and for 304, after one lstat(2) alone."""
    files = _files(root)
    first = _respond(files, "/text.txt")
    etag = {"If-None-Match": first.fields["ETag"]}
    not_modified = _respond(files, "/text.txt", etag)
    calls: list[str] = []
    real = os.lstat

    def lstat(path: str) -> os.stat_result:
        calls.append(path)
        return real(path)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("the file was opened")

    monkeypatch.setattr(os, "lstat", lstat)
    other = _files(root)
    _respond(other, "/text.txt")
    calls.clear()
    monkeypatch.setattr(os, "open", forbidden)
    assert _respond(files, "/text.txt") is first
    assert _respond(files, "/text.txt?version=2") is first
    assert _respond(files, "/text.txt", etag) is not_modified
    assert _respond(files, "/text.txt", method="HEAD") is first
    _respond(other, "/text.txt")
    assert calls == [str(root / "text.txt")]


def _replace(path: Path) -> None:
    new = path.with_name("new")
    _write(new, b"NEW" + path.read_bytes()[3:])
    new.rename(path)


def _rewrite(path: Path) -> None:
    _write(path, b"NEW" + path.read_bytes()[3:])


def _rewrite_by_mapping(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"NEW")
    os.utime(path, (TIME, TIME))


@pytest.mark.parametrize("change", [_replace, _rewrite, _rewrite_by_mapping])
def test_a_change_is_seen_at_the_next_request(root: Path, change: Callable[[Path], None]) -> None:
    """A file with the same size and time of modification, but other content, is sent from the next request on."""
    files = _files(root)
    before = _respond(files, "/text.txt")
    _next_tick()
    change(root / "text.txt")
    after = _respond(files, "/text.txt")
    assert after.content == b"NEW" + TEXT[3:]
    assert after.fields["Last-Modified"] == before.fields["Last-Modified"]
    assert after.fields["ETag"] != before.fields["ETag"]
    assert _respond(files, "/text.txt", {"If-None-Match": before.fields["ETag"]}).status == HTTPStatus.OK


def test_a_file_that_is_gone(root: Path) -> None:
    """A file in the cache that was removed is 404, and one that is back is found again."""
    files = _files(root)
    _respond(files, "/sub/page.html")
    (root / "sub").rename(root / "other")
    with pytest.raises(HttpError):
        _respond(files, "/sub/page.html")
    (root / "other").rename(root / "sub")
    assert _respond(files, "/sub/page.html").status == HTTPStatus.OK


def test_a_directory_that_is_replaced(root: Path) -> None:
    """After a directory was replaced by another, files of the new one are sent."""
    files = _files(root)
    _respond(files, "/sub/page.html")
    _write(root / "next" / "page.html", b"<p>NEXT")
    (root / "sub").rename(root / "before")
    (root / "next").rename(root / "sub")
    assert _respond(files, "/sub/page.html").content == b"<p>NEXT"


def test_a_link_in_the_place_of_a_file_or_directory(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A symbolic link that has replaced a cached file or its directory does not lead to the content behind it."""
    outside = tmp_path_factory.mktemp("outside")
    _write(outside / "page.html", b"<p>page")
    files = _files(root)
    _respond(files, "/sub/page.html")
    (root / "sub").rename(root / "was")
    (root / "sub").symlink_to(outside)
    with pytest.raises(HttpError):
        _respond(files, "/sub/page.html")
    (root / "sub").unlink()
    (root / "was").rename(root / "sub")
    _respond(files, "/sub/page.html")
    (root / "sub" / "page.html").unlink()
    (root / "sub" / "page.html").symlink_to(outside / "page.html")
    with pytest.raises(HttpError):
        _respond(files, "/sub/page.html")


def test_a_neighbour_that_appears_or_changes(root: Path) -> None:
    """A neighbour that appears, becomes newer than the file, or disappears is seen at the next request."""
    files = _files(root)
    accepted = {"Accept-Encoding": "gzip"}
    _next_tick()
    assert _respond(files, "/text.txt", accepted).content == TEXT
    _next_tick()
    _write(root / "text.txt.gz", b"old", TIME - 1)
    _next_tick()
    assert _respond(files, "/text.txt", accepted).content == TEXT
    os.utime(root / "text.txt.gz", (TIME, TIME))
    assert _respond(files, "/text.txt", accepted).content == b"old"
    assert _respond(files, "/text.txt").content == TEXT
    os.utime(root / "text.txt", (TIME + 1, TIME + 1))
    assert _respond(files, "/text.txt", accepted).content == TEXT
    os.utime(root / "text.txt", (TIME, TIME))
    assert _respond(files, "/text.txt", accepted).content == b"old"
    (root / "text.txt.gz").unlink()
    assert _respond(files, "/text.txt", accepted).content == TEXT


def test_an_earlier_index_that_appears(root: Path) -> None:
    """An index file that comes before the one in the cache is sent as soon as it exists."""
    files = _files(root, index=["index.htm", "index.html"])
    first = _respond(files, "/")
    assert _respond(files, "/") is first
    _next_tick()
    _write(root / "index.htm", b"<p>earlier")
    assert _respond(files, "/").content == b"<p>earlier"
    _next_tick()
    (root / "index.htm").unlink()
    assert _respond(files, "/").content == b"<p>main"


def test_a_file_that_was_just_changed(root: Path) -> None:
    """A file is not kept, and its entity tag is weak, while another change may leave its times the same."""
    path = root / "text.txt"
    now = [0]
    files = _files(root, now=lambda: now[0])
    changed = path.stat().st_ctime_ns
    for passed, weak in ((0, True), (1_000_000, True), (3 * SECOND, False), (-SECOND, True)):
        now[0] = changed + passed
        response = _respond(files, "/text.txt")
        assert response.fields["ETag"].startswith("W/") is weak
        assert (_respond(files, "/text.txt") is response) is not weak
        os.utime(path, (TIME, TIME))
        changed = path.stat().st_ctime_ns
    # The same state has the same tag, weak or not, so that a client keeps what it has.
    now[0] = changed
    weak_tag = _respond(files, "/text.txt").fields["ETag"]
    now[0] += 3 * SECOND
    assert weak_tag == "W/" + _respond(files, "/text.txt").fields["ETag"]
    assert _respond(files, "/text.txt", {"If-None-Match": weak_tag}).status == HTTPStatus.NOT_MODIFIED


def test_a_file_from_the_future(root: Path) -> None:
    """Last-Modified is not later than Date (RFC 9110, section 8.8.2.1), and such a file is not kept."""
    now = time.time_ns() + 10 * SECOND
    _write(root / "text.txt", TEXT, now // SECOND + 1000)
    files = _files(root, now=lambda: now)
    response = _respond(files, "/text.txt")
    assert response.fields["Last-Modified"] == email.utils.formatdate(now // SECOND, usegmt=True)
    assert _respond(files, "/text.txt") is not response


def test_a_file_that_changes_while_it_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read of a file that changes meanwhile has a weak entity tag, and is not kept."""
    real = os.read

    def read(descriptor: int, size: int) -> bytes:
        content = real(descriptor, size)
        os.truncate(root / "text.txt", next(sizes))
        return content

    sizes = itertools.count(50)
    files = _files(root)
    monkeypatch.setattr(os, "read", read)
    first = _respond(files, "/text.txt")
    assert first.fields["ETag"].startswith("W/")
    assert _respond(files, "/text.txt").content == TEXT[:50]


def test_the_cache_is_bounded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache keeps the newest files, up to its number of files and of bytes."""
    monkeypatch.setattr(file_cache, "_MOST_FILES", 3)
    cache = file_cache.FileCache()
    status = os.lstat(root / "text.txt")
    checks = [(str(root / "text.txt"), file_cache.identity_of(status))]
    added = {number: file_cache.CachedFile(b"x", None, checks) for number in range(6)}  # type: ignore[arg-type]
    for number, file in added.items():
        cache.add((b"%d" % number, ()), file)
    assert [cache.find((b"%d" % number, ())) for number in range(6)] == [None] * 3 + [added[3], added[4], added[5]]
    monkeypatch.setattr(file_cache, "_MOST_BYTES", 20_000)
    large = file_cache.CachedFile(b"x" * 17_000, None, checks)  # type: ignore[arg-type]
    cache.add((b"large", ()), large)
    assert len(cache) == 1
    assert cache.find((b"large", ())) is large


def test_large_files_are_not_kept(root: Path) -> None:
    """A large file is read each time."""
    files = _files(root)
    first, second = _respond(files, "/large.bin"), _respond(files, "/large.bin")
    assert first is not second
    assert _content(first) == _content(second) == LARGE


class _PollingClock(Clock):
    """A clock with the polls of the uv reactor."""

    def __init__(self) -> None:
        super().__init__()
        self.before_poll: list[Callable[[], None]] = []

    def call_before_poll(self, callback: Callable[[], None]) -> None:
        """Schedule a call before the next poll."""
        self.before_poll.append(callback)

    def poll(self) -> None:
        """Make the scheduled calls."""
        while self.before_poll:
            self.before_poll.pop()()


def test_requests_of_a_poll_share_a_look_at_the_file(root: Path) -> None:
    """Only requests that had arrived at a poll share a look at the file; any other request sees each change."""
    clock = _PollingClock()
    files = StaticFiles(str(root), FileSettings(), clock, now=_later)
    request = HttpRequest("GET", b"/text.txt", {}, "1.1", keep_alive=True)
    assert files.respond_again(request) is None
    first = files.respond(request, PEER)
    assert files.respond(request, PEER) is first
    assert clock.before_poll == []
    assert files.respond_again(request) is first
    _rewrite(root / "text.txt")
    assert files.respond_again(request) is first
    clock.poll()
    assert files.respond_again(request) is None
    second = files.respond(request, PEER)
    assert isinstance(second, Response)
    assert second.content == b"NEW" + TEXT[3:]
    assert files.respond(request, PEER) is second
    assert files.respond_again(request) is second
    (root / "text.txt").unlink()
    with pytest.raises(HttpError):
        files.respond(request, PEER)


def test_a_request_for_what_has_not_changed_is_repeated(root: Path) -> None:
    """304 is repeated as 304; a part, and a file that is not kept, are made anew."""
    files = _files(root)
    tag = _respond(files, "/text.txt").fields["ETag"]
    for path, fields, repeated in (
        ("/text.txt", {"if-none-match": tag}, True),
        ("/text.txt", {"range": "bytes=0-1"}, False),
        ("/text.txt", {"if-match": '"x"'}, False),
        ("/large.bin", {}, False),
    ):
        given = {name.encode(): value.encode() for name, value in fields.items()}
        request = HttpRequest("GET", path.encode(), given, "1.1", keep_alive=True)
        response = files.respond(request, PEER)
        assert isinstance(response, Response)
        again = files.respond(request, PEER)
        assert isinstance(again, Response)
        assert (files.respond_again(request) is response) is repeated
        for each in (response, again):
            if each.body is not None:
                each.body.close()


@pytest.mark.parametrize("tls", [False, True])
def test_only_a_request_alone_is_answered_again(root: Path, tls: bool) -> None:
    """A request that follows another one in the input, or comes over TLS, sees a change that is made after a poll."""
    clock = _PollingClock()
    factory = HttpFactory(StaticFiles(str(root), FileSettings(), clock, now=_later), clock)
    protocol: Any = factory.buildProtocol(PEER)
    transport = StreamDouble(protocol)
    transport.TLS = tls  # type: ignore[attr-defined]
    transport.protocol.makeConnection(transport)
    request = b"GET /text.txt HTTP/1.1\r\nHost: a\r\n\r\n"
    for _ in range(3):
        protocol.dataReceived(request)
    _rewrite(root / "text.txt")
    transport.sent = b""
    protocol.dataReceived(request)
    assert (b"NEW" in transport.sent) is tls
    protocol.dataReceived(request * 2)
    assert transport.sent.count(b"NEW") == 2 + tls
    clock.poll()
    protocol.dataReceived(request)
    assert transport.sent.count(b"NEW") == 3 + tls
