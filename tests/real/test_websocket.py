"""Programs over WebSocket, with an independent client and a browser."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import struct
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect as connect_client
from websockets.sync.client import unix_connect
from websockets.typing import Subprotocol

from svcd.cli import main as svcctl
from tests.certificates import Authority
from tests.real.browser import Browser
from tests.real.daemon import PATIENCE, exchange
from tests.real.processes import wait_until
from tests.websocket import HANDSHAKE, deflated, frame, received, request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from websockets.sync.client import ClientConnection

    from tests.real.daemon import Daemon

REACTORS = ["uv", "epoll", "asyncio"]
CA = Authority()
SERVER = CA.sign("localhost", "127.0.0.1")
MEGABYTE = 1 << 20

MODULE = """
import socketserver

class Shout(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())
        self.wfile.write(self.server.environment["QUERY_STRING"].encode())
"""


@pytest.fixture
def serve(start_controlled: Callable[..., Daemon]) -> Callable[..., Daemon]:
    """Return a function that starts a daemon with a control socket."""

    def starter(services: str, reactor: str = "uv") -> Daemon:
        text = f"@defaults bind=127.0.0.1 instances=none shutdown_timeout=5s\n{services}"
        return start_controlled(text, twistd_arguments=("-r", reactor))

    return starter


def _connect(daemon: Daemon, service: str, target: str = "/", **more: Any) -> ClientConnection:
    more = {"compression": None, "open_timeout": PATIENCE, "close_timeout": PATIENCE, "proxy": None, **more}
    scheme = "wss" if "ssl" in more else "ws"
    client: ClientConnection = connect_client(f"{scheme}://127.0.0.1:{daemon.port(service)}{target}", **more)
    return client


def _rest(client: socket.socket) -> bytes:
    """Return what a server sends to the end of the connection, which the client does not close first."""
    found = b""
    while data := client.recv(65_536):
        found += data
    return found


def _end(client: ClientConnection) -> tuple[list[Any], int, str]:
    """Return what the client still receives, and the status and reason of the server's Close frame."""
    messages: list[Any] = []

    def receive() -> None:
        while True:
            messages.append(client.recv(PATIENCE))

    with pytest.raises(ConnectionClosed) as closed:
        receive()
    close = closed.value.rcvd
    assert close is not None
    return messages, close.code, close.reason


@pytest.mark.parametrize("reactor", REACTORS)
def test_lines_through_a_program(serve: Callable[..., Daemon], reactor: str) -> None:
    """Messages go through a program as lines, and the program ends when the client closes."""
    daemon = serve("cat 0/tcp server=/bin/cat websocket=lines", reactor)
    with _connect(daemon, "cat/tcp") as client:
        for text in ("hello", "", "é" * 100_000, "x" * (MEGABYTE - 1)):
            client.send(text)
            assert client.recv(PATIENCE) == text
        client.ping().wait(PATIENCE)
    assert client.close_code == 1000
    (end,) = daemon.wait_event("end", "cat/tcp")
    assert (end["reason"], end["exit"]) == ("done", "0")


@pytest.mark.parametrize("reactor", REACTORS)
def test_much_data_in_both_directions(serve: Callable[..., Daemon], reactor: str) -> None:
    """Binary data goes through a program unchanged and with back-pressure, compressed as well."""
    daemon = serve("cat 0/tcp server=/bin/cat websocket=binary websocket_deflate=yes", reactor)
    data = os.urandom(MEGABYTE) + bytes(3 * MEGABYTE)
    for compression in (None, "deflate"):
        with _connect(daemon, "cat/tcp", compression=compression, max_size=None) as client:
            assert client.response is not None
            assert ("Sec-WebSocket-Extensions" in client.response.headers) == bool(compression)
            got = bytearray()
            for at in range(0, len(data) + 500_000, 500_000):
                if at < len(data):
                    client.send(data[at : at + 500_000])
                while len(got) < min(at, len(data)):
                    piece = client.recv(PATIENCE)
                    assert isinstance(piece, bytes)
                    got += piece
            assert got == data


def test_a_client_that_does_not_read(serve: Callable[..., Daemon]) -> None:
    """A program whose client does not read is paused, and the daemon's memory stays small."""
    daemon = serve("flood 0/tcp server=/usr/bin/yes websocket=lines")
    before = daemon.memory()
    with closing(daemon.connect("flood/tcp")) as client:
        client.sendall(HANDSHAKE)
        daemon.handlers("flood/tcp")
        assert client.recv(100).startswith(b"HTTP/1.1 101 ")
        # A flood of Pings is not answered with memory either.
        client.settimeout(1)
        try:
            for _ in range(200):
                client.sendall(frame(0x89, b"x" * 100) * 100)
        except TimeoutError:
            pass
        assert daemon.memory() - before < 16 * MEGABYTE


@pytest.mark.parametrize(
    ("script", "messages", "code", "reason"),
    [
        ("echo a; echo b", ["a", "b"], 1000, ""),
        ("printf tail; exit 3", ["tail"], 1011, "exit status 3"),
        ("kill -KILL $$", [], 1011, "killed by SIGKILL"),
        ("exec >&-; sleep 0.2; exit 4", [], 1011, "exit status 4"),
    ],
)
def test_the_end_of_the_program(
    serve: Callable[..., Daemon], script: str, messages: list[str], code: int, reason: str
) -> None:
    """The status of the Close frame says how the program has ended; its output comes before."""
    daemon = serve(f"sh 0/tcp server=\"/bin/sh -c '{script}'\" websocket=lines stderr=log")
    with _connect(daemon, "sh/tcp") as client:
        assert _end(client) == (messages, code, reason)


def test_a_program_that_can_not_be_run(serve: Callable[..., Daemon], open_folder: Path) -> None:
    """A client whose program can't be started is told so."""
    program = open_folder / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    daemon = serve(f"gone 0/tcp server={program} websocket=lines")
    program.unlink()
    with _connect(daemon, "gone/tcp") as client:
        assert _end(client) == ([], 1011, "the handler could not be run")
    assert "can't start it" in daemon.wait_event("fail", "gone/tcp")[0]["reason"]


def test_the_environment_of_the_program(serve: Callable[..., Daemon]) -> None:
    """The program has the CGI variables of the request; HTTP_PROXY and credentials are left out."""
    line = "env 0/tcp server=/usr/bin/env websocket=lines websocket_path=/e websocket_protocols=b,a"
    daemon = serve(line)
    headers = {"Proxy": "evil", "Authorization": "Basic eDp5", "Cookie": "a=b", "X-Ünder_score".encode().hex(): "1"}
    protocols = [Subprotocol("x"), Subprotocol("a")]
    with _connect(daemon, "env/tcp", "/e/x%20y?q=%31", additional_headers=headers, subprotocols=protocols) as client:
        assert client.subprotocol == "a"
        values = dict(line.split("=", 1) for line in _end(client)[0])
    wanted = {
        "GATEWAY_INTERFACE": "CGI/1.1", "REQUEST_METHOD": "GET", "REQUEST_URI": "/e/x%20y?q=%31", "SCRIPT_NAME": "/e",
        "PATH_INFO": "/x y", "QUERY_STRING": "q=%31", "SERVER_NAME": "127.0.0.1", "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_PORT": str(daemon.port("env/tcp")), "WEBSOCKET_PROTOCOL": "a", "HTTP_COOKIE": "a=b",
        "REMOTE_ADDR": "127.0.0.1", "TCPREMOTEIP": "127.0.0.1", "SVCD_SERVICE": "env", "REQUEST_SCHEME": "http",
    }  # fmt: skip
    assert {name: values.get(name) for name in wanted} == wanted
    assert not {"HTTP_PROXY", "HTTP_AUTHORIZATION", "HTTPS"} & values.keys()
    for target, status in (("/", 404), ("/ee", 404)):
        with pytest.raises(InvalidStatus) as caught:
            _connect(daemon, "env/tcp", target)
        assert caught.value.response.status_code == status


def test_over_tls(serve: Callable[..., Daemon], open_folder: Path) -> None:
    """wss: the program has the variables of TLS as well; a stop, a kick and the end of the program work as without."""
    (open_folder / "pem").touch(0o600)
    (open_folder / "pem").write_bytes(SERVER.bundle)
    tls = f"tls_cert={open_folder}/pem websocket=lines"
    daemon = serve(f"env 0/tcp server=/usr/bin/env {tls}\ncat 0/tcp server=/bin/cat {tls}\nup 0/tcp upper\n")
    context = ssl.create_default_context(cadata=CA.pem.decode())
    with _connect(daemon, "env/tcp", ssl=context) as client:
        messages, code, _ = _end(client)
    values = dict(line.split("=", 1) for line in messages)
    assert (code, values["HTTPS"], values["SSL_PROTOCOL"]) == (1000, "on", "TLSv1.3")
    with _connect(daemon, "cat/tcp", ssl=context) as client:
        client.send("x" * MEGABYTE)
        assert client.recv(PATIENCE) == "x" * MEGABYTE
    with _connect(daemon, "cat/tcp", ssl=context) as client:
        client.send("a")
        assert client.recv(PATIENCE) == "a"
        daemon.process.send_signal(signal.SIGTERM)
        assert _end(client) == ([], 1001, "the service stops")
    assert daemon.process.wait(PATIENCE) == 0


@pytest.mark.parametrize("reactor", REACTORS)
def test_a_redirection(serve: Callable[..., Daemon], start: Callable[..., Daemon], reactor: str) -> None:
    """Bytes of messages go to another server; its end and its absence are told to the client."""
    inner = start("@defaults bind=127.0.0.1\nup 0/tcp upper\nday 0/tcp daytime\n")
    daemon = serve(
        f"up 0/tcp redirect=127.0.0.1:{inner.port('up/tcp')} websocket=lines\n"
        f"day 0/tcp redirect=127.0.0.1:{inner.port('day/tcp')} websocket=text\n"
        "dead 0/tcp redirect=127.0.0.1:1 websocket=text\n",
        reactor,
    )
    with _connect(daemon, "up/tcp") as client:
        client.send("hello")
        assert client.recv(PATIENCE) == "HELLO"
    with _connect(daemon, "day/tcp") as client:
        messages, code, _ = _end(client)
        assert (len("".join(messages)) > 10, code) == (True, 1000)
    with _connect(daemon, "dead/tcp") as client:
        assert _end(client) == ([], 1011, "the server can't be reached")
    assert "Connection refused" in daemon.wait_event("fail", "dead/tcp")[0]["reason"]


@pytest.mark.parametrize("model", ["process", "thread"])
def test_a_python_handler(serve: Callable[..., Daemon], open_folder: Path, model: str) -> None:
    """A Python handler gets lines and the variables of the request."""
    (open_folder / "shout.py").write_text(MODULE)
    line = f"shout 0/tcp python=shout:Shout python_path={open_folder} model={model} websocket=lines"
    daemon = serve(line)
    with _connect(daemon, "shout/tcp", "/?x") as client:
        client.send("hello")
        assert client.recv(PATIENCE) == "HELLO"


def test_refused_clients_get_http(serve: Callable[..., Daemon], open_folder: Path) -> None:
    """A client over a limit gets 503, one that may not connect 403, with the banner; an accepted one gets it first."""
    (open_folder / "text").write_text("welcome\n")
    daemon = serve(
        f"one 0/tcp server=/bin/cat websocket=lines instances=1 banner={open_folder}/text\n"
        "none 0/tcp server=/bin/cat websocket=lines no_access=127.0.0.0/8\n"
        "fwd 0/tcp redirect=127.0.0.1:1 websocket=lines no_access=127.0.0.0/8\n"
    )
    with _connect(daemon, "one/tcp") as client:
        assert client.recv(PATIENCE) == "welcome"
        with pytest.raises(InvalidStatus) as caught:
            _connect(daemon, "one/tcp")
        assert (caught.value.response.status_code, caught.value.response.body) == (503, b"welcome\n")
    for service in ("none/tcp", "fwd/tcp"):
        with pytest.raises(InvalidStatus) as caught:
            _connect(daemon, service)
        assert caught.value.response.status_code == 403


def test_origins(serve: Callable[..., Daemon]) -> None:
    """A page of another site may not connect."""
    daemon = serve("cat 0/tcp server=/bin/cat websocket=lines")
    port = daemon.port("cat/tcp")
    with _connect(daemon, "cat/tcp", origin=f"http://127.0.0.1:{port}"):
        pass
    with pytest.raises(InvalidStatus) as caught:
        _connect(daemon, "cat/tcp", origin="http://elsewhere.example")
    assert caught.value.response.status_code == 403
    assert "403" in daemon.wait_event("fail", "cat/tcp")[0]["reason"]


def test_a_proxy_in_front(serve: Callable[..., Daemon]) -> None:
    """A PROXY header comes before the handshake, and gives the client's address."""
    daemon = serve("env 0/tcp server=/usr/bin/env websocket=text proxy_protocol=127.0.0.1")
    with closing(daemon.connect("env/tcp")) as client:
        client.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 4000 80\r\n" + HANDSHAKE)
        answer = _rest(client)
    head, _, frames = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    values = dict(line.split(b"=", 1) for line in received(frames)[0].payload.splitlines())
    assert (values[b"REMOTE_ADDR"], values[b"TCPREMOTEIP"], values[b"SERVER_ADDR"]) == (
        b"192.0.2.7", b"192.0.2.7", b"192.0.2.1",
    )  # fmt: skip


def test_a_unix_socket(serve: Callable[..., Daemon], open_folder: Path) -> None:
    """WebSocket works at a UNIX socket, as behind a proxy on the same machine."""
    path = open_folder / "sock"
    serve(f"cat {path}/unix server=/bin/cat websocket=lines")
    with unix_connect(str(path), "ws://localhost/", compression=None) as client:
        client.send("hello")
        assert client.recv(PATIENCE) == "hello"


def test_kick_and_list(serve: Callable[..., Daemon], open_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """svcctl lists connections, in their handshake as well, and ends them with a reason."""
    daemon = serve("cat 0/tcp server=/bin/cat websocket=lines")
    control = f"--control={open_folder}/control"
    with closing(daemon.connect("cat/tcp")) as waiting, _connect(daemon, "cat/tcp") as client:
        waiting.sendall(HANDSHAKE[:10])
        client.send("x")
        assert client.recv(PATIENCE) == "x"
        assert svcctl([control, "connections"]) == 0
        shown = capsys.readouterr().out
        assert "handshake" in shown
        number = daemon.wait_event("accept", "cat/tcp")[0]["id"]
        assert svcctl([control, "kick", number]) == 0
        assert _end(client) == ([], 1008, "ended by the server: kicked")
    assert daemon.wait_event("end", "cat/tcp")[0]["reason"] == "kicked"


def test_idle_clients(serve: Callable[..., Daemon]) -> None:
    """A client that answers Pings stays; one that does not is closed after idle_timeout."""
    daemon = serve("cat 0/tcp server=/bin/cat websocket=lines idle_timeout=1s")
    with _connect(daemon, "cat/tcp", ping_interval=None) as client, closing(daemon.connect("cat/tcp")) as silent:
        silent.sendall(HANDSHAKE)
        found = b""
        while not found.endswith(b"\x89\x00"):
            found += silent.recv(1000)
        (end,) = daemon.wait_event("end", "cat/tcp")
        assert (end["reason"], float(end["seconds"]) >= 1) == ("idle", True)
        client.send("still here")
        assert client.recv(PATIENCE) == "still here"


def test_an_upgrade_keeps_connections(
    serve: Callable[..., Daemon], open_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An upgrade of the daemon ends no connection."""
    daemon = serve("cat 7001/tcp server=/bin/cat websocket=lines".replace("7001", "0"))
    with _connect(daemon, "cat/tcp") as client:
        client.send("before")
        assert client.recv(PATIENCE) == "before"
        assert svcctl([f"--control={open_folder}/control", "upgrade"]) == 0, capsys.readouterr().err
        client.send("after")
        assert client.recv(PATIENCE) == "after"


def test_a_reload_changes_new_connections(
    serve: Callable[..., Daemon], open_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """websocket= can be set, changed and removed by a reload; open connections stay as they are."""
    line = "@defaults bind=127.0.0.1\ncat 0/tcp server=/bin/cat"
    daemon = serve("cat 0/tcp server=/bin/cat websocket=lines")
    control, services = f"--control={open_folder}/control", daemon.folder / "services"
    with _connect(daemon, "cat/tcp") as client:
        services.write_text(f"{line} websocket=binary\n")
        assert svcctl([control, "reload"]) == 0, capsys.readouterr()
        with _connect(daemon, "cat/tcp") as other:
            other.send("text")
            assert other.recv(PATIENCE) == b"text"
        services.write_text(f"{line}\n")
        assert svcctl([control, "reload"]) == 0
        with closing(daemon.connect("cat/tcp")) as plain:
            assert exchange(plain, b"plain") == b"plain"
        client.send("as before")
        assert client.recv(PATIENCE) == "as before"


def test_bombs(serve: Callable[..., Daemon]) -> None:
    """Messages that decompress to much more than is allowed take little memory."""
    daemon = serve("cat 0/tcp server=/bin/cat websocket=binary websocket_deflate=yes")
    bomb = frame(0xC2, deflated(bytes(200 * MEGABYTE)))
    before = daemon.memory()
    for _ in range(3):
        with closing(daemon.connect("cat/tcp")) as client:
            answer = exchange(client, request(Sec_WebSocket_Extensions="permessage-deflate") + bomb)
            assert received(answer.partition(b"\r\n\r\n")[2])[-1].code == 1009
    assert daemon.memory() - before < 16 * MEGABYTE


def test_lost_clients_release_everything(serve: Callable[..., Daemon]) -> None:
    """Connections that are reset in any state leave no descriptor."""
    daemon = serve("cat 0/tcp server=/bin/cat websocket=lines")
    with _connect(daemon, "cat/tcp") as client:
        client.send("x")
        assert client.recv(PATIENCE) == "x"
    daemon.wait_event("end", "cat/tcp")
    before = daemon.descriptors()
    for data in (b"", HANDSHAKE[:9], HANDSHAKE, HANDSHAKE + frame(0x81, b"x" * 100), HANDSHAKE + b"\xff\xff"):
        lost = daemon.connect("cat/tcp")
        lost.sendall(data)
        lost.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        lost.close()
    daemon.wait_event("end", "cat/tcp", 6)
    wait_until(lambda: daemon.descriptors() == before, "the descriptors are closed")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """Return a browser with an empty profile."""
    made = Browser(tmp_path / "profile")
    yield made
    made.end()


@pytest.mark.load
def test_a_page_in_a_browser(
    serve: Callable[..., Daemon], start: Callable[..., Daemon], tmp_path: Path, browser: Browser
) -> None:
    """A page talks to a program that names its origin, gets its messages in order and the status of its end."""
    program = f"{sys.executable} -u -c 'for n in range(2): print(input().upper())'"
    (tmp_path / "index.html").write_text("<title>x</title>")
    site = start(f"http 0/tcp bind=127.0.0.1 root={tmp_path}")
    origin = f"http://127.0.0.1:{site.port('http/tcp')}"
    options = f"websocket=lines websocket_deflate=yes websocket_origin={origin}"
    daemon = serve(f'up 0/tcp server="{program}" {options}\nno 0/tcp server=/bin/cat websocket=lines\n')
    browser.visit(f"{origin}/")
    script = """
        window.said = [];
        const open = (port) => {
            const socket = new WebSocket(`ws://127.0.0.1:${port}/`);
            socket.onmessage = (event) => said.push(event.data);
            socket.onclose = (event) => said.push(event.code);
            return socket;
        };
        const first = open(UP);
        first.onopen = () => { first.send("one"); first.send("zwei é"); };
        setTimeout(() => 0, 0);
        window.refused = () => open(NO);
    """
    ports = {"UP": daemon.port("up/tcp"), "NO": daemon.port("no/tcp")}
    for name, port in ports.items():
        script = script.replace(name, str(port))
    browser.run(script)
    assert browser.until("return said", lambda said: len(said) == 3) == ["ONE", "ZWEI É", 1000]
    browser.run("refused()")
    assert browser.until("return said", lambda said: len(said) == 4)[-1] == 1006
