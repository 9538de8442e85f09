"""The log of a real daemon: in a journald, and in a file that logrotate rotates."""

from __future__ import annotations

import contextlib
import datetime
import gzip
import json
import os
import pwd
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import svcd
from tests.certificates import Authority
from tests.journald import Entry, FakeJournald
from tests.real.conftest import NOBODY
from tests.real.daemon import PATIENCE, environment, exchange, fields, twistd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.real.daemon import Daemon

#: Length of an exception's text in the log, in characters: too long for a datagram.
LARGE = 1_000_000
BROKEN = """
from twisted.internet.protocol import Factory, Protocol

class Broken(Protocol):
    def dataReceived(self, data):
        raise RuntimeError("first line\\nsecond = \\"line\\"\\n" + "x" * int(data))

def make(options):
    return Factory.forProtocol(Broken)
"""


def _retried(look: Callable[[], bool]) -> None:
    """Poll until a function returns true."""
    deadline = time.monotonic() + PATIENCE
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def journald(tmp_path: Path, program: Callable[[str], str]) -> Iterator[tuple[FakeJournald, list[str]]]:
    """Return a journald, and words before a command line that place it at the path of systemd's for the command."""
    folder = tmp_path / "journal"
    folder.mkdir()
    mounts = 'mount -t tmpfs none /run && mkdir -p /run/systemd/journal && mount --bind "$0" /run/systemd/journal'
    # As systemd does for the standard output of a service; $OTHER makes the variable name another stream.
    stream = "exec 3>&1; JOURNAL_STREAM=$(stat -L -c %d:%i /dev/fd/3)${OTHER}; export JOURNAL_STREAM; exec 3>&-"
    flags = ["--mount"] if os.geteuid() == 0 else ["--mount", "--user", "--map-root-user"]
    words = [program("unshare"), *flags, "sh", "-c", f'{mounts} && {{ {stream}; }} && exec "$@"', str(folder)]
    tried = subprocess.run([*words, sys.executable, "-c", ""], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no mounts of one's own here: {tried.stderr.strip()}")
    fake = FakeJournald(folder / "socket")
    yield fake, words
    fake.close()


def _port(entry: Entry) -> int:
    return int(entry["SVCD_ADDRESS"].rpartition(":")[2])


def test_journald_has_the_fields(
    start: Callable[..., Daemon], journald: tuple[FakeJournald, list[str]], tmp_path: Path
) -> None:
    """Each line is an entry with a field for each value; tracebacks are multi-line messages of any size."""
    fake, before = journald
    (tmp_path / "broken.py").write_text(BROKEN)
    services = "@defaults bind=127.0.0.1\necho 0/tcp\nbad 0/tcp factory=broken:make\n"
    path = f"{tmp_path}:{environment()['PYTHONPATH']}"
    daemon = start(services, "--log-format", "journald", before=before, ready=False, env={"PYTHONPATH": path})
    echo = fake.take_event("listen")
    bad = fake.take_event("listen")
    ready = fake.take_event("ready")
    assert (ready["SVCD_SERVICES"], ready["PRIORITY"], ready["SYSLOG_IDENTIFIER"]) == ("2", "5", "svcd")
    client = socket.create_connection(("127.0.0.1", _port(echo)), PATIENCE)
    host, port = client.getsockname()
    assert exchange(client, b"hello") == b"hello"
    accept, end = fake.take_event("accept"), fake.take_event("end")
    assert accept["MESSAGE"] == f"accept service=echo/tcp peer={host}:{port} id=1 count=1"
    assert (end["SVCD_SERVICE"], end["SVCD_PEER"], end["SVCD_ID"]) == ("echo/tcp", f"{host}:{port}", "1")
    assert (end["SVCD_IN"], end["SVCD_OUT"], end["SVCD_REASON"], end["PRIORITY"]) == ("5", "5", "done", "6")
    for size in (1, 100_000, LARGE):
        with socket.create_connection(("127.0.0.1", _port(bad)), PATIENCE) as client:
            client.sendall(b"%d" % size)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
        entry = fake.take_event("log")
        assert (entry["PRIORITY"], entry["SVCD_LEVEL"]) == ("2", "critical")
        assert entry["MESSAGE"].endswith('RuntimeError: first line\nsecond = "line"\n' + "x" * size)
        assert "Traceback (most recent call last):\n" in entry["MESSAGE"]
        assert fake.take_event("end")["SVCD_REASON"] in ("lost", "error", "done", "aborted")
    most = int(Path("/proc/sys/net/core/wmem_max").read_text())
    assert entry.in_memory or most > LARGE // 2
    assert daemon.stop() == 0
    assert fake.take_event("stop")["SVCD_CONNECTIONS"] == "0"
    assert daemon.lines == []


@pytest.mark.parametrize(("arguments", "other", "native"), [([], "", True), ([], "0", False),
                                                            (["--log-format", "text"], "", False)])  # fmt: skip
def test_standard_output_to_the_journal(
    start: Callable[..., Daemon], journald: tuple[FakeJournald, list[str]], arguments: list[str], other: str,
    native: bool,
) -> None:  # fmt: skip
    """As a systemd service svcd sends entries by default; with another output or an explicit format it writes text."""
    fake, before = journald
    daemon = start("echo 0/tcp bind=127.0.0.1\n", *arguments, before=before, ready=not native, env={"OTHER": other})
    port = _port(fake.take_event("listen")) if native else daemon.port("echo/tcp")
    # A daemon that answers handles signals, too.
    assert exchange(socket.create_connection(("127.0.0.1", port), PATIENCE), b"x") == b"x"
    assert daemon.stop() == 0
    assert (bool(daemon.lines), fake.empty()) == (not native, not native)


def test_last_lines_reach_a_slow_journald(
    start: Callable[..., Daemon], journald: tuple[FakeJournald, list[str]]
) -> None:
    """If the queue is full at the stop, the process waits until all lines are read, and loses none."""
    fake, before = journald
    services = "echo 0/tcp4 bind=127.0.0.1 shutdown_timeout=0s\n"
    daemon = start(services, "--log-format", "journald", before=before, ready=False)
    address = "127.0.0.1", _port(fake.take_event("listen"))
    fake.take_event("ready")
    # Two lines each: more than the queue of the socket holds, and few enough to be read within the second for which the
    # daemon waits at its end, also on a loaded machine.
    count = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text()) // 2 + 50
    for _ in range(count):
        with socket.create_connection(address, PATIENCE) as client:
            assert exchange(client, b"x") == b"x"
    daemon.process.terminate()
    while True:
        # Not as fast as possible: the kernel retries a connection behind a full backlog after a second, and then the
        # daemon has given up.
        time.sleep(0.01)
        try:
            socket.create_connection(address, PATIENCE).close()
        except ConnectionRefusedError:
            break
        except ConnectionResetError:
            continue
    ended = set()
    while (entry := fake.take())["SVCD_EVENT"] != "stop":
        if entry["SVCD_EVENT"] == "end":
            ended.add(int(entry["SVCD_ID"]))
    assert ended >= set(range(1, count + 1))
    assert fake.take_event("close")["SVCD_SERVICE"] == "echo/tcp4"
    while daemon.process.poll() is None or not fake.empty():
        if not fake.empty():
            assert fake.take()
    assert daemon.stop() == 0


def test_shortened_addresses(start: Callable[..., Daemon]) -> None:
    """With --log-addresses short no line has a client's address, port or name."""
    services = "@defaults bind=127.0.0.1\necho 0/tcp resolve=yes\nno 0/tcp echo only_from=10.0.0.0/8\n"
    daemon = start(services, "--log-addresses", "short")
    client = daemon.connect("echo/tcp")
    port = client.getsockname()[1]
    exchange(client, b"hello")
    with daemon.connect("no/tcp") as refused:
        assert refused.recv(1) == b""
    for event, service in (("accept", "echo/tcp"), ("end", "echo/tcp"), ("refuse", "no/tcp")):
        (found,) = daemon.wait_event(event, service)
        assert found["peer"] == "127.0.0.0"
        assert "host" not in found
    assert daemon.stop() == 0
    assert f":{port} " not in " ".join(daemon.lines)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(
    ("mistake", "text"),
    [("ecoh 0/tcp", "services:1:1: no handler for"), ("echo 0/tcp bind=192.0.2.77", "can't listen on 192.0.2.77")],
)
def test_failed_start_is_logged(tmp_path: Path, background: bool, mistake: str, text: str) -> None:
    """Each reason is a line with its time and its level, in the foreground and in the background."""
    (tmp_path / "services").write_text(f"{mistake}\n")
    place = [] if background else ["--nodaemon"]
    words = twistd(*place, "--pidfile", "pid", "--logfile", "log", "svcd", "--services", "services", "--control", "",
                   "--log-format", "json", "--strict")  # fmt: skip
    done = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode in (71, 78)
    found = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    problems = [each for each in found if each["event"] == "problem"]
    assert [each["level"] for each in problems] == ["error"]
    assert text in problems[0]["text"]
    assert problems[0]["text"] in done.stderr


CROWD = """
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.logger import Logger

class Logging(Protocol):
    def dataReceived(self, data):
        deferToThread(Logger().info, "from a thread")
        self.transport.loseConnection()

def make(options):
    return Factory.forProtocol(Logging)

def handle(sock, address):
    print("said by a handler", flush=True)
"""


@pytest.mark.parametrize("reactor", ["uv", "epoll"])
def test_times_of_lines_do_not_decrease(start: Callable[..., Daemon], tmp_path: Path, reactor: str) -> None:
    """Whatever an accept line waits for, the times do not decrease, and accept and end lines are numbered in order."""
    (tmp_path / "crowd.py").write_text(CROWD)
    (tmp_path / "server").touch(0o600)
    (tmp_path / "server").write_bytes(Authority("test").sign("server").bundle)
    services = f"""@defaults bind=127.0.0.1 instances=none
echo 0/tcp
named 0/tcp echo resolve=yes
cat 0/tcp server=/bin/cat
said 0/tcp python=crowd:handle
logging 0/tcp factory=crowd:make
tls 0/tcp echo tls_cert={tmp_path}/server
tlscat 0/tcp server=/bin/cat tls_cert={tmp_path}/server resolve=yes
"""
    env = {"PYTHONPATH": f"{tmp_path}:{environment()['PYTHONPATH']}"}
    daemon = start(services, env=env, twistd_arguments=["--reactor", reactor])
    names = ["echo", "named", "cat", "said", "logging", "tls", "tlscat"]
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    def visit(name: str) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            client = stack.enter_context(daemon.connect(f"{name}/tcp"))
            if name.startswith("tls"):
                client = stack.enter_context(context.wrap_socket(client))
            client.sendall(b"x")
            client.recv(1)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(visit, names * 20))
    for name in names:
        daemon.wait_event("end", f"{name}/tcp", 20)
    assert daemon.stop() == 0
    times = [datetime.datetime.fromisoformat(line.split(" ", 1)[0]) for line in daemon.lines]
    assert times == sorted(times)
    open_now = dict.fromkeys((f"{name}/tcp" for name in names), 0)
    for line in daemon.lines:
        found = fields(line)
        if found["event"] in ("accept", "end"):
            open_now[found["service"]] += 1 if found["event"] == "accept" else -1
            assert int(found["count"]) == open_now[found["service"]], line
    assert not any(open_now.values())


def _example() -> str:
    """Return the logrotate configuration from the installation or the checkout."""
    installed = Path(svcd.__file__).parent / "etc" / "logrotate.d" / "svcd"
    checkout = Path(__file__).parents[2] / "etc" / "logrotate.d" / "svcd"
    found = next((path for path in (checkout, installed) if path.exists()), None)
    if found is None:
        pytest.skip("the example is neither installed nor in a checkout")
    return found.read_text()


class _Clients:
    """A thread of clients, one at a time, until it is stopped."""

    def __init__(self, port: int) -> None:
        self.count = 0
        self._port = port
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._end.is_set():
            exchange(socket.create_connection(("127.0.0.1", self._port), PATIENCE), b"x")
            self.count += 1

    def end(self) -> None:
        """Stop the clients."""
        self._end.set()
        self._thread.join(PATIENCE)


def _read(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()


def test_logrotate_loses_no_line(start: Callable[..., Daemon], program: Callable[[str], str], tmp_path: Path) -> None:
    """With the example configuration under load each connection has its two lines, once, in order, in some file."""
    logrotate = program("logrotate")
    folder = tmp_path / "var-log"
    folder.mkdir(mode=0o755)
    log, pid_file, config = folder / "svcd.log", tmp_path / "svcd.pid", tmp_path / "logrotate.conf"
    config.write_text(_example().replace("/var/log/svcd.log", str(log)).replace("/run/svcd.pid", str(pid_file)))
    config.chmod(0o644)
    places = ["--pidfile", str(pid_file), "--logfile", str(log)]
    daemon = start("echo 0/tcp bind=127.0.0.1\n", twistd_arguments=places, ready=False)
    _retried(lambda: log.exists() and " ready " in log.read_text())
    listen = next(line for line in log.read_text().splitlines() if " listen " in line)
    pending = _Clients(int(fields(listen)["address"].rpartition(":")[2]))
    try:
        for _ in range(5):
            inode = log.stat().st_ino
            words = [logrotate, "--force", "--state", str(tmp_path / "state"), str(config)]
            done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
            assert (done.returncode, done.stderr) == (0, "")
            assert log.stat().st_ino != inode
            # It has content: the daemon has opened it.
            _retried(lambda: log.stat().st_size > 0)
    finally:
        pending.end()
    assert daemon.stop() == 0
    files = sorted(folder.iterdir(), key=lambda path: int((re.findall(r"\d+", path.name) or ["0"])[0]), reverse=True)
    assert len(files) == 6
    text = "".join(_read(path) for path in files)
    assert text.endswith("\n")
    lines = text.splitlines()
    whole = re.compile(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d [a-z]+( [a-z]+=("[^"]*"|[^" ]+))*')
    assert [line for line in lines if not whole.fullmatch(line)] == []
    for event in ("accept", "end"):
        found = [int(fields(line)["id"]) for line in lines if f" {event} " in line]
        assert found == list(range(1, pending.count + 1))
    assert pending.count > 5


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("group", ["", "1"])
def test_logrotate_and_a_daemon_that_has_given_up_root(
    start: Callable[..., Daemon], program: Callable[[str], str], tmp_path: Path, open_folder: Path, group: str
) -> None:
    """With --uid the log file is that user's, so the one that logrotate creates after it can be opened."""
    logrotate = program("logrotate")
    # As /var/log: the user can't create a file in it.
    folder = open_folder / "var-log"
    folder.mkdir(mode=0o755)
    log, pid_file, config = folder / "svcd.log", open_folder / "svcd.pid", tmp_path / "logrotate.conf"
    config.write_text(_example().replace("/var/log/svcd.log", str(log)).replace("/run/svcd.pid", str(pid_file)))
    config.chmod(0o644)
    account = pwd.getpwuid(NOBODY)
    arguments = ["--uid", "nobody", *(["--gid", group] if group else [])]
    places = ["--pidfile", str(pid_file), "--logfile", str(log), *arguments]
    daemon = start("echo 0/tcp bind=127.0.0.1\n", twistd_arguments=places, ready=False)
    _retried(lambda: log.exists() and " ready " in log.read_text())
    found = log.stat()
    assert (found.st_uid, found.st_gid) == (NOBODY, int(group or account.pw_gid))
    words = [logrotate, "--force", "--state", str(tmp_path / "state"), str(config)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    listen = next(line for line in _read(folder / "svcd.log.1").splitlines() if " listen " in line)
    client = socket.create_connection(("127.0.0.1", int(fields(listen)["address"].rpartition(":")[2])), PATIENCE)
    assert exchange(client, b"x") == b"x"
    _retried(lambda: " end " in log.read_text())
    assert daemon.stop() == 0
