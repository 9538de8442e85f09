"""The PROXY protocol with haproxy, nginx and curl in front of real daemons, and behind them."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from tests.certificates import Authority
from tests.real.clients import run
from tests.real.daemon import PATIENCE, Daemon, exchange
from tests.real.proxies import Haproxy, Nginx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

REACTORS = ["uv", "epoll"]
V1 = b"PROXY TCP4 192.0.2.1 198.51.100.7 40000 443\r\n"


@pytest.fixture
def haproxy(program: Callable[[str], str], tmp_path: Path) -> Iterator[Callable[[int], Haproxy]]:
    """Return a function that makes a haproxy with several sockets; the test starts it."""
    path = program("haproxy")
    with contextlib.ExitStack() as stack:

        def make(count: int = 1) -> Haproxy:
            made = Haproxy(path, tmp_path, count)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def nginx(program: Callable[[str], str], tmp_path: Path) -> Iterator[Nginx]:
    """Return an nginx with a socket; the test starts it."""
    with contextlib.closing(Nginx(program("nginx"), tmp_path)) as made:
        if not made.passes_streams:
            pytest.skip("nginx lacks its module for streams (libnginx-mod-stream)")
        yield made


def _variables(text: bytes) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.decode().splitlines())


def _read_all(client: socket.socket) -> bytes:
    """Return what a client receives that sends nothing; without half-close, because haproxy may give up then."""
    with client:
        answer = b""
        while piece := client.recv(65_536):
            answer += piece
        return answer


@pytest.mark.parametrize("reactor", REACTORS)
def test_clients_of_haproxy(start: Callable[..., Daemon], haproxy: Callable[[int], Haproxy], reactor: str) -> None:
    """Each kind of header sets the client in the environment of a process, in rules and limits, and in the log."""
    proxies = haproxy(4)
    daemon = start(
        "@defaults bind=127.0.0.1 proxy_protocol=127.0.0.1\n"
        "env 0/tcp server=/usr/bin/env no_access=127.0.0.66\n"
        "echo 0/tcp only_from=127.0.0.0/28 per_source=1\n",
        twistd_arguments=["--reactor", reactor],
    )
    kinds = ("send-proxy", "send-proxy-v2", "send-proxy-v2-ssl proxy-v2-options crc32c,unique-id,authority")
    rows = "".join(
        f"listen l{number}\n {{{number}}}\n unique-id-format %ci%cp\n"
        f" server s 127.0.0.1:{daemon.port('env/tcp')} {kind}\n"
        for number, kind in enumerate(kinds)
    )
    proxies.start(f"{rows}listen l3\n {{3}}\n server s 127.0.0.1:{daemon.port('echo/tcp')} send-proxy-v2\n")
    for number in range(3):
        client = proxies.connect(f"127.0.0.{number + 2}", number)
        host, port = client.getsockname()
        values = _variables(_read_all(client))
        assert (values["TCPREMOTEIP"], values["REMOTE_PORT"]) == (host, str(port))
        assert (values["TCPLOCALIP"], values["TCPLOCALPORT"]) == ("127.0.0.1", str(proxies.ports[number]))
        assert values["PROXY_ADDR"] == "127.0.0.1"
        (end,) = [each for each in daemon.wait_event("end", "env/tcp", number + 1) if each["peer"] == f"{host}:{port}"]
        assert end["reason"] == "done"
    assert _read_all(proxies.connect("127.0.0.66")) == b""
    (refused,) = daemon.wait_event("refuse", "env/tcp")
    assert (refused["reason"], refused["peer"].partition(":")[0]) == ("address", "127.0.0.66")

    with proxies.connect("127.0.0.2", 3) as first:
        first.sendall(b"1")
        assert first.recv(1) == b"1"
        assert exchange(proxies.connect("127.0.0.2", 3), b"2") == b""
        # The address of the proxy does not count as a source; that of each client does.
        assert exchange(proxies.connect("127.0.0.3", 3), b"3") == b"3"
    assert exchange(proxies.connect("127.0.0.99", 3), b"4") == b""
    ends = {each["peer"].partition(":")[0]: each for each in daemon.wait_event("end", "echo/tcp", 2)}
    assert {host: (each["in"], each["out"]) for host, each in ends.items()} == {
        "127.0.0.2": ("1", "1"),
        "127.0.0.3": ("1", "1"),
    }


@pytest.mark.parametrize("reactor", REACTORS)
def test_header_before_tls(
    start: Callable[..., Daemon], haproxy: Callable[[int], Haproxy], tmp_path: Path, reactor: str
) -> None:
    """haproxy connects with TLS after the header; the service sees the client of the header."""
    proxies = haproxy(2)
    pair = tmp_path / "both.pem"
    pair.touch(0o600)
    pair.write_bytes(Authority().sign("svcd.example").bundle)
    daemon = start(
        f"@defaults bind=127.0.0.1 proxy_protocol=127.0.0.1 tls_cert={pair}\n"
        "http 0/tcp only_from=127.0.0.2\nenv 0/tcp server=/usr/bin/env log_on_success=HOST,TRAFFIC\n",
        twistd_arguments=["--reactor", reactor],
    )
    proxies.start(
        "".join(
            f"listen l{number}\n {{{number}}}\n server s 127.0.0.1:{daemon.port(name)} send-proxy-v2 ssl verify none\n"
            for number, name in enumerate(("http/tcp", "env/tcp"))
        )
    )
    client = proxies.connect("127.0.0.2")
    host, port = client.getsockname()
    answer = exchange(client, b"GET / HTTP/1.0\r\n\r\n")
    assert b"Hello, 127.0.0.2!" in answer
    (end,) = daemon.wait_event("end", "http/tcp")
    assert (end["peer"], end["reason"]) == (f"{host}:{port}", "done")
    assert exchange(proxies.connect("127.0.0.3"), b"GET / HTTP/1.0\r\n\r\n") == b""
    (refused,) = daemon.wait_event("refuse", "http/tcp")
    assert refused["peer"].startswith("127.0.0.3:")
    client = proxies.connect("127.0.0.4", 1)
    host, port = client.getsockname()
    values = _variables(_read_all(client))
    assert (values["TCPREMOTEIP"], values["REMOTE_PORT"], values["PROXY_ADDR"]) == (host, str(port), "127.0.0.1")
    assert values["SSL_PROTOCOL"] == "TLSv1.3"
    (end,) = daemon.wait_event("end", "env/tcp")
    assert end["peer"] == f"{host}:{port}"


@pytest.mark.parametrize("check", ["send-proxy check-send-proxy", "send-proxy-v2 check-send-proxy", ""])
def test_health_checks_of_haproxy(start: Callable[..., Daemon], haproxy: Callable[..., Haproxy], check: str) -> None:
    """Health checks have the address of haproxy and are no errors, nor are connections without data."""
    proxies = haproxy()
    daemon = start("daytime 0/tcp bind=127.0.0.1 proxy_protocol=127.0.0.1\n")
    server = f"127.0.0.1:{daemon.port('daytime/tcp')} {check or 'send-proxy'} check inter 50ms"
    proxies.start(f"listen l\n {{0}}\n server s {server}\n")
    if check:
        accepted = daemon.wait_event("accept", "daytime/tcp", 3)
        assert {each["peer"].partition(":")[0] for each in accepted} == {"127.0.0.1"}
    assert len(_read_all(proxies.connect("127.0.0.9"))) > 20
    daemon.wait_for(lambda line: " accept " in line and "peer=127.0.0.9:" in line)
    assert not any(" refuse " in line for line in daemon.lines)


@pytest.mark.parametrize("reactor", REACTORS)
def test_haproxy_at_a_unix_socket(
    start: Callable[..., Daemon], haproxy: Callable[[int], Haproxy], tmp_path: Path, reactor: str
) -> None:
    """The clients of the proxy have their own addresses; connections without a header are refused."""
    proxies = haproxy(2)
    daemon = start(
        f"@defaults proxy_protocol=local\nenv {tmp_path}/env/unix server=/usr/bin/env\n"
        f"echo {tmp_path}/echo/unix only_from=127.0.0.2\n",
        twistd_arguments=["--reactor", reactor],
    )
    servers = ((0, "env", "send-proxy"), (1, "echo", "send-proxy-v2"))
    proxies.start(
        "".join(
            f"listen l{number}\n {{{number}}}\n server s {tmp_path}/{name} {kind}\n" for number, name, kind in servers
        )
    )
    client = proxies.connect("127.0.0.2")
    host, port = client.getsockname()
    values = _variables(_read_all(client))
    assert (values["PROTO"], values["TCPREMOTEIP"], values["TCPREMOTEPORT"]) == ("TCP", host, str(port))
    assert int(values["UNIXREMOTEPID"]) > 1
    client = proxies.connect("127.0.0.2", 1)
    host, port = client.getsockname()
    assert exchange(client, b"hello") == b"hello"
    (end,) = daemon.wait_event("end", "echo/unix")
    assert (end["peer"], end["in"], end["reason"]) == (f"{host}:{port}", "5", "done")
    assert exchange(proxies.connect("127.0.0.3", 1), b"hello") == b""
    with pytest.raises(ConnectionResetError):
        exchange(daemon.connect("echo/unix", socket.AF_UNIX), b"GET / HTTP/1.0\r\n\r\n")
    reasons = [each["reason"] for each in daemon.wait_event("refuse", "echo/unix", 2)]
    assert reasons == ["address", "proxy"]


def test_clients_of_nginx(start: Callable[..., Daemon], nginx: Nginx) -> None:
    """A Python handler in a process or a thread gets the client of nginx's stream module."""
    (nginx.folder / "handler.py").write_text(
        "import socketserver\n"
        "def serve(sock, address):\n"
        "    sock.sendall(repr(address).encode())\n"
        "class Handler(socketserver.BaseRequestHandler):\n"
        "    def handle(self):\n"
        "        self.request.sendall(repr((self.client_address, self.server.server_address)).encode())\n"
    )
    daemon = start(
        "@defaults bind=127.0.0.1 proxy_protocol=127.0.0.1\n"
        "tcpmux 0/tcp\n"
        f"process 0/tcp python=handler:serve python_path={nginx.folder} mux=yes\n"
        f"thread 0/tcp python=handler:Handler python_path={nginx.folder} model=thread mux=yes\n"
    )
    nginx.start(
        f"server {{ {{0}}; proxy_protocol on; proxy_half_close on; proxy_pass 127.0.0.1:{daemon.port('tcpmux/tcp')}; }}"
    )
    client = nginx.connect("127.0.0.7")
    name = client.getsockname()
    assert exchange(client, b"process\r\n") == b"+Go\r\n" + repr(name).encode()
    client = nginx.connect("127.0.0.8")
    ends = client.getsockname(), ("127.0.0.1", nginx.ports[0])
    assert exchange(client, b"thread\r\n") == b"+Go\r\n" + repr(ends).encode()


def test_curl_with_haproxy_protocol(start: Callable[..., Daemon], program: Callable[[str], str]) -> None:
    """A header is required of the address in proxy_protocol=, and of no other client."""
    daemon = start("http 0/tcp bind=127.0.0.1 proxy_protocol=127.0.0.9\n")
    url = f"http://127.0.0.1:{daemon.port('http/tcp')}/"
    curl = program("curl")
    page = run(curl, "-s", "--interface", "127.0.0.9", "--haproxy-protocol", url)
    assert b"Hello, 127.0.0.9!" in page
    assert run(curl, "-s", "--interface", "127.0.0.9", url) == b""
    (refused,) = daemon.wait_event("refuse", "http/tcp")
    assert refused["rule"].startswith("proxy_protocol: there is no PROXY header (")
    assert b"Hello, 127.0.0.10!" in run(curl, "-s", "--interface", "127.0.0.10", url)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_send_proxy_to_other_servers(
    start: Callable[..., Daemon], haproxy: Callable[..., Haproxy], nginx: Nginx, tmp_path: Path, version: str
) -> None:
    """accept-proxy of haproxy and proxy_protocol of nginx accept the headers of svcd, also for local clients."""
    proxies = haproxy()
    proxies.start(
        'frontend f\n mode http\n {0} accept-proxy\n http-request return content-type text/plain lf-string "%ci:%cp"\n'
    )
    nginx.start("server { {0} proxy_protocol; return '$proxy_protocol_addr:$proxy_protocol_port'; }")
    daemon = start(
        f"@defaults bind=127.0.0.1 send_proxy={version}\n"
        f"web 0/tcp redirect=127.0.0.1:{proxies.ports[0]}\n"
        f"stream 0/tcp redirect=127.0.0.1:{nginx.ports[0]}\n"
        f"local {tmp_path}/local/unix redirect=127.0.0.1:{proxies.ports[0]}\n"
    )
    client = daemon.connect("web/tcp")
    host, port = client.getsockname()
    assert exchange(client, b"GET / HTTP/1.0\r\n\r\n").endswith(f"\r\n\r\n{host}:{port}".encode())
    client = daemon.connect("stream/tcp")
    host, port = client.getsockname()
    assert _read_all(client) == f"{host}:{port}".encode()
    answer = exchange(daemon.connect("local/unix", socket.AF_UNIX), b"GET / HTTP/1.0\r\n\r\n")
    assert re.search(rb"\r\n\r\n127\.0\.0\.1:\d+$", answer)


@pytest.mark.parametrize(("reactor", "version"), [("uv", "v2"), ("epoll", "v1")])
def test_chain_of_two_daemons(start: Callable[..., Daemon], reactor: str, version: str) -> None:
    """The client in a header to the first daemon is the client of the last daemon."""
    arguments = {"twistd_arguments": ["--reactor", reactor]}
    last = start("env 0/tcp4 bind=127.0.0.1 proxy_protocol=127.0.0.1 server=/usr/bin/env\n", **arguments)
    options = f"proxy_protocol=127.0.0.2 redirect=127.0.0.1:{last.port('env/tcp4')} send_proxy={version}"
    first = start(f"a 0/tcp4 bind=127.0.0.1 {options}\n", **arguments)
    client = first.connect("a/tcp4")
    name = client.getsockname()
    values = _variables(exchange(client))
    assert (values["TCPREMOTEIP"], int(values["TCPREMOTEPORT"])) == name
    assert int(values["TCPLOCALPORT"]) == first.port("a/tcp4")
    with socket.socket() as proxy:
        proxy.settimeout(PATIENCE)
        proxy.bind(("127.0.0.2", 0))
        proxy.connect(("127.0.0.1", first.port("a/tcp4")))
        proxy.sendall(V1)
        values = _variables(exchange(proxy))
    assert (values["TCPREMOTEIP"], values["TCPREMOTEPORT"]) == ("192.0.2.1", "40000")
    assert (values["TCPLOCALIP"], values["TCPLOCALPORT"]) == ("198.51.100.7", "443")


def test_reload_changes_the_proxies(start: Callable[..., Daemon]) -> None:
    """proxy_protocol= is added, changed and removed; waiting connections of former proxies are closed, no others."""
    service = "echo 0/tcp4 bind=127.0.0.1"
    daemon = start(service + "\n")

    def reload(options: str, count: int) -> None:
        daemon.file.write_text(f"{service} {options}\n")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for(lambda line: " reload " in line, count)

    with daemon.connect("echo/tcp4") as before:
        reload("proxy_protocol=127.0.0.1", 1)
        waiting = daemon.connect("echo/tcp4")
        assert exchange(daemon.connect("echo/tcp4"), V1 + b"1") == b"1"
        reload("proxy_protocol=127.0.0.0/8", 2)
        assert exchange(waiting, V1 + b"2") == b"2"
        with daemon.connect("echo/tcp4") as waiting:
            # It waits when a later connection has been served.
            assert exchange(daemon.connect("echo/tcp4"), V1 + b"3") == b"3"
            reload("proxy_protocol=10.0.0.1", 3)
            assert waiting.recv(1) == b""
        assert exchange(daemon.connect("echo/tcp4"), V1) == V1
        reload("proxy_protocol=127.0.0.1", 4)
        with daemon.connect("echo/tcp4") as waiting:
            assert exchange(daemon.connect("echo/tcp4"), V1 + b"4") == b"4"
            reload("", 5)
            assert waiting.recv(1) == b""
        assert exchange(daemon.connect("echo/tcp4"), V1) == V1
        before.sendall(b"still")
        assert before.recv(5) == b"still"
    named = [each for each in daemon.wait_event("accept", "echo/tcp4", 7) if each["peer"] == "192.0.2.1:40000"]
    assert len(named) == 4


@pytest.mark.parametrize("reactor", ["uv", "epoll", "asyncio"])
def test_late_header(start: Callable[..., Daemon], reactor: str) -> None:
    """The connection of a program is blocking, although a reactor has read the header from it."""
    services = "cat 0/tcp bind=127.0.0.1 proxy_protocol=127.0.0.1 server=/bin/cat\n"
    daemon = start(services, twistd_arguments=["--reactor", reactor])
    with daemon.connect("cat/tcp") as client:
        client.sendall(V1[:20])
        # It waits when a later connection has been served.
        assert exchange(daemon.connect("cat/tcp"), V1 + b"1") == b"1"
        client.sendall(V1[20:])
        for word in (b"late", b"later"):
            client.sendall(word)
            assert client.recv(100) == word
    (end,) = daemon.wait_event("end", "cat/tcp", 2)[1:]
    assert end["exit"] == "0"
    assert daemon.stop() == 0


def test_silent_connections_of_a_proxy(start: Callable[..., Daemon]) -> None:
    """They delay neither other clients nor the stop of the daemon, and end by first_byte_timeout."""
    daemon = start(
        "@defaults bind=127.0.0.1 proxy_protocol=127.0.0.1 shutdown_timeout=1h\n"
        "echo 0/tcp\nquick 0/tcp echo first_byte_timeout=0.2s\n"
    )
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(daemon.connect("echo/tcp")) for _ in range(50)]
        half = stack.enter_context(daemon.connect("quick/tcp"))
        half.sendall(V1[:20])
        assert half.recv(1) == b""
        assert exchange(daemon.connect("echo/tcp"), V1 + b"hello") == b"hello"
        assert daemon.stop() == 0
        assert [client.recv(1) for client in silent] == [b""] * 50
    (refused,) = [line for line in daemon.lines if " refuse " in line]
    assert "the rest of the header does not arrive" in refused
