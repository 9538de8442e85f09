"""An echo handler in Python: called by svcd for each connection, or run by tcpserver for each, as a script."""

from __future__ import annotations

import socket


def serve(sock: socket.socket, _address: object) -> None:
    """Send back what comes, until the client has no more to say."""
    while data := sock.recv(65_536):
        sock.sendall(data)


if __name__ == "__main__":
    serve(socket.socket(fileno=0), None)
