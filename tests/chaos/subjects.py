"""Services in which the chaos test injects faults, and repairs them, at random."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Subject", "free_port", "probe", "subjects"]

_FACTORY = """
import os, pathlib
from twisted.internet.protocol import Factory, Protocol

MODE = pathlib.Path(__file__).with_name("mode")

def fail_in(name):
    if MODE.read_text() == name:
        raise RuntimeError("no " + name)

class Echo(Protocol):
    def dataReceived(self, data):
        fail_in("dataReceived")
        self.transport.write(data)

class make(Factory):
    noisy = False
    protocol = Echo

    def doStart(self):
        fail_in("doStart")
        super().doStart()

    def doStop(self):
        fail_in("doStop")
        super().doStop()

    def startFactory(self):
        fail_in("startFactory")

    def stopFactory(self):
        fail_in("stopFactory")

    def buildProtocol(self, addr):
        fail_in("buildProtocol")
        return super().buildProtocol(addr)
"""
_MODULES = {
    "good": "def serve(sock, address):\n    sock.sendall(b'x')\n",
    "syntax": "def serve(sock, address)\n",
    "raises": "raise RuntimeError('no import')\n",
    "exits": "import sys\nsys.exit(3)\n",
    "slow": "import time\ntime.sleep(1.5)\ndef serve(sock, address):\n    sock.sendall(b'x')\n",
    "handler raises": "def serve(sock, address):\n    raise RuntimeError('no')\n",
    "dies": "import os\ndef serve(sock, address):\n    os._exit(9)\n",
}
_PROGRAMS = {
    "good": "#!/bin/sh\necho x\n",
    "no interpreter": "#!/nowhere/sh\n",
    "fails": "#!/bin/sh\nexit 3\n",
    "complains": "#!/bin/sh\nfor i in 1 2 3 4 5 6 7 8 9; do echo complaint $i >&2; done\n",
}
# A wait=yes program: it holds the socket for some seconds, and sets it to blocking and non-blocking at random.
_WAIT_PROGRAM = """
import os, random, select, socket, sys, time
sock = socket.socket(fileno=os.dup(0))
end = time.monotonic() + random.uniform(0.5, 6)
while time.monotonic() < end:
    os.set_blocking(0, random.random() < 0.5)
    if select.select([sock], [], [], 0.05)[0]:
        os.set_blocking(0, False)
        try:
            if sys.argv[1] == "tcp":
                client, _ = sock.accept()
                client.sendall(b"x")
                client.close()
            else:
                data, peer = sock.recvfrom(1000)
                sock.sendto(data, peer)
        except OSError:
            pass
os.set_blocking(0, True)
"""


@dataclass
class Subject:
    """Service, with the faults and repairs that can be made to it.

    Attributes:
        name: the name of the service.
        line: returns the current line of the services file.
        actions: the faults and repairs, by name.
        address: where clients connect: a port of 127.0.0.1, or a path; 0 for none.
        datagrams: whether the service is a datagram service.
        listed: whether the services file has the line.
    """

    name: str
    line: Callable[[], str]
    actions: Mapping[str, Callable[[], object]]
    address: int | Path = 0
    datagrams: bool = False
    listed: bool = True

    def toggle_listed(self) -> None:
        """Remove the line from the services file, or add it again."""
        self.listed = not self.listed


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """Return a port that is free in this network namespace."""
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _file_actions(path: Path, texts: dict[str, str], mode: int = 0o644) -> dict[str, Callable[[], object]]:
    """Return actions that write a file, one for each text, or remove it."""

    def write(text: str) -> Callable[[], None]:
        def action() -> None:
            # Half of the writes are in place, as by some editors, and half replace the file by rename(2).
            new = path.with_suffix(".new") if random.random() < 0.5 else path
            new.write_text(text)
            new.chmod(mode)
            new.rename(path)

        return action

    path.parent.mkdir(parents=True, exist_ok=True)
    write(texts["good"])()
    actions: dict[str, Callable[[], object]] = {name: write(text) for name, text in texts.items()}
    return actions | {"missing": lambda: path.unlink(missing_ok=True), "good again": write(texts["good"])}


def _port(name: str, kind: socket.SocketKind) -> Subject:
    """Return a service whose port this process binds at times."""
    ports = [free_port(kind), free_port(kind)]
    bound: list[socket.socket] = []
    net = "tcp" if kind == socket.SOCK_STREAM else "udp"

    def take() -> None:
        sock = socket.socket(socket.AF_INET, kind)
        try:
            sock.bind(("127.0.0.1", ports[0]))
            if kind == socket.SOCK_STREAM:
                sock.listen()
        except OSError:
            sock.close()
        else:
            bound.append(sock)

    def release() -> None:
        while bound:
            bound.pop().close()

    actions = {"taken": take, "released": release, "moved": ports.reverse}
    return Subject(name, lambda: f"{name} {ports[0]}/{net} echo", actions, ports[0], kind == socket.SOCK_DGRAM)


def _always(line: str) -> Callable[[], str]:
    """Return a function that returns the same line always."""
    return lambda: line


def _first(start: str, words: list[str]) -> str:
    return f"{start} {words[0]}"


def _ip(*words: str) -> Callable[[], object]:
    return lambda: subprocess.run(["ip", *words], check=False, capture_output=True)


def _addresses() -> list[Subject]:
    """Return services on addresses and on an interface that are added and removed."""
    found = []
    for number in (1, 2):
        address, port = f"10.77.0.{number}", free_port()
        actions = {
            "added": _ip("addr", "add", f"{address}/32", "dev", "lo"),
            "removed": _ip("addr", "del", f"{address}/32", "dev", "lo"),
        }
        found.append(Subject(f"addr{number}", _always(f"addr{number} {port}/tcp echo bind={address}"), actions))
    port = free_port()
    actions = {
        "link added": lambda: [
            _ip("link", "add", "chaos0", "type", "dummy")(), _ip("link", "set", "chaos0", "up")(),
            _ip("addr", "add", "10.77.1.1/32", "dev", "chaos0")(),
        ],
        "link removed": _ip("link", "del", "chaos0"),
    }  # fmt: skip
    found.append(Subject("iface", _always(f"iface {port}/tcp echo bind=chaos0"), actions))
    return found


def _handlers(folder: Path) -> list[Subject]:
    """Return services with Python handlers, factories and programs that are replaced by broken ones and repaired."""
    found = []
    for name, options in {"fork": "", "thread": "model=thread", "late": "start_timeout=1s"}.items():
        port = free_port()
        actions = _file_actions(folder / "modules" / f"h{name}.py", _MODULES)
        line = f"{name} {port}/tcp python=h{name}:serve python_path={folder}/modules {options}"
        found.append(Subject(name, _always(line), actions, port))
    for name in ("makes", "builds"):
        port = free_port()
        (folder / name).mkdir()
        (folder / name / f"f{name}.py").write_text(_FACTORY)
        modes = ("good", "startFactory", "stopFactory", "buildProtocol", "doStart", "doStop", "dataReceived")
        actions = _file_actions(folder / name / "mode", {mode: mode for mode in modes})
        found.append(Subject(name, _always(f"{name} {port}/tcp factory=f{name}:make"), actions, port))
    for name in ("prog", "tool"):
        port = free_port()
        path = folder / "bin" / name
        actions = _file_actions(path, _PROGRAMS, 0o755)
        actions["not executable"] = partial(path.chmod, 0o644)
        found.append(Subject(name, _always(f"{name} {port}/tcp server={path} stderr=log"), actions, port))
    return found


def _waiting(folder: Path) -> list[Subject]:
    """Return services whose line alternates between a wait=yes program and a built-in."""
    (folder / "waits.py").write_text(_WAIT_PROGRAM)
    found = []
    for name, net, kind in (("waits", "tcp", socket.SOCK_STREAM), ("waitu", "udp", socket.SOCK_DGRAM)):
        port = free_port(kind)
        server = f'server="{sys.executable} -I -S {folder}/waits.py {net}" wait=yes'
        now = [server, "echo"]
        line = partial(_first, f"{name} {port}/{net}", now)
        found.append(Subject(name, line, {"given or own": now.reverse}, port, net == "udp"))
    return found


def _files(folder: Path) -> list[Subject]:
    """Return services that need a certificate, a directory, a banner, or the directory of a UNIX socket."""
    pem = {}
    for name in ("good", "other"):
        signed = Authority(name).sign("localhost")
        pem[name] = (signed.pem.decode(), signed.key_pem.decode())
    certificate, port = folder / "tls" / "cert.pem", free_port()
    texts = {
        "good": "".join(pem["good"]), "no key": pem["good"][0], "other key": pem["good"][0] + pem["other"][1],
        "garbage": "garbage\n", "empty": "",
    }  # fmt: skip
    actions = _file_actions(certificate, texts, 0o600)
    found = [Subject("secure", _always(f"secure {port}/tcp echo tls_cert={certificate}"), actions, port)]
    root, pages = folder / "www", free_port()
    actions = {"made": partial(root.mkdir, exist_ok=True), "removed": partial(shutil.rmtree, root, ignore_errors=True)}
    found.append(Subject("pages", _always(f"pages {pages}/tcp http root={root}"), actions, pages))
    banner, greeted = folder / "banner", free_port()
    actions = _file_actions(banner, {"good": "hello\n"})
    found.append(Subject("greeted", _always(f"greeted {greeted}/tcp echo banner={banner}"), actions, greeted))
    local = folder / "local" / "sock"
    actions = {
        "socket removed": partial(local.unlink, missing_ok=True),
        "folder removed": partial(shutil.rmtree, local.parent, ignore_errors=True),
        "folder made": partial(local.parent.mkdir, exist_ok=True),
    }
    found.append(Subject("local", _always(f"local {local}/unix echo"), actions, local))
    return found


def _names() -> list[Subject]:
    """Return services that need the name server, which does not answer."""
    found = []
    for name, options in {
        "away": "redirect=nosuch.example.org:80 connect_timeout=1s",
        "listed": "echo only_from=.example.org",
        "asks": "echo resolve=yes",
    }.items():
        port = free_port()
        found.append(Subject(name, _always(f"{name} {port}/tcp {options}"), {}, port))
    return found


def subjects(folder: Path) -> list[Subject]:
    """Return all services, without faults; their files are created in a directory."""
    found = [_port("port1", socket.SOCK_STREAM), _port("port2", socket.SOCK_STREAM), _port("portu", socket.SOCK_DGRAM)]
    found += [*_addresses(), *_handlers(folder), *_waiting(folder), *_files(folder), *_names()]
    for subject in found:
        subject.actions = {**subject.actions, "taken out or put back": subject.toggle_listed}
    return found


def probe(subject: Subject) -> None:
    """Connect to a service, send a byte and read the answer; ignore all errors."""
    address: object = (
        os.fspath(subject.address) if isinstance(subject.address, Path) else ("127.0.0.1", subject.address)
    )
    family = socket.AF_UNIX if isinstance(subject.address, Path) else socket.AF_INET
    kind = socket.SOCK_DGRAM if subject.datagrams else socket.SOCK_STREAM
    with socket.socket(family, kind) as sock, contextlib.suppress(OSError):
        sock.settimeout(random.choice((0.02, 0.3)))
        sock.connect(address)  # type: ignore[arg-type]
        sock.send(b"x")
        sock.recv(10)
