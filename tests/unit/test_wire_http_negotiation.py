"""Content codings by Accept-Encoding (RFC 9110, section 12.5.3)."""

from __future__ import annotations

import pytest

from svcd.wire.http_negotiation import accepted_codings


@pytest.mark.parametrize(
    ("field", "codings"),
    [
        (b"", ()),
        (b"gzip", ("gzip",)),
        (b"x-gzip", ("gzip",)),
        (b"GZIP", ("gzip",)),
        (b"deflate", ()),
        (b"identity", ()),
        (b"gzip, deflate, br, zstd", ("br", "zstd", "gzip")),
        (b"gzip;q=1.0, br;q=0.5", ("gzip", "br")),
        (b"gzip;q=0", ()),
        (b"gzip;q=0.000, br", ("br",)),
        (b"gzip;q=x, br", ("br",)),
        (b"gzip;q=nan", ()),
        (b"*", ("br", "zstd", "gzip")),
        (b"*;q=0", ()),
        (b"*;q=0.5, gzip", ("gzip", "br", "zstd")),
        (b"br;q=0, *", ("zstd", "gzip")),
        (b"identity, gzip;q=0.5", ()),
        (b"identity;q=0.5, gzip", ("gzip",)),
        (b"identity;q=0, gzip", ("gzip",)),
        (b",,gzip ; q=0.3,,", ("gzip",)),
        (b"\xff\xfe, br", ("br",)),
    ],
)
def test_codings(field: bytes, codings: tuple[str, ...]) -> None:
    """The codings that a client prefers to none are in its order, then in the server's."""
    assert accepted_codings(field) == codings
