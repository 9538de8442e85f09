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
    "The exit status is 0 for the expected answer, 1 for another one, 64 for a wrong command line, 69 for a server "
    "that can't be reached or does not answer in time, 74 for an error of the input or output, 76 for a server that "
    "violates the protocol or whose certificate can't be trusted, and that of SIGINT after Ctrl-C."
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
        ("daytime", "query the date and time of a server, as text (RFC 867)"),
        ("time", "query the time of a server (RFC 868), and compare it with the local clock"),
    ):
        clock = add(name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=_EXITS)
        _add_place(clock)
        _add_ways(clock)
        clock.set_defaults(run=partial(_run, name))
    _add_probe(add)


def _add_echo(add: Callable[..., argparse.ArgumentParser]) -> None:
    echo = add(
        "echo",
        help="send lines to a server, and print its answers",
        description="Sends the lines of the standard input and prints the answers of the server. It ends after the end "
        "of the input, once every line is answered. With words it sends these as one line, and prints whether the same "
        "line came back.",
        epilog=_EXITS,
    )
    _add_place(echo)
    echo.add_argument("words", nargs="*", default=[], metavar="WORD", help="the words of the line to send")
    _add_ways(echo)
    echo.set_defaults(run=partial(_run, "echo"))


def _add_get(add: Callable[..., argparse.ArgumentParser]) -> None:
    get = add(
        "get",
        help="fetch a URL over HTTP",
        description="Writes the resource at an http or https URL to the standard output. The exit status is 1 for a "
        "response with a status of 400 or more.",
        epilog=_EXITS,
    )
    get.add_argument("url", metavar="URL", help="an http or https URL; without a scheme http")
    get.add_argument("-i", "--include", action="store_true", help="also write the header of the response")
    get.add_argument("-I", "--head", action="store_true", help="request and write only the header (HEAD)")
    get.add_argument("-L", "--location", action="store_true", help="follow at most 10 redirects")
    get.add_argument("--unix", metavar="PATH", help="connect to this UNIX socket instead of the host")
    _add_common(get)
    _add_tls(get)
    get.set_defaults(run=partial(_run, "get"))


def _add_probe(add: Callable[..., argparse.ArgumentParser]) -> None:
    probe = add(
        "probe",
        help="check whether a server is up, and describe its connection",
        description="Connects to a server, with --tls over TLS, and prints the address that answered, the time that it "
        "took, the banner, and whether the certificate can be trusted. The exit status is 1 if it can't.",
        epilog=_EXITS,
    )
    _add_place(probe)
    probe.add_argument(
        "--retries", type=count_of, default=0, metavar="N", help="number of further attempts; default: 0"
    )
    probe.add_argument(
        "--wait", type=seconds_of, default=1.0, metavar="SECONDS", help="pause before each further attempt; default: 1"
    )
    text = "how long to wait for a banner; default: 0.5"
    probe.add_argument("--banner", type=seconds_of, default=0.5, metavar="SECONDS", help=text)
    probe.add_argument("--json", action="store_true", help="print the result as JSON")
    _add_common(probe)
    probe.add_argument("--tls", action="store_true", help="connect over TLS")
    _add_tls(probe)
    probe.set_defaults(run=partial(_run, "probe"))


def _add_place(parser: argparse.ArgumentParser) -> None:
    usual = _PORTS.get(parser.prog.rpartition(" ")[2])
    parser.add_argument(
        "host", metavar="HOST", help="name or address of the server, or the absolute path of a UNIX socket"
    )
    text = f"port number or name; default: {usual}" if usual else "port number or name"
    parser.add_argument("port", metavar="PORT", nargs="?", help=text)


def _add_ways(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-u", "--udp", action="store_true", help="use UDP; requests without an answer are repeated")
    _add_common(parser)
    parser.add_argument("--tls", action="store_true", help="connect over TLS")
    _add_tls(parser)


def _add_common(parser: argparse.ArgumentParser) -> None:
    versions = parser.add_mutually_exclusive_group()
    versions.add_argument("-4", dest="family", action="store_const", const=socket.AF_INET, help="use only IPv4")
    versions.add_argument("-6", dest="family", action="store_const", const=socket.AF_INET6, help="use only IPv6")
    text = f"timeout for the connection, and then for each answer; default: {_TIMEOUT:g}"
    parser.add_argument("--timeout", type=seconds_of, default=_TIMEOUT, metavar="SECONDS", help=text)


def _add_tls(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", metavar="NAME", help="name that the certificate must have; default: HOST")
    parser.add_argument("--ca", metavar="FILE", help="trusted certificates, in PEM; default: those of the system")
    parser.add_argument("--cert", metavar="FILE", help="client certificate with its chain, in PEM")
    parser.add_argument("--key", metavar="FILE", help="key of the client certificate; default: in the file of --cert")
    parser.add_argument("--insecure", action="store_true", help="do not verify the certificate")


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
