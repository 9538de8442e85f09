"""Requests of HTTP clients."""

from __future__ import annotations

import socket

from tests.real.daemon import PATIENCE

__all__ = ["get"]


def get(port: int, path: str = "/") -> bytes:
    """Request a path over a new connection of 127.0.0.1; return the response, whose status has to be 200."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while piece := client.recv(1_000_000):
            answer += piece
        assert answer.startswith(b"HTTP/1.1 200 "), answer[:100]
        return answer
