"""Exit statuses of svcctl and of the daemon, for the manual."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DAEMON", "SVCCTL"]

#: The exit statuses of svcctl; those above 63 are from sysexits(3).
SVCCTL: Mapping[int, str] = {
    0: "Success.",
    1: "The daemon refuses the command; a client would be refused (explain); the machine can't serve a service "
    "(check, diff); a server sent another answer than expected.",
    64: "The command line is wrong.",
    69: "The daemon or the server can't be reached or does not answer in time. svcd can't run as a service from here "
    "(install).",
    70: "An error in the daemon; its log has a traceback.",
    73: "A file can't be written (install).",
    74: "An error of the standard input or output.",
    75: "The daemon is busy, or an upgrade has just replaced it; try again.",
    76: "A server violates the protocol, or its certificate can't be trusted.",
    77: "Permission denied (install).",
    78: "The services file has mistakes.",
}
#: The exit statuses of `svcd` and `twistd svcd`; those above 63 are from sysexits(3).
DAEMON: Mapping[int, str] = {
    0: "The daemon has stopped as requested.",
    1: "The machine can't serve a service (--check, --strict); an error while it ran; "
    "with twistd: the command line is wrong.",
    64: "The command line of the command svcd is wrong.",
    71: "No address of the services can be listened on, or the control socket of --control can't be opened.",
    73: "The log can't be opened.",
    78: "The services file has mistakes; no service of it can be served; the sockets of a systemd unit can't be used.",
}
