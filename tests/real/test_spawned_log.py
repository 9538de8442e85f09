"""Log lines of handlers: their output, exit statuses and byte counts."""

from __future__ import annotations

import socket
import struct
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.real.daemon import exchange, fields
from tests.real.processes import Process, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.daemon import Daemon


def shell(folder: Path, name: str, text: str, options: str = "") -> str:
    """Return a service that runs a shell script."""
    (folder / name).write_text(text)
    return f'{name} 0/tcp bind=127.0.0.1 server="/bin/sh {folder}/{name}" {options}\n'


def test_standard_error(start: Callable[..., Daemon], open_folder: Path) -> None:
    """Standard error goes to the client, or with stderr=log each line goes to the log with its connection."""
    lines = "read x; echo first $x >&2; read y; printf 'second %s\\n\\n  third\\r\\nrest' $x >&2; echo answer"
    daemon = start(shell(open_folder, "plain", lines) + shell(open_folder, "logged", lines, "stderr=log"))
    assert exchange(daemon.connect("plain/tcp"), b"1\n\n") == b"first 1\nsecond 1\n\n  third\r\nrestanswer\n"
    clients = [daemon.connect("logged/tcp") for _ in range(2)]
    handlers = [str(pid) for pid in daemon.handlers("logged/tcp", 2)]
    for number, client in enumerate(clients):
        client.sendall(b"%d\n" % number)
        daemon.wait_event("output", "logged/tcp", number + 1)
    for number in (1, 0):
        assert exchange(clients[number], b"\n") == b"answer\n"
        daemon.wait_event("end", "logged/tcp", 2 - number)
    said = daemon.wait_event("output", "logged/tcp", 8)
    for number, pid in enumerate(handlers):
        own = [each["text"] for each in said if each["pid"] == pid]
        assert own == [f"first {number}", f"second {number}", "  third", "rest"]
    assert len({each["id"] for each in said}) == 2
    assert daemon.stop() == 0


def test_lines_that_are_no_text(start: Callable[..., Daemon], open_folder: Path) -> None:
    """A long line is split, bytes that are no text are escaped, and no output breaks a line of the log."""
    (open_folder / "junk.py").write_text(
        "import os\n"
        "os.write(2, b'x' * 10_000 + b'\\n')\n"
        "os.write(2, bytes(range(256)) * 300 + b'\\n')\n"
        "os.write(2, b'\\0open block' + b'y' * 100_000)\n"
        "os.write(2, b'\\0\\nlast\\n2026-01-01T00:00:00.000+00:00 end service=forged/tcp id=1\\n')\n"
    )
    daemon = start(
        f'junk 0/tcp bind=127.0.0.1 server="{sys.executable} -I -S {open_folder}/junk.py" stderr=log stderr_rate=none\n'
    )
    exchange(daemon.connect("junk/tcp"))
    daemon.wait_for(lambda line: "forged" in line)
    texts = [each["text"] for each in daemon.wait_event("output", "junk/tcp", 10)]
    assert [len(text) for text in texts[:3]] == [4096, 4096, 10_000 - 2 * 4096]
    assert max(map(len, texts)) < 4 * 32_768
    assert "\\xff" in "".join(texts)
    assert any("last" in text for text in texts)
    # Each line of the log is a line of svcd.
    events = {line.split(" ")[1] for line in daemon.lines}
    assert events <= {"log", "zygote", "listen", "ready", "launcher", "accept", "output", "end"}
    assert not daemon.wait_for(lambda line: line.startswith("2026-01-01"), 0)
    assert daemon.stop() == 0


FLOOD = 100_000


def test_flood(start: Callable[..., Daemon], open_folder: Path) -> None:
    """100,000 lines are all logged, do not grow launcher or daemon, and do not delay other services."""
    flood = f"i=0; while [ $i -lt {FLOOD} ]; do echo line $i; i=$((i+1)); done >&2"
    daemon = start(
        shell(open_folder, "flood", flood, "stderr=log stderr_rate=none") + "cat 0/tcp bind=127.0.0.1 server=/bin/cat\n"
    )
    exchange(daemon.connect("cat/tcp"), b"x")
    client = daemon.connect("flood/tcp")
    launcher = Process(daemon.launcher("flood/tcp"))
    # A young daemon still imports modules.
    daemon.wait_for(lambda line: f'"line {FLOOD // 4}"' in line)
    before = daemon.memory(), launcher.kilobytes("Pss")
    assert exchange(daemon.connect("cat/tcp"), b"x") == b"x"
    daemon.wait_for(lambda line: f'"line {FLOOD - 1}"' in line)
    assert exchange(client) == b""
    daemon.wait_event("end", "flood/tcp")
    assert daemon.memory() - before[0] < 8 * 1024**2
    assert launcher.kilobytes("Pss") - before[1] < 4 * 1024
    numbers = [line.rpartition(" ")[2].rstrip('"') for line in daemon.lines if " output " in line]
    assert numbers == [str(number) for number in range(FLOOD)]
    assert daemon.stop() == 0


def test_dropped_lines(start: Callable[..., Daemon], open_folder: Path) -> None:
    """By default the lines per second are limited, and `dropped` lines count all others."""
    flood = f"i=0; while [ $i -lt {FLOOD} ]; do echo line $i; i=$((i+1)); done >&2"
    daemon = start(shell(open_folder, "flood", flood, "stderr=log"))
    client = daemon.connect("flood/tcp")
    assert exchange(client) == b""
    daemon.wait_event("end", "flood/tcp")

    def counted() -> int:
        lines = [fields(line) for line in list(daemon.lines) if " service=flood/tcp " in line]
        said = sum(line["event"] == "output" for line in lines)
        return said + sum(int(line["lines"]) for line in lines if line["event"] == "dropped")

    wait_until(lambda: counted() == FLOOD, "every line is told or counted")
    dropped = daemon.wait_event("dropped", "flood/tcp")
    assert {line["rule"] for line in dropped} == {"stderr_rate=100/s,64K/s"}
    said = [line for line in daemon.lines if " output " in line]
    # The lines of a second at once, and then at the rate.
    assert len(said) < FLOOD / 10
    assert not daemon.wait_for(lambda line: " state=lost " in line, 0)
    assert daemon.stop() == 0


def test_endless_line(start: Callable[..., Daemon], open_folder: Path) -> None:
    """A line of 50 MB does not grow launcher or daemon."""
    endless = "head -c 50000000 /dev/zero | tr '\\0' x >&2"
    daemon = start(shell(open_folder, "endless", endless, "stderr=log"))
    client = daemon.connect("endless/tcp")
    launcher = Process(daemon.launcher("endless/tcp"))
    before = daemon.memory(), launcher.kilobytes("Pss")
    assert exchange(client) == b""
    daemon.wait_event("end", "endless/tcp")
    daemon.wait_event("dropped", "endless/tcp")
    assert daemon.memory() - before[0] < 8 * 1024**2
    assert launcher.kilobytes("Pss") - before[1] < 4 * 1024
    assert daemon.stop() == 0


def test_statuses_and_durations(start: Callable[..., Daemon], open_folder: Path) -> None:
    """The end line of a handler has its exit status and processor time; with log_on_success=none there is no line."""
    busy = "read x; i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; exit 42"
    daemon = start(
        shell(open_folder, "busy", busy)
        + shell(open_folder, "quiet", busy, "log_on_success=none")
        + shell(open_folder, "short", busy, "log_on_success=EXIT")
    )
    for name in ("quiet", "short", "busy"):
        assert exchange(daemon.connect(f"{name}/tcp"), b"\n") == b""
    (end,) = daemon.wait_event("end", "busy/tcp")
    assert (end["reason"], end["exit"]) == ("done", "42")
    assert 0 < float(end["user"]) + float(end["system"]) < 10
    assert 0 < float(end["seconds"]) < 60
    assert set(daemon.wait_event("end", "short/tcp")[0]) >= {"event", "service", "id", "count", "exit"}
    assert "pid" not in daemon.wait_event("accept", "short/tcp")[0]
    assert daemon.stop() == 0
    about = {line.split(" ")[1] for line in daemon.lines if " service=quiet/tcp " in line}
    assert about == {"listen", "launcher", "close"}


# Ways in which a handler leaves its connection, and the bytes from the client and to it.
TRAFFIC = {
    "cat": ("/bin/cat", b"x" * 100_000, 100_000, 100_000),
    "none": ("/bin/true", b"", 0, 0),
    "big": (f"/usr/bin/head -c 3000000 {sys.executable}", b"", 0, 3_000_000),
    "shut": ("{python} {folder}/shut.py", b"12345", 5, 3),
    "first": ("{python} {folder}/first.py", b"12345", 5, 3),
}
SHUT = """
import socket
sock = socket.socket(fileno=0)
sock.sendall(b"abc")
sock.shutdown(socket.SHUT_WR)
while sock.recv(100):
    pass
"""
FIRST = SHUT.replace("while", "sock.recv(100)\nwhile 0 and")


def test_traffic(start: Callable[..., Daemon], open_folder: Path) -> None:
    """The bytes of a TCP connection are logged exactly, whichever side closes first."""
    if Path(sys.executable).stat().st_size < 3_000_000:
        pytest.skip("this Python is no large file")
    (open_folder / "shut.py").write_text(SHUT)
    (open_folder / "first.py").write_text(FIRST)
    places = {"python": f"{sys.executable} -I -S", "folder": open_folder}
    daemon = start(
        "@defaults bind=127.0.0.1 log_on_success=TRAFFIC,EXIT\n"
        + "".join(f'{name} 0/tcp server="{row[0].format(**places)}"\n' for name, row in TRAFFIC.items())
    )
    for name, (_, question, received, sent) in TRAFFIC.items():
        client = daemon.connect(f"{name}/tcp")
        # A client that sends much must read meanwhile.
        sender = threading.Thread(target=lambda c=client, q=question: (c.sendall(q), c.shutdown(socket.SHUT_WR)))
        with client:
            sender.start()
            answer = b""
            while piece := client.recv(65_536):
                answer += piece
            sender.join()
            (end,) = daemon.wait_event("end", f"{name}/tcp")
        assert len(answer) == sent, name
        assert (name, int(end["in"]), int(end["out"])) == (name, received, sent)
    assert daemon.stop() == 0


def test_traffic_of_a_client_that_resets(start: Callable[..., Daemon]) -> None:
    """The bytes that a client has sent before it resets its connection are counted."""
    daemon = start("cat 0/tcp bind=127.0.0.1 server=/bin/cat log_on_success=TRAFFIC\n")
    with daemon.connect("cat/tcp") as client:
        client.sendall(b"12345")
        assert client.recv(5, socket.MSG_WAITALL) == b"12345"
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    (end,) = daemon.wait_event("end", "cat/tcp")
    assert (end["in"], end["out"]) == ("5", "5")
    assert daemon.stop() == 0
