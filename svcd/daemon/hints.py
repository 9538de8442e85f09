"""The lines that a start in the foreground prints at its end on a terminal: what to try next."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from typing import TYPE_CHECKING

from svcd.host.control_path import control_paths
from svcd.model import SocketType
from svcd.protocols.catalog import BUILTINS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from svcd.config.endpoints import Endpoint
    from svcd.supervisor.supervisor import Supervisor

__all__ = ["next_steps", "print_next_steps"]

#: The svcctl commands that are clients of services, the most telling one first.
_CLIENTS = ("echo", "get", "daytime", "time", "probe")
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - the client gets a loopback address


def print_next_steps(supervisor: Supervisor, control: str) -> None:
    """Print the lines to the standard output of the process, which twistd has replaced by its log."""
    listening = [(listener.endpoint, listener.opened.address) for listener in supervisor.listeners_of()]
    print("\n".join(next_steps(listening, control)), file=sys.__stdout__, flush=True)


def next_steps(listening: Iterable[tuple[Endpoint, str]], control: str) -> Sequence[str]:
    """Return a line with a command for a client of a service, if there is one, and a line for the status and the stop.

    Args:
        listening: the endpoints that are served, each with the address of its socket.
        control: the path of the control socket; empty if there is none.
    """
    svcctl = _svcctl()
    commands = [found for endpoint, address in listening if (found := _client(endpoint, address))]
    commands.sort(key=lambda command: _CLIENTS.index(command[0]))
    place = [] if control in {place.path for place in control_paths()} else ["--control", control]
    status = shlex.join([svcctl, *place, "status"]) if control else ""
    last = f"Status: {status}   Stop: Ctrl-C" if status else "Stop: Ctrl-C"
    return [f"Try in another terminal: {shlex.join([svcctl, *commands[0]])}", last] if commands else [last]


def _svcctl() -> str:
    """Return the command svcctl: its name if the shell finds it, else its path."""
    if shutil.which("svcctl"):
        return "svcctl"
    return os.path.relpath(os.path.join(os.path.dirname(sys.executable), "svcctl"))  # noqa: PTH118, PTH120 - links stay


def _client(endpoint: Endpoint, address: str) -> list[str]:
    """Return the words of the svcctl command that is a client of a service; none if there is none for this machine."""
    service = endpoint.service
    options = service.options
    closed = service.tls or options.only_from is not None or options.proxy_protocol
    if closed or service.net.shape is SocketType.DATAGRAM:
        return []
    builtin = BUILTINS.get(service.runs)
    client = builtin.client if builtin is not None and builtin.client in _CLIENTS else "probe"
    if service.path:
        return [] if service.abstract or client == "get" else [client, address, *_words(client)]
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    host = _WILDCARDS.get(host, host)
    if client == "get":
        return ["get", f"http://{f'[{host}]' if ':' in host else host}:{port}/"]
    return [client, host, port, *_words(client)]


def _words(client: str) -> list[str]:
    return ["hello"] if client == "echo" else []
