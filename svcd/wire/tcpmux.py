"""The TCP port service multiplexer (RFC 1078): a service's name in, a line that accepts or refuses out.

`question` returns the name and how many bytes it took, None as long as the line has no end, and raises ValueError for
a line that is none. It is given everything from the beginning each time, at most MOST bytes.
"""

from __future__ import annotations

__all__ = ["HELP", "MOST", "WELCOME", "catalogue", "question", "refusal"]

#: The longest first line, with its end. RFC 1078 names no limit; service names are short.
MOST = 256
#: The answer before the service begins: a plus sign, and text that nobody has to read.
WELCOME = b"+Go\r\n"
#: What asks for the names of all services instead of for one.
HELP = "help"


def question(data: bytes) -> tuple[str, int] | None:
    """The name asked for, in small letters, since case does not count; and the bytes of its line.

    Raises:
        ValueError: the line is too long, or no name.
    """
    line, newline, _ = data.partition(b"\n")
    if not newline:
        if len(data) >= MOST:
            raise ValueError("the name is too long")
        return None
    if len(line) >= MOST:
        raise ValueError("the name is too long")
    name = line.removesuffix(b"\r")
    if not name or not name.isascii() or not name.decode().isprintable():
        raise ValueError("that is no name of a service")
    return name.decode().lower(), len(line) + 1


def refusal(text: str) -> bytes:
    """The answer that ends the connection: a minus sign and the reason."""
    return f"-{text}\r\n".encode("ascii", "replace")


def catalogue(names: list[str]) -> bytes:
    """The answer to HELP: a name on each line, in the order given."""
    return "".join(f"{name}\r\n" for name in names).encode("ascii", "replace")
