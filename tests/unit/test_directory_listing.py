"""Listings of directories: which entries they have, their order, and what is escaped."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import os
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from svcd.protocols.http import directory_listing
from svcd.protocols.http.listing_page import Entry, Order
from svcd.protocols.http.response import Response
from svcd.protocols.http.static_files import FileSettings, StaticFiles
from svcd.wire.http_request import HttpError, HttpRequest
from tests.doubles import PEER

if TYPE_CHECKING:
    from pathlib import Path

TIME = 1_000_000_000
#: Names that a page, a link or a JSON document has to escape.
NAMES = ["<b>.txt", "a&b.txt", "quote\".txt", "apos'.txt", "100%.txt", "a?b", "a#b", "a b", "é.txt", "javascript:x",
         "%2e%2e", "..x", "\u202e.txt", "日本.txt"]  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a directory with entries of all kinds, and without an index file."""
    root = tmp_path / "www"
    for name in ("sub", "Beta", ".git", ".well-known"):
        (root / name).mkdir(parents=True)
    for number, (name, size) in enumerate([("alpha.txt", 10), ("Gamma.txt", 3000), ("delta.bin", 200)]):
        (root / name).write_bytes(b"x" * size)
        os.utime(root / name, (TIME + number, TIME + number))
    (root / ".hidden").touch()
    (root / "link.txt").symlink_to("alpha.txt")
    (root / "broken").symlink_to("none")
    os.mkfifo(root / "fifo")
    for unusual in (b"caf\xe9", b"back\\slash", b"line\nend"):
        (root / os.fsdecode(unusual)).touch()
    return root


class _CountingClock(Clock):
    """A clock that counts its delayed calls."""

    calls_made = 0

    def callLater(self, *arguments: Any, **options: Any) -> Any:
        """Schedule a call."""
        self.calls_made += 1
        return super().callLater(*arguments, **options)


class _Client:
    """A client of files below a directory, which lets the reactor run."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.clock = _CountingClock()
        self.files = StaticFiles(str(root), FileSettings(listing=True, **settings), self.clock)

    def ask(self, target: str, accept: str = "") -> Deferred[Response]:
        """Ask for a target."""
        fields = {b"accept": accept.encode()} if accept else {}
        request = HttpRequest("GET", target.encode(), fields, "1.1", keep_alive=True)
        found = self.files.respond(request, PEER)
        assert isinstance(found, Deferred)
        return found

    def get(self, target: str, accept: str = "") -> Response:
        """Return the response for a target."""
        results: list[Any] = []
        self.ask(target, accept).addBoth(results.append)
        for _ in range(10_000):
            if results:
                break
            self.clock.advance(0)
        (result,) = results
        if isinstance(result, Response):
            assert result.body is not None
            pieces = iter(result.body.read, b"")
            return dataclasses.replace(result, content=b"".join(filter(None, pieces)), body=None)
        result.raiseException()
        raise AssertionError

    def entries(self, target: str) -> list[dict[str, Any]]:
        """Return the entries of a listing, as JSON."""
        document = json.loads(self.get(target, "application/json").content)
        found: list[dict[str, Any]] = document["entries"]
        return found


class _Page(html.parser.HTMLParser):
    """The links of a page, with their texts, and what a browser would run."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.links: list[tuple[str, str]] = []
        self.tags: set[str] = set()
        self.sorted: list[str] = []
        self._in_link = False
        self.feed(content.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag, and the target of a link."""
        values = dict(attrs)
        assert not any(name.startswith("on") or name == "style" for name in values)
        self.tags.add(tag)
        if tag == "a":
            self._in_link = True
            self.links.append((values["href"] or "", ""))
        if "aria-sort" in values:
            self.sorted.append(values["aria-sort"] or "")

    def handle_endtag(self, tag: str) -> None:
        """Note the end of a link."""
        self._in_link = self._in_link and tag != "a"

    def handle_data(self, data: str) -> None:
        """Add the text of a link."""
        if self._in_link:
            href, text = self.links[-1]
            self.links[-1] = href, text + data

    @property
    def rows(self) -> list[tuple[str, str]]:
        """The links to entries."""
        return [(href, text) for href, text in self.links if not href.startswith(("?", "/"))]


def test_entries(root: Path) -> None:
    """Directories and regular files are listed, nothing that is hidden or not served; directories come first."""
    assert _Client(root).entries("/") == [
        {"name": "Beta", "type": "directory", "modified": _time(root / "Beta")},
        {"name": "sub", "type": "directory", "modified": _time(root / "sub")},
        {"name": "alpha.txt", "type": "file", "size": 10, "modified": "2001-09-09T01:46:40Z"},
        {"name": "delta.bin", "type": "file", "size": 200, "modified": "2001-09-09T01:46:42Z"},
        {"name": "Gamma.txt", "type": "file", "size": 3000, "modified": "2001-09-09T01:46:41Z"},
    ]


def _time(path: Path) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(int(path.stat().st_mtime), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_symbolic_links_are_listed_if_they_are_followed(root: Path) -> None:
    """With symlinks=yes symbolic links are listed as what they lead to."""
    names = {entry["name"]: entry.get("size") for entry in _Client(root, symlinks=True).entries("/")}
    assert names["link.txt"] == 10
    assert "broken" not in names


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("", ["alpha.txt", "delta.bin", "Gamma.txt"]),
        ("sort=name&order=desc", ["Gamma.txt", "delta.bin", "alpha.txt"]),
        ("order=desc", ["Gamma.txt", "delta.bin", "alpha.txt"]),
        ("sort=size&order=asc", ["alpha.txt", "delta.bin", "Gamma.txt"]),
        ("sort=size&order=desc", ["Gamma.txt", "delta.bin", "alpha.txt"]),
        ("sort=modified", ["alpha.txt", "Gamma.txt", "delta.bin"]),
        ("sort=modified&order=desc", ["delta.bin", "Gamma.txt", "alpha.txt"]),
        ("sort=x&order=y", ["alpha.txt", "delta.bin", "Gamma.txt"]),
        ("%ff=%00&&&;=", ["alpha.txt", "delta.bin", "Gamma.txt"]),
        ("&".join(["sort=size"] * 50), ["alpha.txt", "delta.bin", "Gamma.txt"]),
    ],
)
def test_order(root: Path, query: str, names: list[str]) -> None:
    """The query sets the order; what it does not say, or not correctly, has its default."""
    assert [entry["name"] for entry in _Client(root).entries(f"/?{query}") if entry["type"] == "file"] == names
    page = _Page(_Client(root).get(f"/?{query}").content)
    assert [text for _, text in page.rows if not text.endswith("/")] == names


def test_each_heading_is_a_link_to_its_order(root: Path) -> None:
    """The headings are links that sort by their column, and that of the current order reverses it."""
    client = _Client(root)
    page = _Page(client.get("/").content)
    assert [href for href, _ in page.links if href.startswith("?")] == [
        "?sort=name&order=desc", "?sort=size&order=desc", "?sort=modified&order=desc",
    ]  # fmt: skip
    assert page.sorted == ["ascending"]
    page = _Page(client.get("/?sort=size&order=desc").content)
    assert ("?sort=size&order=asc", "Size") in page.links
    assert ("?sort=name&order=asc", "Name") in page.links
    assert page.sorted == ["descending"]


def test_a_page(root: Path) -> None:
    """A page has no script, and a policy that forbids any; what it depends on is said to caches."""
    response = _Client(root).get("/")
    assert response.status == HTTPStatus.OK
    assert response.fields["Content-Type"] == "text/html; charset=utf-8"
    assert response.fields["Content-Length"] == str(len(response.content))
    assert response.fields["Content-Security-Policy"].startswith("default-src 'none'; style-src 'sha256-")
    assert response.fields["Vary"] == "Accept"
    assert "script" not in _Page(response.content).tags
    assert b"Parent directory" not in response.content
    assert b"2 directories, 3 files, 3.21 kB. Times are in UTC." in response.content


def test_the_page_of_a_directory_in_a_directory(root: Path) -> None:
    """The path has links to the directories that contain the directory."""
    (root / "sub" / "a b").mkdir()
    page = _Page(_Client(root).get("/sub/a%20b/").content)
    assert page.links[:2] == [("/", "/"), ("/sub/", "sub")]
    assert ("../", "Parent directory") in page.links


@pytest.mark.parametrize("name", NAMES)
def test_names_are_escaped(tmp_path: Path, name: str) -> None:
    """Each name is shown as it is, and its link leads to the file."""
    (tmp_path / name).write_text("content")
    client = _Client(tmp_path)
    if not name.startswith("."):
        ((href, text),) = _Page(client.get("/").content).rows
        assert (unquote(href), text) == (name, name)
        assert href.isascii()
        assert ":" not in href
        request = HttpRequest("GET", f"/{href}".encode(), {}, "1.1", keep_alive=True)
        response = client.files.respond(request, PEER)
        assert isinstance(response, Response)
        assert response.content == b"content"
        assert [entry["name"] for entry in client.entries("/")] == [name]
    (tmp_path / "folder" / f"x{name}").mkdir(parents=True)
    page = _Page(client.get(f"/folder/{quote('x' + name, safe='')}/").content)
    assert page.tags == {"html", "head", "meta", "title", "style", "body", "h1", "wbr", "b", "a", "table", "thead",
                         "tr", "th", "tbody", "td", "p"}  # fmt: skip


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "text/html"),
        ("*/*", "text/html"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "text/html"),
        ("application/json", "application/json"),
        ("application/json, text/html;q=0.5", "application/json"),
        ("image/png", "text/html"),
    ],
)
def test_the_type_is_negotiated(root: Path, accept: str, kind: str) -> None:
    """A client that prefers JSON gets it."""
    assert _Client(root).get("/", accept).fields["Content-Type"] == f"{kind}; charset=utf-8"


def test_an_empty_directory(root: Path) -> None:
    """An empty directory has a listing without entries."""
    client = _Client(root)
    assert client.entries("/sub/") == []
    assert b"0 directories, 0 files, 0 B." in client.get("/sub/").content


def test_an_index_comes_before_a_listing(root: Path) -> None:
    """A directory with an index file is not listed; nor is any without listing=yes."""
    (root / "sub" / "index.html").write_bytes(b"<p>")
    request = HttpRequest("GET", b"/sub/", {}, "1.1", keep_alive=True)
    response = _Client(root).files.respond(request, PEER)
    assert isinstance(response, Response)
    assert response.content == b"<p>"
    (root / "sub" / "index.html").unlink()
    with pytest.raises(HttpError) as caught:
        StaticFiles(str(root)).respond(request, PEER)
    assert caught.value.status == HTTPStatus.NOT_FOUND


@pytest.mark.parametrize("path", ["/none/", "/.git/", "/sub/.git/", "/fifo/", "/link/"])
def test_directories_that_are_not_listed(root: Path, path: str) -> None:
    """A directory that is hidden or does not exist is 404."""
    (root / "link").symlink_to("sub")
    request = HttpRequest("GET", path.encode(), {}, "1.1", keep_alive=True)
    with pytest.raises(HttpError) as caught:
        _Client(root).files.respond(request, PEER)
    assert caught.value.status == HTTPStatus.NOT_FOUND


def test_a_large_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a very large directory a part is listed, and the listing says so; other requests are served meanwhile."""
    monkeypatch.setattr(directory_listing, "MOST_ENTRIES", 500)
    for number in range(600):
        (tmp_path / f"{number:03}").touch()
    client = _Client(tmp_path)
    page = client.get("/").content
    # 64 entries are read, or written, in an iteration of the reactor.
    assert client.clock.calls_made >= 2 * 500 // 64
    assert len(_Page(page).rows) == 500
    assert b"The directory has more entries than are listed." in page
    document = json.loads(client.get("/", "application/json").content)
    assert (document["complete"], len(document["entries"])) == (False, 500)


def test_listings_are_made_one_after_the_other(root: Path) -> None:
    """A listing does not open its directory before the one before it is made; no descriptor stays open."""
    client = _Client(root)
    results: list[Response] = []
    for target in ("/", "/sub/"):
        client.ask(target).addCallback(results.append)
    while client.clock.calls:
        client.clock.calls.pop(0).func()
        # A listing takes two, since scandir() duplicates the descriptor.
        assert len(_open_below(root)) <= 2
    pages = [b"" if each.body is None else each.body.read() or b"" for each in results]
    assert [b"Parent directory" in page for page in pages] == [False, True]
    assert _open_below(root) == []


def test_a_directory_that_disappears(root: Path) -> None:
    """A directory that is removed before its listing is made is 404, and later listings are made."""
    client = _Client(root)
    failures: list[Any] = []
    client.ask("/")
    client.ask("/sub/").addErrback(failures.append)
    (root / "sub").rmdir()
    assert client.get("/").status == HTTPStatus.OK
    assert failures[0].check(HttpError)
    assert failures[0].value.status == HTTPStatus.NOT_FOUND


def test_too_many_waiting_clients(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If too many clients wait for listings, another one gets 503, until there is room again."""
    monkeypatch.setattr(directory_listing, "MOST_WAITING", 3)
    client = _Client(root)
    results: list[Response] = []
    for _ in range(4):
        client.ask("/").addCallback(results.append)
    with pytest.raises(HttpError) as caught:
        client.ask("/sub/")
    assert caught.value.status == HTTPStatus.SERVICE_UNAVAILABLE
    client.clock.advance(0)
    assert len(results) == 4
    assert client.get("/sub/").status == HTTPStatus.OK


def test_slow_clients_share_a_listing(root: Path) -> None:
    """Responses with the same listing share its bytes while one of them is sent, and a change is seen."""
    client = _Client(root)
    results: list[Any] = []

    def listing() -> Any:
        client.ask("/").addCallback(results.append)
        client.clock.advance(0)
        return results.pop().body

    first, second = listing(), listing()
    assert first._content is second._content
    (root / "new.txt").touch()
    third = listing()
    assert third._content is not first._content
    assert b"new.txt" in third.read()
    assert b"new.txt" not in first.read() + second.read()


def _open_below(folder: Path) -> list[str]:
    found = []
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208 - a list, made at once
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))  # noqa: PTH115
        except OSError:
            continue
    return [path for path in found if path.startswith(str(folder))]


def test_equal_entries_are_in_the_order_of_their_names() -> None:
    """Entries of the same size are in the order of their names, whatever the direction; directories come first."""
    entries = [Entry("b", 1, 0), Entry("a", 1, 0), Entry("C", None, 0), Entry("d", 2, -1e20), Entry("A", 1, 1e20)]
    assert [entry.name for entry in Order("size").sort(entries)] == ["C", "A", "a", "b", "d"]
    assert [entry.name for entry in Order("size", descending=True).sort(entries)] == ["C", "d", "A", "a", "b"]
