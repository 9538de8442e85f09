"""Who may come in: each rule on real connections, what those hear who may not, and floods that bother nobody else."""

from __future__ import annotations

import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.real.daemon import PATIENCE, exchange, fields

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.daemon import Daemon

REACTORS = ["uv", "epoll"]
#: Clients of a flood, each with an address of its own.
FLOOD = 50_000


def _from(daemon: Daemon, service: str, host: str = "127.0.0.1") -> socket.socket:
    """A connection from a loopback address."""
    client = socket.socket()
    client.settimeout(PATIENCE)
    client.bind((host, 0))
    client.connect(("127.0.0.1", daemon.port(service)))
    return client


def _heard(client: socket.socket, question: bytes = b"?") -> bytes:
    """What the client hears; a reset without a word is nothing."""
    try:
        return exchange(client, question)
    except TimeoutError:
        raise
    except OSError:
        return b""


def _refusals(daemon: Daemon, service: str, count: int) -> list[dict[str, str]]:
    """The refuse lines of a service, once they tell of so many."""

    def found() -> list[dict[str, str]]:
        lines = [line for line in daemon.lines if f" refuse service={service} " in line]
        return [fields(line) for line in lines]

    deadline = time.monotonic() + PATIENCE
    while sum(int(each["count"]) for each in found()) < count:
        assert time.monotonic() < deadline, daemon.lines
        time.sleep(0.05)
    return found()


@pytest.mark.parametrize("reactor", REACTORS)
@pytest.mark.parametrize("handler", ["echo", "server=/bin/cat"])
def test_by_address(start: Callable[..., Daemon], reactor: str, handler: str) -> None:
    """The most specific rule decides; the line says which, and where it stands."""
    daemon = start(
        f"e 0/tcp {handler} bind=127.0.0.1 only_from=127.0.0.0/24 no_access=127.0.0.3,127.0.0.128/25\n",
        twistd_arguments=["--reactor", reactor],
    )
    for host, answer in [("127.0.0.2", b"?"), ("127.0.0.3", b""), ("127.0.0.130", b""), ("127.0.1.1", b"")]:
        assert _heard(_from(daemon, "e/tcp", host)) == answer, host
    lines = _refusals(daemon, "e/tcp", 3)
    assert {line["reason"] for line in lines} == {"address"}
    assert re.fullmatch(r"no_access=127\.0\.0\.3 \(.*/services:1:\d+\)", lines[0]["rule"])


def test_by_time(start: Callable[..., Daemon]) -> None:
    """In the zone that is given, around now and not now."""
    now = datetime.now().astimezone()
    near = f"{now - timedelta(minutes=30):%H:%M}-{now + timedelta(minutes=30):%H:%M}"
    far = f"{now + timedelta(hours=2):%H:%M}-{now + timedelta(hours=3):%H:%M}"
    daemon = start(
        f"@defaults bind=127.0.0.1\nnow 0/tcp echo access_times={near}\nlater 0/tcp echo access_times={far}\n"
    )
    assert _heard(_from(daemon, "now/tcp")) == b"?"
    assert _heard(_from(daemon, "later/tcp")) == b""
    assert _refusals(daemon, "later/tcp", 1)[0]["reason"] == "time"


@pytest.mark.parametrize("handler", ["echo", "server=/bin/cat"])
def test_so_many_and_no_more(start: Callable[..., Daemon], handler: str) -> None:
    """Of a service and of a source; whoever leaves makes room at once."""
    daemon = start(f"e 0/tcp {handler} bind=127.0.0.1 instances=2 per_source=1\n")
    first = _from(daemon, "e/tcp", "127.0.0.2")
    first.sendall(b"a")
    assert first.recv(1) == b"a"
    assert _heard(_from(daemon, "e/tcp", "127.0.0.2")) == b""
    second = _from(daemon, "e/tcp", "127.0.0.3")
    second.sendall(b"b")
    assert second.recv(1) == b"b"
    assert _heard(_from(daemon, "e/tcp", "127.0.0.4")) == b""
    assert [line["reason"] for line in _refusals(daemon, "e/tcp", 2)] == ["per_source", "instances"]
    first.close()
    daemon.wait_event("end", "e/tcp")
    assert _heard(_from(daemon, "e/tcp", "127.0.0.2")) == b"?"
    second.close()


@pytest.mark.parametrize("reactor", REACTORS)
@pytest.mark.parametrize("handler", ["echo", "server=/bin/cat"])
def test_one_after_the_other(start: Callable[..., Daemon], reactor: str, handler: str) -> None:
    """instances=1 on_limit=queue is an iterative server: the others wait, and nobody is refused."""
    daemon = start(
        f"e 0/tcp {handler} bind=127.0.0.1 instances=1 on_limit=queue\n", twistd_arguments=["--reactor", reactor]
    )
    clients = [_from(daemon, "e/tcp") for _ in range(5)]
    for client in clients:
        client.sendall(b"x")
    clients[0].recv(1)
    used = daemon.cpu_seconds()
    for number, client in enumerate(clients):
        if number:
            assert client.recv(1) == b"x"
        for other in clients[number + 1 :]:
            other.settimeout(0.05)
            with pytest.raises(TimeoutError):
                other.recv(1)
            other.settimeout(PATIENCE)
        client.close()
    # While they wait nothing spins.
    assert daemon.cpu_seconds() - used < 0.4
    daemon.wait_event("end", "e/tcp", 5)
    assert not [line for line in daemon.lines if " refuse " in line]


def test_a_limit_for_the_whole_daemon(start: Callable[..., Daemon]) -> None:
    """--max-connections counts connections and processes of all services."""
    text = "@defaults bind=127.0.0.1\na 0/tcp echo\nb 0/tcp server=/bin/cat\nc 0/tcp echo on_limit=queue\n"
    daemon = start(text, "--max-connections", "2")
    clients = [_from(daemon, f"{name}/tcp") for name in "ab"]
    for client in clients:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
    assert _heard(_from(daemon, "a/tcp")) == b""
    assert _refusals(daemon, "a/tcp", 1)[0]["rule"] == "--max-connections 2 (the command line)"
    waiting = _from(daemon, "c/tcp")
    waiting.sendall(b"x")
    waiting.settimeout(0.2)
    with pytest.raises(TimeoutError):
        waiting.recv(1)
    clients[1].close()
    waiting.settimeout(PATIENCE)
    assert waiting.recv(1) == b"x"
    for client in (clients[0], waiting):
        client.close()


@pytest.mark.parametrize("options", ["rate=5/s", "per_source_rate=5/s", "rate=300/m rate_burst=5"])
def test_too_fast_is_never_closed_for_good(start: Callable[..., Daemon], options: str) -> None:
    """So many at once are served; a moment later the next is."""
    daemon = start(f"e 0/tcp echo bind=127.0.0.1 {options}\n")
    answers = [_heard(_from(daemon, "e/tcp")) for _ in range(20)]
    assert answers[:5] == [b"?"] * 5
    refused = answers.count(b"")
    assert refused >= 10
    lines = _refusals(daemon, "e/tcp", refused)
    assert len(lines) <= 3
    assert {line["reason"] for line in lines} == {options.partition("=")[0]}
    time.sleep(0.25)
    assert _heard(_from(daemon, "e/tcp")) == b"?"


@pytest.mark.parametrize("reactor", REACTORS)
@pytest.mark.parametrize("handler", ["echo", "server=/bin/cat"])
def test_banners_arrive(start: Callable[..., Daemon], tmp_path: Path, reactor: str, handler: str) -> None:
    """To those who are let in before the service speaks; to those who are refused whatever they have sent."""
    texts = {"all": b"everybody\r\n", "in": b"welcome\r\n", "out": b"not you\r\n" * 1000}
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text)
    daemon = start(
        f"e 0/tcp {handler} bind=127.0.0.1 no_access=127.0.0.2 banner={tmp_path}/all banner_success={tmp_path}/in "
        f"banner_fail={tmp_path}/out\n",
        twistd_arguments=["--reactor", reactor],
    )
    assert exchange(_from(daemon, "e/tcp"), b"x") == texts["all"] + texts["in"] + b"x"
    for question in (b"", b"x", b"x" * 50_000):
        client = _from(daemon, "e/tcp", "127.0.0.2")
        client.sendall(question)
        # So that it is there when the daemon closes, if it did at once.
        time.sleep(0.1)
        with client:
            heard = b""
            while piece := client.recv(65_536):
                heard += piece
        assert heard == texts["all"] + texts["out"]
    # One that does not go is let go.
    time.sleep(0.2)
    before = daemon.descriptors()
    with _from(daemon, "e/tcp", "127.0.0.2"):
        time.sleep(0.2)
        assert daemon.descriptors() == before + 1
        deadline = time.monotonic() + 10
        while daemon.descriptors() > before:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_mapped_peer_is_an_ipv4_peer(start: Callable[..., Daemon], has_ipv6: bool) -> None:
    """A tcp6 socket that takes IPv4 clients shows them as ::ffff:a.b.c.d."""
    if not has_ipv6:
        pytest.skip("no IPv6 here")
    daemon = start("e 0/tcp6 echo v6only=no only_from=127.0.0.1,::1 no_access=127.0.0.2\n")
    port = daemon.port("e/tcp6")
    for host, target, answer in [
        ("127.0.0.1", "127.0.0.1", b"?"),
        ("127.0.0.2", "127.0.0.1", b""),
        ("::1", "::1", b"?"),
    ]:
        client = socket.create_connection((target, port), PATIENCE, (host, 0))
        assert _heard(client) == answer, host
    assert _refusals(daemon, "e/tcp6", 1)[0]["peer"].startswith("127.0.0.2:")


@pytest.mark.parametrize("reactor", REACTORS)
@pytest.mark.parametrize("handler", ["echo", "server=/bin/cat"])
def test_by_name(start: Callable[..., Daemon], reactor: str, handler: str) -> None:
    """localhost is 127.0.0.1 by /etc/hosts, forward and back; an address without a name is refused."""
    if socket.getnameinfo(("127.0.0.1", 0), 0)[0] != "localhost":
        pytest.skip("127.0.0.1 has another name here")
    daemon = start(
        f"@defaults bind=127.0.0.1\nyes 0/tcp {handler} only_from=localhost\nno 0/tcp {handler} no_access=localhost\n",
        twistd_arguments=["--reactor", reactor],
    )
    for _ in range(2):
        assert _heard(_from(daemon, "yes/tcp"), b"hello") == b"hello"
        assert _heard(_from(daemon, "no/tcp")) == b""
    assert _refusals(daemon, "no/tcp", 2)[0]["reason"] == "name"
    assert _heard(_from(daemon, "yes/tcp", "127.9.9.9")) == b""
    assert _refusals(daemon, "yes/tcp", 1)[0]["rule"].startswith("only_from=localhost (")


@pytest.mark.parametrize("reactor", REACTORS)
def test_a_flood_of_refusals_is_a_few_lines(start: Callable[..., Daemon], reactor: str) -> None:
    """The counts add up, and at the end nothing is left untold."""
    daemon = start("e 0/tcp echo bind=127.0.0.1 only_from=\n", twistd_arguments=["--reactor", reactor])
    began = time.monotonic()
    for _ in range(300):
        _heard(_from(daemon, "e/tcp"), b"")
    seconds = time.monotonic() - began
    assert daemon.stop() == 0
    lines = _refusals(daemon, "e/tcp", 300)
    assert sum(int(line["count"]) for line in lines) == 300
    assert len(lines) <= seconds + 3


def test_every_ticket_comes_back(start: Callable[..., Daemon]) -> None:
    """After kill -9 of handlers, and of their launcher, all places are free again."""
    daemon = start("e 0/tcp server=/bin/cat bind=127.0.0.1 instances=4\n")

    def fill() -> list[socket.socket]:
        clients = [_from(daemon, "e/tcp") for _ in range(4)]
        for client in clients:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        return clients

    clients = fill()
    pids = [int(each["pid"]) for each in daemon.wait_event("accept", "e/tcp", 4)]
    assert _heard(_from(daemon, "e/tcp")) == b""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    daemon.wait_event("end", "e/tcp", 4)
    for client in clients:
        client.close()
    clients = fill()
    launcher = int(daemon.wait_event("launcher", "e/tcp")[0]["pid"])
    os.kill(launcher, signal.SIGKILL)
    for client in clients:
        client.close()
    daemon.wait_event("end", "e/tcp", 8)
    for client in fill():
        client.close()
    daemon.wait_event("end", "e/tcp", 12)
    assert _refusals(daemon, "e/tcp", 1)[0]["count"] == "1"


def test_a_reload_changes_the_rules(start: Callable[..., Daemon]) -> None:
    """Also where they stand; who is in stays in."""
    daemon = start("@defaults bind=127.0.0.1\ne 0/tcp echo no_access=127.0.0.2\nf 0/tcp echo only_from=\n")
    kept = _from(daemon, "e/tcp")
    daemon.file.write_text(
        "# moved\n@defaults bind=127.0.0.1\ne 0/tcp echo no_access=127.0.0.1\nf 0/tcp echo only_from=\n"
    )
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for(lambda line: " reload " in line)
    assert _heard(_from(daemon, "e/tcp")) == b""
    assert _heard(_from(daemon, "e/tcp", "127.0.0.2")) == b"?"
    assert exchange(kept, b"still in") == b"still in"
    assert _heard(_from(daemon, "f/tcp")) == b""
    assert re.search(r":4:\d+\)$", _refusals(daemon, "f/tcp", 1)[0]["rule"])


@pytest.mark.load
@pytest.mark.parametrize(
    ("options", "most_admitted"),
    [("per_source_rate=10/s", FLOOD), ("rate=100/s", FLOOD // 4), ("only_from= banner_fail=/etc/hosts", 0)],
)
def test_a_flood_from_many_addresses(start: Callable[..., Daemon], options: str, most_admitted: int) -> None:
    """Memory stays bounded, another service answers meanwhile, and the flooded one serves as soon as it is over."""
    daemon = start(f"@defaults bind=127.0.0.1 log_on_success=none\nflooded 0/tcp echo {options}\nother 0/tcp echo\n")
    for name in ("flooded", "other"):
        _heard(_from(daemon, f"{name}/tcp"))
    before = daemon.memory()
    flooder = Path(__file__).with_name("flood.py")
    command = [sys.executable, str(flooder), str(daemon.port("flooded/tcp")), str(FLOOD)]
    waits = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as flood:
        while flood.poll() is None:
            began = time.monotonic()
            assert exchange(_from(daemon, "other/tcp"), b"x") == b"x"
            waits.append(time.monotonic() - began)
            time.sleep(0.01)
        assert flood.stdout is not None
        count, failed, seconds = flood.stdout.read().split()
    assert (int(count), int(failed)) == (FLOOD, 0)
    grown = daemon.memory() - before
    figures = {
        "seconds": float(seconds),
        "memory_mb": grown / 1e6,
        "median_ms": statistics.median(waits) * 1000,
        "p99_ms": sorted(waits)[int(len(waits) * 0.99)] * 1000,
        "max_ms": max(waits) * 1000,
    }
    # Shown by pytest -rP.
    print(options, *(f"{name}={value:.2f}" for name, value in figures.items()))
    assert grown < 30_000_000
    # A machine with other work has moments of its own: the median is the daemon's.
    assert statistics.median(waits) < 0.05
    assert max(waits) < 1
    refused = FLOOD - most_admitted
    if refused:
        lines = _refusals(daemon, "flooded/tcp", refused)
        assert len(lines) <= float(seconds) + 3
    time.sleep(0.05)
    if most_admitted:
        assert _heard(_from(daemon, "flooded/tcp", "127.200.0.1")) == b"?"
    assert daemon.stop() == 0


_ASK_AS = """
import os, socket, sys
os.setuid(int(sys.argv[2]))
with socket.socket(socket.AF_UNIX) as client:
    client.settimeout(60)
    client.connect(sys.argv[1])
    try:
        client.sendall(b"?")
        print(client.recv(100).decode(), end="")
    except OSError:
        pass
"""


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("handler", ["echo", "server=/bin/cat"])
@pytest.mark.parametrize("reactor", REACTORS)
def test_by_user_at_a_unix_socket(start: Callable[..., Daemon], open_folder: Path, reactor: str, handler: str) -> None:
    """A user that has all its connections leaves those of another alone; the log and svcctl name both."""
    path = open_folder / "u.sock"
    daemon = start(f"u {path}/unix {handler} per_source=2 mode=0666\n", twistd_arguments=["--reactor", reactor])

    def asked_as(user: int) -> str:
        words = [sys.executable, "-c", _ASK_AS, str(path), str(user)]
        return subprocess.run(words, check=True, capture_output=True, text=True, timeout=120).stdout

    mine = []
    for _ in range(2):
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(PATIENCE)
        client.connect(str(path))
        client.sendall(b"!")
        assert client.recv(1) == b"!"
        mine.append(client)
    assert asked_as(0) == ""
    assert asked_as(4321) == "?"
    [line] = _refusals(daemon, "u/unix", 1)
    assert (line["peer"].partition("/")[2], line["reason"]) == ("uid:0", "per_source")
    users = [each["peer"].partition("/")[2] for each in daemon.wait_event("accept", "u/unix", 3)]
    assert users == ["uid:0", "uid:0", "uid:4321"]
    for client in mine:
        client.close()


def test_by_user_at_a_unix_datagram_socket(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """A rate counts the datagrams of each user, and the refusal names it."""
    path = tmp_path / "d.sock"
    daemon = start(f"d {path}/unixgram echo per_source_rate=1/h\n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.bind("")
        client.settimeout(PATIENCE)
        client.connect(str(path))
        for data in (b"1", b"2"):
            client.send(data)
        assert client.recv(10) == b"1"
    [line] = _refusals(daemon, "d/unixgram", 1)
    assert (line["peer"], line["reason"]) == (f"uid:{os.getuid()}", "per_source_rate")
