"""Measurements of HTTP servers with wrk: one thread, 32 connections, each with one request at a time."""

from __future__ import annotations

import http.client
import math
import re
import ssl
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.bench.measure import Mode, Result, cpu_seconds
from tests.bench.running import HERE, which

if TYPE_CHECKING:
    from tests.bench.running import Running

__all__ = ["HTTP_MODES", "WRK", "HttpMode", "measure_http"]

#: Name of the load generator, which is not part of the benchmark.
WRK = "wrk"
_CONNECTIONS = 32
_RESULT = re.compile(r"^result (\d+) (\d+) (\d+) (\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class HttpMode(Mode):
    """Kind of measurement of an HTTP server.

    Attributes:
        path: the path that is requested.
        size: the length of its content in bytes.
        fields: fields of the request, as "name: value".
        secure: whether the requests go over TLS.
        conditional: whether the client has the content already, so that the response is 304.
        by_bytes: whether the figure is the rate of bytes instead of requests.
    """

    path: str = "/1k.txt"
    size: int = 1024
    fields: tuple[str, ...] = ()
    secure: bool = False
    conditional: bool = False
    by_bytes: bool = False


def _mode(name: str, unit: str = "requests/s", reference: str = "nginx", **more: object) -> HttpMode:
    return HttpMode(name, unit, (WRK, _CONNECTIONS, 0), reference=reference, program=WRK, **more)  # type: ignore[arg-type]


HTTP_MODES = [
    _mode("http-1k"),
    _mode("http-304", conditional=True),
    _mode("http-10m", "MB/s", path="/10m.bin", size=10 << 20, scale=1e6, by_bytes=True),
    _mode("http-close", fields=("Connection: close",)),
    _mode("https-1k", secure=True),
    _mode("cgi", reference="lighttpd", path="/cgi-bin/hello.cgi", size=6),
]


def measure_http(mode: HttpMode, running: Running, pin: list[str], seconds: float) -> Result:
    """Run wrk for at least a number of seconds; return the rate, and the server's processor time for each request.

    Raises:
        RuntimeError: a response was wrong or missing.
    """
    fields = [*mode.fields, *_conditions(mode, running.port)]
    target = f"{'https' if mode.secure else 'http'}://127.0.0.1:{running.port}{mode.path}"
    headers = [word for each in fields for word in ("-H", each)]
    # wrk takes whole seconds.
    options = ["-t1", f"-c{_CONNECTIONS}", f"-d{math.ceil(seconds)}s", "--timeout", "30s"]
    words = [*pin, which(WRK), *options, "-s", str(HERE / "native/wrk.lua"), *headers, target]
    before = cpu_seconds(running.pids)
    done = subprocess.run(words, capture_output=True, text=True, timeout=seconds + 60)
    used = cpu_seconds(running.pids) - before
    found = _RESULT.search(done.stdout)
    if found is None:
        raise RuntimeError(done.stderr.strip() or f"wrk ended by {done.returncode}")
    requests, size, microseconds, failed = map(int, found.groups())
    if failed or not requests:
        raise RuntimeError(f"{failed} failures in {requests} requests")
    operations = size if mode.by_bytes else requests
    return Result(operations / microseconds * 1e6 / mode.scale, used / operations * mode.scale * 1e6)


def _conditions(mode: HttpMode, port: int) -> list[str]:
    """Check the response to a request of a mode; return the fields of conditional requests, if the mode has them.

    Raises:
        RuntimeError: the response is wrong.
    """
    response, content = _get(mode, port, {})
    if response.status != http.HTTPStatus.OK or len(content) != mode.size:
        raise RuntimeError(f"{mode.path} is {response.status} and {len(content)} bytes long")
    if not mode.conditional:
        return []
    pairs = (("If-None-Match", "ETag"), ("If-Modified-Since", "Last-Modified"))
    conditions = {name: value for name, of in pairs if (value := response.getheader(of))}
    response, _ = _get(mode, port, conditions)
    if response.status != http.HTTPStatus.NOT_MODIFIED:
        raise RuntimeError(f"a conditional request is answered by {response.status}")
    return [f"{name}: {value}" for name, value in conditions.items()]


def _get(mode: HttpMode, port: int, fields: dict[str, str]) -> tuple[http.client.HTTPResponse, bytes]:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    if mode.secure:
        context = ssl.create_default_context()
        # The certificate was made for this run.
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        client = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)
    client.request("GET", mode.path, headers=fields)
    response = client.getresponse()
    content = response.read()
    client.close()
    return response, content
