"""Checks of the WebSocket options against other options and the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svcd.config.option_info import HANDLERS
from svcd.config.options import TABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svcd.config.service import Service
    from svcd.interfaces import HostInfo
    from svcd.model import ConfigProblem

__all__ = ["websocket_problems"]

#: The module of the package that services with WebSocket need.
_MODULE = "wsproto"


def websocket_problems(service: Service, machine: HostInfo) -> Iterator[ConfigProblem]:
    """Yield the problems of the WebSocket options of a service."""
    options = service.options
    if options.websocket is None:
        for name, info in TABLE.items():
            depends = info.group == "websocket" or (name == "request_timeout" and service.runs in HANDLERS)
            if depends and service.has_own(name) and getattr(options, name) != info.default:
                text = "this has no effect without websocket=; add websocket=lines, text or binary, or remove it"
                yield service.problem(name, text)
        return
    if options.wait:
        text = "with wait=yes the process accepts the connections, and svcd speaks no WebSocket; remove one of the two"
        yield service.problem("websocket", text)
        return
    if not machine.has_module(_MODULE):
        text = f"the Python package {_MODULE} is not installed; install it with pip install 'svcd[websocket]'"
        yield service.fault("websocket", text)
