"""Heads of HTTP/1.1 responses to bytes (RFC 9112)."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["StatusLine", "head"]

_PHRASES = {each.value: each.phrase for each in HTTPStatus}


@dataclass(frozen=True, slots=True)
class StatusLine:
    """The code and phrase of a status that may not be a registered one, as programs set it.

    Attributes:
        value: the code, of three digits.
        phrase: the reason phrase; it may be empty.
    """

    value: int
    phrase: str

    @classmethod
    def of(cls, value: int, phrase: str = "") -> StatusLine:
        """Return the status line for a code; without a phrase it is the registered one, if there is one."""
        if not phrase and value in _PHRASES:
            phrase = _PHRASES[value]
        return cls(value, phrase)


def head(status: HTTPStatus | StatusLine, fields: Iterable[tuple[str, str]], connection: str = "") -> bytes:
    """Return the head of a response, with its blank line.

    Args:
        status: the code and phrase of the status line.
        fields: names and values, in latin-1 and without line ends; values from a client must not be passed.
        connection: the value of the Connection field; empty for no field.
    """
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in fields)]
    if connection:
        lines.append(f"Connection: {connection}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
