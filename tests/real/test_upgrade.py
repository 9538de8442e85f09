"""`svcctl upgrade`: a new daemon takes over sockets and programs."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.real.daemon import PATIENCE, environment, exchange, fields, twistd
from tests.real.load import Load
from tests.real.processes import Process, wait_until
from tests.real.upgrades import SERVICES, ask, end_process, importing, svcctl, upgrade_daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.real.daemon import Daemon


REACTORS = ["uv", "epoll"]


@pytest.mark.parametrize("reactor", REACTORS)
def test_new_daemon_takes_over(start_controlled: Callable[..., Daemon], open_folder: Path, reactor: str) -> None:
    """All kinds of sockets stay open; open connections go on in the old process, which ends with the last of them."""
    local = f"loc {open_folder}/loc/unix upper\nlog {open_folder}/log/unixgram echo\n"
    daemon = start_controlled(SERVICES + local, twistd_arguments=["--reactor", reactor])
    old = [daemon.connect("echo/tcp"), daemon.connect("cat/tcp")]
    for client in old:
        client.sendall(b"before")
        assert client.recv(100) == b"before"
    launcher = Process(daemon.launcher("cat/tcp"))
    found = upgrade_daemon(open_folder)
    assert (found["before"], found["connections"]) == (daemon.process.pid, 2)
    assert found["pid"] not in (0, daemon.process.pid)
    assert svcctl(open_folder, "status").stdout.startswith(f"svcd {_version()}, pid {found['pid']}, ")
    for service, question, answer in [("echo/tcp", b"a", b"a"), ("cat/tcp", b"b", b"b")]:
        assert exchange(daemon.connect(service), question) == answer
    assert exchange(daemon.connect("loc/unix", socket.AF_UNIX), b"c") == b"C"
    for service, family in [("echo/udp", socket.AF_INET), ("log/unixgram", socket.AF_UNIX)]:
        with daemon.connect(service, family) as client:
            client.send(b"d")
            assert client.recv(100) == b"d"
    assert daemon.launcher("cat/tcp", 2) != launcher.pid
    assert daemon.process.poll() is None
    assert launcher.alive
    for client in old:
        client.sendall(b"after")
        assert client.recv(100) == b"after"
        client.close()
    assert daemon.process.wait(PATIENCE) == 0
    launcher.wait()
    assert exchange(daemon.connect("loc/unix", socket.AF_UNIX), b"still") == b"STILL"
    assert daemon.wait_event("listen", "loc/unix", 2)[1]["origin"] == "store"
    assert svcctl(open_folder, "stop").returncode == 0
    Process(found["pid"]).wait()
    assert list(open_folder.iterdir()) == []


def _version() -> str:
    done = subprocess.run(
        [sys.executable, "-m", "svcd", "--version"], env=environment(), capture_output=True, text=True, check=True
    )
    return done.stdout.split()[1]


@pytest.mark.parametrize("reactor", REACTORS)
def test_late_proxy_header(start_controlled: Callable[..., Daemon], open_folder: Path, reactor: str) -> None:
    """A connection that was accepted before the upgrade is served by the old daemon after it."""
    services = "@defaults bind=127.0.0.1 proxy_protocol=127.0.0.1\necho 0/tcp\ncat 0/tcp server=/bin/cat\n"
    daemon = start_controlled(services, twistd_arguments=["--reactor", reactor])
    clients = [daemon.connect("echo/tcp"), daemon.connect("cat/tcp")]
    wait_until(lambda: len(ask(open_folder, "connections")["result"]) == 2, "both connections are listed")
    found = upgrade_daemon(open_folder)
    assert (found["before"], found["connections"]) == (daemon.process.pid, 2)
    for client in clients:
        with client:
            client.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 40000 443\r\nlate")
            assert client.recv(100) == b"late"
    assert daemon.process.wait(PATIENCE) == 0
    assert svcctl(open_folder, "stop").returncode == 0
    Process(found["pid"]).wait()


def test_upgrade_of_an_upgraded_daemon(start_controlled: Callable[..., Daemon], open_folder: Path) -> None:
    """A daemon that has taken over is replaced while the first has a connection; --now ends connections."""
    daemon = start_controlled("echo 0/tcp bind=127.0.0.1 shutdown_timeout=0.3s\n")
    with daemon.connect("echo/tcp") as first:
        first.sendall(b"1")
        assert first.recv(1) == b"1"
        second = upgrade_daemon(open_folder)
        third = upgrade_daemon(open_folder, "--now")
        assert (third["before"], third["connections"]) == (second["pid"], 0)
        Process(second["pid"]).wait()
        assert daemon.process.poll() is None
        # SIGTERM ends the first daemon as usual; the daemon that serves is not affected.
        daemon.process.terminate()
        assert daemon.process.wait(PATIENCE) == 0
    with daemon.connect("echo/tcp") as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        fourth = upgrade_daemon(open_folder, "--now")
        assert fourth["connections"] == 1
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
    Process(third["pid"]).wait()
    assert daemon.new_daemons == [second["pid"], third["pid"], fourth["pid"]]
    assert exchange(daemon.connect("echo/tcp"), b"bye") == b"bye"


@pytest.mark.parametrize("reactor", REACTORS)
def test_http_keep_alive(start_controlled: Callable[..., Daemon], open_folder: Path, reactor: str) -> None:
    """The next answer of the old daemon over HTTP closes the connection, so that no client stays with it."""
    daemon = start_controlled("status 0/tcp4\n", twistd_arguments=["--reactor", reactor])
    question = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with daemon.connect("status/tcp4") as client:
        client.sendall(question)
        assert b"connection: close" not in client.recv(4096).lower()
        upgrade_daemon(open_folder)
        client.sendall(question)
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"connection: close" in answer.lower()
    assert daemon.process.wait(PATIENCE) == 0
    assert exchange(daemon.connect("status/tcp4"), question).startswith(b"HTTP/1.1 200 ")


#: Program that reads from the socket until a datagram `end`.
WAITS = """
import os, socket
sock = socket.socket(fileno=os.dup(0))
question = b""
while question != b"end":
    assert os.get_blocking(0)
    question, peer = sock.recvfrom(1000)
    sock.sendto(b"%d" % os.getpid(), peer)
"""


@pytest.mark.parametrize("reactor", REACTORS)
def test_program_of_wait_yes_over_an_upgrade(
    start_controlled: Callable[..., Daemon], open_folder: Path, reactor: str
) -> None:
    """It keeps the socket until it ends; then the new daemon starts one. No datagram is lost or served twice."""
    (open_folder / "waits.py").write_text(WAITS)
    server = f"{sys.executable} -I -S {open_folder}/waits.py"
    daemon = start_controlled(
        f'it 0/udp4 bind=127.0.0.1 wait=yes server="{server}"\necho 0/tcp\n', twistd_arguments=["--reactor", reactor]
    )
    with daemon.connect("it/udp4") as client, daemon.connect("echo/tcp") as stays:
        stays.sendall(b"x")
        assert stays.recv(1) == b"x"

        def answer(question: bytes) -> int:
            client.send(question)
            return int(client.recv(100))

        first = answer(b"a")
        found = upgrade_daemon(open_folder)
        assert [answer(b"b"), answer(b"c")] == [first, first]
        rows = {row["service"]: row for row in ask(open_folder, "status")["result"]["services"]}
        assert (rows["it/udp4"]["state"], rows["it/udp4"]["connections"]) == ("on", 0)
        assert answer(b"end") == first
        second = answer(b"d")
        assert second != first
        assert daemon.process.poll() is None
        rows = {row["service"]: row for row in ask(open_folder, "status")["result"]["services"]}
        assert (rows["it/udp4"]["state"], rows["it/udp4"]["connections"]) == ("on", 1)
        assert answer(b"end") == second
    assert daemon.process.wait(PATIENCE) == 0
    assert ask(open_folder, "status")["result"]["pid"] == found["pid"]


#: Program that accepts until a client sends `end`.
ACCEPTS = """
import os, socket
listener = socket.socket(fileno=os.dup(0))
question = b""
while question != b"end":
    client, _ = listener.accept()
    question = client.recv(1000)
    client.sendall(b"%d" % os.getpid())
    client.close()
"""


@pytest.mark.parametrize("reactor", [*REACTORS, "asyncio"])
def test_programs_keep_their_sockets_over_upgrades(
    start_controlled: Callable[..., Daemon], open_folder: Path, reactor: str
) -> None:
    """No daemon starts a second program while the first lives, although the daemon that started it is killed."""
    (open_folder / "waits.py").write_text(WAITS)
    (open_folder / "accepts.py").write_text(ACCEPTS)
    nets = {"tcp": "0/tcp", "udp": "0/udp", "unix": f"{open_folder}/it.sock/unix"}
    lines = [
        f'it {where} wait=yes server="{sys.executable} -I -S {open_folder}/{"waits" if net == "udp" else "accepts"}.py"'
        for net, where in nets.items()
    ]
    text = "\n".join(["@defaults bind=127.0.0.1", *lines, "echo 0/tcp", ""])
    daemon = start_controlled(text, twistd_arguments=["--reactor", reactor])

    def answers(question: bytes, wanted: dict[str, int] | None = None, times: int = 1) -> dict[str, int]:
        for _ in range(times):
            found = {}
            for net in nets:
                family = socket.AF_UNIX if net == "unix" else socket.AF_INET
                with daemon.connect(f"it/{net}", family) as client:
                    client.sendall(question)
                    found[net] = int(client.recv(100))
            assert wanted is None or found == wanted
        return found

    first = answers(b"a")
    pids = [upgrade_daemon(open_folder)["pid"]]
    answers(b"b", first, 2)
    # The program is known to the third daemon, too, when the second one has ended.
    pids.append(upgrade_daemon(open_folder)["pid"])
    Process(pids[0]).wait()
    answers(b"d", first, 2)
    daemon.process.kill()
    daemon.process.wait(PATIENCE)
    pids.append(upgrade_daemon(open_folder)["pid"])
    answers(b"f", first, 5)
    for net in nets:
        assert len(daemon.wait_event("accept", f"it/{net}")) == 1
    answers(b"end", first)
    for pid in first.values():
        Process(pid).wait()
    # These end by themselves, or the stop of the daemon would wait for shutdown_timeout.
    for net, pid in answers(b"end").items():
        assert pid not in (0, first[net])
    assert ask(open_folder, "status")["result"]["pid"] == pids[-1]
    os.kill(pids[-1], signal.SIGTERM)
    Process(pids[-1]).wait()


def test_upgrade_with_a_slow_import(start_controlled: Callable[..., Daemon], open_folder: Path) -> None:
    """The old daemon serves until the new daemon has imported its module, and no client is refused."""
    services = "echo 0/tcp4\nown 0/tcp4 factory=marks:make bind=127.0.0.1\n"
    with importing(start_controlled, open_folder, services) as (daemon, client):
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            with daemon.connect("own/tcp4") as question:
                question.sendall(b"x")
                assert question.recv(1) == b"x"
        assert len([line for line in daemon.lines if " ready services=" in line]) == 1
        (open_folder / "wait").unlink()
        answer = json.loads(client.makefile("rb").readline())
    assert (answer["ok"], answer["result"]["faults"]) == (True, [])
    assert not any(" broken " in line for line in daemon.lines)


@pytest.fixture
def background(open_folder: Path) -> Iterator[Callable[..., int]]:
    """Return a function that starts a daemon in the background, with a pid file and a log, and returns its pid."""

    def starter(services: str, *twistd_words: str) -> int:
        (open_folder / "services").write_text(services)
        words = twistd("--pidfile=my.pid", "--logfile=my.log", *twistd_words, "svcd", "--services=services")
        words += ["--control=control"]
        subprocess.run(words, cwd=open_folder, env=environment(), check=True, timeout=PATIENCE)
        return int((open_folder / "my.pid").read_text())

    yield starter
    for line in (open_folder / "my.log").read_text().splitlines():
        if " upgrade pid=" in line:
            end_process(int(fields(line)["pid"]))
    if (open_folder / "my.pid").exists():
        end_process(int((open_folder / "my.pid").read_text()))


def _served(folder: Path, service: str, question: bytes) -> bytes:
    lines = [fields(line) for line in (folder / "my.log").read_text().splitlines()]
    address = next(line["address"] for line in lines if line["event"] == "listen" and line["service"] == service)
    host, _, port = address.rpartition(":")
    return exchange(socket.create_connection((host, int(port)), PATIENCE), question)


def test_upgrade_in_the_background(background: Callable[..., int], open_folder: Path) -> None:
    """The pid file has the new pid from the upgrade on, and both daemons write to the same log."""
    first = Process(background("echo 0/tcp bind=127.0.0.1\n"))
    found = upgrade_daemon(open_folder)
    assert int((open_folder / "my.pid").read_text()) == found["pid"]
    first.wait()
    assert int((open_folder / "my.pid").read_text()) == found["pid"]
    assert _served(open_folder, "echo/tcp", b"hi") == b"hi"
    (open_folder / "services").write_text("more 0/tcp daytime bind=192.0.2.1\n")
    done = svcctl(open_folder, "upgrade")
    # The whole line, though the new daemon had left the terminal by then.
    assert (done.returncode, "more/tcp: can't listen on 192.0.2.1:0" in done.stderr) == (1, True), done.stderr
    assert int((open_folder / "my.pid").read_text()) == found["pid"]
    assert not (open_folder / "my.pid.new").exists()
    assert _served(open_folder, "echo/tcp", b"hi") == b"hi"
    log = (open_folder / "my.log").read_text()
    assert log.count(" ready services=1 ") == 2
    assert (log.count(" upgrade pid="), log.count(" upgrade-failed ")) == (1, 1)
    end_process(found["pid"])
    assert not (open_folder / "my.pid").exists()


def test_endless_import_of_a_handler(background: Callable[..., int], open_folder: Path) -> None:
    """Neither the start in the background nor an upgrade waits for it, because launchers import it."""
    (open_folder / "endless.py").write_text("import time\ntime.sleep(3600)\n")
    endless = f"endless 0/tcp bind=127.0.0.1 python=endless:serve python_path={open_folder} start_timeout=1h\n"
    background("echo 0/tcp bind=127.0.0.1\n" + endless)
    assert _served(open_folder, "echo/tcp", b"hi") == b"hi"
    upgrade_daemon(open_folder)
    assert _served(open_folder, "echo/tcp", b"hi") == b"hi"


@pytest.mark.usefixtures("as_root", "as_nobody")
def test_upgrade_after_root_was_given_up(background: Callable[..., int], open_folder: Path) -> None:
    """Sockets are handed over nevertheless; a new service that needs root fails the upgrade."""
    open_folder.chmod(0o777)
    text = "echo 0/tcp bind=127.0.0.1\n"
    background(text, "--uid=nobody")
    first = Process(int((open_folder / "my.pid").read_text()))
    assert first.status("Uid").split() == ["65534"] * 4
    found = upgrade_daemon(open_folder)
    first.wait()
    assert Process(found["pid"]).status("Uid").split() == ["65534"] * 4
    assert int((open_folder / "my.pid").read_text()) == found["pid"]
    (open_folder / "services").write_text(f"{text}cat 0/tcp bind=127.0.0.1 server=/bin/cat user=root\n")
    done = svcctl(open_folder, "upgrade")
    assert (done.returncode, "user: this requires root" in done.stderr) == (1, True), done.stderr
    assert _served(open_folder, "echo/tcp", b"hi") == b"hi"


@pytest.mark.usefixtures("as_root", "as_nobody")
def test_a_pid_file_that_the_user_can_not_write(background: Callable[..., int], open_folder: Path) -> None:
    """The new daemon of --uid can't create its pid file in a directory of root: svcctl prints the reason."""
    open_folder.chmod(0o755)
    background("echo 0/tcp bind=127.0.0.1\n", "--uid=nobody")
    done = svcctl(open_folder, "upgrade")
    first, last = done.stderr.splitlines()
    assert done.returncode == 1
    assert f"can't write the pid file my.pid.new in {open_folder}" in first
    assert "the new daemon did not start: it has ended, with status 64" in last
    assert _served(open_folder, "echo/tcp", b"hi") == b"hi"


def test_thousands_of_sockets(start_controlled: Callable[..., Daemon], open_folder: Path) -> None:
    """More than the default limit of open files, with names too long for an environment variable.

    Handlers get the limit of open files of the first daemon, whichever daemon starts them.
    """
    count, folder = 1500, open_folder
    lines = [f"{'name-' * 12}{number} {folder}/{number}/unix echo\n" for number in range(count)]
    lines += ["limit 0/tcp4 bind=127.0.0.1 server=\"/bin/sh -c 'ulimit -Sn; ulimit -Hn'\"\n"]

    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 4096))

    daemon = start_controlled("".join(lines), preexec_fn=few)
    for _ in range(2):
        found = upgrade_daemon(open_folder)
        assert exchange(daemon.connect("limit/tcp4")) == b"1024\n4096\n"
        for number in (0, count - 1):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(f"{folder}/{number}")
                client.sendall(b"x")
                assert client.recv(1) == b"x"
        assert ask(open_folder, "status")["result"]["pid"] == found["pid"]
    assert len([line for line in daemon.lines if " listen " in line and "origin=store" in line]) == 2 * (count + 1)


@pytest.mark.load
@pytest.mark.parametrize("reactor", REACTORS)
def test_ten_upgrades_under_load(start_controlled: Callable[..., Daemon], open_folder: Path, reactor: str) -> None:
    """Under 64 clients in closed loops no connection is refused, reset or cut short; each datagram has one answer."""
    daemon = start_controlled(SERVICES, twistd_arguments=["--reactor", reactor])
    load = Load(daemon.port("echo/tcp"), daemon.port("day/tcp"), daemon.port("echo/udp"), pause=0.15)
    with load.going_on():
        for _ in range(10):
            assert ask(open_folder, "upgrade")["ok"]
        daemon.file.write_text("ecoh 0/tcp\n")
        assert ask(open_folder, "upgrade")["code"] == "config"
    assert load.wrong == []
    assert load.done > 100
    assert len(set(daemon.new_daemons)) == 10
    wait_until(lambda: not any(Process(pid).alive for pid in daemon.new_daemons[:-1]), "the old ones end")
