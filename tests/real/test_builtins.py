"""Each built-in service, byte for byte as in its RFC, on all its transports."""

from __future__ import annotations

import re
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.real.daemon import Daemon, exchange

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STREAMS = ["tcp4", "tcp6", "unix"]
DATAGRAMS = ["udp4", "udp6", "unixgram"]
FAMILIES = {
    "tcp4": socket.AF_INET,
    "udp4": socket.AF_INET,
    "tcp6": socket.AF_INET6,
    "udp6": socket.AF_INET6,
    "unix": socket.AF_UNIX,
    "unixgram": socket.AF_UNIX,
}
PRINTABLE = bytes(range(32, 127))


def _services(folder: Path, *, ipv6: bool) -> str:
    """Return a services file with all built-in services on all transports."""
    bind = "127.0.0.1,::1" if ipv6 else "127.0.0.1"
    lines = [f"@defaults bind={bind} amplify=yes"]
    quotes = folder / "quotes"
    quotes.write_text("One.\n%\nTwo,\nthree.\n")
    for name in ["echo", "discard", "chargen", "daytime", "time", "qotd"]:
        more = f" quotes={quotes}" if name == "qotd" else ""
        lines += [f"{name} 0/tcp{more}", f"{name} 0/udp{more}"]
        lines += [f"{name} {folder}/{name}/unix{more}", f"{name} {folder}/{name}-gram/unixgram{more}"]
    lines += ["upper 0/tcp", f"upper {folder}/upper/unix", "http 0/tcp", f"http {folder}/http/unix"]
    lines += ["utc 0/tcp daytime utc=yes", "iso 0/tcp daytime utc=yes date_format=iso8601"]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, has_ipv6: bool) -> Iterator[Daemon]:
    """Return a daemon with all of them, for all tests of this module."""
    folder = tmp_path_factory.mktemp("d")
    daemon = Daemon(folder, _services(folder, ipv6=has_ipv6))
    yield daemon
    daemon.end()


@pytest.fixture
def client(daemon: Daemon, has_ipv6: bool) -> Iterator[Any]:
    """Return a function that connects to a service; the sockets are closed with the test."""
    opened: list[socket.socket] = []

    def connect(name: str, transport: str) -> socket.socket:
        family = FAMILIES[transport]
        if family == socket.AF_INET6 and not has_ipv6:
            pytest.skip("no IPv6 on this machine")
        net = transport if family == socket.AF_UNIX else transport[:3]
        opened.append(daemon.connect(f"{name}/{net}", family))
        return opened[-1]

    yield connect
    for each in opened:
        each.close()


@pytest.mark.parametrize("transport", STREAMS)
def test_echo_stream(client: Any, transport: str) -> None:
    """Echo returns exactly the bytes it was sent, all 256 values of them, then closes after the client."""
    data = bytes(range(256)) * 1000
    assert exchange(client("echo", transport), data) == data


@pytest.mark.parametrize("transport", DATAGRAMS)
@pytest.mark.parametrize("size", [0, 1, 1000, 65_000])
def test_echo_datagram(client: Any, transport: str, size: int) -> None:
    """Echo returns each datagram as one datagram, an empty one as an empty one."""
    data = (bytes(range(256)) * 256)[:size]
    asker = client("echo", transport)
    asker.send(data)
    assert asker.recv(65_536) == data


@pytest.mark.parametrize("transport", STREAMS)
def test_upper(client: Any, transport: str) -> None:
    """Upper turns a to z into A to Z and leaves every other byte as it is."""
    data = bytes(range(256))
    wanted = bytes(byte - 32 if 97 <= byte <= 122 else byte for byte in data)
    assert exchange(client("upper", transport), data) == wanted


@pytest.mark.parametrize("transport", STREAMS)
def test_discard_stream(client: Any, transport: str) -> None:
    """Discard answers nothing and closes after the client."""
    assert exchange(client("discard", transport), b"x" * 100_000) == b""


@pytest.mark.parametrize("transport", DATAGRAMS)
def test_discard_datagram(client: Any, transport: str) -> None:
    """Discard answers no datagram."""
    asker = client("discard", transport)
    asker.send(b"nobody reads this")
    asker.settimeout(0.2)
    with pytest.raises(TimeoutError):
        asker.recv(100)


@pytest.mark.parametrize("transport", STREAMS)
def test_chargen_stream(client: Any, transport: str) -> None:
    """Chargen sends CRLF lines of 72 characters that rotate through all 95 printable ones, and repeats after 95."""
    asker = client("chargen", transport)
    data = b""
    while len(data) < 74 * 200:
        data += asker.recv(65_536)
    lines = data.split(b"\r\n")[:200]
    for number, line in enumerate(lines):
        assert line == bytes(PRINTABLE[(number + column) % 95] for column in range(72))


@pytest.mark.parametrize("transport", STREAMS)
def test_chargen_with_a_half_closed_client(client: Any, transport: str) -> None:
    """A client that has half-closed gets characters until it closes."""
    asker = client("chargen", transport)
    asker.shutdown(socket.SHUT_WR)
    received = 0
    while received < 5_000_000:
        piece = asker.recv(65_536)
        assert piece
        received += len(piece)


@pytest.mark.parametrize("transport", DATAGRAMS)
def test_chargen_datagram(client: Any, transport: str) -> None:
    """Chargen answers a datagram with at most 512 characters of its pattern."""
    asker = client("chargen", transport)
    asker.send(b"?")
    answer = asker.recv(65_536)
    assert 0 < len(answer) <= 512
    for line in answer.removesuffix(b"\r\n").split(b"\r\n"):
        start = PRINTABLE.index(line[:1])
        assert line == bytes(PRINTABLE[(start + column) % 95] for column in range(72))


def _ask(client: Any, name: str, transport: str) -> bytes:
    """Return the whole answer of a service."""
    asker = client(name, transport)
    if transport in STREAMS:
        return exchange(asker)
    asker.send(b"content is ignored")
    answer: bytes = asker.recv(65_536)
    return answer


@pytest.mark.parametrize("transport", STREAMS + DATAGRAMS)
def test_daytime(client: Any, transport: str) -> None:
    """Daytime sends the local date and time in a CRLF line and closes."""
    before = int(time.time())
    answer = _ask(client, "daytime", transport)
    told = time.mktime(time.strptime(answer.decode("ascii"), "%a %b %d %H:%M:%S %Y\r\n"))
    assert before <= told <= time.time()


def test_daytime_options(client: Any) -> None:
    """Daytime sends universal time with utc=yes, and ISO 8601 with date_format=iso8601."""
    assert re.fullmatch(rb"\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}\r\n", _ask(client, "utc", "tcp4"))
    told = _ask(client, "iso", "tcp4")
    assert re.fullmatch(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\r\n", told)


@pytest.mark.parametrize("transport", STREAMS + DATAGRAMS)
def test_time(client: Any, transport: str) -> None:
    """Time sends the seconds since 1900 in four unsigned big-endian bytes and closes."""
    before = int(time.time())
    answer = _ask(client, "time", transport)
    assert len(answer) == 4
    assert before <= int.from_bytes(answer, "big") - 2_208_988_800 <= time.time()


@pytest.mark.parametrize("transport", STREAMS + DATAGRAMS)
def test_qotd(client: Any, transport: str) -> None:
    """Qotd sends an entry of its file and closes; after many connections all entries were sent."""
    wanted = {b"One.\r\n", b"Two,\r\nthree.\r\n"}
    said = set()
    for _ in range(200):
        said.add(_ask(client, "qotd", transport))
        if said == wanted:
            break
    assert said == wanted


def test_daytime_with_a_client_that_sends_first(client: Any) -> None:
    """A client that sends before it reads gets the whole answer, and no reset."""
    asker = client("daytime", "tcp4")
    asker.sendall(b"GET / HTTP/1.0\r\n\r\n" * 100)
    assert exchange(asker).endswith(b"\r\n")


@pytest.mark.parametrize("transport", STREAMS)
def test_http_hello(client: Any, transport: str) -> None:
    """HTTP without files greets the client with its address and port."""
    asker = client("http", transport)
    port = asker.getsockname()[1] if transport != "unix" else "UNIX socket"
    answer = exchange(asker, b"GET / HTTP/1.0\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert str(port).encode() in body
