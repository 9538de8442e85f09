"""Tests of twistd with the reactor, and of a daemon on it: service after the fork, and reaping of children."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_ENVIRONMENT = {**os.environ, "PYTHONPATH": str(_ROOT)}

_TWISTD = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]

_APPLICATION = """
import os, sys
from twisted.application.service import Application, Service
from twisted.internet import protocol

class Echo(protocol.Protocol):
    def dataReceived(self, data):
        self.transport.write(data)
    def connectionMade(self):
        from twisted.internet import reactor
        reactor.spawnProcess(Child(self), sys.executable, [sys.executable, "-c", "raise SystemExit(7)"])

class Child(protocol.ProcessProtocol):
    def __init__(self, echo):
        self.echo = echo
    def processEnded(self, reason):
        self.echo.transport.write(b"exit %d" % reason.value.exitCode)

class Serving(Service):
    def privilegedStartService(self):
        from twisted.internet import reactor
        port = reactor.listenTCP(0, protocol.Factory.forProtocol(Echo), interface="127.0.0.1")
        with open("told", "w") as told:
            print(type(reactor).__name__, port.getHost().port, file=told)

from twisted.internet import reactor
# Made before the fork.
reactor.callLater(0, open("timer", "w").close)
application = Application("test")
Serving().setServiceParent(application)
"""


def test_daemon(tmp_path: Path) -> None:
    """A daemon of `twistd -r uv` serves clients after its forks, runs earlier timers, and reaps children."""
    (tmp_path / "application.py").write_text(_APPLICATION)
    log, pid_file = tmp_path / "log", tmp_path / "pid"
    command = [*_TWISTD, "-r", "uv", "--logfile", str(log), "--pidfile", str(pid_file), "-y", "application.py"]
    subprocess.run(command, cwd=tmp_path, env=_ENVIRONMENT, check=True, timeout=20)
    # twistd returns when the daemon has started.
    daemon = int(pid_file.read_text())
    # A pidfd is readable after the exit of a process, even if the process is no child.
    ended = os.pidfd_open(daemon)
    try:
        name, port = (tmp_path / "told").read_text().split()
        assert name == "UvReactor"
        clients = [socket.create_connection(("127.0.0.1", int(port)), timeout=20) for _ in range(30)]
        for client in clients:
            client.sendall(b"hello")
            received = b""
            while len(received) < len(b"helloexit 7"):
                received += client.recv(100)
            assert sorted(received) == sorted(b"helloexit 7")
            client.close()
        assert (tmp_path / "timer").exists()
    finally:
        os.kill(daemon, signal.SIGTERM)
        assert select.select([ended], [], [], 20)[0], log.read_text()
        os.close(ended)
    assert "Traceback" not in log.read_text()
    assert "Server Shut Down" in log.read_text()


def test_any_twisted_program(tmp_path: Path) -> None:
    """`twistd -r uv web --path .` serves files."""
    (tmp_path / "page.txt").write_text("hello " * 100_000)
    command = [*_TWISTD, "-n", "-r", "uv", "--pidfile=", "web", "--path", ".", "--listen", "tcp:0:interface=127.0.0.1"]
    with subprocess.Popen(command, cwd=tmp_path, env=_ENVIRONMENT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            lines: list[str] = []
            while "Site starting on" not in (line := server.stdout.readline()):
                assert line, lines
                lines.append(line)
            with socket.create_connection(("127.0.0.1", int(line.split()[-1])), timeout=20) as client:
                client.sendall(b"GET /page.txt HTTP/1.0\r\n\r\n")
                answer = b""
                while piece := client.recv(65536):
                    answer += piece
        finally:
            server.terminate()
            server.communicate()
    assert b" 200 OK\r\n" in answer
    assert answer.endswith(b"\r\n\r\n" + b"hello " * 100_000)
    assert any("UvReactor" in line for line in lines)
