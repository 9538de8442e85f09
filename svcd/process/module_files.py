"""Changes on disk of modules that a process has imported. Imports little, for bare interpreters."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ModuleFiles"]

#: Maximum number of checked files.
_MAX_FILES = 1000


class ModuleFiles:
    """The files of a module and of the modules imported with it, with their state at creation.

    Args:
        reference: `package.module:name`, already imported; all modules of the same package count.
        folders: directories; all modules from these count as well.
    """

    def __init__(self, reference: str, folders: Sequence[str] = ()) -> None:
        package = reference.partition(":")[0].partition(".")[0]
        self._stamps: dict[str, tuple[str, tuple[int, int, int]]] = {}
        for name, module in list(sys.modules.items()):
            path = getattr(module, "__file__", None)
            if not isinstance(path, str) or len(self._stamps) >= _MAX_FILES:
                continue
            if name.partition(".")[0] == package or any(path.startswith(f"{folder}/") for folder in folders):
                stamp = _stamp(path)
                if stamp is not None:
                    self._stamps[path] = name, stamp

    def changed(self) -> str:
        """Return the name of a module whose file has changed; empty if there is none.

        A file that is missing or unreadable now counts as unchanged: an update may be in progress.
        """
        for path, (name, stamp) in self._stamps.items():
            if _stamp(path) not in (None, stamp):
                return name
        return ""


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - pathlib is not worth its memory here
    except (OSError, ValueError):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
