"""Media types of files, by the extensions of their names."""

from __future__ import annotations

import mimetypes
import os
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FileTypes"]

_UNKNOWN = "application/octet-stream"
#: Types that mimetypes of Python 3.11 lacks or has under an obsolete name.
_MORE = {
    "avif": "image/avif",
    "flac": "audio/flac",
    "js": "text/javascript",
    "jxl": "image/jxl",
    "log": "text/plain",
    "m4a": "audio/mp4",
    "map": "application/json",
    "md": "text/markdown",
    "mjs": "text/javascript",
    "ogg": "audio/ogg",
    "ogv": "video/ogg",
    "opus": "audio/ogg",
    "wasm": "application/wasm",
    "webmanifest": "application/manifest+json",
    "webp": "image/webp",
    "woff": "font/woff",
    "woff2": "font/woff2",
    "yaml": "application/yaml",
    "yml": "application/yaml",
    "zst": "application/zstd",
}
#: The types of compressed files whose names have another extension before that of the compression, as in a.tar.gz.
_COMPRESSED = {"gzip": "application/gzip", "xz": "application/x-xz"}


@cache
def _known_types() -> mimetypes.MimeTypes:
    types = mimetypes.MimeTypes()
    for extension, kind in _MORE.items():
        types.add_type(kind, f".{extension}")
    for known in mimetypes.knownfiles:
        if os.path.isfile(known):  # noqa: PTH113 - once, at start
            types.read(known)
    return types


class FileTypes:
    """Media types: those of mimetypes, with the files of types on this machine that it knows, and more types.

    Args:
        more: types by extension in lower case, which replace others.
    """

    def __init__(self, more: Mapping[str, str] | None = None) -> None:
        self._types = _known_types()
        self._more = dict(more or {})

    def type_of(self, name: str) -> str:
        """Return the Content-Type field of a file; texts are taken to be UTF-8."""
        stem, _, extension = name.rpartition(".")
        kind = self._more.get(extension.lower()) if stem else None
        if kind is None:
            # As a path: the name of a file that looks like a URL has no scheme.
            kind, encoding = self._types.guess_type(f"./{name}")
            if encoding is not None:
                kind = _COMPRESSED.get(encoding, _UNKNOWN)
        if kind is None:
            return _UNKNOWN
        return f"{kind}; charset=utf-8" if kind.startswith("text/") and ";" not in kind else kind
