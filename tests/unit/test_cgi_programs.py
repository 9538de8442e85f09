"""Starting CGI programs: which file a path names, and the variables of the program."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from svcd.process.cgi_programs import CgiRunner, request_variables
from svcd.process.spec import LaunchSpec, ProcessCredentials

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of programs, and a program outside it. The test may change its working directory."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "cgi"
    for path in ("hello", "nph-raw", "sub/deep/tool", ".hidden", "sub/.git/hook", "sub/nph-raw"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("#!/bin/sh\n")
        (root / path).chmod(0o755)
    (root / "readme.txt").write_text("no program")
    (tmp_path / "outside").write_text("#!/bin/sh\n")
    (tmp_path / "outside").chmod(0o755)
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "dirlink").symlink_to(root / "sub")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "fifo", 0o755)
    return root


@pytest.fixture
def start(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    """Return a function that starts the program of a path, and returns its environment, directory and command."""

    def started(path: str, *, symlinks: bool = False, environment: bytes = b"") -> dict[str, str]:
        spec = LaunchSpec("http/tcp", ProcessCredentials(), {"A": "1"}, cgi=str(tree), symlinks=symlinks)
        runner = CgiRunner(spec)
        found: dict[str, str] = {}

        def record(command: tuple[bytes, tuple[bytes]], values: dict[bytes, bytes], streams: tuple[int, ...]) -> int:
            found.update({os.fsdecode(name): os.fsdecode(value) for name, value in values.items()})
            found["command"], found["folder"] = os.fsdecode(command[0]), str(Path.cwd())
            assert (command[1], streams) == ((command[0],), (0, 5, 6))
            return 77

        monkeypatch.setattr(runner._starter, "start", record)
        message = b"SCRIPT_NAME=/cgi-bin\0PATH_INFO=" + os.fsencode(path) + environment
        assert runner.start(1, message, (5,), 6) == 77
        found["nph"] = str(runner.nph)
        return found

    return started


def _error_of(start: Callable[..., dict[str, str]], path: str, *, symlinks: bool = False) -> int | None:
    """Return the errno of a program that can't be started; 0 if it is started."""
    try:
        start(path, symlinks=symlinks)
    except OSError as error:
        return error.errno
    return 0


#: Paths below the directory of programs: the program, its PATH_INFO, and whether it is an NPH program.
FOUND = {
    "/hello": ("hello", None, False),
    "/hello/": ("hello", "/", False),
    "/hello/a/b": ("hello", "/a/b", False),
    "/hello/a//b/": ("hello", "/a//b/", False),
    "/hello/.a": ("hello", "/.a", False),
    "/hello/nph-a": ("hello", "/nph-a", False),
    "/sub/deep/tool/x": ("sub/deep/tool", "/x", False),
    "/nph-raw": ("nph-raw", None, True),
    "/sub/nph-raw/x": ("sub/nph-raw", "/x", True),
}


@pytest.mark.parametrize("path", FOUND)
def test_the_first_file_of_a_path_is_the_program(path: str, tree: Path, start: Callable[..., dict[str, str]]) -> None:
    """The program is the first file on the path, runs in its directory, and gets the rest as PATH_INFO."""
    program, rest, nph = FOUND[path]
    found = start(path)
    assert found["command"] == found["SCRIPT_FILENAME"] == str(tree / program)
    assert found["folder"] == str((tree / program).parent)
    assert found["SCRIPT_NAME"] == f"/cgi-bin/{program}"
    assert found.get("PATH_INFO") == rest
    assert found["nph"] == str(nph)
    assert found["A"] == "1"
    assert "PATH_TRANSLATED" not in found


def test_path_info_is_translated_with_a_document_root(start: Callable[..., dict[str, str]]) -> None:
    """PATH_TRANSLATED is PATH_INFO below the root of the files; without PATH_INFO there is none."""
    assert start("/hello/a/b", environment=b"\0DOCUMENT_ROOT=/srv/www")["PATH_TRANSLATED"] == "/srv/www/a/b"
    assert "PATH_TRANSLATED" not in start("/hello", environment=b"\0DOCUMENT_ROOT=/srv/www")


#: Paths that name no program, and the error.
NOT_FOUND = {
    "": errno.EISDIR,
    "/": errno.EISDIR,
    "/sub": errno.EISDIR,
    "/sub/": errno.EISDIR,
    "/none": errno.ENOENT,
    "/sub/none/hello": errno.ENOENT,
    "/.hidden": errno.ENOENT,
    "/sub/.git/hook": errno.ENOENT,
    "/../outside": errno.ENOENT,
    "/sub/../hello": errno.ENOENT,
    "/./hello": errno.ENOENT,
    "/readme.txt": errno.EACCES,
    "/fifo": errno.EACCES,
    "/link": errno.ELOOP,
    "/dirlink/deep/tool": errno.ELOOP,
    "/loop": errno.ELOOP,
    "/" + "a" * 300: errno.ENAMETOOLONG,
}


@pytest.mark.parametrize("path", NOT_FOUND, ids=lambda path: path[:40])
def test_other_paths_start_nothing(path: str, start: Callable[..., dict[str, str]]) -> None:
    """A path without an executable regular file, with a hidden name or with a link starts nothing."""
    assert _error_of(start, path) == NOT_FOUND[path]


def test_links_are_followed_if_asked(tree: Path, start: Callable[..., dict[str, str]]) -> None:
    """With symlinks=yes a link may name a program, or a directory of programs; a loop stays an error."""
    assert start("/link", symlinks=True)["command"] == str(tree / "link")
    assert start("/dirlink/deep/tool/a", symlinks=True)["SCRIPT_NAME"] == "/cgi-bin/dirlink/deep/tool"
    assert _error_of(start, "/loop", symlinks=True) == errno.ELOOP


def test_no_descriptor_stays_open(start: Callable[..., dict[str, str]]) -> None:
    """Neither a found nor a missing program leaves a descriptor open."""
    before = os.listdir("/proc/self/fd")  # noqa: PTH208 - names
    start("/sub/deep/tool/x")
    for path in ("/none", "/sub/none", "/dirlink/deep", "/sub"):
        assert _error_of(start, path)
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208 - names


def test_a_request_sets_only_variables_of_requests() -> None:
    """Variables that make programs load or run code are not taken from a request, HTTP_PROXY included."""
    bad = b"PATH=/evil\0LD_PRELOAD=/evil.so\0HTTP_PROXY=http://evil\0PATH_TRANSLATED=/x\0IFS=x\0PATH_INFOX=y\0novalue"
    good = b"PATH_INFO=/a=b\0HTTP_PROXY_X=1\0REMOTE_ADDR=::1\0SSL_CIPHER=x\0REQUEST_METHOD=GET\0SERVER_NAME=\0HTTPS=on"
    assert list(request_variables(bad + b"\0" + good)) == [
        b"PATH_INFO", b"HTTP_PROXY_X", b"REMOTE_ADDR", b"SSL_CIPHER", b"REQUEST_METHOD", b"SERVER_NAME", b"HTTPS",
    ]  # fmt: skip
    assert request_variables(good)[b"PATH_INFO"] == b"/a=b"
