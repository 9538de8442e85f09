"""Commands of the protocol clients: from a command line to a client, and from its result to output and exit status."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from svcd.cli.reactor_run import run
from svcd.clients.stdio import StandardStreams
from svcd.clients.target import Target, TrustSettings, port_number
from svcd.errors import ClientError, UsageError
from svcd.host.files import LocalFiles
from svcd.protocols.catalog import BUILTINS

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from svcd.clients.http_get import Url
    from svcd.clients.probe import Finding, Security

__all__ = ["run_client"]

#: The ports of command lines without one.
_PORTS = {name: builtin.port for name, builtin in BUILTINS.items() if builtin.client == name}
_REDIRECTS = 10
_DAY = 86_400


def run_client(name: str, chosen: argparse.Namespace) -> int:
    """Run a client.

    Args:
        name: the name of the command.
        chosen: its command line.

    Returns:
        The exit status.

    Raises:
        BrokenPipeError: the output has no reader.
    """
    try:
        if chosen.insecure:
            _complain(name, "--insecure: the certificate of the server is not verified")
        status = _CLIENTS[name](chosen)
        sys.stdout.flush()
    except (ClientError, UsageError) as error:
        _complain(name, str(error))
        return error.exit_code
    except BrokenPipeError:
        raise
    except OSError as error:
        # Python's flush at the exit must not fail as well.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        _complain(name, f"standard input or output: {error.strerror or error}")
        return os.EX_IOERR
    return status


def _complain(name: str, text: str) -> None:
    sys.stdout.flush()
    # No control characters of a server reach a terminal.
    shown = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
    print(f"svcctl {name}: {shown}", file=sys.stderr)


def _echo(chosen: argparse.Namespace) -> int:
    from svcd.clients.echo import check, check_datagram, exchange_datagrams, exchange_lines

    words = chosen.words
    if chosen.host.startswith("/") and chosen.port is not None:
        # A UNIX socket has no port: the word in its place is the first one of the text.
        words, chosen.port = [chosen.port, *words], None
    target = _target("echo", chosen)
    if words:
        line = os.fsencode(" ".join(words)) + b"\n"
        came = run(lambda reactor: (check_datagram if chosen.udp else check)(reactor, target, line))
        sys.stdout.buffer.write(came)
    else:
        run(
            lambda reactor: (exchange_datagrams if chosen.udp else exchange_lines)(
                reactor, target, StandardStreams(reactor)
            )
        )
    return 0


def _get(chosen: argparse.Namespace) -> int:
    from svcd.clients.http_get import HttpQuery, fetch

    family = chosen.family or socket.AF_UNSPEC

    def target_of(url: Url) -> Target:
        trust = _trust(chosen, url.host, protocols=(b"http/1.1",)) if url.secure else None
        if chosen.unix:
            path = os.path.abspath(chosen.unix)  # noqa: PTH100 - with its links, as it was written
            return Target(path, 0, chosen.timeout, family, trust)
        return Target(url.host, url.port, chosen.timeout, family, trust)

    wish = HttpQuery(chosen.head, chosen.include or chosen.head, _REDIRECTS if chosen.location else 0)
    head = run(lambda reactor: fetch(reactor, chosen.url, wish, target_of, StandardStreams(reactor).write))
    if not 200 <= head.status < 300:
        _complain("get", f"{head.status} {head.reason.decode('latin-1')}".rstrip())
    return 0 if head.status < 400 else 1


def _daytime(chosen: argparse.Namespace) -> int:
    from svcd.clients.time_query import daytime

    target = _target("daytime", chosen)
    print(run(lambda reactor: daytime(reactor, target, datagram=chosen.udp)))
    return 0


def _time(chosen: argparse.Namespace) -> int:
    from svcd.clients.time_query import time as ask_time

    target = _target("time", chosen)
    reading = run(lambda reactor: ask_time(reactor, target, time.time, datagram=chosen.udp))
    print(f"{datetime.fromtimestamp(reading.moment).astimezone().isoformat()}  {round(reading.offset):+d} s")
    return 0


def _probe(chosen: argparse.Namespace) -> int:
    from svcd.clients.probe import probe

    target = _target("probe", chosen)
    try:
        finding = run(lambda reactor: probe(reactor, target, chosen.banner, chosen.retries, chosen.wait))
    except ClientError as error:
        if not chosen.json:
            raise
        print(json.dumps({"up": False, "error": str(error)}, indent=2))
        return error.exit_code
    if chosen.json:
        print(json.dumps({"up": True, **_as_json(finding)}, indent=2))
    else:
        rows = list(_rows(finding))
        width = max(len(label) for label, _ in rows)
        for label, text in rows:
            print(f"{label:{width}}  {text}".rstrip())
    return 1 if finding.security and finding.security.problems and not chosen.insecure else 0


def _as_json(finding: Finding) -> dict[str, Any]:
    security = finding.security
    return {
        "address": finding.address,
        "attempts": finding.attempts,
        "seconds": {name.replace(" ", "_"): round(value, 6) for name, value in finding.seconds.items()},
        "banner": finding.banner.decode("utf-8", "backslashreplace"),
        "tls": security
        and {
            "version": security.version,
            "cipher": security.cipher,
            "protocol": security.protocol,
            "trusted": not security.problems,
            "problems": security.problems,
            "subject": security.subject,
            "names": security.names,
            "issuer": security.issuer,
            "begins": _date(security.begins),
            "ends": _date(security.ends),
            "days": round(_days(security), 1),
        },
    }


def _date(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")


def _days(security: Security) -> float:
    """Return the number of days for which the certificate is still valid."""
    return (security.ends - time.time()) / _DAY


def _rows(finding: Finding) -> Iterator[tuple[str, str]]:
    yield "up", finding.address + (f" at attempt {finding.attempts}" if finding.attempts > 1 else "")
    for name, value in finding.seconds.items():
        yield name, f"{value * 1000:.1f} ms"
    if finding.banner:
        # As a JSON string: no control characters reach a terminal.
        yield "banner", json.dumps(finding.banner.decode("utf-8", "backslashreplace"))
    security = finding.security
    if security is not None:
        yield "tls", " ".join(filter(None, [security.version, security.cipher, security.protocol]))
        yield "certificate", _shown(security.subject)
        yield "names", _shown(", ".join(security.names))
        yield "issuer", _shown(security.issuer)
        days = _days(security)
        left = f"{days:.0f} days left" if days >= 0 else f"expired {-days:.0f} days ago"
        yield "valid", f"{_date(security.begins)} to {_date(security.ends)}, {left}"
        yield "trusted", f"no: {', '.join(security.problems)}" if security.problems else "yes"


def _shown(text: str) -> str:
    return text if text.isprintable() else json.dumps(text)


_CLIENTS: dict[str, Callable[[argparse.Namespace], int]] = {
    "echo": _echo,
    "get": _get,
    "daytime": _daytime,
    "time": _time,
    "probe": _probe,
}


def _target(name: str, chosen: argparse.Namespace) -> Target:
    """Return the server that a command line names.

    Raises:
        UsageError: it names none, or its options contradict each other.
    """
    host, datagram = chosen.host.removeprefix("[").removesuffix("]"), getattr(chosen, "udp", False)
    if datagram and (chosen.tls or host.startswith("/")):
        raise UsageError("--udp can't be combined with --tls or a UNIX socket")
    if not chosen.tls and (chosen.name or chosen.ca or chosen.cert or chosen.key or chosen.insecure):
        raise UsageError("--name, --ca, --cert, --key and --insecure require --tls")
    trust = _trust(chosen, host, lenient=name == "probe") if chosen.tls else None
    if host.startswith("/"):
        if chosen.port is not None:
            raise UsageError(f"a UNIX socket has no port: what is {chosen.port}?")
        return Target(host, 0, chosen.timeout, socket.AF_UNSPEC, trust)
    if chosen.port is None and name not in _PORTS:
        raise UsageError("the port is missing; add its number or name")
    port = _PORTS[name] if chosen.port is None else port_number(chosen.port, "udp" if datagram else "tcp")
    return Target(host, port, chosen.timeout, chosen.family or socket.AF_UNSPEC, trust)


def _trust(
    chosen: argparse.Namespace, host: str, *, lenient: bool = False, protocols: tuple[bytes, ...] = ()
) -> TrustSettings:
    name = chosen.name or host.partition("%")[0]
    if name.startswith("/"):
        raise UsageError("certificates contain no paths; set the name of the server with --name")
    if chosen.key and not chosen.cert:
        raise UsageError("--key requires --cert")
    ca, certificate = _content("--ca", chosen.ca), _content("--cert", chosen.cert)
    key = _content("--key", chosen.key) or certificate
    return TrustSettings(name, ca, certificate, key, lenient or chosen.insecure, protocols)


def _content(option: str, path: str | None) -> bytes:
    if path is None:
        return b""
    try:
        return LocalFiles().read(path)
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror or error}") from None
