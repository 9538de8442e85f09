"""Imports of modules in separate threads, so that a slow import does not delay anything else."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from svcd.process.imports import import_object

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["BackgroundImport", "import_in_background"]


class BackgroundImport:
    """One import in a thread, which may continue after wait() has returned.

    Args:
        reference: `package.module:name`.

    Attributes:
        reason: the reason of a failure; empty after a success, None while the import runs.
    """

    def __init__(self, reference: str) -> None:
        self._reference = reference
        self._started = time.monotonic()
        self.reason: str | None = None
        # A daemon thread: the import of a module may never return.
        self._thread = threading.Thread(target=self._run, name=f"import {reference}", daemon=True)
        self._thread.start()

    @property
    def seconds(self) -> float:
        """The duration of the import so far, in seconds."""
        return time.monotonic() - self._started

    def wait(self, seconds: float) -> None:
        """Wait until the import is done; `seconds` is the limit of the time."""
        self._thread.join(max(seconds, 0.0))

    def _run(self) -> None:
        reason = "its import did not end"
        try:
            import_object(self._reference)
            reason = ""
        except ImportError as error:
            reason = str(error)
        finally:
            self.reason = reason


_running: dict[str, BackgroundImport] = {}
_lock = threading.Lock()


def import_in_background(references: Iterable[str], seconds: float) -> dict[str, BackgroundImport]:
    """Import objects; wait for all of them together.

    An import that still runs is returned again by the next call; a failed one is tried again.

    Args:
        references: the objects, each as `package.module:name`.
        seconds: the limit of the time, in seconds.
    """
    until = time.monotonic() + seconds
    with _lock:
        for reference in references:
            known = _running.get(reference)
            if known is None or known.reason:
                _running[reference] = BackgroundImport(reference)
        found = {reference: _running[reference] for reference in references}
    for each in found.values():
        each.wait(until - time.monotonic())
    with _lock:
        for reference, each in found.items():
            if each.reason is not None and _running.get(reference) is each:
                del _running[reference]
    return found
