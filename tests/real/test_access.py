"""Access rules on real connections, what refused clients receive, and floods that leave other services alone."""

from __future__ import annotations

import contextlib
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
from tests.real.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.daemon import Daemon

REACTORS = ["uv", "epoll"]
#: A built-in echo service and a spawned one.
HANDLERS = {"builtin": "echo", "spawned": "server=/bin/cat"}
#: Number of clients of a flood, each with its own address.
FLOOD = 50_000


def _connect(daemon: Daemon, service: str, host: str = "127.0.0.1") -> socket.socket:
    """Return a connection from a loopback address."""
    client = socket.socket()
    client.settimeout(PATIENCE)
    client.bind((host, 0))
    client.connect(("127.0.0.1", daemon.port(service)))
    return client


def _answer(client: socket.socket, question: bytes = b"?") -> bytes:
    """Send a question and return the answer; empty if the connection is reset before it."""
    try:
        return exchange(client, question)
    except TimeoutError:
        raise
    except OSError:
        return b""


def _refusals(daemon: Daemon, service: str, count: int) -> list[dict[str, str]]:
    """Return the fields of the `refuse` lines of a service, once their counts add up to so many."""

    def found() -> list[dict[str, str]]:
        lines = [line for line in daemon.lines if f" refuse service={service} " in line]
        return [fields(line) for line in lines]

    deadline = time.monotonic() + PATIENCE
    while sum(int(each["count"]) for each in found()) < count:
        assert time.monotonic() < deadline, daemon.lines
        time.sleep(0.05)
    return found()


def _handlers(options: str) -> str:
    """Return the lines of a built-in service and of a spawned one with the same options."""
    return "".join(f"{name} 0/tcp {handler} bind=127.0.0.1 {options}\n" for name, handler in HANDLERS.items())


@pytest.mark.parametrize("reactor", REACTORS)
def test_address_rules(start: Callable[..., Daemon], reactor: str) -> None:
    """The most specific rule decides; the log names the rule and its place in the services file."""
    services = _handlers("only_from=127.0.0.0/24 no_access=127.0.0.3,127.0.0.128/25")
    daemon = start(services, twistd_arguments=["--reactor", reactor])
    for name in HANDLERS:
        for host, answer in [("127.0.0.2", b"?"), ("127.0.0.3", b""), ("127.0.0.130", b""), ("127.0.1.1", b"")]:
            assert _answer(_connect(daemon, f"{name}/tcp", host)) == answer, host
    for number, name in enumerate(HANDLERS, 1):
        lines = _refusals(daemon, f"{name}/tcp", 3)
        assert {line["reason"] for line in lines} == {"address"}
        assert re.fullmatch(rf"no_access=127\.0\.0\.3 \(.*/services:{number}:\d+\)", lines[0]["rule"])


def test_access_times(start: Callable[..., Daemon]) -> None:
    """A span around the present time lets clients in, a later one does not."""
    now = datetime.now().astimezone()
    near = f"{now - timedelta(minutes=30):%H:%M}-{now + timedelta(minutes=30):%H:%M}"
    far = f"{now + timedelta(hours=2):%H:%M}-{now + timedelta(hours=3):%H:%M}"
    daemon = start(
        f"@defaults bind=127.0.0.1\nnow 0/tcp echo access_times={near}\nlater 0/tcp echo access_times={far}\n"
    )
    assert _answer(_connect(daemon, "now/tcp")) == b"?"
    assert _answer(_connect(daemon, "later/tcp")) == b""
    assert _refusals(daemon, "later/tcp", 1)[0]["reason"] == "time"


def test_instances_and_per_source(start: Callable[..., Daemon]) -> None:
    """Clients beyond the limits of a service and of a source are refused; a connection that ends makes room at once."""
    daemon = start(_handlers("instances=2 per_source=1"))
    for service in (f"{name}/tcp" for name in HANDLERS):
        first = _connect(daemon, service, "127.0.0.2")
        first.sendall(b"a")
        assert first.recv(1) == b"a"
        assert _answer(_connect(daemon, service, "127.0.0.2")) == b""
        second = _connect(daemon, service, "127.0.0.3")
        second.sendall(b"b")
        assert second.recv(1) == b"b"
        assert _answer(_connect(daemon, service, "127.0.0.4")) == b""
        first.close()
        daemon.wait_event("end", service)
        assert _answer(_connect(daemon, service, "127.0.0.2")) == b"?"
        second.close()
    for name in HANDLERS:
        assert [line["reason"] for line in _refusals(daemon, f"{name}/tcp", 2)] == ["per_source", "instances"]


@pytest.mark.parametrize("reactor", REACTORS)
def test_queue_of_an_iterative_server(start: Callable[..., Daemon], reactor: str) -> None:
    """With instances=1 on_limit=queue the clients are served in turn, and none is refused."""
    daemon = start(_handlers("instances=1 on_limit=queue"), twistd_arguments=["--reactor", reactor])
    for service in (f"{name}/tcp" for name in HANDLERS):
        clients = [_connect(daemon, service) for _ in range(5)]
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
        daemon.wait_event("end", service, 5)
    assert not [line for line in daemon.lines if " refuse " in line]


def test_limit_of_the_whole_daemon(start: Callable[..., Daemon]) -> None:
    """--max-connections counts connections and processes of all services."""
    text = "@defaults bind=127.0.0.1\na 0/tcp echo\nb 0/tcp server=/bin/cat\nc 0/tcp echo on_limit=queue\n"
    daemon = start(text, "--max-connections", "2")
    clients = [_connect(daemon, f"{name}/tcp") for name in "ab"]
    for client in clients:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
    assert _answer(_connect(daemon, "a/tcp")) == b""
    assert _refusals(daemon, "a/tcp", 1)[0]["rule"] == "--max-connections 2 (the command line)"
    waiting = _connect(daemon, "c/tcp")
    waiting.sendall(b"x")
    waiting.settimeout(0.2)
    with pytest.raises(TimeoutError):
        waiting.recv(1)
    clients[1].close()
    waiting.settimeout(PATIENCE)
    assert waiting.recv(1) == b"x"
    for client in (clients[0], waiting):
        client.close()


def test_rates_refuse_only_for_a_moment(start: Callable[..., Daemon]) -> None:
    """As many clients as the burst are served at once; a moment later the next client is."""
    options = ["rate=5/s", "per_source_rate=5/s", "rate=300/m rate_burst=5"]
    daemon = start("".join(f"e{number} 0/tcp echo bind=127.0.0.1 {each}\n" for number, each in enumerate(options)))
    services = {f"e{number}/tcp": each for number, each in enumerate(options)}
    refused = {}
    for service in services:
        answers = [_answer(_connect(daemon, service)) for _ in range(20)]
        assert answers[:5] == [b"?"] * 5
        refused[service] = answers.count(b"")
        assert refused[service] >= 10
    for service, each in services.items():
        lines = _refusals(daemon, service, refused[service])
        assert len(lines) <= 3
        assert {line["reason"] for line in lines} == {each.partition("=")[0]}
    time.sleep(0.25)
    for service in services:
        assert _answer(_connect(daemon, service)) == b"?"


def _resting_descriptors(daemon: Daemon) -> int:
    """Return the number of open descriptors of a daemon once it has not changed for 0.3 s."""
    while True:
        count = daemon.descriptors()
        for _ in range(6):
            time.sleep(0.05)
            if daemon.descriptors() != count:
                break
        else:
            return count


@pytest.mark.parametrize("reactor", REACTORS)
def test_banners_arrive(start: Callable[..., Daemon], tmp_path: Path, reactor: str) -> None:
    """Admitted clients get theirs before the service sends; refused ones get theirs whatever they have sent."""
    texts = {"all": b"everybody\r\n", "in": b"welcome\r\n", "out": b"not you\r\n" * 1000}
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text)
    options = f"banner={tmp_path}/all banner_success={tmp_path}/in banner_fail={tmp_path}/out"
    daemon = start(_handlers(f"no_access=127.0.0.2 {options}"), twistd_arguments=["--reactor", reactor])
    services = [f"{name}/tcp" for name in HANDLERS]
    for service in services:
        assert exchange(_connect(daemon, service), b"x") == texts["all"] + texts["in"] + b"x"
        for question in (b"", b"x", b"x" * 50_000):
            client = _connect(daemon, service, "127.0.0.2")
            client.sendall(question)
            # The question has arrived when the daemon closes, if it did at once.
            time.sleep(0.1)
            with client:
                answer = b""
                while piece := client.recv(65_536):
                    answer += piece
            assert answer == texts["all"] + texts["out"]
    # Refused clients that do not close are closed by the daemon.
    before = _resting_descriptors(daemon)
    with contextlib.ExitStack() as stack:
        for service in services:
            stack.enter_context(_connect(daemon, service, "127.0.0.2"))
        wait_until(lambda: daemon.descriptors() == before + len(services), "the connections are open")
        deadline = time.monotonic() + 10
        while daemon.descriptors() > before:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_mapped_peer_is_an_ipv4_peer(start: Callable[..., Daemon], has_ipv6: bool) -> None:
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
        assert _answer(client) == answer, host
    assert _refusals(daemon, "e/tcp6", 1)[0]["peer"].startswith("127.0.0.2:")


@pytest.mark.parametrize("reactor", REACTORS)
def test_host_name_rules(start: Callable[..., Daemon], reactor: str) -> None:
    """/etc/hosts confirms localhost for 127.0.0.1 in both directions; an address without a name is refused."""
    if socket.getnameinfo(("127.0.0.1", 0), 0)[0] != "localhost":
        pytest.skip("127.0.0.1 has another name here")
    lines = [
        f"yes-{name} 0/tcp {handler} only_from=localhost\nno-{name} 0/tcp {handler} no_access=localhost\n"
        for name, handler in HANDLERS.items()
    ]
    daemon = start("@defaults bind=127.0.0.1\n" + "".join(lines), twistd_arguments=["--reactor", reactor])
    services = [(f"yes-{name}/tcp", f"no-{name}/tcp") for name in HANDLERS]
    for yes, no in services:
        for _ in range(2):
            assert _answer(_connect(daemon, yes), b"hello") == b"hello"
            assert _answer(_connect(daemon, no)) == b""
        assert _answer(_connect(daemon, yes, "127.9.9.9")) == b""
    for yes, no in services:
        assert _refusals(daemon, no, 2)[0]["reason"] == "name"
        assert _refusals(daemon, yes, 1)[0]["rule"].startswith("only_from=localhost (")


@pytest.mark.parametrize("reactor", REACTORS)
def test_flood_of_refusals_makes_few_log_lines(start: Callable[..., Daemon], reactor: str) -> None:
    """The counts of the lines add up to all refusals, and the stop writes the last ones."""
    daemon = start("e 0/tcp echo bind=127.0.0.1 only_from=\n", twistd_arguments=["--reactor", reactor])
    began = time.monotonic()
    for _ in range(300):
        _answer(_connect(daemon, "e/tcp"), b"")
    seconds = time.monotonic() - began
    assert daemon.stop() == 0
    lines = _refusals(daemon, "e/tcp", 300)
    assert sum(int(line["count"]) for line in lines) == 300
    assert len(lines) <= seconds + 3


def test_dead_handlers_free_their_places(start: Callable[..., Daemon]) -> None:
    """After kill -9 of handlers, and of their launcher, all places are free again."""
    daemon = start("e 0/tcp server=/bin/cat bind=127.0.0.1 instances=4\n")

    def fill() -> list[socket.socket]:
        clients = [_connect(daemon, "e/tcp") for _ in range(4)]
        for client in clients:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        return clients

    clients = fill()
    pids = [int(each["pid"]) for each in daemon.wait_event("accept", "e/tcp", 4)]
    assert _answer(_connect(daemon, "e/tcp")) == b""
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


def test_reload_changes_the_rules(start: Callable[..., Daemon]) -> None:
    """A reload changes the rules and their places in the file; open connections stay."""
    daemon = start("@defaults bind=127.0.0.1\ne 0/tcp echo no_access=127.0.0.2\nf 0/tcp echo only_from=\n")
    kept = _connect(daemon, "e/tcp")
    daemon.file.write_text(
        "# moved\n@defaults bind=127.0.0.1\ne 0/tcp echo no_access=127.0.0.1\nf 0/tcp echo only_from=\n"
    )
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for(lambda line: " reload " in line)
    assert _answer(_connect(daemon, "e/tcp")) == b""
    assert _answer(_connect(daemon, "e/tcp", "127.0.0.2")) == b"?"
    assert exchange(kept, b"still in") == b"still in"
    assert _answer(_connect(daemon, "f/tcp")) == b""
    assert re.search(r":4:\d+\)$", _refusals(daemon, "f/tcp", 1)[0]["rule"])


@pytest.mark.load
@pytest.mark.parametrize(
    ("options", "most_admitted"),
    [("per_source_rate=10/s", FLOOD), ("rate=100/s", FLOOD // 4), ("only_from= banner_fail=/etc/hosts", 0)],
)
def test_flood_from_many_addresses(start: Callable[..., Daemon], options: str, most_admitted: int) -> None:
    """Memory stays bounded, another service answers meanwhile, and the flooded service answers after the flood."""
    daemon = start(f"@defaults bind=127.0.0.1 log_on_success=none\nflooded 0/tcp echo {options}\nother 0/tcp echo\n")
    for name in ("flooded", "other"):
        _answer(_connect(daemon, f"{name}/tcp"))
    before = daemon.memory()
    flooder = Path(__file__).with_name("flood.py")
    command = [sys.executable, str(flooder), str(daemon.port("flooded/tcp")), str(FLOOD)]
    waits = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as flood:
        while flood.poll() is None:
            began = time.monotonic()
            assert exchange(_connect(daemon, "other/tcp"), b"x") == b"x"
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
    # Other work of the machine adds to the maximum, not to the median.
    assert statistics.median(waits) < 0.05
    assert max(waits) < 1
    refused = FLOOD - most_admitted
    if refused:
        lines = _refusals(daemon, "flooded/tcp", refused)
        assert len(lines) <= float(seconds) + 3
    time.sleep(0.05)
    if most_admitted:
        assert _answer(_connect(daemon, "flooded/tcp", "127.200.0.1")) == b"?"
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
@pytest.mark.parametrize("reactor", REACTORS)
def test_per_source_counts_users_at_a_unix_socket(
    start: Callable[..., Daemon], open_folder: Path, reactor: str
) -> None:
    """A user that has all its connections does not affect another user; the log names both."""
    lines = [
        f"{name} {open_folder}/{name}.sock/unix {handler} per_source=2 mode=0666\n"
        for name, handler in HANDLERS.items()
    ]
    daemon = start("".join(lines), twistd_arguments=["--reactor", reactor])
    for name in HANDLERS:
        path = str(open_folder / f"{name}.sock")

        def asked_as(user: int, path: str = path) -> str:
            words = [sys.executable, "-I", "-S", "-c", _ASK_AS, path, str(user)]
            return subprocess.run(words, check=True, capture_output=True, text=True, timeout=120).stdout

        mine = []
        for _ in range(2):
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(PATIENCE)
            client.connect(path)
            client.sendall(b"!")
            assert client.recv(1) == b"!"
            mine.append(client)
        assert asked_as(0) == ""
        assert asked_as(4321) == "?"
        [line] = _refusals(daemon, f"{name}/unix", 1)
        assert (line["peer"].partition("/")[2], line["reason"]) == ("uid:0", "per_source")
        users = [each["peer"].partition("/")[2] for each in daemon.wait_event("accept", f"{name}/unix", 3)]
        assert users == ["uid:0", "uid:0", "uid:4321"]
        for client in mine:
            client.close()


def test_per_source_rate_counts_users_at_a_unix_datagram_socket(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """The rate counts the datagrams of each user, and the refusal names the user."""
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
