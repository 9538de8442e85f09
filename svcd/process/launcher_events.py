"""What a link tells the keeper of a spawned service's connections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from svcd.process.messages import Ended

__all__ = ["LauncherEvents"]


class LauncherEvents(Protocol):
    """Who is told what becomes of the connections of a service."""

    def process_started(self, connection_id: int, pid: int) -> None:
        """A connection has its process."""

    def process_ended(self, report: Ended) -> None:
        """Its process has ended."""

    def start_failed(self, connection_id: int, errno: int) -> None:
        """It was closed, since there could be no process for it."""

    def process_lost(self, connection_id: int) -> None:
        """Its process may go on, but nobody will say when it ends."""

    def stderr_line(self, connection_id: int, text: bytes) -> None:
        """Its process wrote this for the log."""

    def dropped(self, lines: int, size: int) -> None:
        """So many lines, and bytes of them, were written for the log beyond stderr_rate, and are lost."""

    def module_changed(self, module: str) -> None:
        """A module that the launcher has imported has changed on disk."""

    def threads_stuck(self) -> None:
        """The launcher has threads that can't be ended; another one should take its place."""

    def launcher_restarted(self) -> None:
        """A launcher was started in place of a lost one."""

    def unavailable(self, problem: str) -> None:
        """The launcher can't serve, for this reason; an empty text says that it can again."""

    def queue_drained(self) -> None:
        """More connections may be handed over than before."""
