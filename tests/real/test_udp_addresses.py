"""Answers over UDP have the destination address of the question as source, on all reactors, over IPv4 and IPv6."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.daemon import Daemon

#: Client in the daemon's network namespace, on a connected socket, which gets no answers from other addresses.
_ASK = """
import socket, sys
family, kind, _, _, name = socket.getaddrinfo(sys.argv[1], int(sys.argv[2]), type=socket.SOCK_DGRAM)[0]
with socket.socket(family, kind) as client:
    client.settimeout(10)
    client.connect(name)
    client.send(b"asked")
    print(client.recv(100).decode(), end="")
"""


def _ask(host: str, port: int, data: bytes) -> bytes:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.connect((host, port))
        client.send(data)
        return client.recv(100)


@pytest.mark.parametrize("reactor", ["uv", "epoll", "asyncio"])
def test_answer_of_a_wildcard_socket(start: Callable[..., Daemon], reactor: str) -> None:
    """A server on the wildcard address answers from each loopback address."""
    daemon = start(
        # A client's port may be that of another service, on another address.
        "@defaults per_source_rate=none answer_service_ports=yes\n"
        "four 0/udp4 echo\nsix 0/udp6 echo\nboth 0/udp6 echo v6only=no\nown 0/udp4 echo bind=127.0.0.2\n",
        twistd_arguments=["--reactor", reactor],
    )
    asked = [("four/udp4", f"127.0.0.{number}") for number in range(1, 100)]
    asked += [("six/udp6", "::1"), ("both/udp6", "::1"), ("both/udp6", "127.0.0.7"), ("both/udp6", "127.0.0.1")]
    asked += [("own/udp4", "127.0.0.2")]
    for service, host in asked:
        assert _ask(host, daemon.port(service), b"x") == b"x", (service, host)


@pytest.mark.parametrize("reactor", ["uv", "epoll", "asyncio"])
def test_answers_in_batches(start: Callable[..., Daemon], reactor: str) -> None:
    """Queued datagrams are answered in batches, each to its client and from its address."""
    daemon = start("echo 0/udp4 per_source_rate=none\n", twistd_arguments=["--reactor", reactor])
    clients = []
    for number in range(150):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.settimeout(10)
        client.connect((f"127.1.0.{number + 1}", daemon.port("echo/udp4")))
        clients.append(client)
    for turn in range(3):
        for number, client in enumerate(clients):
            client.send(b"%d of %d" % (number, turn))
        for number, client in enumerate(clients):
            assert client.recv(100) == b"%d of %d" % (number, turn)
    for client in clients:
        client.close()


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("reactor", ["uv", "epoll"])
def test_answers_of_interfaces(start: Callable[..., Daemon], program: Callable[[str], str], reactor: str) -> None:
    """The addresses are of one network, of several, and link-local, which need their interface."""
    made = (
        "ip link set lo up && ip link add d0 type veth peer name d1 && ip link set d0 up && "
        "ip link set d1 up && ip addr add 10.77.0.1/24 dev d0 && ip addr add 10.77.0.2/24 dev d0 && "
        "ip addr add 10.78.0.1/24 dev d1 && for d in d0 d1; do "
        'ip -6 addr add fe80::1234/64 dev $d nodad && ip -6 addr add fe80::1235/64 dev $d nodad; done && exec "$@"'
    )
    program("ip")
    daemon = start(
        "echo 0/udp4\nsix 0/udp6 echo\n",
        before=[program("unshare"), "--net", "sh", "-c", made, "sh"],
        twistd_arguments=["--reactor", reactor],
    )
    enter = [program("nsenter"), "--net", "--target", str(daemon.process.pid), sys.executable, "-c", _ASK]
    for service, hosts in (
        ("echo/udp4", ("10.77.0.1", "10.77.0.2", "10.78.0.1", "127.0.0.9")),
        ("six/udp6", ("::1", "fe80::1234%d0", "fe80::1235%d0", "fe80::1235%d1")),
    ):
        for host in hosts:
            words = [*enter, host, str(daemon.port(service))]
            assert subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout == "asked", host
