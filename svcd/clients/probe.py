"""Probe of a server: its reachability, its certificate, and the time of each step."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import TimeoutError as PatienceError
from twisted.internet.task import deferLater

from svcd.addresses import address_text
from svcd.clients.connect import connect
from svcd.errors import ClientError

if TYPE_CHECKING:
    from svcd.clients.stream import Stream
    from svcd.clients.target import Reactor, Target

__all__ = ["Finding", "Security", "probe"]

#: The length of a server's banner that is kept, in bytes.
_MOST_BANNER = 512


@dataclass(frozen=True, slots=True)
class Security:
    """The result of a TLS handshake.

    Attributes:
        version: the version, such as TLSv1.3.
        cipher: the name of the cipher in OpenSSL.
        protocol: the protocol negotiated by ALPN; empty if there is none.
        subject, issuer: the names in the server's certificate (RFC 4514).
        names: the host names and addresses of the certificate.
        begins, ends: the limits of its validity, in seconds since 1970-01-01 00:00 UTC.
        problems: the problems of the certificate; empty if it is trusted.
    """

    version: str
    cipher: str
    protocol: str
    subject: str
    issuer: str
    names: tuple[str, ...]
    begins: float
    ends: float
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a probe.

    Attributes:
        address: the address that was connected to.
        attempts: the number of attempts.
        seconds: the time of the lookup, the connect and the handshake, and until the first byte, if there was a byte.
        banner: the first bytes that the server sent.
        security: the result of the TLS handshake; None without TLS.
    """

    address: str
    attempts: int
    seconds: dict[str, float]
    banner: bytes
    security: Security | None


async def probe(
    reactor: Reactor, target: Target, banner_timeout: float, retries: int = 0, pause: float = 1.0
) -> Finding:
    """Connect to a server and return the result of the probe.

    Args:
        reactor: makes the connections.
        target: the server.
        banner_timeout: the time limit for a banner, in seconds.
        retries: the number of further attempts after a failure.
        pause: the time before each further attempt, in seconds.

    Raises:
        UnavailableError: the last attempt can't reach the server.
        ServerError: the handshake of the last attempt has failed, or the connection was lost before a banner.
    """
    attempts = 1
    while True:
        try:
            stream = await connect(reactor, target)
            break
        except ClientError:
            if attempts > retries:
                raise
        await deferLater(reactor, pause, lambda: None)
        attempts += 1
    try:
        return await _inspect(reactor, stream, target, banner_timeout, attempts)
    finally:
        stream.close()


async def _inspect(reactor: Reactor, stream: Stream, target: Target, banner_timeout: float, attempts: int) -> Finding:
    start, banner, seconds = reactor.seconds(), b"", stream.seconds
    with suppress(PatienceError):
        banner = await stream.read().addTimeout(banner_timeout, reactor)
    if banner:
        seconds["first byte"] = reactor.seconds() - start
    transport: Any = stream.transport
    address = target.host if target.local else address_text(transport.getPeer().host, transport.getPeer().port)
    security = None if target.trust is None else _security(transport.getHandle(), stream.problems)
    return Finding(address, attempts, seconds, banner[:_MOST_BANNER], security)


def _security(connection: Any, problems: list[str]) -> Security:  # noqa: ANN401 - OpenSSL is imported with TLS alone
    from svcd.wire.certificates import subject_names

    certificate = connection.get_peer_certificate(as_cryptography=True)
    return Security(
        connection.get_protocol_version_name(),
        connection.get_cipher_name() or "",
        connection.get_alpn_proto_negotiated().decode("ascii", "replace"),
        certificate.subject.rfc4514_string(),
        certificate.issuer.rfc4514_string(),
        subject_names(certificate),
        certificate.not_valid_before_utc.timestamp(),
        certificate.not_valid_after_utc.timestamp(),
        tuple(problems),
    )
