"""Static files: what is served, and that nothing outside the root ever is."""

from __future__ import annotations

import contextlib
import email.utils
import errno
import gzip
import os
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svcd.host.files import MAX_FILE_SIZE, LocalFiles
from svcd.protocols.http.static_files import StaticFiles
from svcd.wire.http_request import HttpError, HttpRequest
from tests.doubles import PEER, LogCatcher

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svcd.protocols.http.response import Response

SECRET = b"not for everyone"
LARGE = bytes(range(256)) * 1000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tree to serve, with a secret beside it."""
    inner = tmp_path / "www"
    (inner / "sub" / "empty").mkdir(parents=True)
    (inner / ".well-known").mkdir()
    (inner / "sub" / ".well-known").mkdir()
    (inner / ".git").mkdir()
    (tmp_path / "outside").mkdir()
    for name, content in {
        "index.html": b"<p>main",
        "a b.txt": b"blank",
        "é.txt": b"accent",
        "plain": b"no type",
        "empty.txt": b"",
        "style.css": b"p {}",
        "large.bin": LARGE,
        "sub/index.html": b"<p>sub",
        ".well-known/security.txt": b"Contact: x",
        ".well-known/.hidden": SECRET,
        "sub/.well-known/x": SECRET,
        ".secret": SECRET,
        ".git/config": SECRET,
        "../secret.txt": SECRET,
        "../outside/secret.txt": SECRET,
    }.items():
        (inner / name).write_bytes(content)
    (inner / "archive.tar.gz").write_bytes(gzip.compress(b"x", mtime=0))
    (inner / "inside").symlink_to("plain")
    (inner / "inside-folder").symlink_to("sub")
    (inner / "leak.txt").symlink_to("../secret.txt")
    (inner / "leak").symlink_to("../outside")
    (inner / "nowhere").symlink_to("not-there")
    (inner / "loop").symlink_to("loop")
    os.mkfifo(inner / "fifo")
    return inner


@pytest.fixture(autouse=True)
def _no_descriptor_is_left(tmp_path: Path) -> Iterator[None]:
    """Every test here gives back every descriptor."""
    yield
    assert _open_below(tmp_path) == []


def _open_below(folder: Path) -> list[str]:
    """What this process has open in a folder."""
    found = []
    for each in Path("/proc/self/fd").iterdir():
        # The descriptor of the listing itself is gone by now.
        with contextlib.suppress(FileNotFoundError):
            found.append(str(each.readlink()))
    return [path for path in found if path.startswith(str(folder))]


def _get(files: StaticFiles, target: bytes) -> Response:
    return files.respond(HttpRequest("GET", target, {b"host": b"a"}, "1.1", keep_alive=True), PEER)


def _content(files: StaticFiles, target: bytes) -> bytes:
    response = _get(files, target)
    assert response.status == HTTPStatus.OK
    content = response.content
    if response.body is not None:
        while piece := response.body.read():
            assert len(piece) <= 65_536
            content += piece
        response.body.close()
    assert response.fields["Content-Length"] == str(len(content))
    return content


def _error(files: StaticFiles, target: bytes) -> int:
    with pytest.raises(HttpError) as caught:
        _get(files, target)
    return caught.value.status.value


@pytest.mark.parametrize(
    ("target", "kind", "content"),
    [
        (b"/index.html", "text/html; charset=utf-8", b"<p>main"),
        (b"/", "text/html; charset=utf-8", b"<p>main"),
        (b"/sub/", "text/html; charset=utf-8", b"<p>sub"),
        (b"/sub/.", "text/html; charset=utf-8", b"<p>sub"),
        (b"//sub///index.html", "text/html; charset=utf-8", b"<p>sub"),
        (b"/a%20b.txt?x=y", "text/plain; charset=utf-8", b"blank"),
        ("/é.txt".encode(), "text/plain; charset=utf-8", b"accent"),
        (b"/%c3%a9.txt", "text/plain; charset=utf-8", b"accent"),
        (b"/plain", "application/octet-stream", b"no type"),
        (b"/empty.txt", "text/plain; charset=utf-8", b""),
        (b"/style.css", "text/css; charset=utf-8", b"p {}"),
        (b"/archive.tar.gz", "application/gzip", gzip.compress(b"x", mtime=0)),
        (b"/large.bin", "application/octet-stream", LARGE),
        (b"/.well-known/security.txt", "text/plain; charset=utf-8", b"Contact: x"),
        (b"http://host/plain", "application/octet-stream", b"no type"),
    ],
)
def test_a_file_is_served(root: Path, target: bytes, kind: str, content: bytes) -> None:
    """By every spelling of its path, with its type and length, small ones in one piece."""
    files = StaticFiles(str(root))
    assert _content(files, target)[:20] == content[:20]
    fields = _get_fields(files, target)
    assert fields["Content-Type"] == kind
    assert fields["X-Content-Type-Options"] == "nosniff"


def _get_fields(files: StaticFiles, target: bytes) -> dict[str, str]:
    response = _get(files, target)
    if response.body is not None:
        response.body.close()
    return response.fields


def test_a_large_file_comes_whole(root: Path) -> None:
    """Piece by piece, none above 64 KiB."""
    assert _content(StaticFiles(str(root)), b"/large.bin") == LARGE


def test_a_file_says_when_it_was_changed(root: Path) -> None:
    """Last-Modified is the file's time, in universal time."""
    os.utime(root / "plain", (1_000_000_000, 1_000_000_000))
    field = _get_fields(StaticFiles(str(root)), b"/plain")["Last-Modified"]
    assert field == "Sun, 09 Sep 2001 01:46:40 GMT"
    assert email.utils.parsedate_to_datetime(field).timestamp() == 1_000_000_000


def test_the_first_index_that_exists(root: Path) -> None:
    """index= names several, in order."""
    files = StaticFiles(str(root), ["none.html", "plain", "index.html"])
    assert _content(files, b"/") == b"no type"
    assert _content(files, b"/sub/") == b"<p>sub"


@pytest.mark.parametrize(
    ("target", "location"),
    [
        (b"/sub", "/sub/"),
        (b"/sub/empty", "/sub/empty/"),
        (b"//sub", "/sub/"),
        (b"http://other/sub?x", "/sub/?x"),
        (b"/new%20%0d", ""),
        (b"//evil.example", "/evil.example/"),
        (b"/%c3%a9%25", "/%C3%A9%25/"),
    ],
)
def test_a_directory_is_redirected_to_its_slash(root: Path, target: bytes, location: str) -> None:
    """Location is a path on this host, whatever was asked."""
    (root / "evil.example").mkdir()
    (root / "é%").mkdir()
    files = StaticFiles(str(root))
    if not location:
        assert _error(files, target) == 400
        return
    response = _get(files, target)
    assert response.status == HTTPStatus.MOVED_PERMANENTLY
    assert response.fields["Location"] == location


@pytest.mark.parametrize(
    "target",
    [
        b"/none",
        b"/none/",
        b"/none/x",
        b"/plain/",
        b"/plain/x",
        b"/sub/empty/",
        b"/" + b"x" * 300,
        b"/nowhere",
        b"/loop",
        b"/loop/x",
        b"/fifo",
        b"/.secret",
        b"/.git/config",
        b"/.git",
        b"/sub/.well-known/x",
        b"/.well-known/.hidden",
        b"/...",
    ],
)
def test_what_is_not_there_or_hidden_is_404(root: Path, target: bytes) -> None:
    """Missing, hidden and special files can't be distinguished, and none blocks."""
    for symlinks in (False, True):
        assert _error(StaticFiles(str(root), symlinks=symlinks), target) == 404


@pytest.mark.parametrize(
    "target", [b"/inside", b"/inside-folder/index.html", b"/inside-folder/", b"/leak.txt", b"/leak/secret.txt"]
)
def test_symbolic_links_are_not_followed(root: Path, target: bytes) -> None:
    """Neither to files nor to directories, inside or outside the root, unless the option says so."""
    assert _error(StaticFiles(str(root)), target) == 404
    assert _content(StaticFiles(str(root), symlinks=True), target)


def test_an_index_that_is_a_link_is_not_followed(root: Path) -> None:
    """The names tried for a directory are files like any other."""
    (root / "sub" / "empty" / "index.html").symlink_to("../../../secret.txt")
    assert _error(StaticFiles(str(root)), b"/sub/empty/") == 404


def test_the_root_itself_may_be_a_link(root: Path, tmp_path: Path) -> None:
    """The administrator has chosen where the root leads."""
    (tmp_path / "link").symlink_to(root)
    assert _content(StaticFiles(str(tmp_path / "link")), b"/plain") == b"no type"


def test_a_root_that_is_gone_is_404(tmp_path: Path) -> None:
    """A directory removed since the check is an answer, not a crash."""
    assert _error(StaticFiles(str(tmp_path / "gone")), b"/") == 404


_NASTY = st.lists(
    st.sampled_from([
        "..", ".", "", "sub", "leak", "leak.txt", "secret.txt", "outside", "inside-folder", "%2e%2e", ".%2e", "..%2f",
        "..%5c", "..\\", "%00", "..;", "etc", "passwd", "www", "%c0%ae%c0%ae", "?", "#", "%",
    ]),
    max_size=8,
)  # fmt: skip


@given(_NASTY)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_path_leads_out_of_the_root(root: Path, segments: list[str]) -> None:
    """However the way up is spelled, an answer holds an index, a redirection or nothing, never what is outside."""
    content = b""
    with contextlib.suppress(HttpError):
        response = _get(StaticFiles(str(root)), ("/" + "/".join(segments)).encode())
        assert response.body is None
        content = response.content
    assert content in (b"", b"<p>main", b"<p>sub", b"301 Moved Permanently\n")


def test_a_file_that_becomes_shorter_breaks_off(root: Path) -> None:
    """Fewer bytes than Content-Length are an error, so that the client notices it."""
    response = _get(StaticFiles(str(root)), b"/large.bin")
    assert response.body is not None
    first = response.body.read()
    os.truncate(root / "large.bin", len(first) + 10)
    assert len(response.body.read()) == 10
    with pytest.raises(OSError, match="became shorter"):
        response.body.read()
    response.body.close()


def test_a_file_that_becomes_longer_keeps_its_length(root: Path) -> None:
    """What is added meanwhile belongs to the next answer."""
    response = _get(StaticFiles(str(root)), b"/large.bin")
    assert response.body is not None
    with (root / "large.bin").open("ab") as file:
        file.write(b"more")
    content = b""
    while piece := response.body.read():
        content += piece
    response.body.close()
    assert content == LARGE


def test_errors_give_back_their_descriptors(root: Path) -> None:
    """A hundred refusals of every kind leave nothing open."""
    files = StaticFiles(str(root))
    for target in (b"/fifo", b"/none", b"/plain/x", b"/leak/x", b"/sub/none", b"/sub/empty/", b"/loop") * 15:
        assert _error(files, target) == 404
    assert _open_below(root) == []


def test_a_file_that_is_emptied_before_it_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file is as long as what was read of it, and nothing is wrong."""
    real = os.fstat

    def fstat(descriptor: int) -> os.stat_result:
        status = real(descriptor)
        os.truncate(root / "plain", 0)
        return status

    monkeypatch.setattr(os, "fstat", fstat)
    assert _content(StaticFiles(str(root)), b"/plain") == b""


@pytest.mark.parametrize("call", ["open", "read", "fstat"])
@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.EPERM, errno.ESTALE])
def test_a_file_that_cant_be_read(root: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int) -> None:
    """It is not found, and a warning has the reason, once a second at most."""
    files = StaticFiles(str(root))
    real = getattr(os, call)

    def failing(what: Any, *arguments: Any, **options: Any) -> Any:
        path = Path(what) if call == "open" else Path(f"/proc/self/fd/{what}").readlink()
        if path.name in ("plain", "index.html"):
            raise OSError(code, os.strerror(code))
        return real(what, *arguments, **options)

    monkeypatch.setattr(os, call, failing)
    with LogCatcher() as log:
        for target in (b"/plain", b"/", b"/plain"):
            assert _error(files, target) == 404
    (event,) = log.events
    assert (event["log_level"].name, event["reason"]) == ("warn", os.strerror(code))


def test_what_is_not_there_is_no_warning(root: Path) -> None:
    """Any client can request a missing file."""
    with LogCatcher() as log:
        for target in (b"/none", b"/none/x", b"/loop", b"/plain/x", b"/fifo", b"/" + b"x" * 300):
            assert _error(StaticFiles(str(root)), target) == 404
    assert not log.events


def test_reading_files_for_the_other_floors(tmp_path: Path) -> None:
    """Regular files are read whole; a directory, a FIFO and a huge file are an OSError, and nothing blocks."""
    files = LocalFiles()
    (tmp_path / "a").write_bytes(b"\0content")
    os.mkfifo(tmp_path / "fifo")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(MAX_FILE_SIZE + 1)
    assert files.read(str(tmp_path / "a")) == b"\0content"
    for name, cause in {"fifo": "no regular file", "huge": "larger than", ".": "directory", "none": "No such"}.items():
        with pytest.raises(OSError, match=cause):
            files.read(str(tmp_path / name))


def test_finding_files_for_the_other_floors(tmp_path: Path) -> None:
    """Matches come sorted, names of one file have one identity, and only directories are directories."""
    files = LocalFiles()
    for name in "bca":
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("a")
    assert files.matches(f"{tmp_path}/[abc]") == [str(tmp_path / name) for name in "abc"]
    assert files.matches(f"{tmp_path}/none*") == []
    assert files.identity(f"{tmp_path}/./link") == files.identity(str(tmp_path / "a"))
    assert files.is_directory(str(tmp_path))
    assert not files.is_directory(str(tmp_path / "a"))
    assert not files.is_directory(str(tmp_path / "none"))


class _Budget:
    """svcd.interfaces.DescriptorCounter."""

    def __init__(self) -> None:
        self.open = 1

    def acquire(self) -> None:
        """One more."""
        self.open += 1

    def release(self) -> None:
        """One less."""
        self.open -= 1

    def try_acquire(self) -> bool:
        """One more."""
        self.open += 1
        return True


def test_answers_share_an_open_file(root: Path) -> None:
    """Each reads from its own place; the file has one descriptor, counted until the last of them is over."""
    files = StaticFiles(str(root))
    bodies = [_body(files) for _ in range(3)]
    assert len(_open_below(root)) == 1
    assert [body.uncounted for body in bodies] == [True] * 3
    budget = _Budget()
    bodies[0].count(budget)
    assert not bodies[2].uncounted
    assert bodies[0].read() + bodies[0].read() == LARGE[:131_072]
    bodies[0].close()
    for body in bodies[1:]:
        assert budget.open == 1
        assert b"".join(iter(body.read, b"")) == LARGE
        body.close()
    assert (budget.open, _open_below(root)) == (0, [])


@pytest.mark.parametrize("replaced", [True, False])
def test_a_file_that_has_changed_is_another_one(root: Path, replaced: bool) -> None:
    """After a rename or a new content, new requests get the new file."""
    files = StaticFiles(str(root))
    before = _body(files)
    new = root / ("new" if replaced else "large.bin")
    new.write_bytes(b"n" * 100_000)
    new.rename(root / "large.bin")
    after = _body(files)
    assert after.uncounted
    assert b"".join(iter(after.read, b"")) == b"n" * 100_000
    if replaced:
        assert b"".join(iter(before.read, b"")) == LARGE
    before.close()
    after.close()


def _body(files: StaticFiles) -> Any:
    request = HttpRequest("GET", b"/large.bin", {b"host": b"a"}, "1.1", keep_alive=True)
    return files.respond(request, PEER).body
