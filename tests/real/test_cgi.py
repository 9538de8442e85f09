"""CGI programs behind an HTTP service: shell, C and Python programs, with curl as their client."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import signal
import socket
import struct
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.real.conftest import NOBODY
from tests.real.daemon import PATIENCE, Daemon, exchange
from tests.real.processes import Process, all_gone, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

SHELL = "#!/bin/sh\n"
PLAIN = "printf 'Content-Type: text/plain\\n\\n'\n"
#: Programs by name. `pids` is a directory that all users can write to.
PROGRAMS = {
    "env": SHELL + PLAIN + 'echo "arguments: $#"\necho "folder: $(pwd)"\nenv\n',
    "cat": SHELL + "printf 'Content-Type: application/octet-stream\\n\\n'\nexec cat\n",
    "python": f"""#!{sys.executable} -IS
import os, sys
data = sys.stdin.buffer.read(int(os.environ["CONTENT_LENGTH"]))
sys.stdout.write(f"Content-Type: text/plain\\nContent-Length: {{len(data)}}\\n\\n")
sys.stdout.flush()
sys.stdout.buffer.write(data[::-1])
""",
    "status": SHELL + "printf 'Status: 418 Short and stout\\nSet-Cookie: a=1\\nSet-Cookie: b=2\\n\\nteapot'\n",
    "local": SHELL + "printf 'Location: /cgi-bin/env/from?a=b\\n\\n'\n",
    "file": SHELL + "printf 'Location: /index.html\\n\\n'\n",
    "client": SHELL + "printf 'Location: http://a.example/\\n\\n'\n",
    "loop": SHELL + "printf 'Location: /cgi-bin/loop\\n\\n'\n",
    "nph-raw": SHELL + "printf 'HTTP/1.0 299 Odd\\r\\nX-Raw: yes\\r\\n\\r\\nraw'\n",
    "nph-bad": SHELL + PLAIN,
    "silent": SHELL + "echo complaint >&2\nexit 3\n",
    "killed": SHELL + "kill -9 $$\n",
    "text": SHELL + "echo hello\n",
    "endless-head": SHELL + "exec yes 'X-A: b'\n",
    "endless": SHELL + PLAIN + "echo $$ > {pids}/endless\nexec yes\n",
    "short": SHELL + "printf 'Content-Length: 10\\nStatus: 200\\n\\nhi'\n",
    "sleep": SHELL + "echo $$ > {pids}/sleep\nsleep 1000 &\necho $! > {pids}/child\nwait\n",
    "stubborn": SHELL + "trap '' TERM\necho $$ > {pids}/stubborn\nsleep 1000\n",
    "stall": SHELL + PLAIN + "echo begun\nexec sleep 1000\n",
    "background": SHELL + PLAIN + "sleep 1000 &\necho $! > {pids}/background\necho done\n",
    "deaf": SHELL + "exec <&-\n" + PLAIN + "echo deaf\n",
    "unread": SHELL + PLAIN + "echo unread\n",
    "steps": SHELL + PLAIN + "echo one\nread -r _ < {pids}/fifo\necho two\n",
    "interpreter": "#!/no/such/interpreter\n",
    "sub/tool": SHELL + PLAIN + 'echo "$SCRIPT_NAME $PATH_INFO $(basename "$(pwd)")"\n',
}
C_PROGRAM = """
#include <stdio.h>
#include <stdlib.h>
int main(void) { printf("Content-Type: text/plain\\r\\n\\r\\n%s", getenv("QUERY_STRING")); return 0; }
"""


class _Server:
    """An HTTP service with the programs, and curl."""

    def __init__(self, start: Callable[..., Daemon], folder: Path, curl: str) -> None:
        self._start = start
        self.folder = folder
        self.cgi, self.pids, self.www = folder / "cgi", folder / "pids", folder / "www"
        for each in (self.cgi, self.pids, self.www):
            each.mkdir()
        self.pids.chmod(0o777)
        (self.www / "index.html").write_text("hello from a file")
        for name, text in PROGRAMS.items():
            self.add(name, text.replace("{pids}", str(self.pids)))
        self._curl = curl

    def add(self, name: str, text: str) -> None:
        path = self.cgi / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def serve(self, options: str = "", **settings: object) -> Daemon:
        services = f"http 0/tcp bind=127.0.0.1 root={self.www} cgi={self.cgi} {options}\n"
        self.daemon = self._start(services, **settings)
        self.url = f"http://127.0.0.1:{self.daemon.port('http/tcp')}"
        return self.daemon

    def command(self, path: str, *arguments: str) -> list[str]:
        return [self._curl, "-sS", "-m", str(PATIENCE), *arguments, f"{self.url}/cgi-bin/{path}"]

    def get(self, path: str, *arguments: str, data: bytes | None = None) -> tuple[int, bytes]:
        """Return the status and the content of a response."""
        words = self.command(path, "-w", "\\n%{http_code}", *arguments)
        result = subprocess.run(words, input=data, capture_output=True, check=False)
        content, _, status = result.stdout.rpartition(b"\n")
        return int(status), content

    def fields(self, path: str, *arguments: str) -> list[str]:
        """Return the lines of the head of a response."""
        result = subprocess.run(self.command(path, "-D-", "-o", os.devnull, *arguments), capture_output=True, text=True)
        return result.stdout.splitlines()

    def variables(self, path: str, *arguments: str) -> dict[str, str]:
        """Return the variables that the program `env` got."""
        lines = self.get(path, *arguments)[1].decode().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def pid(self, name: str) -> Process:
        """Return a process that a program has written the pid of."""
        path = self.pids / name
        wait_until(lambda: path.exists() and path.read_text().endswith("\n"), f"{name} runs")
        return Process(int(path.read_text()))

    def fails(self, count: int = 1) -> list[str]:
        """Return the reasons of fail lines."""
        return [each["reason"] for each in self.daemon.wait_event("fail", "http/tcp", count)]


@pytest.fixture
def server(start: Callable[..., Daemon], open_folder: Path, program: Callable[[str], str]) -> _Server:
    """Return a server that is not started yet."""
    return _Server(start, open_folder, program("curl"))


def test_environment(server: _Server) -> None:
    """A program gets the variables of the RFC, no arguments, and runs in its directory."""
    server.serve("env='LANG=C A=b'")
    status, content = server.get("env/a%20b/c?d=%20", "-H", "Authorization: Basic eDp5", "-H", "Proxy: http://evil")
    assert status == 200
    assert b"arguments: 0\n" in content
    assert f"folder: {server.cgi}\n".encode() in content
    values = server.variables("env/a%20b/c?d=%20", "-H", "Proxy: http://evil", "-H", "Authorization: Basic eDp5")
    expected = {
        "GATEWAY_INTERFACE": "CGI/1.1", "SERVER_PROTOCOL": "HTTP/1.1", "REQUEST_METHOD": "GET", "A": "b",
        "SCRIPT_NAME": "/cgi-bin/env", "PATH_INFO": "/a b/c", "PATH_TRANSLATED": f"{server.www}/a b/c",
        "QUERY_STRING": "d=%20", "REMOTE_ADDR": "127.0.0.1", "SERVER_NAME": "127.0.0.1", "SVCD_SERVICE": "http",
        "SERVER_PORT": server.url.rpartition(":")[2], "SCRIPT_FILENAME": str(server.cgi / "env"),
    }  # fmt: skip
    assert values.items() >= expected.items()
    assert not {"AUTH_TYPE", "HTTP_AUTHORIZATION", "HTTP_PROXY", "CONTENT_LENGTH", "HTTPS"} & values.keys()
    assert server.get("env", "-X", "DELETE")[1].count(b"REQUEST_METHOD=DELETE") == 1


def test_which_program(server: _Server) -> None:
    """Programs in directories are found; what is no program is 404 or 403, and files beside the path are as before."""
    server.serve()
    assert server.get("sub/tool/x/y") == (200, b"/cgi-bin/sub/tool /x/y sub\n")
    (server.cgi / "data").write_text("secret")
    (server.cgi / "link").symlink_to(server.cgi / "env")
    (server.cgi / ".hidden").symlink_to(server.cgi / "env")
    for path, status in {"none": 404, "data": 403, "sub": 403, "": 403, "link": 404, ".hidden": 404, "env%00": 400,
                         "..%2fcgi-bin/env": 400, "sub/%2e%2e/env": 400}.items():  # fmt: skip
        assert server.get(path, "--path-as-is")[0] == status, path
    assert server.get("../", "--path-as-is")[0] == 400
    assert server.get("../index.html") == (200, b"hello from a file")
    assert server.get("../index.html", "-X", "DELETE")[0] == 405
    assert server.get("interpreter")[0] == 404


def test_c_and_python(server: _Server, program: Callable[[str], str]) -> None:
    """A program in C and one in Python work unchanged; a Content-Length of the program is kept."""
    source = server.folder / "hello.c"
    source.write_text(C_PROGRAM)
    subprocess.run([program("cc"), "-o", str(server.cgi / "hello"), str(source)], check=True)
    server.serve()
    assert server.get("hello?a=b") == (200, b"a=b")
    assert server.get("python", "--data-binary", "@-", data=b"abc") == (200, b"cba")
    assert "Content-Length: 3" in server.fields("python", "--data-binary", "abc")


def test_statuses_and_redirects(server: _Server) -> None:
    """Status and repeated fields are passed on; a local redirect is followed here, others by the client."""
    server.serve()
    head = server.fields("status")
    assert head[0] == "HTTP/1.1 418 Short and stout"
    assert [line for line in head if line.startswith("Set-Cookie")] == ["Set-Cookie: a=1", "Set-Cookie: b=2"]
    assert server.variables("local", "--data-binary", "body").items() >= {
        "REQUEST_METHOD": "GET", "PATH_INFO": "/from", "QUERY_STRING": "a=b"}.items()  # fmt: skip
    assert server.get("file") == (200, b"hello from a file")
    head = server.fields("client")
    assert (head[0], "Location: http://a.example/" in head) == ("HTTP/1.1 302 Found", True)
    assert server.get("loop")[0] == 500
    assert server.fails() == ["/cgi-bin/loop: more than 10 local redirects"]


def test_head(server: _Server) -> None:
    """A HEAD request gets the head only, and the connection goes on."""
    server.serve()
    words = server.command("cat", "-I", f"{server.url}/cgi-bin/env", "-w", "%{num_connects}\\n")
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    assert result.stdout.count("HTTP/1.1 200 OK") == 2
    assert result.stdout.splitlines()[-1] == "0"


def test_nph(server: _Server) -> None:
    """The output of an NPH program is the response; other output of it is an error."""
    server.serve()
    with server.daemon.connect("http/tcp") as client:
        client.sendall(b"GET /cgi-bin/nph-raw HTTP/1.1\r\nHost: a\r\n\r\n")
        data = b""
        while piece := client.recv(65_536):
            data += piece
    assert data == b"HTTP/1.0 299 Odd\r\nX-Raw: yes\r\n\r\nraw"
    assert server.get("nph-bad")[0] == 502


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("silent", 502, "it ended without a response (exit status 3)"),
        ("killed", 502, "it ended without a response (ended by signal 9)"),
        ("text", 502, "it ended within the header of its response (exit status 0)"),
        ("endless-head", 502, "more than 100 header fields|larger than 32768 bytes"),
        ("short", 502, "it wrote 2 bytes with a Content-Length of 10|"),
        ("nph-bad", 502, "its output is no HTTP response"),
    ],
)
def test_malformed_output(server: _Server, name: str, status: int, reason: str) -> None:
    """Output that is no response is 502 and a fail line; standard error is in the log."""
    server.serve()
    found, _ = server.get(name)
    assert found == status
    assert re.search(reason.replace("(", r"\(").replace(")", r"\)"), server.fails()[0])
    if name == "silent":
        (line,) = server.daemon.wait_event("output", "http/tcp")
        assert line["text"] == "complaint"


@pytest.mark.parametrize("chunked", [False, True])
def test_large_body(server: _Server, chunked: bool) -> None:
    """A large body goes through a program and back; a chunked body too, without a CONTENT_LENGTH."""
    server.serve("max_body_size=20M")
    data = os.urandom(10_000_000)
    arguments = ("-H", "Transfer-Encoding: chunked") if chunked else ()
    status, content = server.get("cat", "--data-binary", "@-", *arguments, data=data)
    assert status == 200
    assert content == data
    before = server.daemon.memory()
    assert server.get("cat", "--data-binary", "@-", *arguments, data=data)[1] == data
    assert server.daemon.memory() - before < 5_000_000
    arguments = ("-H", "Transfer-Encoding: chunked") if chunked else ()
    assert ("CONTENT_LENGTH" in server.variables("env", "--data-binary", "abc", *arguments)) is not chunked


@pytest.mark.parametrize("name", ["deaf", "unread"])
def test_program_that_does_not_read(server: _Server, name: str) -> None:
    """A program that does not read its input, or closes it, responds all the same."""
    server.serve("max_body_size=20M")
    for size in (3, 300_000, 3_000_000):
        assert server.get(name, "--data-binary", "@-", "-H", "Expect:", data=b"x" * size) == (200, f"{name}\n".encode())


def test_output_arrives_as_it_is_written(server: _Server) -> None:
    """What a program writes reaches the client before the program ends."""
    server.serve()
    os.mkfifo(server.pids / "fifo")
    with server.daemon.connect("http/tcp") as client:
        client.sendall(b"GET /cgi-bin/steps HTTP/1.0\r\n\r\n")
        data = b""
        while not data.endswith(b"one\n"):
            data += client.recv(65_536)
        (server.pids / "fifo").write_text("go\n")
        while piece := client.recv(65_536):
            data += piece
    assert data.endswith(b"one\ntwo\n")


def test_slow_client(server: _Server) -> None:
    """A client that does not read stops the program, not the daemon, whose memory stays bounded."""
    server.serve()
    before = server.daemon.memory()
    with server.daemon.connect("http/tcp") as client:
        client.sendall(b"GET /cgi-bin/endless HTTP/1.1\r\nHost: a\r\n\r\n")
        process = server.pid("endless")
        wait_until(lambda: process.stat()[0] == "S", "the program waits")
        assert server.get("env")[0] == 200
        assert server.daemon.memory() - before < 8_000_000
    process.wait()


@pytest.mark.parametrize("way", ["reset", "close"])
def test_client_that_goes(server: _Server, way: str) -> None:
    """The process group of a program ends when its client goes, before or during the response."""
    server.serve()
    client = server.daemon.connect("http/tcp")
    client.sendall(b"GET /cgi-bin/sleep HTTP/1.1\r\nHost: a\r\n\r\n")
    processes = [server.pid("sleep"), server.pid("child")]
    if way == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    all_gone(processes)


def test_killed_client(server: _Server) -> None:
    """A program that ignores SIGTERM is killed, after its client was killed."""
    server.serve()
    with subprocess.Popen(server.command("stubborn")) as curl:
        process = server.pid("stubborn")
        curl.kill()
    process.wait()


@pytest.mark.parametrize(("name", "status"), [("sleep", 504), ("stall", 200)])
def test_time_limit(server: _Server, name: str, status: int) -> None:
    """A program without output is ended after cgi_timeout: 504, or a response that is cut off."""
    server.serve("cgi_timeout=0.5s")
    result = subprocess.run(server.command(name, "-w", "%{http_code}"), capture_output=True, text=True, check=False)
    assert result.stdout.endswith(str(status))
    assert (result.returncode != 0) == (name == "stall")
    assert server.fails() == [f"/cgi-bin/{name}: it was ended after 0.5 s without output"]
    if name == "sleep":
        all_gone([server.pid("sleep"), server.pid("child")])


def test_background_child(server: _Server) -> None:
    """A response ends with its program, not with a child in the background that has its output open."""
    server.serve()
    assert server.get("background") == (200, b"done\n")
    child = server.pid("background")
    assert child.alive
    os.kill(child.pid, signal.SIGKILL)


def test_hundred_programs_at_the_same_time(server: _Server) -> None:
    """100 programs run at the same time."""
    os.mkfifo(server.pids / "fifo")
    server.serve("cgi_instances=100")
    with ThreadPoolExecutor(100) as pool:
        results = [pool.submit(server.get, "steps") for _ in range(100)]
        launcher = server.daemon.launcher("http/tcp")
        children = Path(f"/proc/{launcher}/task/{launcher}/children")
        wait_until(lambda: len(children.read_text().split()) == 100, "100 programs run")
        # The last close of the pipe lets the rest of the readers go.
        wait_until(lambda: _release(server.pids / "fifo", results), "all programs have ended")
        assert {each.result() for each in results} == {(200, b"one\ntwo\n")}
    wait_until(lambda: server.daemon.descriptors() < 60, "the descriptors of the connections are closed")


def _release(fifo: Path, results: list[Future[tuple[int, bytes]]]) -> bool:
    with contextlib.suppress(OSError):
        fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        os.write(fd, b"go\n" * 100)
        os.close(fd)
    return all(each.done() for each in results)


def test_limit_of_programs(server: _Server) -> None:
    """Requests beyond cgi_instances wait, and get 503 with Retry-After after cgi_timeout."""
    server.serve("cgi_instances=1 cgi_timeout=4s")
    with ThreadPoolExecutor(8) as pool:
        assert {each[0] for each in pool.map(server.get, ["env"] * 8)} == {200}
    with server.daemon.connect("http/tcp") as client:
        # Its output is never taken, so it may run on.
        client.sendall(b"GET /cgi-bin/endless HTTP/1.1\r\nHost: a\r\n\r\n")
        server.pid("endless")
        head = server.fields("env")
        assert (head[0], "Retry-After: 1" in head) == ("HTTP/1.1 503 Service Unavailable", True)
    assert server.get("env")[0] == 200


@pytest.mark.usefixtures("as_root")
def test_rights(server: _Server) -> None:
    """Programs run with the user, limits, priority and umask of the service."""
    server.add("rights", SHELL + PLAIN + "id -u; id -g; umask; nice; ulimit -n; grep NoNewPrivs /proc/self/status\n")
    server.serve("user=nobody umask=0077 nice=5 rlimit_nofile=33 no_new_privs=yes")
    group = str(pwd.getpwuid(NOBODY).pw_gid)
    assert server.get("rights")[1].decode().split() == [str(NOBODY), group, "0077", "5", "33", "NoNewPrivs:", "1"]
    (server.cgi / "private").write_text(PROGRAMS["env"])
    (server.cgi / "private").chmod(0o700)
    assert server.get("private")[0] == 403


@pytest.mark.usefixtures("as_root")
def test_root_directory(server: _Server) -> None:
    """With chroot= the directory is inside the root, and so is the program."""
    busybox = Path("/bin/busybox")
    if not busybox.exists():
        pytest.skip("busybox is not installed")
    (server.folder / "bin").mkdir()
    (server.folder / "bin" / "sh").write_bytes(busybox.read_bytes())
    (server.folder / "bin" / "sh").chmod(0o755)
    server.cgi = Path("/cgi")
    server.serve(f"chroot={server.folder} user=nobody")
    assert server.get("status")[1] == b"teapot"


def test_stop(server: _Server) -> None:
    """A stop ends the programs: SIGTERM after shutdown_timeout, then SIGKILL; one that ends in time is waited for."""
    server.serve("shutdown_timeout=0.5s")
    clients = [server.daemon.connect("http/tcp") for _ in range(2)]
    for client, name in zip(clients, ("sleep", "stubborn"), strict=True):
        client.sendall(f"GET /cgi-bin/{name} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    processes = [server.pid("sleep"), server.pid("child"), server.pid("stubborn")]
    assert server.daemon.stop() == 0
    all_gone(processes)
    for client in clients:
        client.close()


def test_reload(server: _Server) -> None:
    """After a reload programs run with the new options; responses that have begun go on, also of a removed service."""
    os.mkfifo(server.pids / "fifo")
    daemon = server.serve("env='A=before'")
    assert server.variables("env")["A"] == "before"
    with server.daemon.connect("http/tcp") as client:
        client.sendall(b"GET /cgi-bin/steps HTTP/1.0\r\n\r\n")
        data = b""
        while not data.endswith(b"one\n"):
            data += client.recv(65_536)
        daemon.file.write_text(daemon.file.read_text().replace("A=before", "A=after"))
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for(lambda line: " reload " in line)
        assert server.variables("env")["A"] == "after"
        daemon.file.write_text("echo 0/tcp bind=127.0.0.1\n")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for(lambda line: " reload " in line, 2)
        (server.pids / "fifo").write_text("go\n")
        while piece := client.recv(65_536):
            data += piece
    assert data.endswith(b"two\n")
    all_gone([Process(daemon.launcher("http/tcp")), Process(daemon.launcher("http/tcp", 2))])


def test_lost_launcher(server: _Server) -> None:
    """If the launcher is killed, its requests fail with 502, none runs twice, and later ones are served."""
    daemon = server.serve()
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(server.get, "sleep")
        process = server.pid("sleep")
        os.kill(daemon.launcher("http/tcp"), signal.SIGKILL)
        os.kill(process.pid, signal.SIGKILL)
        assert result.result()[0] == 502
    assert server.get("env")[0] == 200


def test_missing_directory(server: _Server, start_controlled: Callable[..., Daemon]) -> None:
    """A directory that does not exist breaks the service, with a message; others are served."""
    server.cgi = Path("/no/such")
    services = "http 0/tcp bind=127.0.0.1 cgi=/no/such id=web\necho 0/tcp bind=127.0.0.1\n"
    daemon = start_controlled(services)
    (broken,) = daemon.wait_event("broken", "web/tcp")
    assert "cgi: can't use /no/such: No such file or directory" in broken["reason"]
    assert exchange(daemon.connect("echo/tcp"), b"hi") == b"hi"
