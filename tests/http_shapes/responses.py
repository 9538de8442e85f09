"""Responses from bytes, strictly: the framing of RFC 9112, section 6, and nothing else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["HttpAnswer", "read_answer", "read_answers"]

_STATUS_LINE = re.compile(rb"(HTTP/1\.[01]) ([1-5][0-9]{2}) [ -~]*")
_FIELD_LINE = re.compile(rb"([!#-'*+.^-z|~A-Z0-9-]+): ?([ -~\x80-\xff]*)")


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """Response of a server.

    Attributes:
        version: the version of the status line.
        status: the status code.
        fields: the values by name in lower case; no name occurs twice.
        content: the content, without chunks.
    """

    version: str
    status: int
    fields: dict[str, str]
    content: bytes


def read_answers(data: bytes, methods: Sequence[str], *, ended: bool) -> tuple[list[HttpAnswer], bytes]:
    """Return the complete responses in bytes, and the bytes after them.

    Args:
        data: the bytes of a server.
        methods: the method of each request; GET for requests after them.
        ended: whether no bytes follow, which ends a response without a length.

    Raises:
        ValueError: the bytes are no response.
    """
    answers: list[HttpAnswer] = []
    while data:
        # Interim responses precede that of the same request.
        number = sum(answer.status >= 200 for answer in answers)
        method = methods[number] if number < len(methods) else "GET"
        found = read_answer(data, method, ended=ended)
        if found is None:
            break
        answer, data = found
        answers.append(answer)
    return answers, data


def read_answer(data: bytes, method: str, *, ended: bool) -> tuple[HttpAnswer, bytes] | None:
    """Return the first response in bytes, and the bytes after it; None if it is not complete.

    Raises:
        ValueError: the bytes are no response.
    """
    head, blank, rest = data.partition(b"\r\n\r\n")
    if not blank:
        return None
    first, *others = head.split(b"\r\n")
    match = _STATUS_LINE.fullmatch(first)
    if match is None:
        raise ValueError(f"a status line {first!r}")
    version, status, fields = match[1].decode(), int(match[2]), _fields(others)
    length, coding = fields.get("content-length"), fields.get("transfer-encoding")
    if length is not None and (coding is not None or not re.fullmatch("[0-9]+", length)):
        raise ValueError(f"a Content-Length {length!r} and a Transfer-Encoding {coding!r}")
    if method == "HEAD" or status < 200 or status in (204, 304):
        return HttpAnswer(version, status, fields, b""), rest
    if coding is not None:
        if coding != "chunked":
            raise ValueError(f"a Transfer-Encoding {coding!r}")
        chunked = _chunked(rest)
        return None if chunked is None else (HttpAnswer(version, status, fields, chunked[0]), chunked[1])
    if length is None:
        return (HttpAnswer(version, status, fields, rest), b"") if ended else None
    end = int(length)
    return None if len(rest) < end else (HttpAnswer(version, status, fields, rest[:end]), rest[end:])


def _fields(lines: Sequence[bytes]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in lines:
        match = _FIELD_LINE.fullmatch(line)
        name = match[1].decode().lower() if match else ""
        if match is None or name in fields:
            raise ValueError(f"a field line {line!r}")
        fields[name] = match[2].decode("latin-1").strip()
    return fields


def _chunked(data: bytes) -> tuple[bytes, bytes] | None:
    content = b""
    while True:
        line, end, data = data.partition(b"\r\n")
        if not end:
            return None
        size = int(line.partition(b";")[0], 16)
        if not size:
            # No server that is tested sends trailers.
            return (content, data[2:]) if data.startswith(b"\r\n") else None
        if len(data) < size + 2:
            return None
        if data[size : size + 2] != b"\r\n":
            raise ValueError("no line end after a chunk")
        content, data = content + data[:size], data[size + 2 :]
