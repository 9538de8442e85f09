"""Services with TLS and common clients, on all reactors."""

from __future__ import annotations

import contextlib
import json
import re
import select
import socket
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.certificates import Authority
from tests.real.browser import Browser
from tests.real.clients import run
from tests.real.daemon import PATIENCE, Daemon, environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CA, CLIENTS = Authority(), Authority("Clients")
DATA = bytes(range(256)) * 4000

_SERVICES = """
@defaults bind=127.0.0.1 tls_cert={folder}/server
echo     0/tcp mux=yes
upper    0/tcp tls_client_ca={folder}/clients tls_client=optional banner={folder}/welcome
daytime  0/tcp
chargen  0/tcp
files    0/tcp http root={folder}/www
status   0/tcp
to       0/tcp redirect=127.0.0.1:{port}
local    {folder}/local/unix echo
@defaults tls_cert=none
plain    {port}/tcp echo
tcpmux   0/tcp
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with certificates and the files of the services."""
    folder = tmp_path_factory.mktemp("d")
    (folder / "www").mkdir()
    (folder / "www" / "big").write_bytes(DATA)
    (folder / "www" / "index.html").write_text("<title>home</title><p>safe\n")
    (folder / "welcome").write_text("welcome\n")
    anna = CLIENTS.sign("anna.example.org")
    for name, content in {
        "ca": CA.pem,
        "clients": CLIENTS.pem,
        "server": CA.sign("localhost", "127.0.0.1").bundle,
        "anna": anna.bundle,
    }.items():
        (folder / name).touch(0o600)
        (folder / name).write_bytes(content)
    return folder


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module", params=["uv", "epoll", "asyncio"])
def daemon(request: pytest.FixtureRequest, folder: Path) -> Iterator[Daemon]:
    """Return a daemon for all clients, on each reactor."""
    if request.param == "uv":
        pytest.importorskip("uvloop")
    place = folder / request.param
    place.mkdir()
    text = _SERVICES.format(folder=folder, port=_free_port())
    daemon = Daemon(place, text, "--control", str(place / "control"), twistd_arguments=["-r", request.param])
    yield daemon
    daemon.end()


class _Client:
    """TLS connections by the ssl module, which are closed with the test."""

    def __init__(self, daemon: Daemon, folder: Path) -> None:
        self._daemon = daemon
        self._folder = folder
        self._opened = contextlib.ExitStack()

    def __call__(self, service: str, *, family: int = socket.AF_INET, certificate: str = "") -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=str(self._folder / "ca"))
        if certificate:
            context.load_cert_chain(self._folder / certificate)
        context.suppress_ragged_eofs = False  # type: ignore[attr-defined]
        plain = self._daemon.connect(service, family)
        return self._opened.enter_context(
            context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False)
        )

    def close(self) -> None:
        self._opened.close()


@pytest.fixture
def connect(daemon: Daemon, folder: Path) -> Iterator[_Client]:
    """Return a TLS connection to a service."""
    client = _Client(daemon, folder)
    yield client
    client.close()


def _rest(client: ssl.SSLSocket) -> bytes:
    """Read until the closure alert; a connection that closes without one is an error."""
    answer = b""
    while piece := client.recv(65_536):
        answer += piece
    return answer


def _echoed(client: ssl.SSLSocket, data: bytes) -> bytes:
    """Send data and read as much in a single thread, because OpenSSL connections are not thread-safe."""
    rest, answer = memoryview(data), b""
    client.setblocking(False)
    while len(answer) < len(data):
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
            rest = rest[client.send(rest[:65_536]) :] if rest else rest
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
            answer += client.recv(65_536)
            continue
        assert any(select.select([client], [client] if rest else [], [], PATIENCE)), len(answer)
    client.settimeout(PATIENCE)
    return answer


def test_echo(connect: _Client) -> None:
    """A megabyte comes back while it is sent; then both sides send closure alerts."""
    client = connect("echo/tcp")
    assert _echoed(client, DATA) == DATA
    client.unwrap()


def test_local_sockets(daemon: Daemon, connect: _Client) -> None:
    """TLS works at a UNIX socket, with a clean end."""
    client = connect("local/unix", family=socket.AF_UNIX)
    client.sendall(b"hi")
    assert client.recv(10) == b"hi"
    client.unwrap()
    client.close()
    (end,) = daemon.wait_event("end", "local/unix")
    assert end["reason"] == "done"


def test_service_that_closes_first(daemon: Daemon, connect: _Client) -> None:
    """Daytime sends its line and then a closure alert."""
    with connect("daytime/tcp") as client:
        assert re.fullmatch(rb"\w{3} \w{3} [ \d]\d [\d:]{8} \d{4}\r\n", _rest(client))
    (end,) = daemon.wait_event("end", "daytime/tcp")
    assert end["reason"] == "done"


def test_chargen_with_a_client_that_does_not_read(daemon: Daemon, connect: _Client) -> None:
    """A client that does not read blocks it; a client that closes ends it."""
    client = connect("chargen/tcp")
    assert client.recv(74) == bytes(range(32, 104)) + b"\r\n"
    client.close()
    daemon.wait_event("end", "chargen/tcp")


def test_client_certificates_and_banners(daemon: Daemon, connect: _Client) -> None:
    """The banner is sent in TLS; the log and svcctl have the client's subject."""
    with connect("upper/tcp", certificate="anna") as client:
        client.sendall(b"who am i")
        answer = b""
        while len(answer) < 16:
            answer += client.recv(100)
        assert answer == b"welcome\nWHO AM I"
        (accept,) = daemon.wait_event("accept", "upper/tcp")
        assert (accept["tls"], accept["subject"]) == ("TLSv1.3", "CN=anna.example.org")
        control = str(daemon.folder / "control")
        words = [sys.executable, "-m", "svcd", "--control", control, "connections", "--json"]
        found = json.loads(run(*words, env=environment()))
        show = json.loads(run(*words[:-2], "show", "upper", "--json", env=environment()))
        assert show["handshakes"]["TLSv1.3"] >= 1
        assert b" TLSv1.3  CN=anna.example.org\n" in run(*words[:-1], env=environment())
    (mine,) = [each for each in found if each["service"] == "upper/tcp"]
    assert (mine["tls"], mine["subject"], mine["sni"]) == ("TLSv1.3", "CN=anna.example.org", "localhost")


def test_redirect(connect: _Client) -> None:
    """TLS is terminated, and the target gets plaintext and both half-closes."""
    client = connect("to/tcp")
    client.sendall(b"to and fro")
    assert client.recv(100) == b"to and fro"
    client.unwrap()


def test_tcpmux(daemon: Daemon, folder: Path) -> None:
    """A client of tcpmux starts the handshake after the `+` line."""
    with daemon.connect("tcpmux/tcp") as plain:
        plain.sendall(b"echo\r\n")
        answer = b""
        while not answer.endswith(b"\n"):
            answer += plain.recv(1)
        assert answer[:1] == b"+"
        context = ssl.create_default_context(cafile=str(folder / "ca"))
        with context.wrap_socket(plain, server_hostname="localhost") as client:
            client.sendall(b"hi")
            assert client.recv(10) == b"hi"


def test_curl(daemon: Daemon, folder: Path, program: Callable[[str], str]) -> None:
    """curl gets a file over https, twice on one connection, and the metrics of the status service."""
    base = f"https://localhost:{daemon.port('files/tcp')}"
    words = [program("curl"), "-sS", "--cacert", str(folder / "ca")]
    assert run(*words, f"{base}/big", f"{base}/big") == DATA + DATA
    assert run(*words, "-H", "Connection: close", f"{base}/big") == DATA
    metrics = run(*words, f"https://localhost:{daemon.port('status/tcp')}/metrics").decode()
    assert re.search(r'^svcd_tls_handshakes_total\{service="files/tcp",version="TLSv1.3"\} 2$', metrics, re.MULTILINE)


def test_plain_http(daemon: Daemon, program: Callable[[str], str]) -> None:
    """A client with plain HTTP gets an answer in plain HTTP, and the log has the reason."""
    said = run(program("curl"), "-sS", f"http://127.0.0.1:{daemon.port('files/tcp')}/")
    assert b"HTTPS" in said
    (fail,) = daemon.wait_event("fail", "files/tcp")
    assert fail["reason"] == "http request"


def test_ncat_half_closes(daemon: Daemon, program: Callable[[str], str]) -> None:
    """ncat ends its side of the transport without a closure alert, and gets its answer."""
    words = [program("ncat"), "--ssl", "127.0.0.1", str(daemon.port("echo/tcp"))]
    assert run(*words, data=b"hi") == b"hi"


def test_socat_half_closes(daemon: Daemon, folder: Path, program: Callable[[str], str]) -> None:
    """socat ends its side by a closure alert, and gets its answer of any length."""
    address = f"OPENSSL:localhost:{daemon.port('echo/tcp')},cafile={folder}/ca"
    data = DATA[:100_000]
    assert run(program("socat"), "-t", "10", "-", address, data=data) == data


_TWISTED = """
import sys
from twisted.internet import endpoints, protocol, ssl, task

class Client(protocol.Protocol):
    def connectionMade(self):
        self.received = b""
        self.transport.write(b"from Twisted")
    def dataReceived(self, data):
        self.received += data
        if self.received == b"from Twisted":
            self.transport.loseConnection()
    def connectionLost(self, reason):
        print(self.received.decode(), reason.type.__name__)
        self.factory.done.callback(None)

def main(reactor, port, trust):
    from twisted.internet.defer import Deferred
    factory = protocol.Factory.forProtocol(Client)
    factory.done = Deferred()
    with open(trust) as file:
        root = ssl.trustRootFromCertificates([ssl.Certificate.loadPEM(file.read())])
    options = ssl.optionsForClientTLS("localhost", root)
    endpoint = endpoints.wrapClientTLS(options, endpoints.TCP4ClientEndpoint(reactor, "127.0.0.1", int(port)))
    return endpoint.connect(factory).addCallback(lambda _client: factory.done)

task.react(main, sys.argv[1:])
"""


def test_twisted(daemon: Daemon, folder: Path) -> None:
    """A Twisted client ends in good order."""
    said = run(sys.executable, "-c", _TWISTED, str(daemon.port("echo/tcp")), str(folder / "ca"))
    assert said.decode().splitlines()[-1] == "from Twisted ConnectionDone"


def test_client_that_does_not_read(connect: _Client) -> None:
    """Echo stops reading from it: the client can send a bounded amount, and nothing of it is lost."""
    client = connect("echo/tcp")
    client.setblocking(False)
    sent = 0
    with contextlib.suppress(ssl.SSLWantWriteError):
        while sent < 100_000_000:
            sent += client.send(DATA[:16_384])
    # The service stops reading when the buffers of the kernel are full.
    assert sent < 100_000_000
    client.settimeout(PATIENCE)
    got = 0
    while got < sent:
        got += len(client.recv(65_536))
    assert got == sent


def test_reload_turns_tls_on_and_off(start: Callable[..., Daemon], folder: Path) -> None:
    """The change applies to new connections on the same socket; open ones go on as before."""
    port = _free_port()
    plain = f"echo {port}/tcp bind=127.0.0.1\n"
    secure = plain.replace("\n", f" tls_cert={folder}/server\n")
    daemon = start(plain)
    context = ssl.create_default_context(cafile=str(folder / "ca"))

    def reload(text: str, count: int) -> None:
        daemon.file.write_text(text)
        daemon.process.send_signal(1)
        daemon.wait_for(lambda line: " reload " in line, count)

    def ask(client: socket.socket, question: bytes) -> bytes:
        client.sendall(question)
        return client.recv(100)

    with contextlib.ExitStack() as stack:
        first = stack.enter_context(daemon.connect("echo/tcp"))
        assert ask(first, b"1") == b"1"
        reload(secure, 1)
        second = stack.enter_context(context.wrap_socket(daemon.connect("echo/tcp"), server_hostname="localhost"))
        assert (ask(first, b"2"), ask(second, b"3")) == (b"2", b"3")
        reload(plain, 2)
        third = stack.enter_context(daemon.connect("echo/tcp"))
        assert (ask(first, b"4"), ask(second, b"5"), ask(third, b"6")) == (b"4", b"5", b"6")
    assert len([line for line in daemon.lines if " listen " in line]) == 1


@pytest.mark.load
def test_browser(start: Callable[..., Daemon], folder: Path, tmp_path: Path) -> None:
    """Chromium shows a page and the live status page over https."""
    daemon = start(
        f"@defaults bind=127.0.0.1 tls_cert={folder}/server\nfiles 0/tcp4 http root={folder}/www\nstatus 0/tcp4\n"
    )
    browser = Browser(tmp_path / "profile")
    try:
        browser.tell("Security.setIgnoreCertificateErrors", ignore=True)
        browser.visit(f"https://127.0.0.1:{daemon.port('files/tcp4')}/")
        assert browser.run("return document.title") == "home"
        browser.visit(f"https://127.0.0.1:{daemon.port('status/tcp4')}/")
        script = "return document.querySelector('[data-id=\"files/tcp4\"] [data-k=accepted]').textContent"
        before = int(browser.run(script))
        with daemon.connect("files/tcp4"):
            browser.until(script, lambda value: int(value) > before)
    finally:
        browser.end()


def test_key_updates(daemon: Daemon, program: Callable[[str], str]) -> None:
    """Key updates of one side and of both (RFC 8446, 4.6.3) do not disturb the connection."""
    words = [program("openssl"), "s_client", "-connect", f"127.0.0.1:{daemon.port('echo/tcp')}"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        try:
            # A line with a single letter is a command of s_client.
            for word, answer in [("1", "1"), ("K", "KEYUPDATE"), ("2", "2"), ("k", "KEYUPDATE"), ("3", "3")]:
                client.stdin.write(f"{word}\n".encode())
                client.stdin.flush()
                while (line := client.stdout.readline()) != f"{answer}\n".encode():
                    assert line
        finally:
            client.kill()
