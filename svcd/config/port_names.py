"""Names of ports, from services(5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from svcd.interfaces import FileReader
    from svcd.model import NetProtocol

__all__ = ["SERVICES", "PortNames"]

#: The file with the names of ports.
SERVICES = "/etc/services"


class PortNames:
    """The names of ports. The file is read at the first lookup.

    Args:
        files: reads the file.
    """

    def __init__(self, files: FileReader) -> None:
        self._files = files
        self._ports: dict[tuple[str, str], int] | None = None

    def port(self, name: str, net: NetProtocol) -> int | None:
        """Return the port that has a name or an alias for a protocol; None if the name is unknown."""
        if self._ports is None:
            self._ports = self._read()
        return self._ports.get((name, _transport(net)))

    def names(self, net: NetProtocol) -> list[str]:
        """Return all names for a protocol; none before the first lookup."""
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
    """Return the name of a protocol in services(5), which has no version of IP."""
    return net[:3]
