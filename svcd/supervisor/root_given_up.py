"""Remedies for errors that only root avoids, for a daemon without root and one that gave it up (twistd --uid)."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from svcd.errors import ListenError

if TYPE_CHECKING:
    from svcd.config.endpoints import Endpoint

__all__ = ["RESTART", "START", "with_restart"]

START = "start svcd as root, under systemd with the drop-in spawn-as-users.conf (etc/systemd/drop-ins)"
RESTART = (
    "root was given up at the start (--uid, as in the drop-in spawn-as-users.conf), so restart svcd, under systemd by "
    "systemctl restart svcd"
)


def with_restart(error: ListenError, endpoint: Endpoint) -> ListenError:
    """Return the error with a restart as the remedy if only root can open the address, otherwise unchanged."""
    if error.number not in (errno.EACCES, errno.EPERM) or os.geteuid() == 0:
        return error
    other = "choose another port" if endpoint.version else error.remedy
    return ListenError(error.service, error.address, error.cause, f"{RESTART}; or {other}", error.number)
