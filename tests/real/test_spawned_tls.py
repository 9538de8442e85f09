"""TLS of spawned services, on all reactors."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from OpenSSL import SSL

from tests.certificates import Authority
from tests.real import preloaded
from tests.real.clients import run
from tests.real.daemon import PATIENCE, environment, exchange
from tests.real.processes import Process, all_gone, wait_until
from tests.real.test_programs import git

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.real.daemon import Daemon

MEGABYTE = 1 << 20
REACTORS = ["uv", "epoll", "asyncio"]
CA, CLIENTS = Authority(), Authority("Clients")
SERVER, ANNA = CA.sign("localhost", "127.0.0.1"), CLIENTS.sign("anna.example.org")

MODULE = """
import json, os, socket, socketserver, sys

def listens(sock, address):
    sock.sendall(b"first")
    sock.shutdown(socket.SHUT_WR)
    while sock.recv(100):
        pass
    sys.exit(7)

class Tells(socketserver.BaseRequestHandler):
    def handle(self):
        ends = [self.client_address, self.server.server_address]
        self.request.sendall(json.dumps([*ends, dict(os.environ), self.server.environment]).encode())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a directory with certificates that other users can't read, and a module with handlers."""
    for name, content in {"server": SERVER.bundle, "clients": CLIENTS.pem, "ca": CA.pem, "anna": ANNA.bundle}.items():
        (tmp_path / name).touch(0o600)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "tells.py").write_text(MODULE)
    return tmp_path


@pytest.fixture
def serve(start: Callable[..., Daemon], folder: Path) -> Callable[..., Daemon]:
    """Return a function that starts a daemon whose services have TLS."""

    def starter(services: str, *arguments: str, reactor: str = "uv") -> Daemon:
        text = f"@defaults bind=127.0.0.1 instances=none shutdown_timeout=0.5s tls_cert={folder}/server\n{services}"
        return start(text, *arguments, twistd_arguments=("-r", reactor))

    return starter


@pytest.fixture
def connect() -> Iterator[Callable[..., SSL.Connection]]:
    """Return a function that makes TLS connections that can be half-closed; they are closed with the test."""
    with contextlib.ExitStack() as stack:

        def make(daemon: Daemon, service: str, port: int = 0) -> SSL.Connection:
            context = SSL.Context(SSL.TLS_CLIENT_METHOD)
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port or daemon.port(service)), PATIENCE))
            # With a timeout the socket would be non-blocking for OpenSSL.
            sock.settimeout(None)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(PATIENCE), 0))
            connection = SSL.Connection(context, sock)
            connection.set_connect_state()
            connection.do_handshake()
            return connection

        yield make


def _read_all(connection: SSL.Connection) -> bytes:
    """Return the data up to the closure alert of the server."""
    data = bytearray()
    with contextlib.suppress(SSL.ZeroReturnError):
        while True:
            data += connection.recv(65_536)
    return bytes(data)


def _through(connection: SSL.Connection, data: bytes) -> bytes:
    """Send data and a closure alert, reading meanwhile; return the data up to the closure alert of the server."""
    connection.setblocking(False)
    rest, received = memoryview(data), bytearray()
    with contextlib.suppress(SSL.ZeroReturnError):
        while True:
            with contextlib.suppress(SSL.WantReadError):
                while True:
                    received += connection.recv(65_536)
            with contextlib.suppress(SSL.WantWriteError):
                while rest and not select.select([connection], [], [], 0)[0]:
                    rest = rest[connection.send(rest[:65_536]) :]
                    if not rest:
                        connection.shutdown()
            assert any(select.select([connection], [connection] if rest else [], [], PATIENCE)), "nothing moves"
    return bytes(received)


def _reset(connection: SSL.Connection) -> None:
    with socket.socket(fileno=os.dup(connection.fileno())) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_environment_of_handlers(serve: Callable[..., Daemon], folder: Path) -> None:
    """A program and a Python handler get the address and the certificate of the client in their environment."""
    secure = f"tls_client_ca={folder}/clients"
    daemon = serve(
        f"env 0/tcp server=/usr/bin/env {secure}\ntells 0/tcp python=tells:Tells python_path={folder} {secure}\n"
    )
    context = ssl.create_default_context(cafile=str(folder / "ca"))
    context.load_cert_chain(folder / "anna")

    def ask(service: str) -> tuple[Any, bytes]:
        with (
            daemon.connect(service) as sock,
            context.wrap_socket(sock, server_hostname="localhost", suppress_ragged_eofs=False) as client,
        ):
            name, answer = client.getsockname(), b""
            while piece := client.recv(65_536):
                answer += piece
            return name, answer

    name, answer = ask("env/tcp")
    values = dict(line.partition("=")[::2] for line in answer.decode().splitlines())
    assert (values["TCPREMOTEIP"], values["TCPREMOTEPORT"]) == (name[0], str(name[1]))
    assert values["PROTO"] == "TCP"
    assert values["SSL_PROTOCOL"] == "TLSv1.3"
    assert values["SSL_CIPHER"].startswith("TLS_")
    assert values["SSL_TLS_SNI"] == "localhost"
    assert values["SSL_CLIENT_VERIFY"] == "SUCCESS"
    assert (values["SSL_CLIENT_S_DN"], values["SSL_CLIENT_I_DN"]) == ("CN=anna.example.org", "CN=Clients")
    assert values["SSL_CLIENT_SAN"] == "DNS:anna.example.org"
    name, answer = ask("tells/tcp")
    client, near, variables, own = json.loads(answer)
    assert (tuple(client), tuple(near)) == (name, ("127.0.0.1", daemon.port("tells/tcp")))
    assert variables["SSL_CLIENT_S_DN"] == own["SSL_CLIENT_S_DN"] == "CN=anna.example.org"
    (accept,) = daemon.wait_event("accept", "env/tcp")
    assert (accept["tls"], accept["subject"]) == ("TLSv1.3", "CN=anna.example.org")
    (end,) = daemon.wait_event("end", "env/tcp")
    assert (end["id"], end["reason"], end["exit"]) == (accept["id"], "done", "0")
    assert daemon.stop() == 0


def test_socat_ncat_and_openssl(serve: Callable[..., Daemon], program: Callable[[str], str]) -> None:
    """socat, ncat and openssl s_client get back what they send; socat half-closes, and gets all of it."""
    daemon = serve('cat 0/tcp server=/bin/cat\nfirst 0/tcp server="/usr/bin/head -n1"\n')
    data = os.urandom(2 * MEGABYTE)
    address = f"127.0.0.1:{daemon.port('cat/tcp')}"
    assert run(program("socat"), "-t60", "-", f"OPENSSL:{address},verify=0", data=data) == data
    host, port = f"127.0.0.1:{daemon.port('first/tcp')}".split(":")
    assert run(program("ncat"), "--ssl", host, port, data=b"a line\nanother\n") == b"a line\n"
    answer = run(program("openssl"), "s_client", "-quiet", "-connect", f"{host}:{port}", data=b"a line\nanother\n")
    assert answer.endswith(b"\na line\n")
    ends = [*daemon.wait_event("end", "cat/tcp"), *daemon.wait_event("end", "first/tcp", 2)]
    assert {(end["reason"], end["exit"]) for end in ends} == {("done", "0")}


def test_git_and_rsync(serve: Callable[..., Daemon], program: Callable[[str], str], tmp_path: Path) -> None:
    """git daemon and rsync --daemon serve a clone, a push and a tree through the TLS of socat."""
    git(program, tmp_path, "init", "--bare", "--initial-branch=main", "project.git")
    served = tmp_path / "served"
    served.mkdir()
    (served / "big").write_bytes(os.urandom(3 * MEGABYTE))
    ids = "uid = 0\ngid = 0\n" if os.geteuid() == 0 else ""
    config = tmp_path / "rsyncd.conf"
    config.write_text(f"use chroot = no\nreverse lookup = no\nlog file = {tmp_path}/log\n{ids}[all]\npath = {served}\n")
    daemon = serve(
        f"git 0/tcp server='{program('git')} daemon --inetd --export-all --enable=receive-pack "
        f"--base-path={tmp_path}' stderr=log\n"
        f"rsync 0/tcp server='{program('rsync')} --daemon --config={config}'\n"
    )
    with _tunnel(program, daemon.port("git/tcp")) as port:
        url = f"git://127.0.0.1:{port}/project.git"
        git(program, tmp_path, "clone", url, "first")
        first = tmp_path / "first"
        (first / "big").write_bytes((served / "big").read_bytes())
        git(program, first, "add", "big")
        git(program, first, "commit", "-m", "a commit")
        assert b"HEAD -> main" in git(program, first, "push", url, "HEAD:main")
        git(program, tmp_path, "clone", url, "second")
    assert (tmp_path / "second" / "big").read_bytes() == (served / "big").read_bytes()
    with _tunnel(program, daemon.port("rsync/tcp")) as port:
        assert run(program("rsync"), "-a", f"rsync://127.0.0.1:{port}/all/", f"{tmp_path}/fetched/") == b""
    assert (tmp_path / "fetched" / "big").read_bytes() == (served / "big").read_bytes()
    ends = [*daemon.wait_event("end", "git/tcp", 3), *daemon.wait_event("end", "rsync/tcp")]
    assert {(end["reason"], end["exit"]) for end in ends} == {("done", "0")}


@contextlib.contextmanager
def _tunnel(program: Callable[[str], str], port: int) -> Iterator[int]:
    """Run socat between a new port without TLS and a port with TLS; return the new port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        own = free.getsockname()[1]
    words = [program("socat"), "-d", "-d", f"TCP-LISTEN:{own},bind=127.0.0.1,fork,reuseaddr"]
    with subprocess.Popen([*words, f"OPENSSL:127.0.0.1:{port},verify=0"], stderr=subprocess.PIPE) as tunnel:
        assert tunnel.stderr is not None
        # It has logged that it listens.
        assert b"listening" in tunnel.stderr.readline()
        drain = threading.Thread(target=tunnel.stderr.read)
        drain.start()
        try:
            yield own
        finally:
            tunnel.terminate()
            drain.join(PATIENCE)


@pytest.mark.parametrize("reactor", REACTORS[:2])
def test_tls_over_other_transports(
    serve: Callable[..., Daemon], open_folder: Path, has_ipv6: bool, reactor: str
) -> None:
    """TLS works over a UNIX socket, IPv6, after a PROXY header, and after a service name of tcpmux."""
    daemon = serve(
        f"local {open_folder}/s/unix server=/usr/bin/env\n"
        + "six 0/tcp6 bind=::1 server=/usr/bin/env\n" * has_ipv6
        + "proxied 0/tcp server=/usr/bin/env proxy_protocol=127.0.0.1\n"
        "named 0/tcp server=/usr/bin/env mux=yes\ntcpmux 0/tcp\n",
        reactor=reactor,
    )
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    def ask(sock: socket.socket, before: bytes = b"", answer: bytes = b"") -> dict[str, str]:
        with sock:
            sock.sendall(before)
            assert not answer or sock.recv(len(answer), socket.MSG_WAITALL) == answer
            with context.wrap_socket(sock) as client:
                said = b""
                while piece := client.recv(65_536):
                    said += piece
        values = dict(line.partition("=")[::2] for line in said.decode().splitlines())
        assert values["SSL_PROTOCOL"] == "TLSv1.3"
        return values

    values = ask(daemon.connect("local/unix", socket.AF_UNIX))
    assert (values["PROTO"], values["UNIXREMOTEPID"]) == ("UNIX", str(os.getpid()))
    if has_ipv6:
        assert ask(daemon.connect("six/tcp6", socket.AF_INET6))["TCPREMOTEIP"] == "::1"
    header = b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 443\r\n"
    values = ask(daemon.connect("proxied/tcp"), header)
    assert (values["TCPREMOTEIP"], values["TCPREMOTEPORT"], values["PROXY_ADDR"]) == ("192.0.2.1", "4711", "127.0.0.1")
    assert daemon.wait_event("end", "proxied/tcp")[0]["peer"] == "192.0.2.1:4711"
    assert ask(daemon.connect("tcpmux/tcp"), b"named\r\n", b"+Go\r\n")["TCPREMOTEIP"] == "127.0.0.1"
    assert daemon.wait_event("accept", "named/tcp")[0]["tls"] == "TLSv1.3"


@pytest.mark.load
@pytest.mark.parametrize("reactor", REACTORS)
def test_bulk_data_in_both_directions(
    serve: Callable[..., Daemon], connect: Callable[..., SSL.Connection], reactor: str
) -> None:
    """16 MB go to a handler and back, complete and with their end; the daemon keeps little of it."""
    daemon = serve("cat 0/tcp server=/bin/cat log_on_success=EXIT,TRAFFIC\n", reactor=reactor)
    before = daemon.memory()
    client = connect(daemon, "cat/tcp")
    data = os.urandom(16 * MEGABYTE)
    assert _through(client, data) == data
    assert daemon.memory() - before < 8 * MEGABYTE
    (end,) = daemon.wait_event("end", "cat/tcp")
    assert (end["reason"], end["exit"]) == ("done", "0")
    assert 16 * MEGABYTE < int(end["in"]) < 17 * MEGABYTE
    assert 16 * MEGABYTE < int(end["out"]) < 17 * MEGABYTE


@pytest.mark.load
@pytest.mark.parametrize("reactor", REACTORS[:2])
def test_end_that_does_not_read(
    serve: Callable[..., Daemon], connect: Callable[..., SSL.Connection], reactor: str
) -> None:
    """A client that does not read blocks its handler, and vice versa; the daemon keeps a buffer of each."""
    daemon = serve('yes 0/tcp server=/usr/bin/yes\nsleep 0/tcp server="/bin/sleep 1000"\n', reactor=reactor)
    yes, sleep = connect(daemon, "yes/tcp"), connect(daemon, "sleep/tcp")
    (pid,) = daemon.handlers("yes/tcp")
    daemon.handlers("sleep/tcp")
    before = daemon.memory()
    sleep.setblocking(False)
    sent = 0
    with contextlib.suppress(SSL.WantWriteError):
        while sent < 100 * MEGABYTE:
            # It is blocked when nothing has been read for a second.
            if not select.select([], [sleep], [], 1)[1]:
                break
            sent += sleep.send(bytes(65_536))
    assert sent < 50 * MEGABYTE
    # Meanwhile `yes` had time to write, too.
    assert int(re.findall(r"wchar: (\d+)", Path(f"/proc/{pid}/io").read_text())[0]) < 50 * MEGABYTE
    assert daemon.memory() - before < 4 * MEGABYTE
    assert yes.recv(4) == b"y\ny\n"
    _reset(yes)
    (end,) = daemon.wait_event("end", "yes/tcp")
    assert end["exit"] == "SIGPIPE"


@pytest.mark.parametrize("reactor", REACTORS[:2])
def test_half_close_of_handlers(
    serve: Callable[..., Daemon], connect: Callable[..., SSL.Connection], folder: Path, reactor: str
) -> None:
    """The output of a handler that reads nothing arrives; a handler that has closed its output gets all input."""
    daemon = serve(
        'hasty 0/tcp server="/usr/bin/head -c 1000000 /dev/zero"\n'
        f"listens 0/tcp python=tells:listens python_path={folder}\n",
        reactor=reactor,
    )
    client = connect(daemon, "hasty/tcp")
    client.send(b"a question that nobody reads")
    assert _read_all(client) == bytes(1_000_000)
    client.close()
    client = connect(daemon, "listens/tcp")
    assert _read_all(client) == b"first"
    client.send(b"more")
    assert daemon.wait_event("end", "listens/tcp", 0) == []
    client.shutdown()
    assert daemon.wait_event("end", "listens/tcp")[0]["exit"] == "7"
    assert daemon.wait_event("end", "hasty/tcp")[0]["reason"] == "done"


@pytest.mark.load
@pytest.mark.parametrize("reactor", REACTORS[:2])
def test_no_leaks(serve: Callable[..., Daemon], connect: Callable[..., SSL.Connection], reactor: str) -> None:
    """50 connections leave no process and no descriptor, whichever process is killed; each has one end line."""
    many = 50
    daemon = serve("cat 0/tcp server=/bin/cat\n", reactor=reactor)
    # Descriptors that are opened once, for the first connection, are open from now on.
    assert _through(connect(daemon, "cat/tcp"), b"x") == b"x"
    daemon.wait_event("end", "cat/tcp")
    before, pids = daemon.descriptors(), []
    for number, ending in enumerate(("handlers", "launcher", "clients"), 1):
        port = daemon.port("cat/tcp")
        clients = [connect(daemon, "cat/tcp", port) for _ in range(many)]
        for client in clients:
            client.send(b"x")
        assert {client.recv(1) for client in clients} == {b"x"}
        pids = daemon.handlers("cat/tcp", 1 + number * many)[-many:]
        handlers = [Process(pid) for pid in pids]
        if ending == "handlers":
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            assert {_read_all(client) for client in clients} == {b""}
        elif ending == "launcher":
            os.kill(daemon.launcher("cat/tcp", 1), signal.SIGKILL)
        else:
            for client in clients:
                _reset(client)
        if ending == "launcher":
            # Its handlers go on.
            assert [_through(client, b"still there") for client in clients] == [b"still there"] * many
        for client in clients:
            client.close()
        all_gone(handlers)
        daemon.wait_event("end", "cat/tcp", 1 + number * many)
    wait_until(lambda: daemon.descriptors() <= before, "the descriptors are closed")
    assert daemon.wait_event("end", "cat/tcp", 1 + 3 * many)[-1]["count"] == "0"
    assert daemon.stop() == 0


def test_control_reload_and_stop(
    serve: Callable[..., Daemon], connect: Callable[..., SSL.Connection], open_folder: Path
) -> None:
    """svcctl lists and ends connections; a reload without TLS applies to new ones; a stop leaves no process."""
    control = str(open_folder / "control")
    daemon = serve("cat 0/tcp server=/bin/cat\n", "--control", control)

    def ask(*words: str) -> Any:
        command = [sys.executable, "-m", "svcd", "--control", control, *words, "--json"]
        done = preloaded.run(command, env=environment(), capture_output=True, timeout=PATIENCE, check=True)
        return json.loads(done.stdout)

    first, second = connect(daemon, "cat/tcp"), connect(daemon, "cat/tcp")
    handlers = [Process(pid) for pid in daemon.handlers("cat/tcp", 2)]
    with daemon.connect("cat/tcp") as plain:
        # This client sends no TLS, and gets no process.
        plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert daemon.wait_event("fail", "cat/tcp")[0]["reason"] == "http request"
    daemon.wait_event("end", "cat/tcp")
    connections = ask("connections")
    assert [each["tls"] for each in connections] == ["TLSv1.3"] * 2
    assert [each["pid"] for each in connections] == [process.pid for process in handlers]
    ask("kick", str(connections[0]["id"]))
    assert _read_all(first) == b""
    assert daemon.wait_event("end", "cat/tcp", 2)[-1]["reason"] == "kicked"
    daemon.file.write_text("cat 0/tcp bind=127.0.0.1 server=/bin/cat shutdown_timeout=0.5s\n")
    ask("reload")
    assert exchange(daemon.connect("cat/tcp"), b"in the clear") == b"in the clear"
    second.send(b"still in TLS")
    assert second.recv(100) == b"still in TLS"
    assert daemon.stop() == 0
    assert _read_all(second) == b""
    all_gone(handlers)
