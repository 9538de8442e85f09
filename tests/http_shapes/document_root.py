"""The files that the shapes ask for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FILES", "SENTINEL", "SENTINEL_CONTENT", "make_site"]

#: The time of the last change of all files, in seconds since 1970: that of MODIFIED.
_MODIFIED_AT = 784_111_777
#: The content of each file, by its path below the root.
FILES = {
    "index.html": b"<!doctype html>\n",
    "file.txt": b"abcdefghijklmnopqrstuvwxyz",
    "empty.txt": b"",
    "a b.txt": b"blank\n",
    "\xfc.txt": b"umlaut\n",
    ".hidden": b"hidden\n",
    ".well-known/file.txt": b"known\n",
    "folder/index.html": b"index\n",
    "sentinel.txt": b"the connection is open\n",
}
SENTINEL_CONTENT = FILES["sentinel.txt"]
#: A request that shows that a connection is open.
SENTINEL = b"GET /sentinel.txt HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def make_site(root: Path) -> None:
    """Make the files below an empty directory."""
    (root / "empty").mkdir()
    for name, content in FILES.items():
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (_MODIFIED_AT, _MODIFIED_AT))
