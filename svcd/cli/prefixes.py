"""Prefixes of installations."""

from pathlib import Path

__all__ = ["SYSTEM_PREFIXES", "USUAL_PREFIX"]

#: The prefixes that systemd, man and shells read by default.
SYSTEM_PREFIXES = (Path("/usr"), Path("/usr/local"))
#: The default prefix.
USUAL_PREFIX = "/usr/local"
