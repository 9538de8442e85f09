"""What handlers write for the log, cut into lines. No I/O."""

from __future__ import annotations

__all__ = ["BLOCK", "LONGEST_BLOCK", "LONGEST_LINE", "Sayings"]

#: A line longer than this many bytes is told in pieces.
LONGEST_LINE = 4096
#: More of a block than this many bytes is not told.
LONGEST_BLOCK = 32_768
#: Stands before and after what is told as one, as a traceback is.
BLOCK = b"\0"


class Sayings:
    """One handler's writing. It keeps at most LONGEST_BLOCK bytes."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Take what was written; returns the lines and blocks that are complete now, without ends and empty ones."""
        said = []
        rest = self._rest + data
        while rest:
            if rest.startswith(BLOCK):
                end = rest.find(BLOCK, 1)
                if end < 0 and len(rest) <= LONGEST_BLOCK:
                    break
                end = min(end, LONGEST_BLOCK) if end > 0 else LONGEST_BLOCK
                said.append(rest[1:end])
                rest = rest[end + 1 :]
                continue
            block = rest.find(BLOCK)
            text = rest if block < 0 else rest[:block]
            line, newline, _ = text.partition(b"\n")
            if not newline and block < 0 and len(line) <= LONGEST_LINE:
                break
            if len(line) > LONGEST_LINE:
                line, newline = line[:LONGEST_LINE], b""
            said.append(line.rstrip(b"\r"))
            rest = rest[len(line) + len(newline) :]
        self._rest = rest
        return [each for each in said if each.strip()]

    def end(self) -> list[bytes]:
        """The handler writes no more: what is left."""
        rest, self._rest = self._rest.strip(BLOCK), b""
        return [rest] if rest.strip() else []
