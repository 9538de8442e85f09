"""Whether a server is up, who it is, and how long it takes."""

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

#: How much of what a server says first is kept, in bytes.
_MOST_BANNER = 512


@dataclass(frozen=True, slots=True)
class Security:
    """What TLS has come to.

    Attributes:
        version: TLSv1.3, say.
        cipher: its name as OpenSSL has it.
        protocol: what was agreed on by ALPN; empty for nothing.
        subject, issuer: of the server's certificate (RFC 4514).
        names: host names and addresses that it is for.
        begins, ends: when it is valid, in seconds since 1970-01-01 00:00 UTC.
        problems: what is wrong with it; none if it is trusted.
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
    """What a server was found to be.

    Attributes:
        address: which of its addresses has answered.
        attempts: how many it took.
        seconds: to look up the name, to connect, to shake hands, and until the first byte came, if any did.
        banner: what it said by itself.
        security: of TLS; None without.
    """

    address: str
    attempts: int
    seconds: dict[str, float]
    banner: bytes
    security: Security | None


async def probe(reactor: Reactor, target: Target, patience: float, retries: int = 0, pause: float = 1.0) -> Finding:
    """Connect to a server, and see.

    Args:
        reactor: where.
        target: the server.
        patience: how long to wait for what it says by itself, in seconds.
        retries: how often to try again.
        pause: how long to wait before that, in seconds.

    Raises:
        UnavailableError: it can't be reached, in the end.
        ServerError: the handshake has failed, in the end; or the connection was lost before it said anything.
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
        return await _look(reactor, stream, target, patience, attempts)
    finally:
        stream.close()


async def _look(reactor: Reactor, stream: Stream, target: Target, patience: float, attempts: int) -> Finding:
    start, banner, seconds = reactor.seconds(), b"", stream.seconds
    with suppress(PatienceError):
        banner = await stream.read().addTimeout(patience, reactor)
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
