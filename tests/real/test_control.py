"""svcctl with a running daemon."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from svcd.log.events import PRIORITIES
from tests.certificates import Authority
from tests.real import preloaded
from tests.real.daemon import PATIENCE, environment, exchange
from tests.real.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.daemon import Daemon

SERVICES = "@defaults bind=127.0.0.1\necho 0/tcp description=hello\ncat 0/tcp server=/bin/cat\ntime 0/udp\n"


class _Controlled:
    """A daemon with a control socket, and svcctl for it."""

    def __init__(self, daemon: Daemon, path: Path) -> None:
        self.daemon = daemon
        self.path = path

    def svcctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of svcctl."""
        command = [sys.executable, "-m", "svcd", "--control", str(self.path), *words]
        return preloaded.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE)

    def ask(self, *words: str) -> Any:
        """Run a command of svcctl that succeeds, and return its JSON output."""
        done = self.svcctl(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def dial(self) -> socket.socket:
        """Return a connection to the control socket."""
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(PATIENCE)
        client.connect(str(self.path))
        return client


@pytest.fixture
def controlled(start: Callable[..., Daemon], open_folder: Path) -> _Controlled:
    """Return a daemon with a control socket."""
    path = open_folder / "control"
    return _Controlled(start(SERVICES, "--control", str(path)), path)


def _port(daemon: Daemon, service: str) -> int:
    return int(daemon.addresses(service)[-1].rpartition(":")[2])


def test_status(controlled: _Controlled) -> None:
    """It shows the addresses and connections of each service, as text and as JSON."""
    daemon = controlled.daemon
    with daemon.connect("echo/tcp") as client:
        client.sendall(b"x")
        client.recv(1)
        status = controlled.ask("status")
        text = controlled.svcctl("status").stdout
    rows = {row["service"]: row for row in status["services"]}
    assert (rows["echo/tcp"]["connections"], rows["echo/tcp"]["state"], rows["echo/tcp"]["runs"]) == (1, "on", "echo")
    assert rows["cat/tcp"]["addresses"] == [f"127.0.0.1:{_port(daemon, 'cat/tcp')}"]
    assert status["pid"] == daemon.process.pid
    # The default of a spawned service, and no limit.
    assert (rows["cat/tcp"]["limit"], rows["echo/tcp"]["limit"]) == (64, None)
    assert status["connections"] == {"open": 1, "limit": None}
    assert status["descriptors"]["open"] == 1 < status["descriptors"]["limit"]
    assert f", connections: 1, descriptors: 1 of {status['descriptors']['limit']}\n" in text
    assert "cat/tcp   on" in text
    assert "/bin/cat" in text


def test_show_prints_a_line_for_a_services_file(controlled: _Controlled) -> None:
    """The line of a service can be written into a services file as it is printed."""
    line = (
        "odd 0/tcp bind=127.0.0.1 server='/bin/cat -n \"a b\"' description='is # $HOME' env=\"A='b c'\" instances=none"
    )
    daemon = controlled.daemon
    daemon.file.write_text(f"{line}\n")
    controlled.ask("reload")
    shown = controlled.ask("show", "odd")
    assert (shown["limit"], "instances=none" in shown["line"]) == (None, True)
    daemon.file.write_text(f"{shown['line']}\n")
    assert controlled.ask("diff")["changes"] == []


def test_processes_that_fail_are_counted(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """An exit status other than 0 and a signal count as failed connections; an end by svcctl does not."""
    lines = "".join(f"{name} 0/tcp server={code}\n" for name, code in
                    {"good": "/bin/true", "bad": "/bin/false", "cat": "/bin/cat"}.items())  # fmt: skip
    control = tmp_path / "control"
    daemon = start(f"@defaults bind=127.0.0.1\n{lines}status 0/tcp\n", "--control", str(control))
    controlled = _Controlled(daemon, control)
    for name in ("good", "bad"):
        exchange(daemon.connect(f"{name}/tcp"))
        daemon.wait_event("end", f"{name}/tcp")
    with daemon.connect("cat/tcp") as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        assert controlled.ask("kick", str(controlled.ask("connections")[0]["id"])) == {"ended": 1}
        assert client.recv(1) == b""
    daemon.wait_event("end", "cat/tcp")
    found = exchange(
        daemon.connect("status/tcp"), b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    ).decode()
    for name, count in {"good": 0, "bad": 1, "cat": 0}.items():
        assert f'svcd_connections_failed_total{{service="{name}/tcp"}} {count}\n' in found
        assert f'svcd_connections_limit{{service="{name}/tcp"}} 64\n' in found


WAITING = """
@defaults bind=127.0.0.1
proxied  0/tcp echo proxy_protocol=127.0.0.1
named    0/tcp tcpmux
secured  0/tcp echo tls_cert={folder}/server
echo     0/tcp
"""


def test_waiting_connections_are_listed_and_ended(start: Callable[..., Daemon], open_folder: Path) -> None:
    """The list has the state of each: it waits for a PROXY header, a service name, or a handshake."""
    (open_folder / "server").touch(0o600)
    (open_folder / "server").write_bytes(Authority().sign("localhost").bundle)
    path = open_folder / "control"
    controlled = _Controlled(start(WAITING.format(folder=open_folder), "--control", str(path)), path)
    states = {"proxied": "proxy-header", "named": "service-name", "secured": "handshake", "echo": "open"}
    with contextlib.ExitStack() as stack:
        clients = {name: stack.enter_context(controlled.daemon.connect(f"{name}/tcp")) for name in states}
        rows: dict[str, dict[str, Any]] = {}

        def all_are_there() -> bool:
            rows.update((row["service"], row) for row in controlled.ask("connections"))
            return len(rows) == len(states)

        wait_until(all_are_there, "all connections are listed")
        assert "STATE" in controlled.svcctl("connections").stdout
        for name, state in states.items():
            row = rows[f"{name}/tcp"]
            assert (row["peer"], row["state"]) == (":".join(map(str, clients[name].getsockname())), state)
            # Its id has not changed.
            assert controlled.ask("kick", str(row["id"])) == {"ended": 1}
            with contextlib.suppress(ConnectionResetError):
                assert clients[name].recv(1) == b""
        assert controlled.ask("connections") == []
    assert controlled.daemon.stop() == 0


def test_connections_are_listed_and_ended(controlled: _Controlled) -> None:
    """kick takes the id or the client address of a connection, also of a process."""
    daemon = controlled.daemon
    clients = [daemon.connect("echo/tcp"), daemon.connect("cat/tcp")]
    for client in clients:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
    rows = controlled.ask("connections")
    assert {row["service"] for row in rows} == {"echo/tcp", "cat/tcp"}
    process = next(row for row in rows if row["service"] == "cat/tcp")
    assert Path(f"/proc/{process['pid']}").exists()
    assert controlled.ask("kick", str(process["id"])) == {"ended": 1}
    assert clients[1].recv(1) == b""
    host, port = clients[0].getsockname()
    assert controlled.ask("kick", f"{host}:{port}") == {"ended": 1}
    (end,) = daemon.wait_event("end", "cat/tcp")
    assert end["reason"] == "kicked"
    done = controlled.svcctl("kick", "192.0.2.1")
    assert (done.returncode, "no connection" in done.stderr) == (1, True)
    for words in (["kick", ""], ["pause", ""], ["show", ""]):
        done = controlled.svcctl(*words)
        assert (done.returncode, done.stderr.count("\n"), "is empty" in done.stderr) == (64, 1, True), done.stderr
    for client in clients:
        client.close()


def test_disable_and_enable(controlled: _Controlled) -> None:
    """A disabled service accepts no client; open connections go on."""
    daemon = controlled.daemon
    port = _port(daemon, "echo/tcp")
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as old:
        controlled.ask("disable", "echo")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), PATIENCE)
        assert "disabled" in controlled.svcctl("status").stdout
        assert exchange(old, b"still") == b"still"
    controlled.ask("enable", "echo/tcp")
    daemon.wait_event("listen", "echo/tcp", 2)
    client = socket.create_connection(("127.0.0.1", _port(daemon, "echo/tcp")), PATIENCE)
    assert exchange(client, b"again") == b"again"


def test_reload_enables_disabled_services(controlled: _Controlled) -> None:
    """A reload by svcctl or by a signal enables a service once, and it can be disabled again."""
    daemon = controlled.daemon
    for count in (2, 3):
        controlled.ask("disable", "echo")
        if count == 2:
            controlled.ask("reload")
        else:
            daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_event("listen", "echo/tcp", count)
        assert "disabled" not in controlled.svcctl("status").stdout
        done = controlled.svcctl("enable", "echo")
        assert (done.returncode, done.stdout, done.stderr) == (0, "echo/tcp is on already\n", "")
        assert controlled.ask("enable", "echo") == {"service": "echo/tcp", "state": "on", "already": True}
        missing = controlled.svcctl("enable", "ecoh")
        assert (missing.returncode, "there is no service ecoh; did you mean" in missing.stderr) == (1, True)


def test_pause_and_resume(controlled: _Controlled) -> None:
    """Clients of a paused service wait until it is resumed; other services are not affected."""
    daemon = controlled.daemon
    controlled.ask("pause", "echo")
    done = controlled.svcctl("enable", "echo")
    assert (done.returncode, "echo/tcp is paused; resume it with svcctl resume echo/tcp" in done.stderr) == (1, True)
    with daemon.connect("echo/tcp") as waiting:
        waiting.sendall(b"hello")
        assert exchange(daemon.connect("cat/tcp"), b"x") == b"x"
        assert controlled.ask("connections", "echo") == []
        controlled.ask("resume")
        assert waiting.recv(10) == b"hello"


def test_reload_and_diff(controlled: _Controlled) -> None:
    """The answer has the changes, or the errors with exit status 78."""
    daemon = controlled.daemon
    daemon.file.write_text(SERVICES + "more 0/tcp daytime\n")
    changes = controlled.ask("diff")["changes"]
    assert changes[0] == "+ more/tcp"
    assert controlled.ask("reload")["changes"] == changes
    assert controlled.svcctl("reload").stdout == "reloaded: nothing has changed\n"
    daemon.file.write_text(SERVICES + "ecoh 0/tcp\n")
    for command in ("diff", "reload"):
        done = controlled.svcctl(command)
        assert (done.returncode, "did you mean 'echo'?" in done.stderr) == (78, True)


def test_log_level(controlled: _Controlled) -> None:
    """Lines of connections have the level info, which can be turned off and on."""
    daemon = controlled.daemon
    controlled.ask("log-level", "warn")
    exchange(daemon.connect("echo/tcp"), b"x")
    controlled.ask("log-level", "info")
    exchange(daemon.connect("echo/tcp"), b"x")
    (end,) = daemon.wait_event("end", "echo/tcp")
    assert end["id"] == "2"
    assert controlled.svcctl("log-level", "loud").returncode == 1


def test_log_level_of_refusals_and_removed_services(controlled: _Controlled) -> None:
    """At level error the log has no refusals, over TCP or UDP, and no connections of removed services."""
    daemon = controlled.daemon
    more = "few 0/tcp echo instances=1\nnone 0/udp echo only_from=10.9.9.9\n"
    daemon.file.write_text(f"{SERVICES}{more}gone 0/tcp echo\n")
    controlled.ask("reload")
    with daemon.connect("few/tcp") as first, daemon.connect("gone/tcp") as last:
        for client in (first, last):
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        daemon.file.write_text(f"{SERVICES}{more}")
        controlled.ask("reload")
        controlled.ask("log-level", "error")
        with daemon.connect("few/tcp") as refused:
            assert refused.recv(1) == b""
        with daemon.connect("none/udp") as refused:
            refused.send(b"x")
        assert exchange(last) == b""
    controlled.ask("log-level", "info")
    exchange(daemon.connect("echo/tcp"), b"x")
    daemon.wait_event("end", "echo/tcp")
    assert not [line for line in daemon.lines if " refuse " in line or " end service=gone/tcp " in line]
    with daemon.connect("none/udp") as refused:
        refused.send(b"x")
        assert daemon.wait_event("refuse", "none/udp")


def test_names_of_log_levels(controlled: _Controlled) -> None:
    """The help and the error for a wrong level list the same names."""
    words = list(reversed(PRIORITIES))
    text = f"{', '.join(words[:-1])} or {words[-1]}"
    assert text in " ".join(controlled.svcctl("log-level", "--help").stdout.split())
    assert ", ".join(words) in controlled.svcctl("log-level", "loud").stderr
    for word in words:
        assert controlled.ask("log-level", word) == {"level": word}


def test_drain(controlled: _Controlled) -> None:
    """A drained daemon stops in good order after its last connection."""
    daemon = controlled.daemon
    port = _port(daemon, "echo/tcp")
    with daemon.connect("echo/tcp") as client:
        controlled.ask("drain")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), PATIENCE)
        assert exchange(client, b"bye") == b"bye"
    assert daemon.process.wait(PATIENCE) == 0
    assert not controlled.path.exists()


def test_stop(controlled: _Controlled) -> None:
    """The command is answered, and the daemon stops as after SIGTERM."""
    assert controlled.svcctl("stop").returncode == 0
    assert controlled.daemon.process.wait(PATIENCE) == 0
    done = controlled.svcctl("status")
    assert (done.returncode, "no control socket found at " in done.stderr) == (69, True)


def test_unknown_service(controlled: _Controlled) -> None:
    """The error for an unknown service suggests the nearest name."""
    done = controlled.svcctl("show", "ecoh")
    assert (done.returncode, done.stderr) == (1, "there is no service ecoh; did you mean echo/tcp?\n")


def test_top(controlled: _Controlled) -> None:
    """It prints the status repeatedly, as plain text if there is no terminal."""
    done = controlled.svcctl("top", "--count", "2")
    assert done.stdout.count("SERVICE") == 2
    assert "\x1b" not in done.stdout


def test_permissions_of_the_socket(controlled: _Controlled) -> None:
    """Only the owner may connect."""
    assert controlled.path.stat().st_mode & 0o777 == 0o600


def test_other_users_are_refused(
    controlled: _Controlled,
    program: Callable[[str], str],
    as_root: None,  # noqa: ARG001
) -> None:
    """A user other than root and the owner is refused, even if the permissions of the socket allow it."""
    controlled.path.chmod(0o666)
    words = [program("setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups", program("nc"), "-N", "-U"]
    done = subprocess.run(
        [*words, str(controlled.path)], input=b'{"command":"status"}\n', capture_output=True, timeout=PATIENCE
    )
    answer = json.loads(done.stdout)
    assert (answer["ok"], answer["code"]) == (False, "refused")


def test_limit_of_control_clients(controlled: _Controlled) -> None:
    """Clients beyond the limit get the code busy; a client that closes makes room; root has four more places."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(controlled.dial()) for _ in range(20 if os.geteuid() == 0 else 16)]
        for client in clients:
            client.sendall(b'{"command":"status"}\n')
            assert b'"ok":true' in client.recv(100_000)
        with controlled.dial() as extra:
            assert json.loads(extra.recv(1000))["code"] == "busy"
        clients[0].close()
        with controlled.dial() as following:
            following.sendall(b'{"command":"status"}\n')
            assert b'"ok":true' in following.recv(100_000)


@pytest.mark.parametrize("reactor", ["uv", "epoll", "asyncio"])
def test_many_requests_in_one_write(start: Callable[..., Daemon], open_folder: Path, reactor: str) -> None:
    """20,000 requests are answered in order while other clients are served, and memory does not grow."""
    path = open_folder / "control"
    daemon = start(SERVICES, "--control", str(path), twistd_arguments=["--reactor", reactor])
    controlled = _Controlled(daemon, path)
    assert controlled.ask("status")["services"]
    before = daemon.memory()
    with controlled.dial() as client, client.makefile("rb") as answers:
        requests = b"".join(b'{"id":%d,"command":"status"}\n' % number for number in range(20_000))
        sender = threading.Thread(target=client.sendall, args=(requests,))
        sender.start()
        for number in range(20_000):
            assert json.loads(answers.readline())["id"] == number
            if number % 4000 == 0:
                assert exchange(daemon.connect("echo/tcp"), b"x") == b"x"
                assert controlled.ask("status")["services"]
        sender.join()
    assert daemon.memory() - before < 8 * 1024**2
    assert not [line for line in daemon.lines if "Error" in line]


@pytest.mark.parametrize("reactor", ["uv", "epoll", "asyncio"])
def test_half_closed_client_gets_its_answers(start: Callable[..., Daemon], open_folder: Path, reactor: str) -> None:
    """It gets all answers, also to a last line without a line end, and to a slow command."""
    path = open_folder / "control"
    daemon = start(SERVICES, "--control", str(path), twistd_arguments=["--reactor", reactor])
    controlled = _Controlled(daemon, path)
    question = b'{"id":1,"command":"status"}\n{"id":2,"command":"reload"}\n{"id":3,"command":"connections"}'
    answers = [json.loads(line) for line in exchange(controlled.dial(), question).splitlines()]
    assert [(answer["id"], answer["ok"]) for answer in answers] == [(1, True), (2, True), (3, True)]
    assert exchange(controlled.dial()) == b""
    many = exchange(controlled.dial(), b'{"command":"status"}\n' * 300)
    assert many.count(b'"ok":true') == 300


def test_netcat(controlled: _Controlled, program: Callable[[str], str]) -> None:
    """nc -N -U prints the answer to a request."""
    words = [program("nc"), "-N", "-U", str(controlled.path)]
    done = subprocess.run(words, input=b'{"command":"status"}\n', capture_output=True, timeout=PATIENCE)
    assert json.loads(done.stdout)["ok"]


@pytest.mark.load
def test_random_requests(controlled: _Controlled) -> None:
    """Each of 100,000 random and mutated lines gets an error or an answer, and memory does not grow."""
    daemon = controlled.daemon
    chance = random.Random(20260101)
    good = [b'{"id":1,"command":"connections"}', b'{"id":2,"command":"show","arguments":{"service":"echo/tcp"}}']

    def line() -> bytes:
        if chance.random() < 0.3:
            return chance.randbytes(chance.randrange(1, 60)).replace(b"\n", b"").strip() or b"x"
        mutated = bytearray(chance.choice(good))
        for _ in range(chance.randrange(4)):
            mutated[chance.randrange(len(mutated))] = chance.randrange(32, 127)
        return bytes(mutated)

    def round_of(count: int) -> None:
        with controlled.dial() as client, client.makefile("rb") as answers:
            for _ in range(count // 500):
                client.sendall(b"".join(line() + b"\n" for _ in range(500)))
                for _ in range(500):
                    assert b'"ok":' in answers.readline()

    round_of(10_000)
    before = daemon.memory()
    round_of(90_000)
    assert daemon.memory() - before < 4 * 1024**2
    with controlled.dial() as client:
        client.sendall(b"x" * 10_000_000 + b"\n")
        assert json.loads(client.recv(1000))["error"] == "the line is too long"
    assert exchange(daemon.connect("echo/tcp"), b"alive") == b"alive"


def test_client_that_does_not_read(controlled: _Controlled) -> None:
    """The daemon does not read its requests while the answers are unread."""
    before = controlled.daemon.memory()
    with controlled.dial() as client:
        client.settimeout(1)
        question = b'{"command":"status"}\n' * 1000
        with contextlib.suppress(TimeoutError):
            # A second without room for a byte: the daemon does not read any more.
            for _ in range(100_000):
                client.sendall(question)
        assert controlled.ask("status")["services"]
        assert controlled.daemon.memory() - before < 16 * 1024**2


def test_commands_do_not_import_twisted() -> None:
    """The import of Twisted would take longer than the rest of the command."""
    code = (
        "import sys; from svcd.cli import main\n"
        "main(['--control', '/nowhere', 'status']); print('twisted' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.stdout == "False\n"
    assert "no control socket found at /nowhere; start svcd with --control PATH" in done.stderr


def test_reload_of_an_empty_file(controlled: _Controlled) -> None:
    """It changes nothing and the error has the reason; with --allow-empty it removes all services."""
    daemon = controlled.daemon
    daemon.file.write_text("")
    refused = controlled.svcctl("reload")
    assert refused.returncode == 78
    assert "no service is enabled in it" in refused.stderr
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for(lambda line: " reload-failed " in line, 2)
    assert exchange(daemon.connect("echo/tcp"), b"a") == b"a"
    assert controlled.svcctl("diff").returncode == 78
    assert controlled.svcctl("reload", "--allow-empty").returncode == 0
    assert controlled.ask("status")["services"] == []


def test_check_accepts_ports_of_the_daemon(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """Its ports are no faults, in any file; the port of another process is a fault, and the error names it."""
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(3)]
    tcp, udp, wild = ports
    lines = (
        f"echo {tcp}/tcp bind=127.0.0.1\necho {udp}/udp bind=127.0.0.1\nupper {wild}/tcp\nup {tmp_path}/up/unix upper\n"
    )
    daemon = start(lines, "--control", "control")
    daemon.wait_for(lambda line: " ready " in line)
    other = tmp_path / "other"
    svcctl = [sys.executable, "-m", "svcd", "--control", str(daemon.folder / "control"), "check"]
    check = [
        sys.executable,
        "-m",
        "twisted",
        "svcd",
        "--control",
        str(daemon.folder / "control"),
        "--check",
        "--services",
    ]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return preloaded.run(words, env=environment(), capture_output=True, text=True, timeout=PATIENCE)

    other.write_text(lines.replace("up ", "down ").replace("bind=127.0.0.1", ""))
    for words in (svcctl, [*svcctl, str(other)], [*check, str(daemon.file)], [*check, str(other)]):
        done = run(*words)
        assert done.returncode == 0, done.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        other.write_text(f"{lines}far {port}/tcp4 echo\n")
        for words in ([*svcctl, str(other)], [*check, str(other)]):
            done = run(*words)
            text = f"{other}:5:1: can't listen on 0.0.0.0:{port}: Address already in use by "
            assert (done.returncode, text in done.stderr, f"(pid {os.getpid()})" in done.stderr) == (1, True, True)
            assert done.stderr.count("can't listen") == 1


def test_check_and_explain_use_the_file_of_the_daemon(controlled: _Controlled) -> None:
    """Without a file argument they use the services file of the daemon, and print its path."""
    daemon = controlled.daemon
    daemon.file.write_text(
        "@defaults bind=127.0.0.1\nmine 0/tcp echo no_access=10.0.0.1\nyours 0/tcp factory=os:getpid\n"
    )
    checked = controlled.svcctl("check")
    assert checked.returncode == 1
    first, *problems = checked.stderr.splitlines()
    named = f"{daemon.file}, the file of the running daemon (pid {daemon.process.pid})"
    assert first.startswith(f"svcctl check: {named}; as user ")
    assert problems == [
        f"{daemon.file}:3:21: factory: os:getpid returns int, not a Factory (IProtocolFactory)",
        "svcctl check: the machine can't serve yours/tcp at the moment",
    ]
    explained = controlled.svcctl("explain", "mine", "10.0.0.1")
    assert explained.stderr == f"svcctl explain: {named}\n"
    assert explained.returncode == 1


def test_services_with_the_same_name_and_ids(start: Callable[..., Daemon], open_folder: Path) -> None:
    """The log and svcctl name each by its id=; a reload keeps their sockets."""
    path = open_folder / "control"
    lines = "@defaults bind=127.0.0.1\necho 0/tcp id=lan\necho 0/tcp id=wan\n"
    controlled = _Controlled(start(lines, "--control", str(path)), path)
    daemon = controlled.daemon
    addresses = {row["service"]: row["addresses"] for row in controlled.ask("status")["services"]}
    assert list(addresses) == ["lan/tcp", "wan/tcp"]
    assert exchange(daemon.connect("wan/tcp"), b"a") == b"a"
    daemon.wait_for(lambda line: " end service=wan/tcp " in line)
    assert controlled.ask("show", "lan")["service"] == "lan/tcp"
    controlled.ask("disable", "lan")
    daemon.file.write_text(lines + "discard 0/tcp id=void\n")
    controlled.ask("reload")
    after = {row["service"]: row["addresses"] for row in controlled.ask("status")["services"]}
    assert set(after) == {"lan/tcp", "wan/tcp", "void/tcp"}
    assert after["wan/tcp"] == addresses["wan/tcp"]


def test_a_control_socket_that_another_daemon_uses(controlled: _Controlled, start: Callable[..., Daemon]) -> None:
    """The second daemon ends with 71; the reason names the process of the first, and the remedy."""
    second = start("echo 0/tcp bind=127.0.0.1\n", "--control", str(controlled.path), ready=False)
    assert second.process.wait(PATIENCE) == os.EX_OSERR
    (reason,) = second.wait_for(lambda line: line.startswith("svcd: "))
    # The descriptors of a daemon are visible to root only.
    name = rf", \S+ \(pid {controlled.daemon.process.pid}\)" if os.geteuid() == 0 else ""
    text = f"by another daemon{name}; stop that daemon, or set another path with"
    assert re.search(f": Address already in use {text} --control PATH$", reason), reason
    assert controlled.svcctl("status").returncode == 0


def test_a_control_socket_without_a_directory(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """The daemon ends with 71, and the reason has the remedy."""
    path = tmp_path / "none" / "control"
    daemon = start("echo 0/tcp bind=127.0.0.1\n", "--control", str(path), ready=False)
    assert daemon.process.wait(PATIENCE) == os.EX_OSERR
    (reason,) = daemon.wait_for(lambda line: line.startswith("svcd: "))
    assert reason == f"svcd: control: can't listen on {path}: No such file or directory; create its directory"
