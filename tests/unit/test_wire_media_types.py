"""Files with media types by extension."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcd.wire.media_types import MediaTypesError, parse_media_types


def test_a_file_of_types() -> None:
    """Types, extensions and comments are read; a later line replaces an earlier one."""
    lines = [b"# types\r", b"text/html htm HTML", b"", b"application/x-a  a # not b", b"text/x-none",
             b"text/plain;charset=latin1\thtm tar.a", b""]  # fmt: skip
    content = b"\n".join(lines)
    assert parse_media_types(content) == {
        "html": "text/html",
        "a": "application/x-a",
        "htm": "text/plain;charset=latin1",
        "tar.a": "text/plain;charset=latin1",
    }


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"html text/html", "'html' is not a media type; write TYPE/SUBTYPE EXTENSION ..."),
        (b"text/html; charset=utf-8 html", "'text/html;' is not a media type; write TYPE/SUBTYPE EXTENSION ..."),
        (b"types {", "'types' is not a media type; write TYPE/SUBTYPE EXTENSION ..."),
        (b"text/html .html", "'.html' is not an extension; write it without a dot, as in html"),
        (b"text/html a/b", "'a/b' is not an extension; write it without a dot, as in html"),
        ("text/html é".encode(), "has a character that is not ASCII; remove it"),
        (b"text/ht\x00ml a", "'text/ht\\x00ml' is not a media type; write TYPE/SUBTYPE EXTENSION ..."),
    ],
)
def test_a_line_that_is_wrong(line: bytes, text: str) -> None:
    """A line that is no type with extensions is a mistake, with its number."""
    with pytest.raises(MediaTypesError) as caught:
        parse_media_types(b"text/plain txt\n" + line)
    assert (caught.value.line, caught.value.text) == (2, text)


@given(st.binary(max_size=60))
def test_no_type_breaks_a_head(content: bytes) -> None:
    """Whatever the file, a type has no blank and no control character."""
    try:
        found = parse_media_types(content)
    except MediaTypesError:
        return
    assert all(kind.isprintable() and kind.isascii() and " " not in kind for kind in found.values())
