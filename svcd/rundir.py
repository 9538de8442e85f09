"""Where a daemon and svcctl meet when nobody names a place: the control socket's usual path."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["control_path", "make_folder"]


def control_path() -> str:
    """The usual path of the control socket; empty where there is none.

    Under systemd the unit's own folder (RUNTIME_DIRECTORY, systemd.exec(5)), for root /run/svcd, for others a folder of
    their session (XDG_RUNTIME_DIR, XDG Base Directory Specification).
    """
    folder = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if not folder and os.geteuid() == 0:
        folder = "/run/svcd"
    session = os.environ.get("XDG_RUNTIME_DIR", "")
    if not folder and session.startswith("/"):
        folder = f"{session}/svcd"
    return f"{folder}/control" if folder else ""


def make_folder(path: str) -> None:
    """Make the folder of a socket at its usual path, as far as we may; others may not even look into it."""
    Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
