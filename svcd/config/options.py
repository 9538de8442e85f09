"""The option table, used by the parser, the checks, `svcctl options`, the manual page and the README.

A row is a field of ServiceOptions: the annotation is its Python type, the metadata the rest of an OptionInfo. The rows
of the larger groups are in modules of their own.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from svcd.config.access_options import AccessOptions
from svcd.config.listen_options import DatagramOptions, SocketOptions, TimeoutOptions
from svcd.config.option_info import GROUPS, OptionInfo, option
from svcd.config.process_options import HandlerOptions
from svcd.config.tls_options import TlsOptions
from svcd.config.value_types import ID, NAMES, PATH, TEXT, YES_NO, choice, choices

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["TABLE", "ServiceOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceOptions(SocketOptions, AccessOptions, HandlerOptions, TimeoutOptions, DatagramOptions, TlsOptions):
    """The values of all options of one service."""

    resolve: bool = option(
        YES_NO, False, "access", "stream",
        "Look up the client's host name, without blocking, and log it.",
    )  # fmt: skip
    log_on_success: tuple[str, ...] | None = option(
        choices("PID", "HOST", "EXIT", "DURATION", "TRAFFIC"), None, "log", "stream",
        "What the accept and end lines of a connection say: the process, the client, the reason of the end, the "
        "seconds, the bytes. With none there are no such lines. Default: HOST,EXIT,DURATION,TRAFFIC, and for spawned "
        "services PID,HOST,EXIT,DURATION: for TRAFFIC the daemon keeps a copy of the socket until it finds, in 0.1 s, "
        "that neither the process nor its children have it; inside a chroot= without /proc it keeps none, nor counts. "
        "The bytes of a Python handler are those until it closes its socket.",
        xinetd="log_on_success",
    )  # fmt: skip
    utc: bool = option(
        YES_NO, False, "daytime", "daytime",
        "Tell universal instead of local time.",
    )  # fmt: skip
    date_format: str = option(
        choice("classic", "iso8601"), "classic", "daytime", "daytime",
        "Sat Nov 21 10:12:00 2026 or 2026-11-21T10:12:00+01:00.",
    )  # fmt: skip
    quotes: str = option(
        PATH, "", "qotd", "qotd",
        "File with the quotations, between lines of a single %; those of 512 characters and more are left out. "
        "Default: a few of our own.",
    )  # fmt: skip
    root: str = option(
        PATH, "", "http", "http",
        "Directory whose files are served; default: a page that greets the client.",
    )  # fmt: skip
    index: tuple[str, ...] = option(
        NAMES, ("index.html",), "http", "http",
        "Files to answer with when a directory is asked for; the first that exists.",
    )  # fmt: skip
    symlinks: bool = option(
        YES_NO, False, "http", "http",
        "Follow symbolic links below root, wherever they lead.",
    )  # fmt: skip
    id: str = option(
        ID, "", "other", "any",
        "What the service is called in the log, in metrics and by svcctl, with its protocol behind; default: its name. "
        "For services of the same name on several ports or addresses.",
        xinetd="id",
    )  # fmt: skip
    disable: bool = option(
        YES_NO, False, "other", "any",
        "Leave the line in the file but do not serve it.",
        xinetd="disable",
    )  # fmt: skip
    description: str = option(
        TEXT, "", "other", "any",
        "What the service is for, in your words.",
    )  # fmt: skip


def _table() -> dict[str, OptionInfo]:
    infos = [
        OptionInfo(name=field.name, default=field.default, **field.metadata)
        for field in dataclasses.fields(ServiceOptions)
    ]
    order = list(GROUPS)
    return {info.name: info for info in sorted(infos, key=lambda info: order.index(info.group))}


#: The rows by name, in the order of GROUPS, and within a group in that of the fields.
TABLE: Mapping[str, OptionInfo] = _table()
