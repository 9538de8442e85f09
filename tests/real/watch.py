"""Asks services again and again while something happens to the daemon, and remembers how long they take."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from tests.real.daemon import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Watch"]


class Watch:
    """Asks services and the control socket again and again, and remembers the worst time of each.

    Args:
        asked: by name what asks once.
    """

    def __init__(self, asked: dict[str, Callable[[], object]]) -> None:
        self.worst = dict.fromkeys(asked, 0.0)
        self.wrong: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=each) for each in asked.items()]

    def _run(self, name: str, ask: Callable[[], object]) -> None:
        while not self._stop.wait(0.02):
            began = time.monotonic()
            try:
                ask()
            except Exception as error:  # noqa: BLE001 - whatever it is, the test is to tell it
                self.wrong.append(f"{name}: {error!r}")
                return
            self.worst[name] = max(self.worst[name], time.monotonic() - began)

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """Ask while something happens."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(PATIENCE)
