"""Command lines of svcctl's protocol clients."""

from __future__ import annotations

import os
import signal
import socket
import sys
from functools import partial
from typing import TYPE_CHECKING

from svcd.cli.argument_types import count_of, seconds_of
from svcd.protocols.catalog import BUILTINS

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

__all__ = ["add_clients"]

_TIMEOUT = 10.0
_EXITS = (
    "The exit status is 0, 1 for another answer than the one that was wanted, 64 for a wrong command line, 69 for a "
    "server that can't be reached or does not answer in time, 74 when the input or output fails, 76 for a server that "
    "does not keep to the protocol or whose certificate can't be trusted, and that of SIGINT after Ctrl-C."
)
#: The ports of command lines without one.
_PORTS = {name: builtin.port for name, builtin in BUILTINS.items() if builtin.client == name}


def add_clients(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add a parser for each client.

    Args:
        add: add_parser of argparse's subparsers.
    """
    _add_echo(add)
    _add_get(add)
    for name, text in (
        ("daytime", "ask a server for the date and the time, as text (RFC 867)"),
        ("time", "ask a server for the time (RFC 868), and compare it with this clock"),
    ):
        clock = add(name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=_EXITS)
        _add_place(clock)
        _add_ways(clock)
        clock.set_defaults(run=partial(_run, name))
    _add_probe(add)


def _add_echo(add: Callable[..., argparse.ArgumentParser]) -> None:
    echo = add(
        "echo",
        help="send lines to a server, and show what it answers",
        description="Sends what is typed, or comes by the standard input, and shows what the server answers; the end "
        "of the input ends it, once everything is answered. With words it sends them as one line, and says whether "
        "they came back.",
        epilog=_EXITS,
    )
    _add_place(echo)
    echo.add_argument("words", nargs="*", default=[], metavar="WORD", help="what to send, and to get back")
    _add_ways(echo)
    echo.set_defaults(run=partial(_run, "echo"))


def _add_get(add: Callable[..., argparse.ArgumentParser]) -> None:
    get = add(
        "get",
        help="fetch a URL over HTTP",
        description="Writes what an http or https URL leads to on the standard output. A response of 400 and more is "
        "another answer than the one that was wanted.",
        epilog=_EXITS,
    )
    get.add_argument("url", metavar="URL", help="of http or https; without a scheme it is http")
    get.add_argument("-i", "--include", action="store_true", help="write the head of the response, too")
    get.add_argument("-I", "--head", action="store_true", help="ask for the head alone (HEAD), and write it")
    get.add_argument("-L", "--location", action="store_true", help="follow redirects, 10 at most")
    get.add_argument("--unix", metavar="PATH", help="connect to this UNIX socket, whatever the host is")
    _add_common(get)
    _add_tls(get)
    get.set_defaults(run=partial(_run, "get"))


def _add_probe(add: Callable[..., argparse.ArgumentParser]) -> None:
    probe = add(
        "probe",
        help="say whether a server is up, and what it is like",
        description="Connects to a server, over TLS if that is asked for, and says which address has answered, how "
        "long it took, what it says by itself and whether its certificate can be trusted; one that can't is another "
        "answer than the one that was wanted.",
        epilog=_EXITS,
    )
    _add_place(probe)
    probe.add_argument("--retries", type=count_of, default=0, metavar="N", help="try again so often until it is up")
    probe.add_argument("--wait", type=seconds_of, default=1.0, metavar="SECONDS", help="before each; default: 1")
    text = "how long to wait for what it says by itself; default: 0.5"
    probe.add_argument("--banner", type=seconds_of, default=0.5, metavar="SECONDS", help=text)
    probe.add_argument("--json", action="store_true", help="print what was found as JSON")
    _add_common(probe)
    probe.add_argument("--tls", action="store_true", help="shake hands")
    _add_tls(probe)
    probe.set_defaults(run=partial(_run, "probe"))


def _add_place(parser: argparse.ArgumentParser) -> None:
    usual = _PORTS.get(parser.prog.rpartition(" ")[2])
    parser.add_argument("host", metavar="HOST", help="its name or address, or the absolute path of a UNIX socket")
    text = f"by number or by name; default: {usual}" if usual else "by number or by name"
    parser.add_argument("port", metavar="PORT", nargs="?", help=text)


def _add_ways(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-u", "--udp", action="store_true", help="over UDP; what is not answered is sent again")
    _add_common(parser)
    parser.add_argument("--tls", action="store_true", help="over TLS")
    _add_tls(parser)


def _add_common(parser: argparse.ArgumentParser) -> None:
    versions = parser.add_mutually_exclusive_group()
    versions.add_argument("-4", dest="family", action="store_const", const=socket.AF_INET, help="over IPv4 alone")
    versions.add_argument("-6", dest="family", action="store_const", const=socket.AF_INET6, help="over IPv6 alone")
    text = f"how long the server may take to accept, and then to say something; default: {_TIMEOUT:g}"
    parser.add_argument("--timeout", type=seconds_of, default=_TIMEOUT, metavar="SECONDS", help=text)


def _add_tls(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", metavar="NAME", help="whose certificate it must have; default: the host's")
    parser.add_argument("--ca", metavar="FILE", help="certificates to trust, in PEM, instead of the machine's")
    parser.add_argument("--cert", metavar="FILE", help="a certificate of your own, in PEM, with its chain")
    parser.add_argument("--key", metavar="FILE", help="its key; default: it is in the file of --cert")
    parser.add_argument("--insecure", action="store_true", help="talk to whoever answers, trusted or not")


def _run(name: str, chosen: argparse.Namespace) -> int:
    # Ctrl-C ends the process by the signal, so that a script that has started it ends as well.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.stdin is None:
        # It was closed (<&-). A new socket must not get its number.
        os.open(os.devnull, os.O_RDONLY)
    try:
        # It imports Twisted.
        from svcd.cli.client_commands import run_client

        return run_client(name, chosen)
    finally:
        signal.signal(signal.SIGINT, before)
