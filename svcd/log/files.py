"""Log files of services, beside the log of the daemon."""

from __future__ import annotations

import contextlib
import weakref
from typing import TYPE_CHECKING, TypeAlias

from svcd.log.formats import TextFormat
from svcd.log.sinks import FileSink
from svcd.log.writer import LogWriter

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LogFiles"]

_CallLater: TypeAlias = "Callable[[float, Callable[[], None]], object]"


class LogFiles:
    """The open log files. Services that name the same file share it; it is closed when no service uses it.

    Args:
        owner: the uid and gid of a file that does not exist yet; -1 for no change (chown(2)).
        on_open: called when a file is opened.
    """

    def __init__(self, owner: tuple[int, int], on_open: Callable[[], None]) -> None:
        self._owner = owner
        self._on_open = on_open
        self._call_later: _CallLater | None = None
        self._writers: weakref.WeakValueDictionary[str, LogWriter] = weakref.WeakValueDictionary()
        self._sinks: weakref.WeakKeyDictionary[LogWriter, FileSink] = weakref.WeakKeyDictionary()

    def open(self, path: str) -> LogWriter:
        """Return the writer of a file, whose lines are written as they are.

        Raises:
            OSError: the file can't be opened.
        """
        writer = self._writers.get(path)
        if writer is not None:
            return writer
        sink = FileSink(path, owner=self._owner)
        sink.open()
        writer = LogWriter(sink.write, TextFormat(stamped=False))
        if self._call_later is not None:
            writer.start_buffering(self._call_later)
        weakref.finalize(writer, sink.close)
        self._writers[path] = writer
        self._sinks[writer] = sink
        self._on_open()
        return writer

    def start_buffering(self, call_later: _CallLater) -> None:
        """Buffer lines from now on, with the reactor's callLater."""
        self._call_later = call_later
        for writer in self._writers.values():
            writer.start_buffering(call_later)

    def reopen(self) -> None:
        """Open the files again: they may have been renamed. A file that can't be opened stays as it is."""
        for sink in self._sinks.values():
            with contextlib.suppress(OSError):
                sink.open()

    def flush(self) -> None:
        """Write all buffered lines."""
        for writer in self._writers.values():
            writer.flush()
