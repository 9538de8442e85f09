"""Quotations of the day (RFC 865), in the format of fortune(6): entries between lines of a single `%`."""

from __future__ import annotations

__all__ = ["DEFAULT", "MOST_BYTES", "read_quotes"]

#: The longest entry with its last CRLF, in bytes: it must be shorter than 512 characters (RFC 865).
MOST_BYTES = 511


def read_quotes(data: bytes) -> tuple[bytes, ...]:
    """Return the entries of a file as they are sent: lines ended by CRLF, at most MOST_BYTES bytes each.

    Longer entries and empty ones are left out, so the result may be empty.
    """
    lines = data.replace(b"\r\n", b"\n").split(b"\n")
    entries: list[list[bytes]] = [[]]
    for line in lines:
        if line.rstrip() == b"%":
            entries.append([])
        else:
            entries[-1].append(line)
    texts = (b"\r\n".join(entry).strip() + b"\r\n" for entry in entries)
    return tuple(text for text in texts if 2 < len(text) <= MOST_BYTES)


#: The quotations of a service without quotes=.
DEFAULT = read_quotes(
    b"""Well begun is half done.
\t\t-- Aristotle, quoting a proverb
%
I have made this longer than usual because I have not had time to make it shorter.
\t\t-- Blaise Pascal, 1657
%
If I have seen further it is by standing on the shoulders of giants.
\t\t-- Isaac Newton, 1675
%
The art of being wise is the art of knowing what to overlook.
\t\t-- William James, 1890
"""
)
