"""svcd under twistd: in the foreground, in the background, with dropped privileges; and failed starts."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.real.daemon import PATIENCE, environment, exchange, fields, twistd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.real.daemon import Daemon

NOBODY = 65_534


def run(*words: str, folder: Path, **more: object) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself."""
    env = environment()
    if "setpriv" in words[0]:
        # Another user can't write the data of a coverage run.
        env = {name: value for name, value in env.items() if not name.startswith("COVERAGE")}
    done: subprocess.CompletedProcess[str] = subprocess.run(
        words,
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        **more,  # type: ignore[call-overload]
    )
    return done


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    """Return a port that is in use."""
    listener = socket.create_server(("127.0.0.1", 0))
    yield listener
    listener.close()


def test_help(tmp_path: Path) -> None:
    """`twistd svcd --help` lists all options and the paths of the services file."""
    done = run(*twistd("svcd", "--help"), folder=tmp_path)
    assert done.returncode == 0
    for word in ["--services", "--port-offset", "--log-format", "--check", "/etc/svcd/services"]:
        assert word in done.stdout
    assert "svcd" in run(*twistd("--help"), folder=tmp_path).stdout


def test_check(tmp_path: Path) -> None:
    """--check prints a line for each listener and exits by 0; with errors it prints each of them and exits by 78."""
    (tmp_path / "good").write_text("echo 7/tcp bind=127.0.0.1\nlocal /tmp/x/unix echo\n")
    good = run(*twistd("svcd", "--check", "--services", "good", "--port-offset", "1000"), folder=tmp_path)
    assert (good.returncode, good.stderr) == (0, "")
    assert [line.split() for line in good.stdout.splitlines()] == [
        ["echo/tcp", "127.0.0.1:1007", "echo"],
        ["local/unix", "/tmp/x", "echo"],
    ]
    (tmp_path / "bad").write_text("ecoh 7/tcp\necho seven/tcp\n")
    bad = run(*twistd("svcd", "--check", "--services", "bad"), folder=tmp_path)
    assert bad.returncode == 78
    assert [line.split(":")[:3] for line in bad.stderr.splitlines()] == [["bad", "1", "1"], ["bad", "2", "6"]]


def test_bad_file_starts_nothing(tmp_path: Path) -> None:
    """With errors in the services file the daemon prints them, without a traceback, and exits by 78."""
    (tmp_path / "bad").write_text("echo 0/tcp bind=127.0.0.1\nfoo 1/tcp\n")
    done = run(*twistd("-n", "svcd", "--services", "bad"), folder=tmp_path)
    assert done.returncode == 78
    assert done.stderr.startswith("bad:2:1: no handler for 'foo'")
    assert "Traceback" not in done.stdout + done.stderr
    assert run(*twistd("-n", "svcd", "--services", "none"), folder=tmp_path).returncode == 78


@pytest.mark.parametrize("mode", ["--nodaemon", "--umask=022"])
def test_port_in_use(tmp_path: Path, taken: socket.socket, mode: str) -> None:
    """A port in use is a line with service, address, cause and remedy, and status 71; no pid file stays."""
    port = taken.getsockname()[1]
    (tmp_path / "services").write_text(f"echo {port}/tcp bind=127.0.0.1\n")
    done = run(*twistd(mode, "svcd", "--services", "services"), folder=tmp_path)
    assert done.returncode == 71
    [line] = done.stderr.splitlines()
    assert line.startswith(f"svcd: echo/tcp: can't listen on 127.0.0.1:{port}: Address already in use by ")
    assert f" (pid {os.getpid()}); stop " in line
    assert "Traceback" not in done.stdout
    assert not (tmp_path / "twistd.pid").exists()


@pytest.fixture
def unprivileged(program: Callable[[str], str]) -> list[str]:
    """Return the words that run a command as an ordinary user; none if the tests run as one."""
    if os.geteuid() != 0:
        return []
    words = [program("setpriv"), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    if run(*words, sys.executable, "-c", "import svcd", folder=Path("/")).returncode:
        pytest.skip("another user can't read this Python")
    return words


def test_low_port_without_root(tmp_path: Path, unprivileged: list[str]) -> None:
    """A low port without root is a line with the remedy, and status 71."""
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) < 1024:
        pytest.skip("low ports need no privilege on this machine")
    # The other user can't read the directory of the test, but inherits a descriptor.
    services = tmp_path / "services"
    services.write_text("echo 7/tcp bind=127.0.0.1\n")
    with services.open() as file:
        name = f"/proc/self/fd/{file.fileno()}"
        words = [*unprivileged, *twistd("-n", "svcd", "--services", name)]
        done = run(*words, folder=Path("/"), pass_fds=(file.fileno(),))
    assert done.returncode == 71
    assert "echo/tcp: can't listen on 127.0.0.1:7: Permission denied; ports below 1024 need root" in done.stderr


def test_unwritable_directory(unprivileged: list[str]) -> None:
    """In a directory without write permission the error has the remedy for the pid file."""
    done = run(*unprivileged, *twistd("svcd"), folder=Path("/"))
    assert "can't write the pid file twistd.pid" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_background(tmp_path: Path) -> None:
    """`twistd svcd` leaves the terminal, writes its pid and its log, returns when it serves, and ends on SIGTERM."""
    (tmp_path / "services").write_text("echo 0/tcp bind=127.0.0.1\n")
    words = twistd("--pidfile", "my.pid", "--logfile", "my.log", "--umask", "027", "svcd", "--services", "services")
    assert run(*words, folder=tmp_path).returncode == 0
    pid = int((tmp_path / "my.pid").read_text())
    handle = os.pidfd_open(pid)
    try:
        log = (tmp_path / "my.log").read_text()
        address = fields(next(line for line in log.splitlines() if " listen " in line))["address"]
        host, _, port = address.rpartition(":")
        assert exchange(socket.create_connection((host, int(port)), PATIENCE), b"hi") == b"hi"
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        assert select.select([handle], [], [], PATIENCE)[0]
    finally:
        os.close(handle)
    lines = (tmp_path / "my.log").read_text().splitlines()
    assert any(" end service=echo/tcp " in line for line in lines)
    assert lines[-1].endswith('message="Server Shut Down."')
    assert not (tmp_path / "my.pid").exists()


def test_log_that_cannot_be_written(tmp_path: Path) -> None:
    """If the log can't be written the error is a single line, and no daemon starts."""
    (tmp_path / "services").write_text("echo 0/tcp bind=127.0.0.1\n")
    done = run(*twistd("--logfile", "no/such/folder/log", "svcd", "--services", "services"), folder=tmp_path)
    assert done.returncode == 73
    assert done.stderr.startswith("svcd: can't write the log ")
    assert "/no/such/folder/log: No such file or directory; use --logfile FILE" in done.stderr


@pytest.mark.usefixtures("as_root")
def test_uid_binds_low_ports_first(tmp_path: Path, start: Callable[..., Daemon], program: Callable[[str], str]) -> None:
    """`twistd --uid nobody` listens on low ports and serves them as nobody."""
    # In a new network namespace, where the low ports are free.
    shell = 'ip link set lo up && exec "$@"'
    before = [program("unshare"), "--net", program("sh"), "-c", shell, "sh"]
    program("ip")
    program("nsenter")
    daemon = start(
        "echo 7/tcp\ndaytime 13/udp\n",
        before=before,
        twistd_arguments=["--uid", str(NOBODY), "--gid", str(NOBODY)],
    )
    pid = daemon.process.pid
    status = Path(f"/proc/{pid}/status").read_text()
    assert re.search(rf"^Uid:\s+{NOBODY}\s+{NOBODY}\s", status, re.MULTILINE)
    inside = [program("nsenter"), f"--net=/proc/{pid}/ns/net"]
    code = (
        "import socket,sys; c=socket.create_connection(('127.0.0.1',7),30); c.sendall(b'hi');"
        "c.shutdown(1); sys.stdout.write(c.recv(9).decode())"
    )
    assert run(*inside, sys.executable, "-c", code, folder=tmp_path).stdout == "hi"
    assert daemon.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_lets_connections_end(start: Callable[..., Daemon], number: int) -> None:
    """SIGTERM and SIGINT stop listening at once, let an open connection end, and exit by 0."""
    daemon = start("echo 0/tcp bind=127.0.0.1 shutdown_timeout=60s\n")
    client = daemon.connect("echo/tcp")
    client.sendall(b"before")
    assert client.recv(100) == b"before"
    address = client.getpeername()
    daemon.process.send_signal(number)
    daemon.wait_for(lambda line: " close service=echo/tcp " in line)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, PATIENCE)
    client.sendall(b"after")
    assert client.recv(100) == b"after"
    assert exchange(client, b"last") == b"last"
    assert daemon.process.wait(PATIENCE) == 0
    [end] = daemon.wait_event("end", "echo/tcp")
    assert (end["reason"], end["in"], end["out"]) == ("done", "15", "15")


@pytest.mark.parametrize("reactor", ["uv", "epoll"])
def test_signal_right_after_the_ready_line(start: Callable[..., Daemon], reactor: str) -> None:
    """A signal right after the `ready` line stops the daemon in good order."""
    for number in (signal.SIGTERM, signal.SIGINT):
        daemon = start("echo 0/tcp bind=127.0.0.1\n", twistd_arguments=["--reactor", reactor])
        assert daemon.stop(number) == 0


def test_shutdown_timeout(start: Callable[..., Daemon]) -> None:
    """A connection that goes on after shutdown_timeout is closed, and the log has the reason."""
    daemon = start("echo 0/tcp bind=127.0.0.1 shutdown_timeout=0.2s\n")
    with daemon.connect("echo/tcp") as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        assert daemon.stop() == 0
    assert daemon.wait_event("end", "echo/tcp")[0]["reason"] == "shutdown"


def test_second_signal_closes_connections(start: Callable[..., Daemon]) -> None:
    """A second signal closes open connections at once, without a traceback."""
    daemon = start("echo 0/tcp bind=127.0.0.1 shutdown_timeout=1h\n")
    with daemon.connect("echo/tcp") as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        daemon.process.send_signal(signal.SIGINT)
        daemon.wait_for(lambda line: " stop " in line)
        assert daemon.stop(signal.SIGINT) == 0
    assert not [line for line in daemon.lines if "Traceback" in line]


def test_idle_http_connections_do_not_delay_the_stop(start: Callable[..., Daemon]) -> None:
    """An idle keep-alive connection of a browser is closed at once when the daemon stops."""
    daemon = start("http 0/tcp bind=127.0.0.1 shutdown_timeout=1h\n")
    with daemon.connect("http/tcp") as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(65_536).startswith(b"HTTP/1.1 200 OK\r\n")
        daemon.process.send_signal(signal.SIGTERM)
        while client.recv(65_536):
            pass
    assert daemon.process.wait(PATIENCE) == 0


REACTORS = {
    "": "UvReactor",
    "uv": "UvReactor",
    "epoll": "EPollReactor",
    "asyncio": "AsyncioSelectorReactor",
    "poll": "PollReactor",
    "select": "SelectReactor",
}


@pytest.mark.parametrize("reactor", REACTORS)
def test_reactors(start: Callable[..., Daemon], reactor: str) -> None:
    """The reactor on uvloop is the default, those of Twisted work as well, and the log names the reactor."""
    words = ["-r", reactor] if reactor else []
    daemon = start("echo 0/tcp bind=127.0.0.1\necho 0/udp bind=127.0.0.1\n", twistd_arguments=words)
    daemon.wait_for(lambda line: " ready " in line and line.endswith(f" reactor={REACTORS[reactor]}"))
    data = b"x" * 1_000_000
    with daemon.connect("echo/udp") as asker:
        asker.send(b"hi")
        assert asker.recv(10) == b"hi"
    client = daemon.connect("echo/tcp")
    client.sendall(data[:1000])
    assert exchange(client) == data[:1000]
    assert daemon.stop() == 0


def test_json_log(start: Callable[..., Daemon]) -> None:
    """With --log-format json every line is one JSON object with the same keys."""
    daemon = start("echo 0/tcp bind=127.0.0.1\n", "--log-format", "json")
    listens = daemon.wait_for(lambda line: '"event":"listen"' in line)
    host, _, port = json.loads(listens[0])["address"].rpartition(":")
    exchange(socket.create_connection((host, int(port)), PATIENCE), b"hello")
    assert daemon.stop() == 0
    events = [json.loads(line) for line in daemon.lines]
    [end] = [event for event in events if event["event"] == "end"]
    assert (end["service"], end["in"], end["out"], end["reason"]) == ("echo/tcp", 5, 5, "done")
    assert all(event["time"] for event in events)


def test_log_lines(start: Callable[..., Daemon]) -> None:
    """A connection is an accept and an end line with its service, peer, bytes, seconds and reason."""
    daemon = start("@defaults bind=127.0.0.1\necho 0/tcp resolve=yes\nupper 0/tcp log_on_success=none\n")
    client = daemon.connect("echo/tcp")
    peer = "{}:{}".format(*client.getsockname())
    assert exchange(client, b"12345") == b"12345"
    exchange(daemon.connect("upper/tcp"), b"x")
    [accept] = daemon.wait_event("accept", "echo/tcp")
    [end] = daemon.wait_event("end", "echo/tcp")
    assert accept["peer"] == end["peer"] == peer
    assert accept["host"]
    assert (accept["id"], end["id"]) == ("1", "1")
    assert (end["in"], end["out"], end["reason"]) == ("5", "5", "done")
    assert 0 <= float(end["seconds"]) < PATIENCE
    assert daemon.stop() == 0
    assert not [line for line in daemon.lines if " end service=upper/tcp " in line]


def test_exception_ends_one_connection(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """A file that vanishes is a 404, and the daemon goes on."""
    root = tmp_path / "www"
    root.mkdir()
    daemon = start(f"files 0/tcp http root={root} bind=127.0.0.1\n")
    root.rmdir()
    assert b" 404 " in exchange(daemon.connect("files/tcp"), b"GET / HTTP/1.0\r\n\r\n")
    assert daemon.stop() == 0


def test_files_are_read_before_root_is_given_up(start: Callable[..., Daemon], tmp_path: Path, as_root: None) -> None:  # noqa: ARG001
    """With --uid, files that only root can read are read before root is given up."""
    quotes = tmp_path / "quotes"
    quotes.write_text("A secret of root.\n")
    quotes.chmod(0o600)
    uid = ["--uid", str(NOBODY), "--gid", str(NOBODY)]
    daemon = start(f"qotd 0/tcp bind=127.0.0.1 quotes={quotes}\n", twistd_arguments=uid)
    assert exchange(daemon.connect("qotd/tcp")) == b"A secret of root.\r\n"
    assert daemon.stop() == 0


def test_unread_standard_output(tmp_path: Path) -> None:
    """A daemon whose standard output is not read goes on serving, and stops after SIGTERM."""
    path = tmp_path / "s"
    (tmp_path / "services").write_text(f"local {path}/unix echo\n")
    words = twistd("-n", "--pidfile=", "svcd", "--services", "services")
    with subprocess.Popen(words, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while b" ready " not in process.stdout.readline():
            pass
        for _ in range(1500):
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(PATIENCE)
            client.connect(str(path))
            assert exchange(client, b"x") == b"x"
        process.terminate()
        assert process.wait(PATIENCE) == 0
        process.stdout.close()


def test_no_datagram_loops(start: Callable[..., Daemon]) -> None:
    """A datagram with the source address of a service of this daemon is not answered, which would start a loop."""
    daemon = start("@defaults bind=127.0.0.1\necho 0/udp\nchargen 0/udp\n")
    # Like a forged source: the kernel allows the same port on another loopback address.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as forger:
        forger.bind(("127.0.0.2", daemon.port("chargen/udp")))
        forger.sendto(b"?", ("127.0.0.1", daemon.port("echo/udp")))
    with daemon.connect("echo/udp") as client:
        client.send(b"hi")
        assert client.recv(10) == b"hi"
    assert daemon.stop() == 0
    [close] = daemon.wait_event("close", "echo/udp")
    assert (close["datagrams"], close["ignored"]) == ("2", "1")


def test_unix_socket_is_removed(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """A UNIX socket has its mode, and its file is gone after the stop."""
    path = tmp_path / "s"
    daemon = start(f"local {path}/unix echo mode=0600\n")
    assert path.stat().st_mode & 0o777 == 0o600
    assert exchange(daemon.connect("local/unix", socket.AF_UNIX), b"hi") == b"hi"
    assert daemon.stop() == 0
    assert daemon.wait_event("end", "local/unix")[0]["reason"] == "done"
    assert not path.exists()


def test_socket_file_of_another_daemon(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """A daemon that stops removes only its own socket files."""
    path = tmp_path / "s"
    first = start(f"local {path}/unix echo\n")
    path.unlink()
    second = start(f"local {path}/unix echo\n")
    assert first.stop() == 0
    assert exchange(second.connect("local/unix", socket.AF_UNIX), b"hi") == b"hi"


def test_version_and_module(tmp_path: Path) -> None:
    """`python -m svcd --version` and `twistd svcd --version` print the same."""
    module = run(sys.executable, "-m", "svcd", "--version", folder=tmp_path).stdout
    assert re.fullmatch(r"svcd \d+\.\d+\.\d+\n", module)
    assert run(*twistd("svcd", "--version"), folder=tmp_path).stdout == module
