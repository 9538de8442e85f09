"""HTTP servers, and servers of programs over WebSocket, that are compared: each has one process that serves."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.http_load import HTTP_MODES
from tests.bench.running import CGI, PEM, Kind, Running, free_port, has, spawn, svcd_with, wait_for, which

if TYPE_CHECKING:
    from tests.bench.running import Start

__all__ = ["WEB", "make_site"]

_WWW, _CGI_BIN = "www", "www/cgi-bin"
_FILES = frozenset({"http-1k", "http-304", "http-10m", "http-close", "https-1k"})
_CGI_MODE = next(mode for mode in HTTP_MODES if mode.name == "cgi")
_CGI = frozenset({_CGI_MODE.name})
_WEBSOCKET = frozenset({"websocket pingpong", "websocket starts"})


def make_site(folder: Path) -> None:
    """Make the files that all servers serve, below the directory of built programs."""
    www = folder / _WWW
    (folder / _CGI_BIN).mkdir(parents=True)
    sizes = {mode.path: mode.size for mode in HTTP_MODES if mode is not _CGI_MODE}
    for path, size in sizes.items():
        (www / path[1:]).write_bytes(b"0123456789abcde\n" * (size // 16))
    # `twistd web` knows a program by the ending of this name.
    shutil.copy(folder / CGI, www / _CGI_MODE.path[1:])


_NGINX = """\
{user}
daemon off;
worker_processes 1;
pid {folder}/pid-{port};
error_log {folder}/log-{port};
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    open_file_cache max=1000;
    keepalive_requests 1000000000;
    types {{ text/plain txt; }}
    default_type application/octet-stream;
    ssl_protocols TLSv1.3;
    ssl_certificate {folder}/{pem};
    ssl_certificate_key {folder}/{pem};
    server {{
        listen 127.0.0.1:{port} backlog=1024 {ssl};
        root {folder}/{www};
    }}
}}
"""


def _nginx(*, secure: bool) -> Start:
    def start(pin: list[str], folder: Path) -> Running:
        port = free_port()
        config = folder / f"nginx-{port}"
        user = "user root;" if os.geteuid() == 0 else ""
        places = {"folder": folder, "port": port, "pem": PEM, "www": _WWW}
        config.write_text(_NGINX.format(user=user, ssl="ssl" if secure else "", **places))
        process = spawn([*pin, which("nginx"), "-c", str(config), "-e", str(folder / f"log-{port}")], folder)
        wait_for(port)
        return Running(process, port)

    return start


_LIGHTTPD = """\
server.modules = ("mod_cgi", "mod_openssl")
server.document-root = "{folder}/{www}"
server.bind = "127.0.0.1"
server.port = {port}
server.listen-backlog = 1024
server.errorlog = "{folder}/log-{port}"
server.max-keep-alive-requests = 65535
mimetype.assign = (".txt" => "text/plain")
$HTTP["url"] =^ "/cgi-bin/" {{ cgi.assign = ("" => "") }}
"""


def _lighttpd(*, secure: bool) -> Start:
    def start(pin: list[str], folder: Path) -> Running:
        port = free_port()
        config = folder / f"lighttpd-{port}"
        tls = f'ssl.engine = "enable"\nssl.pemfile = "{folder / PEM}"\n' if secure else ""
        config.write_text(_LIGHTTPD.format(folder=folder, port=port, www=_WWW) + tls)
        process = spawn([*pin, which("lighttpd"), "-D", "-f", str(config)], folder)
        wait_for(port)
        return Running(process, port)

    return start


def _twistd_web(*, secure: bool) -> Start:
    def start(pin: list[str], folder: Path) -> Running:
        port = free_port()
        listen = f"tcp:{port}:interface=127.0.0.1:backlog=1024"
        if secure:
            pem = folder / PEM
            listen = f"ssl:{port}:interface=127.0.0.1:backlog=1024:privateKey={pem}:certKey={pem}"
        twistd = [sys.executable, str(Path(sys.executable).parent / "twistd"), "-n", "--pidfile="]
        words = [*pin, *twistd, f"--logfile={folder / f'log-{port}'}", "web", "--path", _WWW, "--listen", listen]
        process = spawn(words, folder)
        wait_for(port)
        return Running(process, port)

    return start


def _websocketd(pin: list[str], folder: Path) -> Running:
    port = free_port()
    words = ["--address=127.0.0.1", f"--port={port}", "--loglevel=fatal", "/bin/cat"]
    process = spawn([*pin, which("websocketd"), *words], folder)
    wait_for(port)
    return Running(process, port)


def _svcd(line: str) -> Start:
    return svcd_with(line, "-r", "uv")


_TLS = frozenset({"https-1k"})
_HTTP = f"http root=FOLDER/{_WWW}"
_PEM = f"tls_cert=FOLDER/{PEM}"
_CGI_DIR = f"cgi=FOLDER/{_CGI_BIN}"
_SILENT, _LOGGED = "log_on_success=none", "access_log=combined"
_CAT = "server=/bin/cat websocket=lines instances=200 on_limit=queue"

WEB = [
    Kind("nginx", _nginx(secure=False), _FILES - _TLS, has("nginx")),
    Kind("nginx", _nginx(secure=True), _TLS, has("nginx")),
    Kind("svcd, no log", _svcd(f"{_HTTP} {_SILENT}"), _FILES - _TLS),
    Kind("svcd, no log", _svcd(f"{_HTTP} {_SILENT} {_PEM}"), _TLS),
    Kind("svcd, both logs", _svcd(f"{_HTTP} {_LOGGED}"), _FILES - _TLS),
    Kind("svcd, both logs", _svcd(f"{_HTTP} {_LOGGED} {_PEM}"), _TLS),
    Kind("svcd, no log", _svcd(f"{_HTTP} {_SILENT} {_CGI_DIR}"), _CGI),
    Kind("svcd, both logs", _svcd(f"{_HTTP} {_LOGGED} {_CGI_DIR}"), _CGI),
    Kind("lighttpd", _lighttpd(secure=False), _FILES - _TLS | _CGI, has("lighttpd")),
    Kind("lighttpd", _lighttpd(secure=True), _TLS, has("lighttpd")),
    Kind("twistd web", _twistd_web(secure=False), _FILES - _TLS | _CGI),
    Kind("twistd web", _twistd_web(secure=True), _TLS),
    Kind("websocketd", _websocketd, _WEBSOCKET, has("websocketd")),
    Kind("svcd, no log", _svcd(f"{_CAT} {_SILENT}"), _WEBSOCKET),
    Kind("svcd", _svcd(_CAT), _WEBSOCKET),
]
