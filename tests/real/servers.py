"""Third-party servers, and servers that misbehave, for the clients of svcctl."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import threading
from typing import TYPE_CHECKING

from tests.real.daemon import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

__all__ = ["lines_of", "own_address", "running", "serving"]


def own_address() -> str:
    """Return a loopback address that no other process uses, so that all its ports are free."""
    return f"127.{random.randrange(1, 255)}.{random.randrange(256)}.{random.randrange(1, 255)}"


@contextlib.contextmanager
def running(*words: str | Path, cwd: Path, output: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server; it is ended and reaped."""
    command: Sequence[str] = [str(word) for word in words]
    with subprocess.Popen(command, cwd=cwd, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def serving(answer: Callable[[socket.socket], None], kind: int = socket.SOCK_STREAM) -> Iterator[int]:
    """Serve on 127.0.0.1 with a function that gets each connection, or the socket itself if it is a datagram socket.

    The function has to return at the end of the input.

    Returns:
        Its port.
    """
    with socket.socket(socket.AF_INET, kind) as listener:
        listener.bind(("127.0.0.1", 0))
        threads: list[threading.Thread] = []

        def take(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                answer(connection)

        def serve() -> None:
            if kind == socket.SOCK_DGRAM:
                take(listener)
                return
            while True:
                connection, _ = listener.accept()
                threads.append(threading.Thread(target=take, args=(connection,), daemon=True))
                threads[-1].start()

        def serve_until_closed() -> None:
            with contextlib.suppress(OSError):
                serve()

        if kind == socket.SOCK_STREAM:
            listener.listen()
        thread = threading.Thread(target=serve_until_closed, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            # accept and recv return, also on an unconnected socket, for which shutdown raises an error.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            for each in (thread, *threads):
                each.join(PATIENCE)


def lines_of(process: subprocess.Popen[bytes]) -> Iterator[str]:
    """Return the lines that a server sends."""
    assert process.stdout is not None
    for line in process.stdout:
        yield line.decode(errors="replace").rstrip()
