"""The built-in services with telnet, nc, socat, curl and rdate."""

from __future__ import annotations

import http.client
import re
import select
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.real.clients import run
from tests.real.daemon import PATIENCE, Daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SERVICES = """
@defaults bind=127.0.0.1
echo     0/tcp
echo     0/udp
upper    0/tcp
daytime  0/tcp
daytime  0/udp
time     0/tcp
chargen  0/tcp
hello    0/tcp  http
files    0/tcp  http root={root}
local    {socket}/unix  upper
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Return a daemon for all tests of this module."""
    folder = tmp_path_factory.mktemp("d")
    root = folder / "www"
    root.mkdir()
    (root / "index.html").write_text("<h1>home</h1>\n")
    (root / "notes.txt").write_text("notes\n")
    (root / "big.bin").write_bytes(b"0123456789abcdef" * 1_000_000)
    (folder / "secret").write_text("secret\n")
    (root / "link").symlink_to("../secret")
    daemon = Daemon(folder, SERVICES.format(root=root, socket=folder / "local"))
    yield daemon
    daemon.end()


def test_nc_half_closes(daemon: Daemon, program: Callable[[str], str]) -> None:
    """`printf hi | nc -N host 7` gets hi back."""
    assert run(program("nc"), "-N", "127.0.0.1", str(daemon.port("echo/tcp")), data=b"hi") == b"hi"


def test_nc_twenty_megabytes(daemon: Daemon, program: Callable[[str], str]) -> None:
    """20 MB through nc -N come back complete."""
    data = bytes(range(256)) * 78_125
    assert run(program("nc"), "-N", "127.0.0.1", str(daemon.port("echo/tcp")), data=data) == data


def test_nc_datagram(daemon: Daemon, program: Callable[[str], str]) -> None:
    """`nc -u` gets its datagram back, and the time for an empty line."""
    assert run(program("nc"), "-u", "-w1", "127.0.0.1", str(daemon.port("echo/udp")), data=b"hi\n") == b"hi\n"
    told = run(program("nc"), "-u", "-w1", "127.0.0.1", str(daemon.port("daytime/udp")), data=b"\n")
    assert re.fullmatch(rb"\w{3} \w{3} [ \d]\d [\d:]{8} \d{4}\r\n", told)


def test_nc_unix(daemon: Daemon, program: Callable[[str], str]) -> None:
    """`nc -U` talks to a UNIX socket."""
    assert run(program("nc"), "-N", "-U", str(daemon.folder / "local"), data=b"hi") == b"HI"


def test_socat(daemon: Daemon, program: Callable[[str], str]) -> None:
    """socat gets its answer over TCP and UDP."""
    socat = program("socat")
    assert run(socat, "-t5", "-", f"TCP4:127.0.0.1:{daemon.port('upper/tcp')}", data=b"abc\n") == b"ABC\n"
    assert run(socat, "-t1", "-", f"UDP4:127.0.0.1:{daemon.port('echo/udp')}", data=b"abc\n") == b"abc\n"


def test_telnet(daemon: Daemon, program: Callable[[str], str]) -> None:
    """telnet shows the answer to a typed line while the connection stays open."""
    words = [program("telnet"), "127.0.0.1", str(daemon.port("upper/tcp"))]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as telnet:
        assert telnet.stdin is not None
        assert telnet.stdout is not None
        for line in telnet.stdout:
            if line.startswith(b"Escape character"):
                break
        telnet.stdin.write(b"typed by hand\n")
        telnet.stdin.flush()
        assert telnet.stdout.readline().rstrip() == b"TYPED BY HAND"
        telnet.kill()


def test_telnet_daytime(daemon: Daemon, program: Callable[[str], str]) -> None:
    """telnet to daytime prints the line and reports that the server closed."""
    shown = run(program("telnet"), "127.0.0.1", str(daemon.port("daytime/tcp")))
    # At the end of its input telnet may exit before the answer; at a terminal it does not.
    assert b"Connected to 127.0.0.1" in shown


def test_rdate(daemon: Daemon, program: Callable[[str], str]) -> None:
    """rdate prints the time that it receives."""
    shown = run(program("rdate"), "-p", "-o", str(daemon.port("time/tcp")), "127.0.0.1")
    assert re.match(rb"\w{3} \w{3} [ \d]\d [\d:]{8} ", shown)


def test_curl_hello(daemon: Daemon, program: Callable[[str], str]) -> None:
    """curl is greeted with its address."""
    page = run(program("curl"), "-sS", f"http://127.0.0.1:{daemon.port('hello/tcp')}/")
    assert b"Hello, " in page
    assert b"127.0.0.1" in page


def curl(daemon: Daemon, program: Callable[[str], str], path: str, *options: str) -> bytes:
    """Return the output of curl for a URL."""
    url = f"http://127.0.0.1:{daemon.port('files/tcp')}{path}"
    return run(program("curl"), "-sS", "--path-as-is", *options, url)


def test_curl_files(daemon: Daemon, program: Callable[[str], str]) -> None:
    """curl gets files with their type, length and date, and the index of a directory."""
    assert curl(daemon, program, "/notes.txt") == b"notes\n"
    assert curl(daemon, program, "/") == b"<h1>home</h1>\n"
    head = curl(daemon, program, "/notes.txt", "-I")
    assert b"Content-Type: text/plain; charset=utf-8\r\n" in head
    assert b"Content-Length: 6\r\n" in head
    assert b"Last-Modified: " in head


def test_curl_big_file(daemon: Daemon, program: Callable[[str], str], tmp_path: Path) -> None:
    """A file of 16 MB arrives complete, twice over one connection."""
    got = tmp_path / "got"
    url = f"http://127.0.0.1:{daemon.port('files/tcp')}/big.bin"
    run(program("curl"), "-sS", "-o", str(got), url, "-o", f"{got}2", url)
    wanted = (daemon.folder / "www" / "big.bin").read_bytes()
    assert got.read_bytes() == wanted
    assert (tmp_path / "got2").read_bytes() == wanted


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/../secret", b"400"),
        ("/%2e%2e/secret", b"400"),
        ("/x/../../secret", b"400"),
        ("/..%2fsecret", b"400"),
        ("/%00", b"400"),
        ("/..%5csecret", b"400"),
        ("/link", b"404"),
        ("/nothing", b"404"),
        ("/" + "a" * 9000, b"414"),
    ],
)
def test_curl_path_traversal(daemon: Daemon, program: Callable[[str], str], path: str, status: bytes) -> None:
    """No spelling of a path leaves the root directory."""
    shown = curl(daemon, program, path, "-w", "%{http_code}", "-o", "-")
    assert shown.endswith(status)
    assert b"secret\n" not in shown


def test_curl_refusals(daemon: Daemon, program: Callable[[str], str]) -> None:
    """An unsupported method gets 405, a head that is too large 431."""
    assert curl(daemon, program, "/notes.txt", "-d", "x=1", "-w", "%{http_code}", "-o", "-").endswith(b"405")
    fat = [word for number in range(5) for word in ("-H", f"X-{number}: {'y' * 8000}")]
    assert curl(daemon, program, "/notes.txt", *fat, "-w", "%{http_code}", "-o", "-").endswith(b"431")


def test_slow_download_is_complete(daemon: Daemon) -> None:
    """A client that reads slowly gets the whole file, though the server has sent its last byte long before."""
    client = socket.socket()
    client.settimeout(PATIENCE)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
    client.connect(("127.0.0.1", daemon.port("files/tcp")))
    with client:
        client.sendall(b"GET /big.bin HTTP/1.0\r\n\r\n")
        received = 0
        # Much longer than the server waits for the close of a client that has the whole answer.
        stalls = iter([3.0])
        while piece := client.recv(65_536):
            received += len(piece)
            if received > 15_000_000:
                select.select([], [], [], next(stalls, 0))
    assert received > 16_000_000


def test_keep_alive(daemon: Daemon) -> None:
    """A client sends two requests over one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port("files/tcp"), timeout=PATIENCE)
    for _ in range(2):
        connection.request("GET", "/notes.txt")
        first = connection.sock
        assert connection.getresponse().read() == b"notes\n"
        assert connection.sock is first
    connection.close()
