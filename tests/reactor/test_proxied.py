"""Tests of connections with a PROXY header."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address

from svcd.reactor import SocketPort
from tests.reactor.conftest import Recorders
from tests.reactor.test_streams import Echo

if TYPE_CHECKING:
    from pathlib import Path

    from tests.reactor.conftest import ReactorHarness


@dataclass
class _ProxyHeader:
    size: int
    destination: Any


class _AddressRecorder(Echo):
    """Echo that records addresses, traffic and log prefix."""

    def connectionMade(self) -> None:
        """Record them."""
        super().connectionMade()
        self.seen = self.transport.getPeer(), self.transport.getHost(), self.transport.client
        self.traffic = self.transport.traffic
        self.prefix = self.transport.logPrefix()


V4 = ("192.0.2.1", 40_000), ("198.51.100.7", 443)
V6 = ("2001:db8::1", 40_000, 0, 0), ("2001:db8::7", 443, 0, 0)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
@pytest.mark.parametrize("ends", [V4, V6, None])
def test_addresses_are_those_of_the_proxy_header(
    harness: ReactorHarness, tmp_path: Path, family: socket.AddressFamily, ends: Any
) -> None:
    """For any family of the socket, the addresses are those of the header, and its bytes do not count as traffic."""
    names: dict[int, Any] = {socket.AF_INET: ("127.0.0.1", 0), socket.AF_INET6: ("::1", 0)}
    if ends is None and family == socket.AF_UNIX:
        pytest.skip("such a connection is any other")
    factory = Recorders(_AddressRecorder)
    reactor: Any = harness.reactor
    with socket.socket(family) as sock:
        sock.bind(names.get(family, os.fspath(tmp_path / "u")))
        sock.listen()
        port = SocketPort(reactor, sock, factory, lambda: True, lambda: None)

        def client() -> tuple[Any, ...]:
            with socket.socket(family) as near:
                near.connect(sock.getsockname())
                near.sendall(b"header" + b"hello")
                near.shutdown(socket.SHUT_WR)
                far, peer = sock.accept()
                assert far.recv(6) == b"header"
                source, destination = ends or (peer, None)
                descriptor = far.detach()
                reactor.callFromThread(port.adopt, descriptor, source, family, _ProxyHeader(6, destination))
                assert near.recv(100, socket.MSG_WAITALL) == b"hello"
                return near.getsockname(), sock.getsockname()

        real = harness.run(client, factory)
    source, destination = ends or real
    kind = IPv4Address if len(source) == 2 else IPv6Address
    made = factory.made[0]
    assert made.seen == (kind("TCP", *source), kind("TCP", *destination), source)
    assert source[0] in made.prefix
    assert made.traffic == ((0 if family == socket.AF_UNIX else 5), 0)
    assert made.counted == (5, 5)
