"""Echo servers in Python: what asyncio, uvloop and Twisted achieve without svcd. Each prints its port.

usage: python peers.py asyncio|uvloop|twisted [PEM]

With a PEM file of a key and a certificate they serve TLS, and TCP alone.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import sys
import threading
from pathlib import Path
from typing import Any, cast


def _resource_limit() -> None:
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _sockets() -> tuple[socket.socket, socket.socket]:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    asker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    asker.bind(listener.getsockname())
    for each in (listener, asker):
        each.setblocking(False)
    print(listener.getsockname()[1], flush=True)
    return listener, asker


def _end_with_parent() -> None:
    def wait() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


class _Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not instances of asyncio's classes.
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


class _EchoDatagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.datagram_received = cast("asyncio.DatagramTransport", transport).sendto  # type: ignore[method-assign]


def _context(pem: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(pem)
    return context


async def _serve(pem: str | None) -> None:
    listener, asker = _sockets()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Echo, sock=listener, ssl=_context(pem) if pem else None)
    await loop.create_datagram_endpoint(_EchoDatagrams, sock=asker)
    await server.serve_forever()


def _secured(factory: Any, pem: str) -> Any:
    from twisted.internet.ssl import PrivateCertificate
    from twisted.protocols.tls import TLSMemoryBIOFactory

    certificate = PrivateCertificate.loadPEM(Path(pem).read_bytes())
    return TLSMemoryBIOFactory(certificate.options(), False, factory)


def _twisted(pem: str | None) -> None:
    from twisted.internet import reactor
    from twisted.internet.protocol import DatagramProtocol, Factory, Protocol

    class Echo(Protocol):
        def dataReceived(self, data: bytes) -> None:
            self.transport.write(data)  # type: ignore[union-attr]

    class EchoDatagrams(DatagramProtocol):
        def datagramReceived(self, datagram: bytes, addr: object) -> None:
            self.transport.write(datagram, addr)  # type: ignore[union-attr,arg-type]

    listener, asker = _sockets()
    factory: Any = Factory.forProtocol(Echo)
    if pem:
        factory = _secured(factory, pem)
    reactor.adoptStreamPort(listener.fileno(), socket.AF_INET, factory)  # type: ignore[attr-defined]
    reactor.adoptDatagramPort(asker.fileno(), socket.AF_INET, EchoDatagrams(), 65_535)  # type: ignore[attr-defined]
    reactor.run()


def _main() -> None:
    _resource_limit()
    _end_with_parent()
    kind, *pem = sys.argv[1:]
    which = pem[0] if pem else None
    match kind:
        case "asyncio":
            asyncio.run(_serve(which))
        case "uvloop":
            import uvloop

            uvloop.run(_serve(which))
        case "twisted":
            _twisted(which)


if __name__ == "__main__":
    _main()
