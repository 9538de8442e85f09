"""Static files: the responses, and that nothing outside the root is served."""

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
from svcd.protocols.http.response import Response
from svcd.protocols.http.static_files import FileSettings, StaticFiles
from svcd.wire.http_request import HttpError, HttpRequest
from tests.doubles import PEER, LogCatcher
from tests.unit.traversal import TRAVERSALS

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = b"not for everyone"
LARGE = bytes(range(256)) * 1000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a directory tree to serve, with secret files beside it."""
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
def _check_descriptors(tmp_path: Path) -> Iterator[None]:
    """Check that the test leaves no file of its directory open."""
    yield
    assert _open_below(tmp_path) == []


def _open_below(folder: Path) -> list[str]:
    """Return the paths in a directory that this process has open."""
    found = []
    for each in Path("/proc/self/fd").iterdir():
        # The descriptor of the listing itself is closed by now.
        with contextlib.suppress(FileNotFoundError):
            found.append(str(each.readlink()))
    return [path for path in found if path.startswith(str(folder))]


def _get(files: StaticFiles, target: bytes) -> Response:
    response = files.respond(HttpRequest("GET", target, {b"host": b"a"}, "1.1", keep_alive=True), PEER)
    assert isinstance(response, Response)
    return response


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
    """A file is served under every spelling of its path, with its type and length."""
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


def test_a_large_file(root: Path) -> None:
    """A large file is sent whole, in pieces of at most 64 KiB."""
    assert _content(StaticFiles(str(root)), b"/large.bin") == LARGE


def test_last_modified(root: Path) -> None:
    """Last-Modified is the modification time of the file, in universal time."""
    os.utime(root / "plain", (1_000_000_000, 1_000_000_000))
    field = _get_fields(StaticFiles(str(root)), b"/plain")["Last-Modified"]
    assert field == "Sun, 09 Sep 2001 01:46:40 GMT"
    assert email.utils.parsedate_to_datetime(field).timestamp() == 1_000_000_000


def test_the_first_index_that_exists(root: Path) -> None:
    """The first name of index= that exists is the index."""
    files = StaticFiles(str(root), FileSettings(["none.html", "plain", "index.html"]))
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
    """A directory without its slash is redirected; Location is a path on this host, whatever the target."""
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
def test_missing_and_hidden_files_are_404(root: Path, target: bytes) -> None:
    """Missing, hidden and special files can't be distinguished, and none blocks."""
    for symlinks in (False, True):
        assert _error(StaticFiles(str(root), FileSettings(symlinks=symlinks)), target) == 404


@pytest.mark.parametrize(
    "target", [b"/inside", b"/inside-folder/index.html", b"/inside-folder/", b"/leak.txt", b"/leak/secret.txt"]
)
def test_symbolic_links_are_not_followed(root: Path, target: bytes) -> None:
    """Symbolic links to files and directories are followed with symlinks=yes only."""
    assert _error(StaticFiles(str(root)), target) == 404
    assert _content(StaticFiles(str(root), FileSettings(symlinks=True)), target)


def test_an_index_that_is_a_link_is_not_followed(root: Path) -> None:
    """An index that is a symbolic link is not followed."""
    (root / "sub" / "empty" / "index.html").symlink_to("../../../secret.txt")
    assert _error(StaticFiles(str(root)), b"/sub/empty/") == 404


def test_the_root_itself_may_be_a_link(root: Path, tmp_path: Path) -> None:
    """The root may be a symbolic link."""
    (tmp_path / "link").symlink_to(root)
    assert _content(StaticFiles(str(tmp_path / "link")), b"/plain") == b"no type"


def test_a_root_that_is_gone_is_404(tmp_path: Path) -> None:
    """A root that was removed after the check is 404."""
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
    """No spelling of a path leads out of the root: the response is an index, a redirect or an error."""
    content = b""
    with contextlib.suppress(HttpError):
        response = _get(StaticFiles(str(root)), ("/" + "/".join(segments)).encode())
        assert response.body is None
        content = response.content
    assert content in (b"", b"<p>main", b"<p>sub", b"301 Moved Permanently\n")


def test_a_file_that_becomes_shorter(root: Path) -> None:
    """A file that becomes shorter raises an error, so that the client sees that the response is incomplete."""
    response = _get(StaticFiles(str(root)), b"/large.bin")
    assert response.body is not None
    first = response.body.read() or b""
    os.truncate(root / "large.bin", len(first) + 10)
    assert len(response.body.read() or b"") == 10
    with pytest.raises(OSError, match="became shorter"):
        response.body.read()
    response.body.close()


def test_a_file_that_becomes_longer(root: Path) -> None:
    """A file that becomes longer is sent with its old length."""
    response = _get(StaticFiles(str(root)), b"/large.bin")
    assert response.body is not None
    with (root / "large.bin").open("ab") as file:
        file.write(b"more")
    content = b""
    while piece := response.body.read():
        content += piece
    response.body.close()
    assert content == LARGE


def test_errors_leave_no_descriptor_open(root: Path) -> None:
    """Errors of every kind leave no descriptor open."""
    files = StaticFiles(str(root))
    for target in (b"/fifo", b"/none", b"/plain/x", b"/leak/x", b"/sub/none", b"/sub/empty/", b"/loop") * 15:
        assert _error(files, target) == 404
    assert _open_below(root) == []


def test_a_file_that_is_emptied_before_it_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The length of a small file is that of the bytes read, even if it was longer before."""
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
    """A file that can't be read is 404, and a warning with the reason is logged, at most once per second."""
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


def test_missing_files_are_not_logged(root: Path) -> None:
    """A missing file is not logged: any client can request it."""
    with LogCatcher() as log:
        for target in (b"/none", b"/none/x", b"/loop", b"/plain/x", b"/fifo", b"/" + b"x" * 300):
            assert _error(StaticFiles(str(root)), target) == 404
    assert not log.events


def test_reading_local_files(tmp_path: Path) -> None:
    """LocalFiles.read() reads regular files; a directory, a FIFO or a huge file is an OSError, and none blocks."""
    files = LocalFiles()
    (tmp_path / "a").write_bytes(b"\0content")
    os.mkfifo(tmp_path / "fifo")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(MAX_FILE_SIZE + 1)
    assert files.read(str(tmp_path / "a")) == b"\0content"
    for name, cause in {
        "fifo": "not a regular file",
        "huge": "larger than",
        ".": "directory",
        "none": "No such",
    }.items():
        with pytest.raises(OSError, match=cause):
            files.read(str(tmp_path / name))


def test_finding_local_files(tmp_path: Path) -> None:
    """LocalFiles finds paths in sorted order, one identity for all names of a file, and directories."""
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
    """svcd.interfaces.DescriptorCounter without a limit; one descriptor is counted at first."""

    def __init__(self) -> None:
        self.open = 1

    def acquire(self) -> None:
        """Count a descriptor."""
        self.open += 1

    def release(self) -> None:
        """Release a descriptor."""
        self.open -= 1

    def try_acquire(self) -> bool:
        """Count a descriptor; return True."""
        self.open += 1
        return True


def test_responses_share_an_open_file(root: Path) -> None:
    """Responses share the descriptor of a file, which is counted until the last one ends; each has its own position."""
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
def test_a_file_that_has_changed(root: Path, replaced: bool) -> None:
    """After a rename or a change of the content, new requests are answered with the new file."""
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
    return _get(files, b"/large.bin").body


def test_the_list_of_traversals(root: Path) -> None:
    """None of the spellings of a path leads out of the root or to a hidden file, whether links are followed or not."""
    assert len(TRAVERSALS) >= 200
    for symlinks in (False, True):
        files = StaticFiles(str(root), FileSettings(symlinks=symlinks))
        for target in TRAVERSALS:
            for path in (target.replace("{secret}", "secret.txt"), target.replace("{secret}", "outside/secret.txt")):
                content = b""
                with contextlib.suppress(HttpError):
                    response = _get(files, path.encode())
                    assert response.body is None
                    content = response.content
                    assert response.fields.get("Location", "/x").startswith("/")
                    assert not response.fields.get("Location", "/x").startswith(("//", "/\\"))
                assert content in (b"", b"<p>main", b"<p>sub", b"301 Moved Permanently\n"), (path, content)
