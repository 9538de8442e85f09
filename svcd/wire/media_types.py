"""Files with media types by file name extension, in the format of mime.types.

Each line has a type and its extensions, without dots, separated by blanks; `#` begins a comment.
"""

from __future__ import annotations

import re

__all__ = ["MediaTypesError", "parse_media_types"]

_NAME = "[-A-Za-z0-9!#$&^_.+]+"
#: A media type (RFC 6838, section 4.2), with parameters without blanks.
_TYPE = re.compile(f"{_NAME}/{_NAME}(?:;{_NAME}={_NAME})*")


class MediaTypesError(Exception):
    """Error in a file with media types.

    Args:
        line: the number of the line.
        text: the description.

    Attributes:
        line: as given.
        text: as given.
    """

    def __init__(self, line: int, text: str) -> None:
        super().__init__(f"line {line}: {text}")
        self.line = line
        self.text = text


def parse_media_types(content: bytes) -> dict[str, str]:
    """Return the media type of each extension, which is in lower case.

    Raises:
        MediaTypesError: a line is no media type with extensions.
    """
    found: dict[str, str] = {}
    for number, raw in enumerate(content.split(b"\n"), 1):
        try:
            words = raw.decode("ascii").partition("#")[0].split()
        except UnicodeDecodeError:
            raise MediaTypesError(number, "has a character that is not ASCII; remove it") from None
        if not words:
            continue
        kind, *extensions = words
        if not _TYPE.fullmatch(kind):
            raise MediaTypesError(number, f"{kind!r} is not a media type; write TYPE/SUBTYPE EXTENSION ...")
        for extension in extensions:
            if extension.startswith(".") or "/" in extension:
                raise MediaTypesError(number, f"{extension!r} is not an extension; write it without a dot, as in html")
            found[extension.lower()] = kind
    return found
