"""Ports by their names in services(5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from svcd.interfaces import FileReader
    from svcd.model import NetProtocol

__all__ = ["SERVICES", "PortNames"]

#: The file that names the ports of the internet's services.
SERVICES = "/etc/services"


class PortNames:
    """The names of ports, read when the first is asked for.

    Args:
        files: how the file is read.
    """

    def __init__(self, files: FileReader) -> None:
        self._files = files
        self._ports: dict[tuple[str, str], int] | None = None

    def port(self, name: str, net: NetProtocol) -> int | None:
        """Return the port of a name or an alias for a protocol; None for an unknown one."""
        if self._ports is None:
            self._ports = self._read()
        return self._ports.get((name, _transport(net)))

    def names(self, net: NetProtocol) -> list[str]:
        """Return all names for a protocol, once one was asked for."""
        return [name for name, protocol in self._ports or () if protocol == _transport(net)]

    def _read(self) -> dict[tuple[str, str], int]:
        try:
            text = self._files.read(SERVICES).decode("utf-8", "replace")
        except OSError:
            return {}
        found: dict[tuple[str, str], int] = {}
        for line in text.splitlines():
            words = line.partition("#")[0].split()
            port, _, protocol = words[1].partition("/") if len(words) > 1 else ("", "", "")
            if port.isascii() and port.isdecimal() and 0 < int(port) < 65_536:
                for name in (words[0], *words[2:]):
                    found.setdefault((name, protocol), int(port))
        return found


def _transport(net: NetProtocol) -> str:
    """Return the protocol as services(5) has it: without the version of IP."""
    return net[:3]
