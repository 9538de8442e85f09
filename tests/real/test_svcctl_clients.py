"""The clients of svcctl with real servers: svcd, third-party servers, and servers that misbehave."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from svcd.cli import main
from svcd.wire.daytime import time_1900
from tests.certificates import Authority
from tests.real import preloaded
from tests.real.daemon import PATIENCE, Daemon, environment
from tests.real.processes import Process
from tests.real.servers import lines_of, own_address, running, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SERVICES = """
@defaults bind=127.0.0.1
echo     0/tcp
echo     0/udp
upper    0/tcp
discard  0/tcp
daytime  0/tcp
daytime  0/udp
time     0/tcp
time     0/udp
chargen  0/tcp
files    0/tcp  http root={root}
filter   0/tcp  server="/usr/bin/tr a-z A-Z"
slow     0/tcp  server="/bin/sh -c 'while read -r line; do sleep 0.2; echo \\"$line\\"; done'"
six      0/tcp6 echo bind=::1
techo    0/tcp  echo tls_cert={certificate}
tpage    0/tcp  http root={root} tls_cert={certificate}
local    {folder}/echo/unix  echo
page     {folder}/http/unix  http
"""


class _Result:
    """Output and exit status of a command."""

    def __init__(self, status: int, out: bytes, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err


class _Secure:
    """Certificates for servers, and their files."""

    def __init__(self, folder: Path) -> None:
        authority, now = Authority(), datetime.now(UTC)
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(authority.pem)
        self.bundle: dict[str, Path] = {}
        for name, signed in {
            "good": authority.sign("localhost", "127.0.0.1"),
            "other": authority.sign("other.example"),
            "expired": authority.sign("localhost", expires=now - timedelta(hours=1)),
            "client": authority.sign("client.example"),
        }.items():
            self.bundle[name] = folder / f"{name}.pem"
            self.bundle[name].write_bytes(signed.bundle)
            self.bundle[name].chmod(0o600)


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> _Secure:
    """Return certificates."""
    return _Secure(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, secure: _Secure) -> Iterator[Daemon]:
    """Return a daemon for all clients."""
    folder = tmp_path_factory.mktemp("d")
    root = folder / "www"
    root.mkdir()
    (root / "big.bin").write_bytes(bytes(range(256)) * 20_000)
    (root / "notes.txt").write_text("notes\n")
    daemon = Daemon(folder, SERVICES.format(root=root, folder=folder, certificate=secure.bundle["good"]))
    yield daemon
    daemon.end()


@pytest.fixture
def svcctl(capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path) -> Iterator[Callable[..., _Result]]:
    """Return a function that runs a command in the process of the test, with an input."""
    before = os.dup(0)

    def run(*words: object, data: bytes = b"") -> _Result:
        path = tmp_path / "input"
        path.write_bytes(data)
        source = os.open(path, os.O_RDONLY)
        os.dup2(source, 0)
        os.close(source)
        status = main([str(word) for word in words])
        said = capfdbinary.readouterr()
        return _Result(status, said.out, said.err.decode())

    yield run
    os.dup2(before, 0)
    os.close(before)


@contextlib.contextmanager
def _process(*words: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a new process, which is ended and reaped."""
    command = [sys.executable, "-m", "svcd", *map(str, words)]
    pipe = subprocess.PIPE
    with preloaded.Popen(command, env=environment(), stdin=pipe, stdout=pipe, stderr=pipe) as process:
        try:
            yield process
        finally:
            process.kill()


# echo


@pytest.mark.parametrize("service", ["echo/tcp", "echo/udp", "six/tcp6"])
def test_echo(daemon: Daemon, svcctl: Callable[..., _Result], has_ipv6: bool, service: str) -> None:
    """The answer is what was sent, over TCP, UDP and IPv6."""
    if not has_ipv6 and service == "six/tcp6":
        pytest.skip("no IPv6 here")
    options = ["-u"] if service.endswith("udp") else []
    host = "::1" if service == "six/tcp6" else "localhost"
    done = svcctl("echo", *options, host, daemon.port(service), "hello", "wörld")
    assert (done.status, done.out, done.err) == (0, "hello wörld\n".encode(), "")


def test_echo_with_another_answer(daemon: Daemon, svcctl: Callable[..., _Result]) -> None:
    """If the answer differs the exit status is 1, and both are shown."""
    done = svcctl("echo", "127.0.0.1", daemon.port("upper/tcp"), "hello")
    assert (done.status, done.out) == (1, b"")
    assert done.err == "svcctl echo: sent 'hello', got 'HELLO'\n"
    done = svcctl("echo", "127.0.0.1", daemon.port("chargen/tcp"), "hello")
    assert done.status == 1
    assert "and more" in done.err


def test_echo_at_a_unix_socket(daemon: Daemon, svcctl: Callable[..., _Result]) -> None:
    """The path of the socket replaces host and port."""
    assert svcctl("echo", daemon.folder / "echo", "17", "words").out == b"17 words\n"


def test_echo_without_an_answer(daemon: Daemon, svcctl: Callable[..., _Result]) -> None:
    """The exit status for a server without an answer is EX_UNAVAILABLE."""
    done = svcctl("echo", "--timeout", "0.3", "127.0.0.1", daemon.port("discard/tcp"), "hello")
    assert done.status == 69
    assert done.err.endswith("has not answered within 0.3 s\n")


def test_echo_of_a_pipe(daemon: Daemon, svcctl: Callable[..., _Result]) -> None:
    """All lines come back, with any bytes, and the end of the input ends the command."""
    for service in ("echo/tcp", "slow/tcp"):
        done = svcctl("echo", "127.0.0.1", daemon.port(service), data=b"a\nb\xff\nc\n")
        assert (done.status, done.out, done.err) == (0, b"a\nb\xff\nc\n", ""), service


def test_server_that_answers_at_the_end(daemon: Daemon, svcctl: Callable[..., _Result]) -> None:
    """The client half-closes for a server that answers at the end of its input."""
    assert svcctl("echo", "127.0.0.1", daemon.port("filter/tcp"), data=b"a\nb\n").out == b"A\nB\n"


def test_echo_of_a_pipe_over_udp(daemon: Daemon, svcctl: Callable[..., _Result]) -> None:
    """Each line is a datagram."""
    assert svcctl("echo", "-u", "127.0.0.1", daemon.port("echo/udp"), data=b"a\nb\nc").out == b"a\nb\nc"


def test_megabytes_through_a_pipe(daemon: Daemon, svcctl: Callable[..., _Result]) -> None:
    """Megabytes come back complete."""
    data = os.urandom(5_000_000)
    assert svcctl("echo", "127.0.0.1", daemon.port("echo/tcp"), data=data).out == data


def test_empty_input(daemon: Daemon, svcctl: Callable[..., _Result]) -> None:
    """Nothing is sent, and the exit status is 0."""
    done = svcctl("echo", "127.0.0.1", daemon.port("echo/tcp"))
    assert (done.status, done.out, done.err) == (0, b"", "")


def test_server_without_half_close(svcctl: Callable[..., _Result]) -> None:
    """The client half-closes after the answer, for servers that drop their answer at a half-close."""

    def answer(connection: socket.socket) -> None:
        data = connection.recv(100)
        # As protocols of Twisted do: data that is unsent at the end of the input is never sent.
        connection.settimeout(0.05)
        with contextlib.suppress(TimeoutError):
            if not connection.recv(1):
                return
        connection.sendall(data)
        connection.settimeout(PATIENCE)
        connection.recv(1)

    with serving(answer) as port:
        done = svcctl("echo", "127.0.0.1", port, data=b"a\n")
    assert (done.status, done.out) == (0, b"a\n")


def test_output_without_a_reader(daemon: Daemon) -> None:
    """A closed pipe ends the command without a message, as with head(1)."""
    with _process("echo", "127.0.0.1", daemon.port("chargen/tcp")) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(100)
        process.stdout.close()
        assert process.wait(PATIENCE) == 0
        assert process.stderr.read() == b""


def test_output_that_can_not_be_written(daemon: Daemon) -> None:
    """The error is shown, and the exit status is EX_IOERR."""
    for name, service in (("echo", "chargen/tcp"), ("daytime", "daytime/tcp")):
        command = [sys.executable, "-m", "svcd", name, "127.0.0.1", str(daemon.port(service))]
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(command, env=environment(), stdout=full, stderr=subprocess.PIPE)
        assert done.returncode == os.EX_IOERR
        assert done.stderr == f"svcctl {name}: standard input or output: No space left on device\n".encode()


def test_list_without_a_reader() -> None:
    """Commands that list something end the same way; without a standard output they succeed."""
    command = [sys.executable, "-m", "svcd", "options"]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, env=environment(), stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (os.EX_IOERR, b"svcctl: standard output: No space left on device\n")
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    done = subprocess.run(closed, env=environment(), stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")


class _Terminal:
    """A command on a terminal."""

    def __init__(self, *words: object) -> None:
        self._ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "svcd", *map(str, words)]
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(), start_new_session=True
        )
        os.close(theirs)
        self._seen = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def see(self, text: str) -> None:
        """Wait until a text is shown after the text of the last call."""
        pattern = text.replace("\n", "\r\n").encode()
        while pattern not in self._seen:
            assert select.select([self._ours], [], [], PATIENCE)[0], self._seen
            try:
                more = os.read(self._ours, 1000)
            except OSError:
                more = b""
            assert more, self._seen
            self._seen += more
        self._seen = self._seen[self._seen.index(pattern) + len(pattern) :]

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._ours, text.encode())

    def end(self) -> int:
        """Return the exit status."""
        return self.process.wait(PATIENCE)


@pytest.mark.parametrize(("options", "service"), [([], "echo/tcp"), (["-u"], "echo/udp")])
def test_echo_on_a_terminal(daemon: Daemon, options: list[str], service: str) -> None:
    """The command prompts for lines and shows their answers, until Ctrl-D."""
    with _Terminal("echo", *options, "127.0.0.1", daemon.port(service)) as terminal:
        terminal.see("type: ")
        terminal.type("hello\n")
        terminal.see("hello\necho: hello\ntype: ")
        terminal.type("again\n")
        terminal.see("echo: again\ntype: ")
        terminal.type("\x04")
        terminal.see("\n")
        assert terminal.end() == 0


def test_upper_on_a_terminal(daemon: Daemon) -> None:
    """The answer is shown, also if it differs from the line."""
    with _Terminal("echo", "127.0.0.1", daemon.port("upper/tcp")) as terminal:
        terminal.see("type: ")
        terminal.type("hello\n")
        terminal.see("echo: HELLO\ntype: ")
        terminal.type("\x04")
        assert terminal.end() == 0


def test_server_that_closes_the_connection_of_a_terminal() -> None:
    """Unrequested data is shown, and the end of the connection ends the command at once."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(b"220 hello\n")
        connection.recv(100)
        connection.sendall(b"bye\n")

    with serving(answer) as port, _Terminal("echo", "127.0.0.1", port) as terminal:
        terminal.see("type: \necho: 220 hello\ntype: ")
        terminal.type("quit\n")
        terminal.see("echo: bye\n")
        terminal.see("svcctl echo: the server has closed the connection\n")
        assert terminal.end() == 76


def test_interrupt_at_the_prompt(daemon: Daemon) -> None:
    """SIGINT ends it at once, and without a traceback."""
    with _Terminal("echo", "127.0.0.1", daemon.port("echo/tcp")) as terminal:
        terminal.see("type: ")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == -signal.SIGINT


def test_interrupt_during_the_wait() -> None:
    """SIGINT ends it at once, and without a traceback."""
    asked = threading.Event()

    def answer(connection: socket.socket) -> None:
        connection.recv(100)
        asked.set()
        connection.recv(100)

    with serving(answer) as port, _process("echo", "127.0.0.1", port, "x") as process:
        assert asked.wait(PATIENCE)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == -signal.SIGINT
        assert process.stderr is not None
        assert process.stderr.read() == b""


# daytime and time


@pytest.mark.parametrize("options", [[], ["-u"]])
def test_clocks(daemon: Daemon, svcctl: Callable[..., _Result], options: list[str]) -> None:
    """The date is shown as received, and the time with its difference from the local clock."""
    net = "udp" if options else "tcp"
    done = svcctl("daytime", *options, "localhost", daemon.port(f"daytime/{net}"))
    assert re.fullmatch(rb"\w{3} \w{3} [ \d]\d [\d:]{8} \d{4}\n", done.out)
    done = svcctl("time", *options, "127.0.0.1", daemon.port(f"time/{net}"))
    assert re.fullmatch(rb"[\d-]{10}T[\d:]{8}[+-][\d:]{5}  [+-]\d+ s\n", done.out)
    assert done.status == 0


@pytest.mark.parametrize("surplus", [b"", bytes(4)])
def test_fast_clock(svcctl: Callable[..., _Result], surplus: bytes) -> None:
    """The difference is shown, also if the server sends additional bytes as inetd of GNU does."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(time_1900(time.time() + 3600) + surplus)

    with serving(answer) as port:
        [_, offset, _] = svcctl("time", "127.0.0.1", port).out.split()
    # A busy machine may delay the second reading of its clock.
    assert 3540 <= int(offset) <= 3601


def test_lost_datagrams(svcctl: Callable[..., _Result]) -> None:
    """A datagram without an answer is sent again."""
    questions = []

    def answer(server: socket.socket) -> None:
        while True:
            question, peer = server.recvfrom(100)
            if not question:
                return
            questions.append(question)
            if len(questions) == 2:
                server.sendto(question, peer)

    with serving(answer, socket.SOCK_DGRAM) as port:
        assert svcctl("echo", "-u", "127.0.0.1", port, "again").out == b"again\n"
    assert questions == [b"again\n", b"again\n"]


def test_no_server(svcctl: Callable[..., _Result]) -> None:
    """The error is shown at once over TCP, UDP and at a UNIX socket."""
    address = own_address()
    for words in (
        ["daytime", address, "9"],
        ["daytime", "-u", address, "9"],
        ["time", "/nowhere"],
        ["probe", address, "9"],
    ):
        done = svcctl(*words)
        assert done.status == 69
        assert re.search("Connection refused|No such file", done.err), words


# get


def test_get(daemon: Daemon, svcctl: Callable[..., _Result]) -> None:
    """A file is written as it is; the head is shown with an option only."""
    base = f"http://127.0.0.1:{daemon.port('files/tcp')}"
    assert svcctl("get", f"{base}/big.bin").out == bytes(range(256)) * 20_000
    with_head = svcctl("get", "-i", f"{base}/notes.txt").out
    assert with_head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert with_head.endswith(b"\r\n\r\nnotes\n")
    head = svcctl("get", "-I", f"{base}/notes.txt").out
    assert b"Content-Length: 6\r\n" in head
    assert head.endswith(b"\r\n\r\n")
    assert b"Hello, " in svcctl("get", "--unix", daemon.folder / "http", "http://localhost/").out


def test_get_of_a_missing_page(daemon: Daemon, svcctl: Callable[..., _Result]) -> None:
    """The exit status is 1, and the status and the page of the server are shown."""
    done = svcctl("get", f"127.0.0.1:{daemon.port('files/tcp')}/none")
    assert (done.status, done.err) == (1, "svcctl get: 404 Not Found\n")
    assert done.out == b"404 Not Found\n"


def _raw(*pieces: bytes) -> Callable[[socket.socket], None]:
    """Return a function that sends a response to each client."""

    def answer(connection: socket.socket) -> None:
        connection.recv(10_000)
        for piece in pieces:
            connection.sendall(piece)

    return answer


@pytest.mark.parametrize(
    ("pieces", "status", "out", "said"),
    [
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na", b"bc\r\n0\r\n\r\n"], 0, b"abc", ""),
        ([b"HTTP/1.0 200 OK\r\n\r\n", b"to the end"], 0, b"to the end", ""),
        ([b"HTTP/1.1 301 Moved\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n"], 0, b"", "301 Moved"),
        ([b"HTTP/1.1 500 \r\nContent-Length: 0\r\n\r\n"], 1, b"", "500"),
        ([b"HTTP/1.1 500 \xc2\x9b1m\r\nContent-Length: 0\r\n\r\n"], 1, b"", "500 \xc2\\x9b1m\n"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"], 76, b"abc", "after 3 of 9 bytes"),
        ([b"220 mail.example ESMTP\r\n"], 76, b"", "the answer is not HTTP"),
        ([b"HTTP/1.1 200 OK\r\nX: ", b"x" * 1_000_000], 76, b"", "more than 65536 bytes in the response header"),
        ([], 76, b"", "without an answer"),
    ],
)
def test_get_from_any_server(
    svcctl: Callable[..., _Result], pieces: list[bytes], status: int, out: bytes, said: str
) -> None:
    """The end of a body is found as in HTTP, and an incomplete response is an error."""
    with serving(_raw(*pieces)) as port:
        done = svcctl("get", f"http://127.0.0.1:{port}/")
    assert (done.status, done.out) == (status, out)
    assert said in done.err


def test_redirects(svcctl: Callable[..., _Result]) -> None:
    """They are followed with an option, up to a limit."""

    def answer(connection: socket.socket) -> None:
        path = connection.recv(10_000).split()[1]
        moved = b"HTTP/1.1 302 Found\r\nContent-Length: 3\r\nLocation: %s\r\n\r\nold"
        new = {b"/a": b"b?x=y", b"/loop": b"/loop"}.get(path)
        connection.sendall(moved % new if new else b"HTTP/1.0 200 OK\r\n\r\n%s" % path)

    with serving(answer) as port:
        assert svcctl("get", f"http://127.0.0.1:{port}/a").out == b"old"
        assert svcctl("get", "-L", f"http://127.0.0.1:{port}/a").out == b"/b?x=y"
        done = svcctl("get", "-L", f"http://127.0.0.1:{port}/loop")
    assert done.status == 76
    assert "redirects more than 10 times" in done.err


# Servers that misbehave.


@pytest.mark.parametrize(
    ("command", "answer", "said"),
    [
        ("daytime", b"", "without an answer"),
        ("daytime", b"x" * 5000, "longer than 1024 bytes"),
        ("daytime", b"\x1b]0;title\x07\r\n", "is not text"),
        ("daytime", b"\xff\r\n", "is not text"),
        ("time", b"abc", "the answer has 3"),
        ("time", b"Sat Nov 21", "the answer has more"),
        ("time", b"12345678", "the answer has more"),
        ("echo", b"", "without an answer"),
    ],
)
def test_invalid_responses(svcctl: Callable[..., _Result], command: str, answer: bytes, said: str) -> None:
    """The error is shown, and the exit status is EX_PROTOCOL."""
    words = ["x"] if command == "echo" else []
    with serving(_raw(answer) if words else lambda connection: connection.sendall(answer)) as port:
        done = svcctl(command, "127.0.0.1", port, *words)
    assert (done.status, done.out) == (76, b"")
    assert said in done.err


@pytest.mark.parametrize("words", [["daytime"], ["time"], ["get"], ["daytime", "--tls"]])
def test_server_that_never_answers(svcctl: Callable[..., _Result], words: list[str]) -> None:
    """The command waits as long as --timeout."""
    command, *options = words
    with socket.socket() as listener:
        # The kernel accepts, and no process does.
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        place = [f"127.0.0.1:{port}"] if command == "get" else ["127.0.0.1", port]
        done = svcctl(command, "--timeout", "0.3", *options, *place)
    assert done.status == 69
    assert done.err.endswith("within 0.3 s\n")


def test_flood(daemon: Daemon) -> None:
    """The data is passed on, and memory does not grow."""
    with _process("echo", "127.0.0.1", daemon.port("chargen/tcp")) as process:
        assert process.stdout is not None
        for _ in range(200):
            assert len(process.stdout.read(65_536)) == 65_536
        early = Process(process.pid).kilobytes("Pss_Anon")
        for _ in range(1000):
            assert len(process.stdout.read(65_536)) == 65_536
        assert Process(process.pid).kilobytes("Pss_Anon") < early + 2000


# probe


def test_probe(daemon: Daemon, svcctl: Callable[..., _Result]) -> None:
    """A server that answers is shown with its answer and the time."""
    port = daemon.port("daytime/tcp")
    shown = svcctl("probe", "127.0.0.1", port).out.decode()
    assert shown.startswith(f"up          127.0.0.1:{port}\nlookup")
    found = json.loads(svcctl("probe", "--json", "127.0.0.1", port).out)
    assert (found["up"], found["address"], found["attempts"], found["tls"]) == (True, f"127.0.0.1:{port}", 1, None)
    assert re.fullmatch(r"\w{3} \w{3} .{16}\r\n", found["banner"])
    assert list(found["seconds"]) == ["lookup", "connect", "first_byte"]
    silent = json.loads(svcctl("probe", "--json", "--banner", "0.05", "127.0.0.1", daemon.port("echo/tcp")).out)
    assert silent["banner"] == ""


def test_probe_with_retries(svcctl: Callable[..., _Result], tmp_path: Path) -> None:
    """It retries as often as --retries."""
    path = tmp_path / "late"
    with socket.socket(socket.AF_UNIX) as listener:

        def appear() -> None:
            listener.bind(str(path))
            listener.listen()

        timer = threading.Timer(0.3, appear)
        timer.start()
        found = json.loads(svcctl("probe", "--json", "--retries", 1000, "--wait", 0.02, "--banner", 0.01, path).out)
        timer.join()
    assert found["up"]
    assert found["attempts"] > 1
    done = svcctl("probe", "--json", "--retries", 2, "--wait", 0.01, path.parent / "never")
    assert done.status == 69
    assert json.loads(done.out)["up"] is False


# TLS


@pytest.fixture
def s_server(secure: _Secure, program: Callable[[str], str], tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Return a function that starts `openssl s_server` with a certificate and options, and returns its port."""
    openssl = program("openssl")
    with contextlib.ExitStack() as stack:

        def start(certificate: str, *options: str) -> int:
            words = [openssl, "s_server", "-accept", "127.0.0.1:0", "-cert", str(secure.bundle[certificate]), *options]
            server = stack.enter_context(running(*words, cwd=tmp_path, output=subprocess.PIPE))
            said = next(line for line in lines_of(server) if line.startswith("ACCEPT"))
            return int(said.rpartition(":")[2])

        yield start


def test_get_over_tls(secure: _Secure, s_server: Callable[..., int], svcctl: Callable[..., _Result]) -> None:
    """The certificate of openssl s_server is verified by name and by address."""
    port = s_server("good", "-www")
    for host in ("localhost", "127.0.0.1"):
        done = svcctl("get", "-4", "--ca", secure.ca, f"https://{host}:{port}/")
        assert (done.status, done.err) == (0, "")
        assert b"Ciphers supported in s_server binary" in done.out


@pytest.mark.parametrize(
    ("certificate", "options", "said"),
    [
        ("other", ["--ca"], "it is not for localhost"),
        ("expired", ["--ca"], "it has expired"),
        ("good", [], "its issuer is not known"),
        ("good", ["--name", "localhost.example", "--ca"], "it is not for localhost.example"),
    ],
)
def test_untrusted_certificates(
    secure: _Secure, s_server: Callable[..., int], svcctl: Callable[..., _Result],
    certificate: str, options: list[str], said: str,
) -> None:  # fmt: skip
    """Nothing is sent to such a server, and the reason is shown; with --insecure a warning is."""
    port = s_server(certificate, "-www")
    options = [*options, str(secure.ca)] if "--ca" in options else options
    done = svcctl("get", "-4", *options, f"https://localhost:{port}/")
    assert (done.status, done.out) == (76, b"")
    assert done.err.endswith(f"its certificate is not trusted: {said}\n")
    found = json.loads(svcctl("probe", "-4", "--banner", 0.01, "--json", "--tls", *options, "localhost", port).out)
    assert found["tls"]["problems"] == [said]
    done = svcctl("get", "-4", "--insecure", *options, f"https://localhost:{port}/")
    assert done.status == 0
    assert done.err == "svcctl get: --insecure: the certificate of the server is not verified\n"


def test_name_of_the_certificate(secure: _Secure, s_server: Callable[..., int], svcctl: Callable[..., _Result]) -> None:
    """--name sets the name that the certificate must have."""
    port = s_server("other", "-www")
    done = svcctl("get", "--ca", secure.ca, "--name", "other.example", f"https://127.0.0.1:{port}/")
    assert done.status == 0


def test_client_certificate(secure: _Secure, s_server: Callable[..., int], svcctl: Callable[..., _Result]) -> None:
    """It is sent on request; without it there is no answer, and the reason is shown."""
    port = s_server("good", "-www", "-Verify", "2", "-verify_return_error", "-CAfile", str(secure.ca))
    url = f"https://127.0.0.1:{port}/"
    assert svcctl("get", "--ca", secure.ca, "--cert", secure.bundle["client"], url).status == 0
    done = svcctl("get", "--ca", secure.ca, url)
    assert done.status == 76
    assert "certificate required" in done.err


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_echo_over_tls(
    secure: _Secure, s_server: Callable[..., int], version: str, svcctl: Callable[..., _Result]
) -> None:
    """openssl s_server -rev answers each line reversed."""
    port = s_server("good", "-rev", version)
    done = svcctl("echo", "--tls", "--ca", secure.ca, "127.0.0.1", port, data=b"abc\nde\n")
    assert (done.status, done.out) == (0, b"cba\ned\n")


def test_tls_of_svcd(daemon: Daemon, secure: _Secure, svcctl: Callable[..., _Result]) -> None:
    """Services of svcd are verified, and get the end of the input as over TCP."""
    port, page = daemon.port("techo/tcp"), daemon.port("tpage/tcp")
    tls = ["--ca", secure.ca]
    assert svcctl("echo", "--tls", *tls, "127.0.0.1", port, "hello").out == b"hello\n"
    assert svcctl("get", *tls, f"https://127.0.0.1:{page}/big.bin").out == bytes(range(256)) * 20_000
    data = os.urandom(2_000_000)
    assert svcctl("echo", "--tls", *tls, "127.0.0.1", port, data=data).out == data
    assert [each["reason"] for each in daemon.wait_event("end", "techo/tcp", 2)] == ["done", "done"]


def test_probe_over_tls(secure: _Secure, s_server: Callable[..., int], svcctl: Callable[..., _Result]) -> None:
    """The version, the cipher, and the certificate with its trust are shown."""
    port = s_server("good", "-tls1_2")
    words = ["probe", "--banner", 0.01, "--tls", "--ca", secure.ca, "127.0.0.1", port]
    done = svcctl(*words)
    assert done.status == 0
    shown = dict(line.split(None, 1) for line in done.out.decode().splitlines())
    assert shown["tls"].startswith("TLSv1.2 ECDHE-")
    assert (shown["certificate"], shown["issuer"]) == ("CN=localhost", "CN=Test CA")
    assert shown["names"] == "localhost, 127.0.0.1"
    assert shown["valid"].endswith("365 days left")
    assert shown["trusted"] == "yes"
    found = json.loads(svcctl(*words, "--json").out)
    assert found["tls"]["trusted"]
    assert found["tls"]["names"] == ["localhost", "127.0.0.1"]
    assert found["seconds"]["handshake"] > 0


def test_server_without_tls(daemon: Daemon, svcctl: Callable[..., _Result]) -> None:
    """The error differs from that for a server that can't be reached."""
    done = svcctl("get", f"https://127.0.0.1:{daemon.port('daytime/tcp')}/")
    assert done.status == 76
    assert done.err.startswith("svcctl get: no TLS with 127.0.0.1 port")
    assert "TLS: wrong version number (the server does not use TLS on this port)" in done.err


# Third-party servers.

_XINETD = """
defaults
{{
    log_type = FILE /dev/null
    bind = {address}
}}
"""
_XINETD_SERVICE = """
service {name}
{{
    id = {name}-{kind}
    type = INTERNAL
    socket_type = {kind}
    protocol = {protocol}
    user = root
    wait = {wait}
    disable = no
}}
"""


@pytest.mark.usefixtures("as_root")
def test_xinetd(svcctl: Callable[..., _Result], program: Callable[[str], str], tmp_path: Path) -> None:
    """The internal services of xinetd answer at their usual ports, over TCP and UDP."""
    address = own_address()
    config = tmp_path / "xinetd.conf"
    services = [
        _XINETD_SERVICE.format(name=name, kind=kind, protocol=protocol, wait=wait)
        for name in ("echo", "daytime", "time")
        for kind, protocol, wait in (("stream", "tcp", "no"), ("dgram", "udp", "yes"))
    ]
    config.write_text(_XINETD.format(address=address) + "".join(services))
    with running(program("xinetd"), "-dontfork", "-f", config, "-pidfile", tmp_path / "pid", cwd=tmp_path):
        assert svcctl("probe", "--retries", 3000, "--wait", 0.02, "--banner", 0.01, address, "time").status == 0
        for options in ([], ["-u"]):
            assert svcctl("echo", *options, address, "echo", "hello").out == b"hello\n"
            assert svcctl("daytime", *options, address).status == 0
            assert re.search(rb"  [+-]\d s$", svcctl("time", *options, address).out)
        done = svcctl("echo", address, data=b"a\nb\n")
        assert (done.status, done.out) == (0, b"a\nb\n")


_NGINX = """
daemon off;
master_process off;
pid nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    server {{
        listen {address}:8080;
        listen {address}:8443 ssl http2;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_certificate {certificate};
        ssl_certificate_key {certificate};
        root .;
        location /gone {{ return 410 "gone"; }}
        location /moved {{ return 301 https://{address}:8443/file; }}
    }}
}}
"""


def test_nginx(secure: _Secure, svcctl: Callable[..., _Result], program: Callable[[str], str], tmp_path: Path) -> None:
    """A file is fetched over http and https, and a redirect from one to the other is followed."""
    address = own_address()
    (tmp_path / "file").write_bytes(bytes(range(256)) * 4000)
    (tmp_path / "file").chmod(0o644)
    (tmp_path / "nginx.conf").write_text(_NGINX.format(address=address, certificate=secure.bundle["good"]))
    with running(program("nginx"), "-p", tmp_path, "-c", "nginx.conf", cwd=tmp_path):
        assert svcctl("probe", "--retries", 3000, "--wait", 0.02, "--banner", 0.01, address, 8443).status == 0
        tls = ["--ca", secure.ca, "--name", "localhost"]
        for url in (f"http://{address}:8080/file", f"https://{address}:8443/file", f"{address}:8080/moved"):
            assert svcctl("get", "-L", *tls, url).out == (tmp_path / "file").read_bytes()
        done = svcctl("get", f"http://{address}:8080/gone")
        assert (done.status, done.out, done.err) == (1, b"gone", "svcctl get: 410 Gone\n")
        found = json.loads(svcctl("probe", "--json", "--tls", *tls, address, 8443).out)
        assert found["tls"]["version"] == "TLSv1.3"
