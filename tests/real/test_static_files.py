"""Static files with their clients: curl, wget, a browser, and clients that try to leave the root."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import os
import random
import socket
import ssl
import threading
import wave
from typing import TYPE_CHECKING

import pytest

from tests.certificates import Authority
from tests.real.browser import Browser
from tests.real.clients import run
from tests.real.daemon import PATIENCE, Daemon
from tests.unit.traversal import TRAVERSALS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LARGE = random.Random(15).randbytes(10_000_000)
SECRET = b"not for everyone"

SERVICES = """\
@defaults bind=127.0.0.1
http 0/tcp4 root={root} listing=yes types={folder}/types cache_control=no-cache
"""


@pytest.fixture
def www(open_folder: Path) -> Path:
    """Return a directory with files, and with secret ones beside it."""
    www = open_folder / "www"
    for name, content in {
        "page.html": b"<!doctype html><title>Page</title><link rel=stylesheet href=style.css><p>text",
        "style.css": b"p { color: rgb(1, 2, 3) }",
        "large.bin": LARGE,
        "note.mine": b"typed",
        "sub/file.txt": b"inside" * 100,
        "sub/large.bin": LARGE[:300_000],
        ".secret": SECRET,
        ".git/config": SECRET,
        "../outside/file.txt": SECRET,
        "../outside/large.bin": SECRET * 20_000,
        "../secret.txt": SECRET,
        "../types": b"text/x-mine mine\n",
    }.items():
        (www / name).parent.mkdir(parents=True, exist_ok=True)
        (www / name).write_bytes(content)
        # They were changed long ago, so that nothing waits for the clock of the file system.
        os.utime(www / name, (1_000_000_000, 1_000_000_000))
    for name in ("style.css", "large.bin"):
        (www / f"{name}.gz").write_bytes(gzip.compress((www / name).read_bytes(), 1))
    return www


@pytest.fixture
def daemon(start: Callable[..., Daemon], www: Path) -> Daemon:
    """Return a daemon that serves the directory."""
    return start(SERVICES.format(root=www, folder=www.parent))


@pytest.fixture
def root(daemon: Daemon) -> str:
    """Return the URL of the service."""
    return f"http://127.0.0.1:{daemon.port('http/tcp4')}"


@pytest.fixture
def curl(program: Callable[[str], str]) -> Callable[..., bytes]:
    """Return a function that runs curl."""
    path = program("curl")
    return lambda *words: run(path, "--silent", "--show-error", "--max-time", str(PATIENCE), *words)


def test_curl(root: str, www: Path, curl: Callable[..., bytes], tmp_path: Path) -> None:
    """curl gets files, compressed files, ranges, and nothing that it has; it continues a download."""
    assert curl(f"{root}/large.bin") == LARGE
    assert curl("--compressed", f"{root}/large.bin") == LARGE
    assert b"Content-Encoding: gzip" in curl("--compressed", "--head", f"{root}/style.css")
    assert b"Content-Type: text/x-mine; charset=utf-8" in curl("--head", f"{root}/note.mine")
    assert curl("--range", "5-9", f"{root}/large.bin") == LARGE[5:10]
    assert curl("--range", "-7", f"{root}/large.bin") == LARGE[-7:]
    several = curl("--range", "0-3,9000000-9000003", f"{root}/large.bin")
    assert LARGE[:4] in several
    assert LARGE[9_000_000:9_000_004] in several
    code = ("--output", str(tmp_path / "code"), "--write-out", "%{http_code}")
    assert curl(*code, "--range", "10000000-", f"{root}/large.bin") == b"416"
    assert curl(*code, "--time-cond", str(www / "page.html"), f"{root}/page.html") == b"304"
    etag = ("--etag-save", str(tmp_path / "etag"), "--etag-compare", str(tmp_path / "etag"))
    assert curl(*code, *etag, f"{root}/style.css") == b"200"
    assert curl(*code, *etag, f"{root}/style.css") == b"304"
    assert curl(*code, f"{root}/sub") == b"301"
    (tmp_path / "part").write_bytes(LARGE[:123_456])
    curl("--continue-at", "-", "--output", str(tmp_path / "part"), f"{root}/large.bin")
    assert (tmp_path / "part").read_bytes() == LARGE


def test_wget_continues_a_download(root: str, program: Callable[[str], str], tmp_path: Path) -> None:
    """wget continues a download, and gets a directory with its listing."""
    (tmp_path / "large.bin").write_bytes(LARGE[:1_000_001])
    said = run(program("wget"), "--continue", "--tries=1", f"{root}/large.bin", cwd=tmp_path)
    assert (tmp_path / "large.bin").read_bytes() == LARGE
    assert b"206 Partial Content" in said
    run(program("wget"), "--recursive", "--no-parent", "--no-host-directories", f"{root}/sub/", cwd=tmp_path)
    assert (tmp_path / "sub" / "file.txt").read_bytes() == b"inside" * 100
    assert (tmp_path / "sub" / "large.bin").read_bytes() == LARGE[:300_000]


def test_traversals(daemon: Daemon) -> None:
    """No spelling of a path gets a secret, and each gets a response."""
    port = daemon.port("http/tcp4")
    for name in ("secret.txt", "outside/file.txt"):
        for target in TRAVERSALS:
            with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
                path = target.replace("{secret}", name)
                client.sendall(b"GET " + path.encode() + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                answer = b"".join(iter(lambda client=client: client.recv(65_536), b""))  # type: ignore[misc]
            assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 404 ", b"HTTP/1.1 301 ", b"HTTP/1.1 200 ")), path
            assert SECRET not in answer, path
            assert b"root:" not in answer, path
            location = answer.partition(b"\r\nLocation: ")[2]
            assert not location.startswith((b"//", b"/\\")), path
            assert not location or location.startswith(b"/"), path
    assert not [line for line in daemon.lines if "level=error" in line]


class _Swapper:
    """A thread that puts symbolic links in the place of a file and a directory, and back, again and again."""

    def __init__(self, www: Path) -> None:
        self._www = www
        self._stop = threading.Event()
        self.rounds = 0
        (www / "link").symlink_to("../outside")
        (www / "sub" / "link").symlink_to("../../secret.txt")
        self._thread = threading.Thread(target=self._run)

    def _swap(self, folder: Path, name: str) -> None:
        held = folder / "held"
        (folder / name).rename(held)
        (folder / "link").rename(folder / name)
        # Both names of the exchange exist for a moment in each order.
        (folder / name).rename(folder / "link")
        held.rename(folder / name)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._swap(self._www / "sub", "file.txt")
            self._swap(self._www, "sub")
            self.rounds += 1

    def __enter__(self) -> _Swapper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_symbolic_links_that_come_and_go(daemon: Daemon, www: Path) -> None:
    """While links replace a file and a directory, 1000 requests get the file below the root or 404, never another."""
    expected = {"/sub/file.txt": b"inside" * 100, "/sub/large.bin": LARGE[:300_000]}
    found = {200: 0, 404: 0}
    client = http.client.HTTPConnection("127.0.0.1", daemon.port("http/tcp4"), timeout=PATIENCE)
    with contextlib.closing(client), _Swapper(www) as swapper:
        for number in range(1000):
            path = "/sub/large.bin" if number % 4 == 0 else "/sub/file.txt"
            client.request("GET", path)
            answer = client.getresponse()
            content = answer.read()
            found[answer.status] += 1
            assert answer.status == 404 or content == expected[path]
    assert swapper.rounds
    assert found[200]


@pytest.mark.parametrize("tls", [False, True])
def test_a_file_that_changes_while_it_is_sent(start: Callable[..., Daemon], www: Path, tls: bool) -> None:
    """A file that becomes shorter ends the connection, and one that becomes longer is sent with its old length."""
    if tls:
        (www.parent / "server").touch(0o600)
        (www.parent / "server").write_bytes(Authority().sign("localhost").bundle)
    options = f" tls_cert={www.parent}/server" if tls else ""
    daemon = start(f"http 0/tcp4 bind=127.0.0.1 root={www}{options}\n")
    port = daemon.port("http/tcp4")
    for size in (5_000_000, 20_000_000):
        (www / "changing").write_bytes(LARGE * 2)
        os.truncate(www / "changing", 12_000_000)
        client = _connection(port, tls=tls)
        with contextlib.closing(client):
            client.request("GET", "/changing")
            answer = client.getresponse()
            first = answer.read(100_000)
            os.truncate(www / "changing", size)
            if size < 12_000_000:
                with pytest.raises((http.client.IncompleteRead, OSError)):
                    first += answer.read()
                daemon.wait_for(lambda line: "became shorter while it was sent" in line)
            else:
                assert first + answer.read() == (LARGE * 2)[:12_000_000]
                client.request("GET", "/style.css")
                assert client.getresponse().read() == (www / "style.css").read_bytes()


def _connection(port: int, *, tls: bool) -> http.client.HTTPConnection:
    if not tls:
        return http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection("127.0.0.1", port, timeout=PATIENCE, context=context)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """Return a browser with an empty profile."""
    made = Browser(tmp_path / "profile")
    yield made
    made.end()


@pytest.mark.load
def test_a_page_in_a_browser(root: str, browser: Browser) -> None:
    """Chromium shows a page with its style, and revalidates both when the page is opened again."""
    script = "return getComputedStyle(document.querySelector('p')).color"
    for status in (200, 304):
        browser.visit(f"{root}/page.html")
        assert browser.run(script) == "rgb(1, 2, 3)"
        assert browser.statuses()[f"{root}/page.html"] == [status]


@pytest.mark.load
def test_a_listing_in_a_browser(root: str, browser: Browser) -> None:
    """Chromium shows a listing, sorts it by its links, and finds its files; nothing violates the page's policy."""
    names = "return [...document.querySelectorAll('tbody a')].map((link) => link.textContent)"
    click = "[...document.querySelectorAll('thead a')].find((link) => link.textContent === 'Size').click()"
    browser.visit(f"{root}/")
    assert browser.run(names) == ["sub/", "large.bin", "large.bin.gz", "note.mine", "page.html", "style.css",
                                  "style.css.gz"]  # fmt: skip
    browser.run(click)
    assert browser.until(names, lambda found: found[-1] == "note.mine")[0] == "sub/"
    browser.run(click)
    assert browser.until(names, lambda found: found[1] == "note.mine")
    browser.run("document.querySelector('tbody a').click()")
    assert browser.until(names, lambda found: "file.txt" in found) == ["Parent directory", "file.txt", "large.bin"]
    for width, scheme, background in ((400, "dark", "rgb(17, 20, 23)"), (1400, "light", "rgb(252, 252, 250)")):
        browser.tell("Emulation.setDeviceMetricsOverride", width=width, height=700, deviceScaleFactor=1, mobile=False)
        browser.tell("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        assert browser.run("return getComputedStyle(document.body).backgroundColor") == background
        assert browser.run("return document.documentElement.scrollWidth") == width
    assert [line for line in browser.complaints() if "favicon" not in line] == []


@pytest.mark.load
def test_a_browser_seeks_in_a_medium(root: str, www: Path, browser: Browser) -> None:
    """Chromium seeks in a long recording by ranges; a script continues a download."""
    with wave.open(str(www / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 44_100, 0, "NONE", ""))
        sound.writeframes(bytes(20_000_000))
    (www / "media.html").write_text("<!doctype html><video src=sound.wav preload=metadata muted></video>")
    browser.visit(f"{root}/media.html")
    browser.until("return document.querySelector('video').readyState >= 1")
    browser.run("document.querySelector('video').currentTime = 200")
    browser.until("const video = document.querySelector('video'); return !video.seeking && video.readyState >= 2")
    assert browser.run("return document.querySelector('video').currentTime") == 200
    # A range that the browser has in its cache is only revalidated.
    assert {206} <= set(browser.statuses()[f"{root}/sound.wav"]) <= {206, 304}
    browser.run("""
        window.found = null;
        (async () => {
          const head = await fetch('sub/large.bin', {method: 'HEAD'});
          const fields = {Range: 'bytes=299990-', 'If-Range': head.headers.get('ETag')};
          const rest = await fetch('sub/large.bin', {headers: fields});
          window.found = [rest.status, [...new Uint8Array(await rest.arrayBuffer())]];
        })();
    """)
    status, rest = browser.until("return window.found")
    assert (status, bytes(rest)) == (206, LARGE[299_990:300_000])
