"""Background threads of a test."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from tests.real.daemon import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Background"]


class Background:
    """Threads that repeat calls until they are stopped.

    Args:
        pause: time before each call, in seconds.

    Attributes:
        wrong: the exceptions that were raised; each ended its thread.
    """

    def __init__(self, pause: float) -> None:
        self.wrong: list[str] = []
        self._pause = pause
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def repeat(self, once: Callable[[], object], name: str = "") -> None:
        """Add a thread.

        Args:
            once: the function to call repeatedly.
            name: prefix of its exceptions in `wrong`.
        """
        self._threads.append(threading.Thread(target=self._run, args=(once, f"{name}: " if name else "")))

    def _run(self, once: Callable[[], object], prefix: str) -> None:
        while not self._stop.wait(self._pause):
            try:
                once()
            except Exception as error:  # noqa: BLE001 - the test reports any exception
                self.wrong.append(f"{prefix}{error!r}")
                return

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """Run the threads while the context is entered."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(PATIENCE)
