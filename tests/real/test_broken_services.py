"""Services that can't be served are broken, the others serve, and broken ones recover by themselves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.real import preloaded
from tests.real.daemon import PATIENCE, environment, exchange, twistd

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.daemon import Daemon

REACTORS = ["uv", "epoll", "asyncio"]


def svcctl(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    """Run svcctl against a daemon that was started with --control control."""
    return preloaded.run(
        [sys.executable, "-m", "svcd", "--control", str(daemon.folder / "control"), *words],
        env=environment(), capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip


def own_name() -> str:
    """Return the command name of this process."""
    return Path("/proc/self/comm").read_text().strip()


def status(daemon: Daemon) -> dict[str, dict[str, Any]]:
    """Return the rows of `svcctl status`, by service."""
    return {row["service"]: row for row in json.loads(svcctl(daemon, "status", "--json").stdout)["services"]}


def broken(daemon: Daemon, service: str, count: int = 1) -> str:
    """Return the reason of the last `broken` line of a service."""
    return daemon.wait_event("broken", service, count)[-1]["reason"]


def recovered(daemon: Daemon, service: str, count: int = 1) -> None:
    """Wait until a service is served again."""
    daemon.wait_event("recovered", service, count)


@pytest.mark.parametrize("reactor", REACTORS)
def test_port_in_use(start: Callable[..., Daemon], reactor: str) -> None:
    """The other service serves, the message names the process, and the service recovers when the port is free."""
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    daemon = start(
        f"@defaults bind=127.0.0.1\nx {port}/tcp upper\nok 0/tcp echo\nstat 0/tcp status\n", "--control", "control",
        twistd_arguments=["--reactor", reactor],
    )  # fmt: skip
    assert f"(pid {os.getpid()})" in broken(daemon, "x/tcp")
    assert exchange(daemon.connect("ok/tcp"), b"a") == b"a"
    row = status(daemon)["x/tcp"]
    assert (row["state"], row["addresses"]) == ("broken", [f"127.0.0.1:{port}"])
    assert "Address already in use" in row["problems"][0]
    assert "Address already in use" in svcctl(daemon, "show", "x").stdout
    metrics = exchange(daemon.connect("stat/tcp"), b"GET /metrics HTTP/1.0\r\n\r\n").decode()
    assert 'svcd_service_up{service="x/tcp"} 0' in metrics
    assert 'svcd_service_up{service="ok/tcp"} 1' in metrics
    page = exchange(daemon.connect("stat/tcp"), b"GET / HTTP/1.0\r\n\r\n").decode()
    assert "Address already in use" in page
    found = svcctl(daemon, "enable", "x")
    assert found.returncode == 1
    assert "x/tcp is broken: " in found.stderr
    assert f"(pid {os.getpid()})" in found.stderr
    # A new service: the owner of its port has not been looked up before.
    with socket.create_server(("127.0.0.1", 0)) as other:
        more = f"y {other.getsockname()[1]}/tcp echo\n"
        text = daemon.file.read_text()
        for words in (("--strict",), ()):
            daemon.file.write_text(text + more)
            found = svcctl(daemon, "reload", *words)
            assert (found.returncode, f"in use by {own_name()} (pid {os.getpid()})" in found.stderr) == (1, True)
        daemon.file.write_text(text)
        svcctl(daemon, "reload")
    taken.close()
    assert svcctl(daemon, "enable", "x").returncode == 0
    recovered(daemon, "x/tcp")
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        assert exchange(client, b"a") == b"A"
    assert status(daemon)["x/tcp"]["state"] == "on"


def test_broken_service_is_retried(start: Callable[..., Daemon]) -> None:
    """It recovers without a command when the port is free; its line can be removed while it is broken."""
    taken = socket.create_server(("127.0.0.1", 0))
    text = "@defaults bind=127.0.0.1\nok 0/tcp echo\n"
    daemon = start(f"{text}x {taken.getsockname()[1]}/tcp upper\n", "--control", "control")
    broken(daemon, "x/tcp")
    daemon.file.write_text(text)
    assert svcctl(daemon, "reload").returncode == 0
    assert list(status(daemon)) == ["ok/tcp"]
    daemon.file.write_text(f"{text}x {taken.getsockname()[1]}/tcp upper\n")
    found = svcctl(daemon, "reload")
    assert (found.returncode, "Address already in use" in found.stderr) == (1, True)
    taken.close()
    recovered(daemon, "x/tcp")


@pytest.mark.parametrize("reactor", REACTORS)
def test_missing_files_that_appear(start: Callable[..., Daemon], tmp_path: Path, reactor: str) -> None:
    """Services with a missing program, root, banner or socket directory recover as soon as it exists."""
    folder = tmp_path / "later"
    daemon = start(
        f"ok 0/tcp echo bind=127.0.0.1\n"
        f"program 0/tcp server={folder}/bin/hello bind=127.0.0.1\n"
        f"files 0/tcp http root={folder}/www bind=127.0.0.1\n"
        f"banner 0/tcp echo banner={folder}/banner bind=127.0.0.1\n"
        f"local {folder}/run/sock/unix echo\n",
        twistd_arguments=["--reactor", reactor],
    )
    for service in ("program/tcp", "files/tcp", "banner/tcp", "local/unix"):
        assert str(folder) in broken(daemon, service)
    for name in ("bin", "www", "run"):
        (folder / name).mkdir(parents=True)
    (folder / "banner").write_text("hello\n")
    program = folder / "bin" / "hello"
    program.write_text("#!/bin/sh\necho hello\n")
    program.chmod(0o755)
    for service in ("program/tcp", "files/tcp", "banner/tcp", "local/unix"):
        recovered(daemon, service)
    assert exchange(daemon.connect("program/tcp")) == b"hello\n"
    assert exchange(daemon.connect("local/unix", socket.AF_UNIX), b"a") == b"a"


FACTORIES = """
import asyncio

from twisted.internet.protocol import Factory, Protocol

class Raising(Factory):
    noisy = False
    protocol = Protocol

class Start(Raising):
    def startFactory(self):
        raise RuntimeError("no start")

class Stop(Raising):
    def stopFactory(self):
        raise RuntimeError("no stop")

class Build(Raising):
    def buildProtocol(self, addr):
        raise RuntimeError("no protocol")

class DoStart(Raising):
    def doStart(self):
        raise RuntimeError("no doStart")

class DoStop(Raising):
    def doStop(self):
        raise RuntimeError("no doStop")

class Cancelled(Raising):
    def startFactory(self):
        raise asyncio.CancelledError("no task")

class CancelledStop(Raising):
    def stopFactory(self):
        raise asyncio.CancelledError("no stop")

class CancelledBuild(Raising):
    def buildProtocol(self, addr):
        raise asyncio.CancelledError("no protocol")

def cancelled():
    raise asyncio.CancelledError("no factory")

def number():
    return 3

def leaves():
    raise SystemExit(3)
"""


RAISING_LATER = ("Stop", "Build", "CancelledStop", "CancelledBuild")
#: Each with a word of the reason.
RAISING_AT_START = {
    "Start": "no start",
    "DoStart": "no doStart",
    "Cancelled": "CancelledError",
    "cancelled": "CancelledError",
    "number": "int",
    "leaves": "SystemExit",
}


@pytest.mark.parametrize("reactor", REACTORS)
def test_factories_that_raise(start: Callable[..., Daemon], tmp_path: Path, reactor: str) -> None:
    """An exception of a factory breaks its service or closes that connection only, and the daemon can be stopped."""
    (tmp_path / "ours.py").write_text(FACTORIES)
    env = {"PYTHONPATH": f"{environment()['PYTHONPATH']}:{tmp_path}"}
    base = "@defaults bind=127.0.0.1\nok 0/tcp echo\n"
    daemon = start(
        base + "old 0/tcp echo\n" + "".join(f"{name} 0/tcp factory=ours:{name}\n" for name in RAISING_LATER),
        "--control", "control", twistd_arguments=["--reactor", reactor], env=env,
    )  # fmt: skip
    assert exchange(daemon.connect("Build/tcp")) == b""
    assert "buildProtocol raises RuntimeError: no protocol" in daemon.wait_event("fail", "Build/tcp")[0]["reason"]
    assert exchange(daemon.connect("CancelledBuild/tcp")) == b""
    assert "CancelledError" in daemon.wait_event("fail", "CancelledBuild/tcp")[0]["reason"]
    new = base + "".join(f"{name} 0/tcp factory=ours:{name}\n" for name in ("Stop", "DoStop", *RAISING_AT_START))
    daemon.file.write_text(new)
    found = svcctl(daemon, "reload")
    assert found.returncode == 1, found.stderr
    for name, text in RAISING_AT_START.items():
        assert text in broken(daemon, f"{name}/tcp"), name
    # The new file is in use, and later reloads work.
    assert {name for name, row in status(daemon).items() if row["state"] == "on"} == {
        "ok/tcp",
        "Stop/tcp",
        "DoStop/tcp",
    }
    assert svcctl(daemon, "reload").returncode == 1
    daemon.file.write_text(base)
    assert svcctl(daemon, "reload").returncode == 0
    problems = daemon.wait_for(lambda line: " problem " in line and "no stop" in line)
    assert "Traceback" not in "\n".join(daemon.lines)
    assert problems
    daemon.file.write_text(new)
    svcctl(daemon, "reload")
    assert exchange(daemon.connect("ok/tcp"), b"a") == b"a"
    assert daemon.stop() == 0


@pytest.mark.parametrize("kind", ["python", "factory"])
def test_slow_import(start: Callable[..., Daemon], tmp_path: Path, kind: str) -> None:
    """The other service serves at once, and this service after the import of its module."""
    wrapper = tmp_path / "gate"
    os.mkfifo(wrapper)
    (tmp_path / "big.py").write_text(
        f"import os\n"
        f"if os.path.exists({str(wrapper)!r}):\n    open({str(wrapper)!r}).close()\n"
        f"from twisted.internet.protocol import Factory\nfrom twisted.protocols.wire import Echo\n"
        f"class F(Factory):\n    protocol = Echo\n    noisy = False\n"
        f"def serve(conn):\n    conn.stdout.write(b'big') if hasattr(conn, 'stdout') else conn.write(b'big')\n"
    )
    env = {"PYTHONPATH": f"{environment()['PYTHONPATH']}:{tmp_path}"}
    named = {"python": f"python=big:serve python_path={tmp_path}", "factory": "factory=big:F"}[kind]
    daemon = start(f"@defaults bind=127.0.0.1\nbig 0/tcp {named}\nok 0/tcp echo\n", "--control", "control", env=env)
    assert exchange(daemon.connect("ok/tcp"), b"a") == b"a"
    # The open pipe lets one import continue; without the pipe further imports do not wait.
    tracker = os.open(wrapper, os.O_RDWR)
    wrapper.unlink()
    os.close(tracker)
    if kind == "factory":
        recovered(daemon, "big/tcp")
        assert exchange(daemon.connect("big/tcp"), b"a") == b"a"
    else:
        daemon.launcher("big/tcp")


def test_start_without_a_service(tmp_path: Path) -> None:
    """The start fails, with a line for each reason, if no service can be served; with --strict if any can't."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for text, arguments, code, wanted in (
            (f"x {port}/tcp echo bind=127.0.0.1", [], 71, "Address already in use"),
            ("x 0/tcp server=/no/such", [], 78, "can't run /no/such"),
            (f"x {port}/tcp echo bind=127.0.0.1\nok 0/tcp echo", ["--strict"], 71, "Address already in use"),
            ("x 0/tcp server=/no/such\nok 0/tcp echo", ["--strict"], 1, "can't run /no/such"),
        ):
            (tmp_path / "services").write_text(f"{text}\n")
            ended = preloaded.run(
                _twistd(tmp_path, *arguments),
                env=environment(), capture_output=True, text=True, timeout=PATIENCE, cwd=tmp_path,
            )  # fmt: skip
            assert ended.returncode == code, (text, ended.stderr)
            assert wanted in ended.stderr + ended.stdout
            assert "Traceback" not in ended.stderr + ended.stdout


def _twistd(folder: Path, *arguments: str) -> list[str]:
    words = ["--nodaemon", "--pidfile=", "svcd", "--services", str(folder / "services"), "--control", ""]
    return twistd(*words, *arguments)


IP = shutil.which("ip")


def _namespace(*commands: str) -> list[str]:
    """Return the words that run a program in its own network namespace, after commands of ip(8)."""
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        pytest.skip("network namespaces are not allowed here")
    script = "; ".join(["set -e", "ip link set lo up", *(f"ip {each}" for each in commands), 'exec "$@"'])
    return ["unshare", "--net", "sh", "-c", script, "sh"]


def _inside(daemon: Daemon, *words: str) -> str:
    """Run a program in the network namespace of the daemon and return its output."""
    command = ["nsenter", "--net", "--target", str(daemon.process.pid), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout


_ASK = """
import socket, sys
with socket.create_connection((sys.argv[1], 7007), 30) as client:
    client.sendall(b"a")
    print(client.recv(1).decode(), end="")
"""


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 or IP is None, reason="needs root and ip(8) for a network namespace")
@pytest.mark.parametrize("reactor", REACTORS)
def test_address_that_is_added_later(start: Callable[..., Daemon], reactor: str) -> None:
    """A service on an address that the machine does not have recovers when the address is added."""
    daemon = start(
        "@defaults bind=127.0.0.1\nok 0/tcp echo\nvip 0/tcp echo bind=10.77.0.5\nlink 0/tcp echo bind=later0\n"
        "both 0/tcp echo bind=127.0.0.1,10.77.0.5\nfree 7007/tcp echo bind=10.77.0.9 freebind=yes\n",
        before=_namespace(),
        twistd_arguments=["--reactor", reactor],
    )
    assert "no such address" in broken(daemon, "vip/tcp")
    assert "later0" in broken(daemon, "link/tcp")
    assert "10.77.0.5" in broken(daemon, "both/tcp")
    # It serves on the address that exists.
    assert daemon.addresses("both/tcp")[0].startswith("127.0.0.1:")
    assert daemon.addresses("free/tcp") == ["10.77.0.9:7007"]
    _inside(daemon, "ip", "addr", "add", "10.77.0.5/32", "dev", "lo")
    recovered(daemon, "vip/tcp")
    recovered(daemon, "both/tcp")
    for words in (("link", "add", "later0", "type", "veth"), ("addr", "add", "10.77.0.7/32", "dev", "later0")):
        _inside(daemon, "ip", *words)
    recovered(daemon, "link/tcp")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 or IP is None, reason="needs root and ip(8) for a network namespace")
@pytest.mark.parametrize("reactor", REACTORS)
def test_interface_gets_the_address_of_another_service(start: Callable[..., Daemon], reactor: str) -> None:
    """The service that has the address goes on, the service of the interface is broken, and `status` shows it."""
    vip = "@defaults bind=127.0.0.1\nvip 7007/tcp4 echo bind=10.77.0.5\n"
    daemon = start(
        f"{vip}other 7007/tcp4 upper bind=later0\n", "--control", "control",
        before=_namespace("addr add 10.77.0.5/32 dev lo"), twistd_arguments=["--reactor", reactor],
    )  # fmt: skip
    assert "later0" in broken(daemon, "other/tcp4")
    _inside(daemon, "ip", "addr", "del", "10.77.0.5/32", "dev", "lo")
    for words in ("link add later0 type veth", "addr add 10.77.0.5/32 dev later0", "link set later0 up"):
        _inside(daemon, "ip", *words.split())
    daemon.wait_for(lambda line: " broken service=other/tcp4 " in line and "vip/tcp4 at " in line)
    assert {name: row["state"] for name, row in status(daemon).items()} == {"vip/tcp4": "on", "other/tcp4": "broken"}
    assert _inside(daemon, sys.executable, "-c", _ASK, "10.77.0.5") == "a"
    # The check of the whole file reports the same, and the file is used nevertheless.
    found = svcctl(daemon, "reload")
    assert (found.returncode, "10.77.0.5:7007 is taken by vip/tcp4" in found.stderr) == (1, True)
    # When the first service is disabled the other gets the address at once.
    assert svcctl(daemon, "disable", "vip").returncode == 0
    recovered(daemon, "other/tcp4")
    assert _inside(daemon, sys.executable, "-c", _ASK, "10.77.0.5") == "A"
    found = svcctl(daemon, "enable", "vip")
    assert (found.returncode, "other/tcp4 at " in found.stderr) == (1, True)
    # Also when its line is removed.
    daemon.file.write_text("other 7007/tcp4 upper bind=later0\n")
    assert svcctl(daemon, "reload").returncode == 0
    assert _inside(daemon, sys.executable, "-c", _ASK, "10.77.0.5") == "A"
    # The interface is deleted, its address added to lo, and the line restored, which binds to that address only.
    _inside(daemon, "ip", "link", "del", "later0")
    _inside(daemon, "ip", "addr", "add", "10.77.0.5/32", "dev", "lo")
    daemon.file.write_text(f"{vip}other 7007/tcp4 upper bind=later0\n")
    found = svcctl(daemon, "reload")
    assert (found.returncode, "'later0' is not an address" in found.stderr) == (1, True)
    rows = status(daemon)
    assert {name: row["state"] for name, row in rows.items()} == {"vip/tcp4": "on", "other/tcp4": "broken"}
    assert rows["vip/tcp4"]["addresses"] == ["10.77.0.5:7007"]
    assert _inside(daemon, sys.executable, "-c", _ASK, "10.77.0.5") == "a"


def test_changed_service_that_breaks_keeps_its_old_form(start: Callable[..., Daemon]) -> None:
    """The old form is served until the new one can be; svcctl reload exits by 1."""
    daemon = start("x 0/tcp echo bind=127.0.0.1\nok 0/tcp echo bind=127.0.0.1\n", "--control", "control")
    port = daemon.port("x/tcp")
    daemon.file.write_text("x 0/tcp server=/no/such bind=127.0.0.1\nok 0/tcp upper bind=127.0.0.1\n")
    found = svcctl(daemon, "reload")
    assert (found.returncode, "can't run /no/such" in found.stderr) == (1, True)
    assert exchange(daemon.connect("ok/tcp"), b"a") == b"A"
    assert status(daemon)["x/tcp"]["state"] == "broken"
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        assert exchange(client, b"a") == b"a"
    # With --strict nothing changes; an error in the text has another exit status.
    daemon.file.write_text("x 0/tcp server=/no/such bind=127.0.0.1\nok 0/tcp echo bind=127.0.0.1\n")
    assert svcctl(daemon, "reload", "--strict").returncode == 1
    assert exchange(daemon.connect("ok/tcp"), b"a") == b"A"
    daemon.file.write_text("x 0/tcp colour=red\n")
    assert svcctl(daemon, "reload").returncode == 78
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for(lambda line: " reload-failed " in line, 3)
    assert exchange(daemon.connect("ok/tcp"), b"a") == b"A"
