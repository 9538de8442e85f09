"""Watcher of paths whose files are missing or unusable, by inotify(7)."""

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


#: The event of a watched directory that was removed (inotify(7)); twisted.internet.inotify loads ctypes.
_IN_DELETE_SELF = 0x400


class PathWatcher:
    """Watcher of the directories of paths, or their nearest existing ancestors.

    A path that ends in /* stands for everything in its directory.

    Args:
        reactor: watches the inotify descriptor.
        changed: called with the paths that a change may concern. After the removal of a watched directory these are all
            paths, and nothing is watched until the next watch().
    """

    def __init__(self, reactor: FdReactor, changed: Callable[[frozenset[str]], None]) -> None:
        self._reactor = reactor
        self._changed = changed
        self._inotify: INotify | None = None
        self._watched: dict[str, frozenset[str]] = {}

    def watch(self, paths: Iterable[str]) -> None:
        """Replace the watched paths; watch nothing if the kernel refuses."""
        directories: dict[str, set[str]] = {}
        for path in paths:
            directories.setdefault(_existing_parent(os.path.dirname(path)), set()).add(path)  # noqa: PTH120 - as it was written
        wanted = {directory: frozenset(inside) for directory, inside in directories.items()}
        if not wanted:
            self.stop()
        elif wanted != self._watched:
            self._change(wanted)

    def _change(self, wanted: dict[str, frozenset[str]]) -> None:
        # Imported here, since it loads ctypes.
        from twisted.internet import inotify

        mask = inotify.IN_CREATE | inotify.IN_MOVED | inotify.IN_CLOSE_WRITE | inotify.IN_ATTRIB | inotify.IN_DELETE
        if self._inotify is None:
            try:
                self._inotify = inotify.INotify(self._reactor)
            except OSError:
                return
            self._inotify.startReading()
        # The same descriptor goes on, so that no event is lost.
        for directory in self._watched.keys() - wanted.keys():
            self._inotify.ignore(FilePath(directory))
        for directory in wanted.keys() - self._watched.keys():
            # The directory was removed meanwhile, or fs.inotify.max_user_watches is exhausted.
            with contextlib.suppress(OSError):
                self._inotify.watch(FilePath(directory), mask, callbacks=[partial(self._notify, directory)])
                self._watched[directory] = wanted[directory]
        self._watched = {name: wanted[name] for name in self._watched.keys() & wanted.keys()}

    def _notify(self, directory: str, _watch: object, path: FilePath[bytes], mask: int) -> None:
        """Report the paths that an event in their directory, or in an ancestor, may concern."""
        name = os.fsdecode(path.path)
        about = frozenset(
            each
            for each in self._watched.get(directory, ())
            if name == directory or each in (name, f"{directory}/*") or each.startswith(f"{name}/")
        )
        if mask & _IN_DELETE_SELF:
            # INotify ends after this call, so the changes of other directories are not known until the next watch().
            about = frozenset[str]().union(*self._watched.values())
            self._watched, self._inotify = {}, None
        if about:
            self._changed(about)

    def stop(self) -> None:
        """Stop watching."""
        self._watched = {}
        if self._inotify is not None:
            inotify, self._inotify = self._inotify, None
            inotify.loseConnection()


def _existing_parent(directory: str) -> str:
    """Return the directory, or its nearest existing ancestor."""
    while not os.path.isdir(directory) and directory != "/":  # noqa: PTH112 - Path.is_dir raises on some
        directory = os.path.dirname(directory)  # noqa: PTH120 - as it was written
    return directory
