"""Files that are missing or can't be used: a callback when they may have come, by inotify(7)."""

from __future__ import annotations

import contextlib
import os
from functools import partial
from typing import TYPE_CHECKING

from twisted.python.filepath import FilePath

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from twisted.internet.inotify import INotify

    from svcd.interfaces import FdReactor

__all__ = ["PathWatcher"]


class PathWatcher:
    """Watches the directories of files, or their nearest ancestors that exist.

    Args:
        reactor: watches the descriptor of inotify.
        changed: called with the paths below a directory in which something has changed.
    """

    def __init__(self, reactor: FdReactor, changed: Callable[[frozenset[str]], None]) -> None:
        self._reactor = reactor
        self._changed = changed
        self._inotify: INotify | None = None
        self._watched: dict[str, frozenset[str]] = {}

    def watch(self, paths: Iterable[str]) -> None:
        """Watch these paths from now on, and no others. Where the kernel refuses, nothing is watched."""
        folders: dict[str, set[str]] = {}
        for path in paths:
            folders.setdefault(_existing(os.path.dirname(path)), set()).add(path)  # noqa: PTH120 - as it was written
        wanted = {folder: frozenset(inside) for folder, inside in folders.items()}
        if wanted == self._watched:
            return
        self.stop()
        if wanted:
            self._start(wanted)

    def _start(self, wanted: dict[str, frozenset[str]]) -> None:
        # Imported where it is needed: it loads ctypes.
        from twisted.internet import inotify

        mask = inotify.IN_CREATE | inotify.IN_MOVED | inotify.IN_CLOSE_WRITE | inotify.IN_ATTRIB | inotify.IN_DELETE
        try:
            watcher = inotify.INotify(self._reactor)
        except OSError:
            return
        watcher.startReading()
        self._inotify = watcher
        for folder, inside in wanted.items():
            # A directory that has gone meanwhile, or one too many (fs.inotify.max_user_watches).
            with contextlib.suppress(OSError):
                watcher.watch(FilePath(folder), mask, callbacks=[partial(self._told, folder)])
                self._watched[folder] = inside

    def _told(self, folder: str, _watch: object, path: FilePath[bytes], _mask: int) -> None:
        """Find the paths that an event in their directory, or in one above, may be about."""
        name = os.fsdecode(path.path)
        about = frozenset(
            each
            for each in self._watched.get(folder, ())
            if name == folder or each == name or each.startswith(f"{name}/")
        )
        if about:
            self._changed(about)

    def stop(self) -> None:
        """Watch nothing any more."""
        self._watched = {}
        if self._inotify is not None:
            inotify, self._inotify = self._inotify, None
            inotify.loseConnection()


def _existing(folder: str) -> str:
    """Return a directory, or its nearest ancestor that exists."""
    while not os.path.isdir(folder) and folder != "/":  # noqa: PTH112 - Path.is_dir raises on some
        folder = os.path.dirname(folder)  # noqa: PTH120 - as it was written
    return folder
