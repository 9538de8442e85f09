"""Connections to other servers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.abstract import isIPAddress
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint

if TYPE_CHECKING:
    from twisted.internet.interfaces import IStreamClientEndpoint

    from svcd.model import HostPort

__all__ = ["client_endpoint"]


def client_endpoint(reactor: Any, server: HostPort, timeout: float) -> IStreamClientEndpoint:  # noqa: ANN401 - several interfaces
    """What connects to a server. Its name is looked up at each connect, and its addresses raced (RFC 8305).

    Args:
        reactor: provides IReactorTCP, IReactorTime and IReactorPluggableNameResolver.
        server: which.
        timeout: for an attempt at one address, in seconds.
    """
    host, port = server.host, server.port
    if ":" in host:
        return TCP6ClientEndpoint(reactor, host, port, timeout)
    # An address needs no thread that looks it up.
    if isIPAddress(host):
        return TCP4ClientEndpoint(reactor, host, port, timeout)
    return HostnameEndpoint(reactor, host, port, timeout)
