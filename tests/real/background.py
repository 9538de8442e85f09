"""Threads that run while a test does something else."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from tests.real.daemon import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Background"]


class Background:
    """Threads that repeat something until they are stopped.

    Args:
        pause: how long each waits before each time, in seconds.

    Attributes:
        wrong: what was raised; it ends the thread.
    """

    def __init__(self, pause: float) -> None:
        self.wrong: list[str] = []
        self._pause = pause
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def repeat(self, once: Callable[[], object], name: str = "") -> None:
        """Add a thread.

        Args:
            once: called again and again.
            name: stands before what it raises, in `wrong`.
        """
        self._threads.append(threading.Thread(target=self._run, args=(once, f"{name}: " if name else "")))

    def _run(self, once: Callable[[], object], prefix: str) -> None:
        while not self._stop.wait(self._pause):
            try:
                once()
            except Exception as error:  # noqa: BLE001 - whatever it is, the test is to tell it
                self.wrong.append(f"{prefix}{error!r}")
                return

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """Run them while something happens."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(PATIENCE)
