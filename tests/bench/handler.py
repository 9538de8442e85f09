"""Echo handler in Python: called by svcd for each connection, or run as a script by tcpserver."""

from __future__ import annotations

import socket


def serve(sock: socket.socket, _address: object) -> None:
    """Send back what is received until the client shuts down its write side."""
    while data := sock.recv(65_536):
        sock.sendall(data)


if __name__ == "__main__":
    serve(socket.socket(fileno=0), None)
