"""`python tests/real/flood.py PORT COUNT`: COUNT clients in quick succession, each from its own loopback address.

Each sends a byte and waits until it is answered or closed, so that the server is at its limit and no client has to try
again. They close by a reset: fifty thousand ports in TIME-WAIT would disturb other tests. Prints the number of clients,
the number of failures, and the seconds.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import time
from collections import deque

__all__ = ["source"]

#: Number of clients that are connected at the same time.
_WINDOW = 64


def source(number: int) -> str:
    """Return the address of a client: 127.1.0.0 and the following ones."""
    return f"127.{1 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def _main(port: int, count: int) -> None:
    began = time.monotonic()
    clients: deque[socket.socket] = deque()
    failed = 0
    for number in range(count + _WINDOW):
        if number < count:
            client = socket.socket()
            clients.append(client)
            client.settimeout(60)
            client.bind((source(number), 0))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            try:
                client.connect(("127.0.0.1", port))
            except OSError:
                failed += 1
            with contextlib.suppress(OSError):
                # The server may have closed already.
                client.sendall(b"?")
        if len(clients) == _WINDOW or (clients and number >= count):
            with clients.popleft() as oldest, contextlib.suppress(ConnectionError):
                oldest.recv(65_536)
    print(count, failed, f"{time.monotonic() - began:.3f}")


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]))
