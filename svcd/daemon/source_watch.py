"""The option --watch: a reload after each change of the services file or of a file that it includes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.application.service import Service

from svcd.host.path_watch import PathWatcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from twisted.internet.interfaces import IDelayedCall

    from svcd.interfaces import FdReactor
    from svcd.supervisor.reload import Reloader

__all__ = ["SourceWatch"]

#: The pause after a change before the reload, in seconds: an editor writes a file in several steps.
_SETTLE_SECONDS = 0.2


class SourceWatch(Service):
    """Service that reloads after changes of the sources.

    Args:
        reactor: watches the inotify descriptor.
        reloader: reloads.
        sources: returns the paths of the sources, by the last reading.
    """

    def __init__(self, reactor: FdReactor, reloader: Reloader, sources: Callable[[], Iterable[str]]) -> None:
        self._reactor = reactor
        self._reloader = reloader
        self._sources = sources
        self._watcher = PathWatcher(reactor, self._changed)
        self._timer: IDelayedCall | None = None

    def startService(self) -> None:
        """Begin to watch."""
        super().startService()  # type: ignore[no-untyped-call]
        self._reloader.finished = self._watch
        self._watch()

    def stopService(self) -> None:
        """Stop watching."""
        super().stopService()  # type: ignore[no-untyped-call]
        self._reloader.finished = None
        self._watcher.stop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch(self) -> None:
        self._watcher.watch(self._sources())

    def _changed(self, _paths: frozenset[str]) -> None:
        if self._timer is None:
            self._timer = self._reactor.callLater(_SETTLE_SECONDS, self._reload)
        else:
            self._timer.reset(_SETTLE_SECONDS)

    def _reload(self) -> None:
        self._timer = None
        self._reloader.on_signal()
