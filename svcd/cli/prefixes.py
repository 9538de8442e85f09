"""Where an installation may be."""

from pathlib import Path

__all__ = ["SYSTEM_PREFIXES", "USUAL_PREFIX"]

#: Where systemd, man and the shells look by themselves.
SYSTEM_PREFIXES = (Path("/usr"), Path("/usr/local"))
#: Where it is unless somebody says otherwise.
USUAL_PREFIX = "/usr/local"
