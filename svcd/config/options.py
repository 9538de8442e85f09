"""The option table, used by the parser, the checks, `svcctl options`, the manual page and the reference.

A row is a field of ServiceOptions: the annotation is its Python type, the metadata the rest of an OptionInfo. The rows
of the larger groups are in modules of their own.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from svcd.config.access_options import AccessOptions
from svcd.config.http_options import HttpOptions
from svcd.config.listen_options import DatagramOptions, SocketOptions, TimeoutOptions
from svcd.config.option_info import GROUPS, OptionInfo, option
from svcd.config.process_options import HandlerOptions
from svcd.config.tls_options import TlsOptions
from svcd.config.value_types import ID, PATH, TEXT, YES_NO, choice, choices
from svcd.config.websocket_options import WebSocketOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["TABLE", "ServiceOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceOptions(
    SocketOptions,
    AccessOptions,
    HandlerOptions,
    TimeoutOptions,
    DatagramOptions,
    TlsOptions,
    HttpOptions,
    WebSocketOptions,
):
    """The values of all options of one service."""

    resolve: bool = option(
        YES_NO, False, "access", "stream",
        "Look up the host name of each client and log it. Lookups do not block the daemon.",
        example="echo 7/tcp resolve=yes",
    )  # fmt: skip
    log_on_success: tuple[str, ...] | None = option(
        choices("PID", "HOST", "EXIT", "DURATION", "TRAFFIC"), None, "log", "stream",
        "Fields of the accept and end log lines: process ID (PID), client address (HOST), reason of the end (EXIT), "
        "duration in seconds (DURATION), bytes received and sent (TRAFFIC). With none, the lines are not written. "
        "Default: HOST,EXIT,DURATION,TRAFFIC; for spawned services PID,HOST,EXIT,DURATION. For TRAFFIC of a spawned "
        "service svcd keeps a copy of the socket, which it closes within 0.1 s after the process and its children "
        "have closed theirs; inside a chroot= without /proc the bytes are not counted. Bytes of a Python handler are "
        "counted until it closes its socket.",
        xinetd="log_on_success",
        example="echo 7/tcp log_on_success=HOST,EXIT",
    )  # fmt: skip
    utc: bool = option(
        YES_NO, False, "daytime", "daytime",
        "Send universal time (UTC) instead of local time.",
        example="daytime 13/tcp utc=yes",
    )  # fmt: skip
    date_format: str = option(
        choice("classic", "iso8601"), "classic", "daytime", "daytime",
        "Date format: classic is Sat Nov 21 10:12:00 2026, iso8601 is 2026-11-21T10:12:00+01:00.",
        example="daytime 13/tcp date_format=iso8601",
    )  # fmt: skip
    quotes: str = option(
        PATH, "", "qotd", "qotd",
        "File with the quotations, separated by lines that contain a single %. Quotations of 512 characters or more "
        "are ignored. Default: a built-in list.",
        example="qotd 17/tcp quotes=/usr/share/games/fortunes/fortunes",
    )  # fmt: skip
    id: str = option(
        ID, "", "other", "any",
        "Name of the service in the log, in metrics and in svcctl, followed by its protocol. Required to distinguish "
        "services of the same name on several ports or addresses. Default: the service name.",
        xinetd="id",
        example="echo 7007/tcp id=echo-test",
    )  # fmt: skip
    disable: bool = option(
        YES_NO, False, "other", "any",
        "Keep the line in the file but do not serve it.",
        xinetd="disable",
        example="echo 7/tcp disable=yes",
    )  # fmt: skip
    description: str = option(
        TEXT, "", "other", "any",
        "Description of the service, as free text.",
        systemd="Description=",
        example="echo 7/tcp description='Test of the line'",
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
