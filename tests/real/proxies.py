"""haproxy and nginx in the foreground, on sockets that the test has made."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.real.daemon import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Haproxy", "Nginx"]

#: Path of the module on Debian; elsewhere it may be built into nginx.
_STREAM = Path("/usr/lib/nginx/modules/ngx_stream_module.so")


class _Proxy:
    """A running proxy. Its sockets listen before its start, so a client need not wait for it.

    Args:
        program: its path.
        folder: directory of its files.
        count: number of its listening sockets.

    Attributes:
        ports: ports of these sockets, on 127.0.0.1.
    """

    def __init__(self, program: str, folder: Path, count: int = 1) -> None:
        self._program = program
        self.folder = folder
        self._sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
        self.ports = [sock.getsockname()[1] for sock in self._sockets]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def descriptors(self) -> list[int]:
        """The descriptors of the sockets, as the proxy inherits them."""
        return [sock.fileno() for sock in self._sockets]

    def _run(self, *words: str, **more: str) -> None:
        with (self.folder / f"{type(self).__name__}.log").open("wb") as log:
            self._process = subprocess.Popen(
                [self._program, *words],
                cwd=self.folder,
                env={**os.environ, **more},
                pass_fds=self.descriptors,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def connect(self, host: str, number: int = 0) -> socket.socket:
        """Return a connection from a loopback address to one of the sockets."""
        client = socket.socket()
        client.settimeout(PATIENCE)
        client.bind((host, 0))
        client.connect(("127.0.0.1", self.ports[number]))
        return client

    def close(self) -> None:
        """End the proxy, and reap it."""
        if self._process is not None:
            # SIGTERM, because nginx has a child process to end.
            self._process.terminate()
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(PATIENCE)
        for sock in self._sockets:
            sock.close()


def _filled(text: str, sockets: Sequence[str]) -> str:
    for number, words in enumerate(sockets):
        text = text.replace(f"{{{number}}}", words)
    return text


class Haproxy(_Proxy):
    """A running haproxy."""

    def start(self, text: str) -> None:
        """Start it with a configuration, in which {0}, {1} and so on are its sockets."""
        binds = [f"bind fd@{descriptor}" for descriptor in self.descriptors]
        head = "defaults\n retries 0\n timeout connect 30s\n timeout client 30s\n timeout server 30s\n"
        (self.folder / "haproxy.cfg").write_text(head + _filled(text, binds))
        self._run("-db", "-f", "haproxy.cfg")


class Nginx(_Proxy):
    """A running nginx with its module for streams."""

    @property
    def passes_streams(self) -> bool:
        """Whether the module is installed."""
        if _STREAM.exists():
            return True
        built = subprocess.run([self._program, "-V"], capture_output=True, text=True, timeout=PATIENCE)
        return "--with-stream" in built.stderr.split()

    def start(self, text: str) -> None:
        """Start it with the content of its `stream` block, in which {0}, {1} and so on are its sockets."""
        listens = [f"listen 127.0.0.1:{port}" for port in self.ports]
        module = f"load_module {_STREAM};\n" if _STREAM.exists() else ""
        head = f"{module}daemon off;\nworker_processes 1;\npid nginx.pid;\nerror_log stderr;\nevents {{}}\n"
        (self.folder / "nginx.conf").write_text(f"{head}stream {{\n{_filled(text, listens)}\n}}\n")
        inherited = "".join(f"{descriptor};" for descriptor in self.descriptors)
        self._run("-p", str(self.folder), "-c", "nginx.conf", "-e", "stderr", NGINX=inherited)
