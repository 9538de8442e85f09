"""Lines of the TCP port service multiplexer (RFC 1078): the name of a service, and an answer that accepts or refuses.

`question` returns the name and the length of its line in bytes. It returns None while the line is incomplete, and
raises ValueError for an invalid line. Each call gets all data from the beginning of the connection, at most MOST bytes.
"""

from __future__ import annotations

__all__ = ["HELP", "MOST", "WELCOME", "catalogue", "question", "refusal"]

#: The longest first line, with its line end. RFC 1078 has no limit; service names are short.
MOST = 256
#: The answer that precedes the service: a plus sign, and text that clients may ignore.
WELCOME = b"+Go\r\n"
#: The name that requests the names of all services.
HELP = "help"


def question(data: bytes) -> tuple[str, int] | None:
    """Return the requested name in lower case, since case does not matter, and the length of its line in bytes.

    Raises:
        ValueError: the line is too long, or is not a name.
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
        raise ValueError("the name is not a service name")
    return name.decode().lower(), len(line) + 1


def refusal(text: str) -> bytes:
    """Return the answer that ends the connection: a minus sign and the reason."""
    return f"-{text}\r\n".encode("ascii", "replace")


def catalogue(names: list[str]) -> bytes:
    """Return the answer to HELP: a name on each line, in the given order."""
    return "".join(f"{name}\r\n" for name in names).encode("ascii", "replace")
