"""The options of http services."""

from __future__ import annotations

import re
from dataclasses import dataclass

from svcd.config.option_info import option
from svcd.config.value_types import NAMES, PATH, YES_NO, ValueType, require

__all__ = ["FIELD_VALUE", "HttpOptions"]


def _read_field_value(word: str) -> str:
    # RFC 9110, section 5.5, without obs-text: no control characters, no blank at either end.
    require(re.fullmatch("[!-~](?:[ -~]*[!-~])?", word))
    return word


FIELD_VALUE: ValueType[str] = ValueType(
    "field value", "the value of an HTTP field, in printable ASCII characters", _read_field_value, str
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions:
    """The values of the options of http services."""

    root: str = option(
        PATH, "", "http", "http",
        "Directory of the files to serve. Default: a page that greets the client.",
        example="http 80/tcp root=/srv/www",
    )  # fmt: skip
    index: tuple[str, ...] = option(
        NAMES, ("index.html",), "http", "http",
        "Files to send when a directory is requested; the first one that exists is sent.",
        example="http 80/tcp root=/srv/www index=index.html,index.htm",
    )  # fmt: skip
    symlinks: bool = option(
        YES_NO, False, "http", "http",
        "Follow symbolic links below root, including links to files outside root.",
        example="http 80/tcp root=/srv/www symlinks=yes",
    )  # fmt: skip
    listing: bool = option(
        YES_NO, False, "http", "http",
        "List the files of a directory without an index file: a page, or JSON for clients that prefer it (Accept).",
        example="http 80/tcp root=/srv/www listing=yes",
    )  # fmt: skip
    types: str = option(
        PATH, "", "http", "http",
        "File with media types by file name extension, in the format of mime.types: a type and its extensions on each "
        "line. They are added to the known types and replace them.",
        example="http 80/tcp root=/srv/www types=/etc/svcd/mime.types",
    )  # fmt: skip
    cache_control: str | None = option(
        FIELD_VALUE, None, "http", "http",
        "Value of the Cache-Control field of files. Default: no such field.",
        example="http 80/tcp root=/srv/www cache_control='public, max-age=3600'",
    )  # fmt: skip
