"""A check of addresses: absent ones and those in use are faults, the running daemon's own are none."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

import pytest

from svcd.cli import main
from svcd.cli.services_file import KnownAddresses
from svcd.config.endpoints import check
from svcd.model import Severity
from svcd.net.port_owner import BoundSocket, Process, bound_sockets, socket_owners
from svcd.sockets import address_check
from svcd.sockets.address_check import address_faults
from tests.doubles import FakeFiles, FakeMachine, config_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

#: RFC 5737: no machine has it.
ABSENT = "192.0.2.1"


def _faults(
    line: str, served: Collection[str] = (), owners: Mapping[str, Process] | None = None, doubt: str = ""
) -> list[tuple[str, Severity]]:
    endpoints, _ = check(config_of(line), FakeFiles(), FakeMachine())
    return [(str(each), each.severity) for each in address_faults(endpoints, served, owners or {}, doubt)]


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that this process listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def test_an_absent_address() -> None:
    """Stands at bind=; with freebind=yes it may come later."""
    line = f"echo 0/tcp4 bind=127.0.0.1,{ABSENT}"
    reason = f"can't listen on {ABSENT}:0: this machine has no such address"
    ((text, severity),) = _faults(line)
    assert text.startswith(f"s:1:18: bind: {reason}; change bind=, or add freebind=yes")
    assert severity is Severity.FAULT
    assert _faults(f"{line} freebind=yes") == []


def test_a_port_in_use(taken: int) -> None:
    """The process that has it is named; an address that it does not have is free, and datagrams are another matter."""
    ((text, severity),) = _faults(f"echo {taken}/tcp4 bind=127.0.0.1")
    own = Process(os.getpid(), "")
    assert text.startswith(f"s:1:1: can't listen on 127.0.0.1:{taken}: Address already in use")
    assert "choose another port" in text
    assert severity is Severity.FAULT
    (sock,) = bound_sockets(socket.SOCK_STREAM, "127.0.0.1", taken)
    assert socket_owners()[sock.inode].pid == own.pid
    ((text, _),) = _faults(f"echo {taken}/tcp4", owners={sock.inode: Process(4711, "nc")})
    assert f"0.0.0.0:{taken}: Address already in use by nc (pid 4711); stop nc, or choose another port" in text
    assert _faults(f"echo {taken}/tcp4 bind=127.0.0.2") == []


def test_a_port_of_the_running_daemon(taken: int) -> None:
    """Is its own: under the same address, and under one that has this in it."""
    served = {f"127.0.0.1:{taken}"}
    assert _faults(f"echo {taken}/tcp4 bind=127.0.0.1", served) == []
    assert _faults(f"echo {taken}/tcp4", served) == []
    assert len(_faults(f"echo {taken}/tcp4 bind=127.0.0.1", {f"127.0.0.2:{taken}"})) == 1
    with socket.create_server(("127.0.0.2", taken)):
        # One of two is another program's.
        assert len(_faults(f"echo {taken}/tcp4", served)) == 1


def test_a_port_of_the_daemon_that_proc_does_not_tell(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the same address is the daemon's; a link-local one is told by the kernel without its interface."""
    line, served = f"echo {taken}/tcp4 bind=127.0.0.1", {f"127.0.0.1:{taken}"}
    monkeypatch.setattr(address_check, "bound_sockets", lambda *_: [])
    assert _faults(line, served) == []
    assert len(_faults(line)) == 1
    monkeypatch.setattr(address_check, "_bind", lambda _endpoint: errno.EADDRINUSE)
    monkeypatch.setattr(address_check, "bound_sockets", lambda *_: [BoundSocket("fe80::1", 7, "1")])
    line = "echo 7/tcp6 bind=fe80::1%lo"
    assert _faults(line, {"[fe80::1%lo]:7"}) == []
    assert len(_faults(line, {"[fe80::2%lo]:7"})) == 1


def test_a_port_of_datagrams() -> None:
    """As for streams; where the port may be shared nothing is taken from whoever has it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert len(_faults(f"echo {port}/udp4 bind=127.0.0.1")) == 1
        assert _faults(f"echo {port}/udp4 bind=127.0.0.1", {f"127.0.0.1:{port}"}) == []
        assert _faults(f"echo {port}/udp4 bind=127.0.0.1 reuse_port=yes") == []


def test_paths(tmp_path: Path) -> None:
    """A UNIX socket at which a program listens is in use; a file that was left is not, and none is made."""
    path = tmp_path / "s"
    line = f"echo {path}/unix"
    assert _faults(line) == []
    assert not path.exists()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        ((text, _),) = _faults(line)
        assert f"can't listen on {path}: Address already in use" in text
        assert _faults(line, {str(path)}) == []
    assert _faults(line) == []


def test_abstract_names() -> None:
    """Are in use as long as a socket has them."""
    with socket.socket(socket.AF_UNIX) as server:
        name = f"svcd-test-{os.getpid()}"
        server.bind(f"\0{name}")
        server.listen()
        assert len(_faults(f"echo @{name}/unix")) == 1
        assert _faults(f"echo @{name}/unix", {f"@{name}"}) == []


def test_a_low_port_without_the_right_to_bind_it(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user of a check may not be the one who serves: only a port in use is a fault, as far as /proc tells."""
    monkeypatch.setattr(address_check, "_bind", lambda _endpoint: errno.EACCES)
    assert len(_faults(f"echo {taken}/tcp4 bind=127.0.0.1")) == 1
    assert _faults(f"echo {taken}/tcp4 bind=127.0.0.1", {f"127.0.0.1:{taken}"}) == []
    assert _faults(f"echo {taken}/tcp4 bind=127.0.0.2") == []
    assert _faults(f"echo {taken}/tcp4 bind=127.0.0.1 reuse_port=yes") == []


def test_doubt(monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    """Where the daemon can't be asked, a port that it may have itself is a warning; of a known process a fault."""
    line = f"echo {taken}/tcp4 bind=127.0.0.1"
    ((_, severity),) = _faults(line, doubt="perhaps")
    assert severity is Severity.FAULT
    monkeypatch.setattr(address_check, "owner_of", lambda _sockets: None)
    ((text, severity),) = _faults(line, doubt="perhaps")
    assert (severity, text.endswith("; perhaps")) == (Severity.WARNING, True)


def test_what_a_check_says(tmp_path: Path, taken: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A fault of an address is status 1, a mistake of the text 78; with a daemon that serves the port there is none."""
    path = tmp_path / "services"
    path.write_text(f"@defaults bind=127.0.0.1\necho {taken}/tcp4\nupper 0/tcp4\nfar 0/tcp4 echo bind={ABSENT}\n")
    assert main(["check", str(path)]) == 1
    said = capsys.readouterr()
    assert f"{path}:2:1: can't listen on 127.0.0.1:{taken}: Address already in use" in said.err
    assert f"{path}:4:22: bind: can't listen on {ABSENT}:0: " in said.err
    assert said.err.endswith("the machine can't serve echo/tcp4, far/tcp4 at the moment\n")
    assert "upper/tcp4  127.0.0.1:0" in said.out
    path.write_text(f"echo {taken}/tcp4 bind=127.0.0.1\nx 0/tcp colour=red\n")
    assert main(["check", str(path)]) == 78


@pytest.mark.parametrize("state", ["on", "paused", "broken"])
def test_what_the_daemon_serves(taken: int, state: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its addresses are no faults, but for those that it can't listen on."""
    problem = f"echo/tcp4: can't listen on 127.0.0.1:{taken}: Address already in use; choose another port"
    for problems, status in (([], 0), (["s:1:1: server: no"], 0), ([problem], 1)):
        row = {"service": "echo/tcp4", "state": state, "addresses": [f"127.0.0.1:{taken}"], "problems": problems}
        answer = {"services": [row], "pid": 7}

        def asked(_chosen: argparse.Namespace, _patience: float, answer: object = answer) -> object:
            return answer

        monkeypatch.setattr("svcd.cli.control_commands.daemon_status", asked)
        path = tmp_path / "services"
        path.write_text(f"echo {taken}/tcp4 bind=127.0.0.1\n")
        assert main(["check", str(path)]) == status


def test_a_daemon_of_root_that_can_not_be_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An ordinary user is told so where there is one; another socket that is named is asked alone."""
    from argparse import Namespace

    monkeypatch.setattr("svcd.cli.control_commands.daemon_status", lambda *_: None)
    monkeypatch.setattr("svcd.cli.services_file._ROOTS_FOLDER", tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "running svcd" in KnownAddresses.now(Namespace(control=None)).doubt
    assert KnownAddresses.now(Namespace(control="/c")).doubt == ""
    monkeypatch.setattr("svcd.cli.services_file._ROOTS_FOLDER", tmp_path / "none")
    assert KnownAddresses.now(Namespace(control=None)).doubt == ""
