"""Private names of other libraries that svcd uses, each in one module; a test fails when a library drops one."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from twisted.internet import _signals, tcp, udp, unix
from twisted.internet.abstract import FileDescriptor
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.base import ReactorBase
from twisted.internet.protocol import DatagramProtocol


def test_accepting_descriptors() -> None:
    """svcd.net.accept: socket._accept() returns a descriptor and a socket address."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        descriptor, sockaddr = listener._accept()  # type: ignore[attr-defined]
        with socket.socket(fileno=descriptor) as accepted:
            assert sockaddr == client.getsockname() == accepted.getpeername()


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (_signals, "_MultiSignalHandling"),
        (ReactorBase, "_signalsFactory"),
        (AsyncioSelectorReactor, "_reschedule"),
        (AsyncioSelectorReactor, "_onTimer"),
        (AsyncioSelectorReactor, "_supportedAddressFamilies"),
        (tcp.Port, "_fromListeningDescriptor"),
        (unix.Port, "_fromListeningDescriptor"),
        (udp.Port, "_fromListeningDescriptor"),
    ],
)
def test_methods_of_the_reactor(owner: object, name: str) -> None:
    """svcd.reactor.core calls and overrides these methods of Twisted's reactor."""
    assert hasattr(owner, name)


def test_attributes_of_the_reactor() -> None:
    """svcd.reactor.core sets these attributes of Twisted's reactor, or reads them."""
    loop = asyncio.new_event_loop()
    reactor: Any = AsyncioSelectorReactor(loop)
    for name in ("_timerHandle", "_scheduledAt", "_justStopped", "_started"):
        assert hasattr(reactor, name), name
    for reader in reactor.removeAll():
        loop.remove_reader(reader.fileno())
    loop.close()


@pytest.mark.parametrize("name", ["_loseConnection", "_connectedAddr"])
def test_udp_ports(name: str) -> None:
    """svcd.reactor.udp overrides _loseConnection and reads _connectedAddr."""
    reactor: Any = object()
    assert hasattr(udp.Port(0, DatagramProtocol(), reactor=reactor), name)


@pytest.mark.parametrize("name", ["_dataReceived", "_closeSocket", "writeSomeData", "readConnectionLost"])
@pytest.mark.parametrize("owner", [tcp.Server, unix.Server])
def test_methods_of_transports(owner: type, name: str) -> None:
    """svcd.sockets.epoll_transports counts in these methods of Twisted's transports."""
    assert hasattr(owner, name)


@pytest.mark.parametrize("name", ["dataBuffer", "offset", "_tempDataBuffer"])
def test_buffers_of_transports(name: str) -> None:
    """svcd.sockets.epoll_transports reads the length of the write buffer."""
    reactor: Any = object()
    assert hasattr(FileDescriptor(reactor), name)
