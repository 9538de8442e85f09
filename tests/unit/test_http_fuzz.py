"""A sample of `python -m tests.fuzz.http`, with other inputs in each run."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from tests.fuzz.http import HttpFuzzer, split_by_h11

if TYPE_CHECKING:
    from pathlib import Path

_COUNT = 2000


def test_mutated_requests(tmp_path: Path) -> None:
    """The server fails on no mutated request, answers with valid framing, and splits requests where h11 does."""
    fuzzer = HttpFuzzer(tmp_path, random.randrange(1 << 32))
    fuzzer.run(_COUNT)
    # Otherwise most inputs would say nothing about requests that are taken.
    assert fuzzer.answered > _COUNT / 20


def test_the_split() -> None:
    """Requests are split with their bodies; line ends before them and more blanks in their lines are ignored."""
    first, second = b"\r\nGET  / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi", b"GET /b HTTP/1.0\r\n\r\n"
    found, error = split_by_h11(first + second + b"GET")
    assert [(each.end, *each.request) for each in found] == [
        (len(first), "GET", b"/", {b"host": b"a", b"content-length": b"2"}, b"hi"),
        (len(first + second), "GET", b"/b", {}, b""),
    ]
    assert error == ""
    assert split_by_h11(b"GET / HTTP/1.1\r\n\r\n") == ([], "Missing mandatory Host: header")
