"""nginx and lighttpd as HTTP servers of a directory, on sockets that the test has made."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from typing import TYPE_CHECKING

from tests.real.daemon import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["lighttpd", "nginx", "version_of"]

_NGINX = """\
{user}
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path nginx-body;
    proxy_temp_path nginx-proxy;
    fastcgi_temp_path nginx-fastcgi;
    uwsgi_temp_path nginx-uwsgi;
    scgi_temp_path nginx-scgi;
    types {{ text/plain txt; text/html html; }}
    server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""
_LIGHTTPD = """\
server.document-root = "{root}"
server.bind = "/dev/stdin"
server.errorlog = "{folder}/lighttpd.log"
index-file.names = ("index.html")
mimetype.assign = (".txt" => "text/plain", ".html" => "text/html")
"""


def version_of(program: str) -> str:
    """Return the version of nginx or lighttpd."""
    done = subprocess.run([program, "-v"], capture_output=True, text=True, timeout=PATIENCE)
    return (done.stdout + done.stderr).partition("/")[2].split()[0]


@contextlib.contextmanager
def nginx(program: str, root: Path, folder: Path) -> Iterator[int]:
    """Run nginx; it is ended and reaped.

    Args:
        program: its path.
        root: the directory that it serves.
        folder: the directory of its own files.

    Yields:
        Its port.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port, descriptor = listener.getsockname()[1], listener.fileno()
        user = "user root;" if os.geteuid() == 0 else ""
        (folder / "nginx.conf").write_text(_NGINX.format(user=user, port=port, root=root))
        words = [program, "-p", str(folder), "-c", "nginx.conf", "-e", "stderr"]
        environment = {**os.environ, "NGINX": f"{descriptor};"}
        with subprocess.Popen(
            words, cwd=folder, env=environment, pass_fds=[descriptor], stderr=subprocess.DEVNULL
        ) as process:
            yield from _until_done(process, port)


@contextlib.contextmanager
def lighttpd(program: str, root: Path, folder: Path) -> Iterator[int]:
    """Run lighttpd, as nginx()."""
    (folder / "lighttpd.conf").write_text(_LIGHTTPD.format(root=root, folder=folder))
    words: Sequence[str] = [program, "-D", "-f", "lighttpd.conf"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with subprocess.Popen(words, cwd=folder, stdin=listener.fileno(), stderr=subprocess.DEVNULL) as process:
            yield from _until_done(process, port)


def _until_done(process: subprocess.Popen[bytes], port: int) -> Iterator[int]:
    try:
        yield port
    finally:
        # nginx has a child process to end.
        process.terminate()
