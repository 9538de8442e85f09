"""What twistd does for a daemon as it starts and ends, held back until it is right for us: by twistd's own options."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import MutableMapping

__all__ = ["Twistd"]


class Twistd:
    """The twistd that runs us.

    Args:
        options: its options, which it looks at again when the daemon is started and when it ends.
    """

    def __init__(self, options: MutableMapping[str, Any]) -> None:
        self._options = options
        self._waiting: int | None = None

    def hold(self) -> None:
        """Let the command that has started a daemon wait: it would return before anything is served."""
        self._waiting = self._options.pop("statusPipe", None)

    def let_go(self) -> None:
        """Let it return."""
        if self._waiting is not None:
            with contextlib.suppress(BrokenPipeError):
                # What twistd itself writes when the application has started.
                os.write(self._waiting, b"0")
            os.close(self._waiting)
            self._waiting = None
