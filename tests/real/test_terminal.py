"""What people see on a terminal."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.real.daemon import PATIENCE
from tests.real.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.real.daemon import Daemon

NAMES = [f"service-number-{number}" for number in range(30)]
SERVICES = "@defaults bind=127.0.0.1\n" + "".join(f"{name} 0/tcp echo\n" for name in NAMES)


@pytest.fixture
def svcctl(start: Callable[..., Daemon], open_folder: Path) -> list[str]:
    """The beginning of a command line for a daemon with many services."""
    control = open_folder / "control"
    start(SERVICES, "--control", str(control))
    return [sys.executable, "-m", "svcd", "--control", str(control)]


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    """Start a program on a terminal; it has ended after the test."""
    started: list[Terminal] = []

    def start_it(*arguments: Any, **settings: Any) -> Terminal:
        started.append(Terminal(*arguments, **settings))
        return started[-1]

    yield start_it
    for each in started:
        each.close()


def _plain(text: str) -> str:
    return re.sub("\x1b\\[[0-9]*m", "", text)


def test_status_fits_the_terminal(svcctl: list[str], terminal: Callable[..., Terminal]) -> None:
    """In 60 columns names are shortened; colours are used unless NO_COLOR is set."""
    written = terminal([*svcctl, "status"], 60).end()
    assert "\x1b[32mon" in written
    lines = _plain(written).splitlines()
    assert max(map(len, lines)) <= 60
    assert len([line for line in lines if re.match(r"ser\S*…\S*/tcp +on +0 +0 +0 +127\.0", line)]) == len(NAMES)
    assert "\x1b" not in terminal([*svcctl, "status"], 200, variables={"NO_COLOR": "1"}).end()


def test_top_fits_the_screen_and_ends_by_a_key(svcctl: list[str], terminal: Callable[..., Terminal]) -> None:
    """Lines for which there is no room are counted, and the screen of before comes back."""
    screen = terminal([*svcctl, "top"], 80, 20)
    screen.until("\x1b[J")
    screen.type("q")
    written = screen.end()
    assert screen.process.returncode == 0
    assert written.startswith("\x1b[?1049h\x1b[?25l\x1b[H")
    assert written.endswith("\x1b[?25h\x1b[?1049l")
    frame = _plain(written.partition("\x1b[H")[2].partition("\x1b[J")[0]).replace("\x1b[K", "").split("\r\n")
    assert len(frame) == 20
    assert re.fullmatch("… 1[0-9] more lines", frame[-1])
    assert "RATE" in frame[2] or "RATE" in frame[1]


BOOM = """
from twisted.internet.protocol import Factory, Protocol

class Boom(Protocol):
    def dataReceived(self, data):
        raise ValueError("first line\\nsecond line")

def factory():
    factory = Factory()
    factory.protocol = Boom
    return factory
"""


def _svcd(folder: Path, services: str, *words: str) -> list[str]:
    (folder / "services").write_text(services)
    (folder / "boom.py").write_text(BOOM)
    code = "import sys; sys.argv[0] = 'svcd'; from svcd.daemon.command import main; main()"
    return [sys.executable, "-c", code, "--services", str(folder / "services"), "--control", str(folder / "c"), *words]


def _port_of(service: str, text: str) -> int:
    (port,) = re.findall(rf" listen service={service} address=127\.0\.0\.1:([0-9]+) ", text)
    return int(port)


def test_a_start_in_the_foreground_suggests_what_to_do(open_folder: Path, terminal: Callable[..., Terminal]) -> None:
    """The two last lines name a client that works, and how to see the status and to stop."""
    screen = terminal(_svcd(open_folder, "echo 0/tcp bind=127.0.0.1\n"), 200)
    written = screen.until("Ctrl-C\r\n")
    *_, client, status = written.splitlines()
    port = _port_of("echo/tcp", written)
    assert re.fullmatch(rf"Try in another terminal: \S*svcctl echo 127\.0\.0\.1 {port} hello", client)
    assert re.fullmatch(rf"Status: \S*svcctl --control {open_folder}/c status   Stop: Ctrl-C", status)
    screen.type("\x03")
    screen.end()
    assert screen.process.returncode == 0


def test_a_traceback_is_lines_on_a_terminal(open_folder: Path, terminal: Callable[..., Terminal]) -> None:
    """Each line of it is indented; on a pipe it is one line."""
    words = _svcd(open_folder, "boom 0/tcp bind=127.0.0.1 factory=boom:factory\n")
    variables = {"PYTHONPATH": f"{open_folder}:{os.environ.get('PYTHONPATH', '')}"}

    def provoke(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
            client.sendall(b"x")
            client.recv(1)

    screen = terminal(words, 200, variables=variables)
    provoke(_port_of("boom/tcp", screen.until("Ctrl-C\r\n")))
    lines = screen.until("    second line\r\n").splitlines()
    start = lines.index("    Traceback (most recent call last):")
    assert " log level=critical message=" in lines[start - 1]
    assert "    builtins.ValueError: first line" in lines[start:]
    screen.type("\x03")
    screen.end()
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, env={**os.environ, **variables}
    )
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if " ready " in line:
            provoke(_port_of("boom/tcp", text))
        if "Traceback" in line:
            assert "first line\\nsecond line" in line
            process.terminate()
    assert "Traceback" in text
    assert "Try in another terminal" not in text
    process.stdout.close()
    assert process.wait(PATIENCE) == 0


def test_a_failed_start_is_a_record_in_a_json_log(open_folder: Path) -> None:
    """Also with one reader of both streams: each line is JSON and has a level."""
    words = _svcd(open_folder, "ecoh 7/tcp\n", "--log-format", "json")
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE)
    (record,) = map(json.loads, done.stdout.splitlines())
    assert (done.returncode, record["event"], record["level"]) == (78, "problem", "error")
    assert "did you mean 'echo'?" in record["text"]
    apart = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
    assert (json.loads(apart.stdout)["text"], apart.stderr) == (record["text"], "")


def test_the_services_file_is_watched(open_folder: Path, terminal: Callable[..., Terminal]) -> None:
    """With --watch a change of the file, and of what it includes, reloads; a mistake is logged."""
    (open_folder / "more").mkdir()
    services = f"echo 0/tcp bind=127.0.0.1\n@include {open_folder}/more/*\n"
    screen = terminal(_svcd(open_folder, services, "--watch"), 200)
    screen.until("Ctrl-C\r\n")
    (open_folder / "more/first").write_text("first 0/tcp echo bind=127.0.0.1\n")
    screen.until(" reload added=1 ")
    (open_folder / "more/first").write_text("ecoh 0/tcp\n")
    screen.until(" reload-failed problems=1")
    (open_folder / "more/first").unlink()
    screen.until(" reload added=0 removed=1 ")
    (open_folder / "new").write_text("other 0/tcp echo bind=127.0.0.1\n")
    (open_folder / "new").rename(open_folder / "services")
    screen.until(" reload added=1 removed=1 ")
    screen.type("\x03")
    screen.end()
    assert screen.process.returncode == 0


@pytest.mark.parametrize(
    ("redirection", "services", "status", "printed"),
    [
        (">&-", "echo 0/tcp bind=127.0.0.1\n", 73, "svcd: the standard output is closed; use --logfile FILE\n"),
        ("2>&-", "ecoh 7/tcp\n", 78, " problem text="),
    ],
)
def test_a_closed_stream(open_folder: Path, redirection: str, services: str, status: int, printed: str) -> None:
    """Without a standard output there is no log to write; without a standard error the log alone has the reasons."""
    words = ["sh", "-c", f'exec "$@" {redirection}', "sh", *_svcd(open_folder, services)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
    said = done.stdout + done.stderr
    assert (done.returncode, said.count("\n")) == (status, 1), said
    assert printed in said


def test_options_fit_the_terminal(terminal: Callable[..., Terminal]) -> None:
    """Descriptions are folded at its width, on a wide one at 96 columns."""
    words = [sys.executable, "-m", "svcd", "options"]
    assert max(map(len, terminal(words, 60).end().splitlines())) <= 60
    assert 90 < max(map(len, terminal(words, 200).end().splitlines())) <= 96
