"""Check of addresses: absent addresses and ports in use are faults; those of the running daemon are not."""

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

#: Documentation address (RFC 5737): no machine has it.
ABSENT = "192.0.2.1"


def _faults(
    line: str, served: Collection[str] = (), owners: Mapping[str, Process] | None = None, doubt: str = ""
) -> list[tuple[str, Severity]]:
    endpoints, _ = check(config_of(line), FakeFiles(), FakeMachine())
    return [(str(each), each.severity) for each in address_faults(endpoints, served, owners or {}, doubt)]


@pytest.fixture
def taken() -> Iterator[int]:
    """Return a port on which this process listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def test_an_absent_address() -> None:
    """An absent address is a fault at bind=; with freebind=yes it is none."""
    line = f"echo 0/tcp4 bind=127.0.0.1,{ABSENT}"
    reason = f"can't listen on {ABSENT}:0: this machine has no such address"
    ((text, severity),) = _faults(line)
    assert text.startswith(f"s:1:18: bind: {reason}; change bind=, or add freebind=yes")
    assert severity is Severity.FAULT
    assert _faults(f"{line} freebind=yes") == []


def test_a_port_in_use(taken: int) -> None:
    """A port in use is a fault that names the process; other addresses and datagrams are unaffected."""
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
    """A port of the running daemon is no fault: at the same address, nor at a wildcard address that includes it."""
    served = {f"127.0.0.1:{taken}"}
    assert _faults(f"echo {taken}/tcp4 bind=127.0.0.1", served) == []
    assert _faults(f"echo {taken}/tcp4", served) == []
    assert len(_faults(f"echo {taken}/tcp4 bind=127.0.0.1", {f"127.0.0.2:{taken}"})) == 1
    with socket.create_server(("127.0.0.2", taken)):
        # One of the two sockets belongs to another program.
        assert len(_faults(f"echo {taken}/tcp4", served)) == 1


def test_a_port_of_the_daemon_without_an_owner_in_proc(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """If /proc does not name the socket's owner, its address decides; a link-local one has no scope there."""
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
    """A datagram port in use is a fault; with reuse_port=yes it is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert len(_faults(f"echo {port}/udp4 bind=127.0.0.1")) == 1
        assert _faults(f"echo {port}/udp4 bind=127.0.0.1", {f"127.0.0.1:{port}"}) == []
        assert _faults(f"echo {port}/udp4 bind=127.0.0.1 reuse_port=yes") == []


def test_paths(tmp_path: Path) -> None:
    """The path of a UNIX socket that a program listens on is a fault; a stale socket file is none; no file is made."""
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
    """An abstract name is a fault as long as a socket is bound to it."""
    with socket.socket(socket.AF_UNIX) as server:
        name = f"svcd-test-{os.getpid()}"
        server.bind(f"\0{name}")
        server.listen()
        assert len(_faults(f"echo @{name}/unix")) == 1
        assert _faults(f"echo @{name}/unix", {f"@{name}"}) == []


def test_a_low_port_without_the_right_to_bind_it(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the user of the check may not bind the port, only a port in use is a fault, as far as /proc shows."""
    monkeypatch.setattr(address_check, "_bind", lambda _endpoint: errno.EACCES)
    assert len(_faults(f"echo {taken}/tcp4 bind=127.0.0.1")) == 1
    assert _faults(f"echo {taken}/tcp4 bind=127.0.0.1", {f"127.0.0.1:{taken}"}) == []
    assert _faults(f"echo {taken}/tcp4 bind=127.0.0.2") == []
    assert _faults(f"echo {taken}/tcp4 bind=127.0.0.1 reuse_port=yes") == []


def test_a_daemon_that_can_not_be_queried(monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    """If the daemon can't be queried, a port that may be its own is a warning; one of a known process is a fault."""
    line = f"echo {taken}/tcp4 bind=127.0.0.1"
    ((_, severity),) = _faults(line, doubt="perhaps")
    assert severity is Severity.FAULT
    monkeypatch.setattr(address_check, "owner_of", lambda _sockets: None)
    ((text, severity),) = _faults(line, doubt="perhaps")
    assert (severity, text.endswith("; perhaps")) == (Severity.WARNING, True)


def test_the_output_and_status_of_a_check(tmp_path: Path, taken: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A fault of an address is exit status 1, a mistake in the text 78; a port that the daemon serves is no fault."""
    path = tmp_path / "services"
    path.write_text(f"@defaults bind=127.0.0.1\necho {taken}/tcp4\nupper 0/tcp4\nfar 0/tcp4 echo bind={ABSENT}\n")
    assert main(["check", str(path)]) == 1
    output = capsys.readouterr()
    assert f"{path}:2:1: can't listen on 127.0.0.1:{taken}: Address already in use" in output.err
    assert f"{path}:4:22: bind: can't listen on {ABSENT}:0: " in output.err
    assert output.err.endswith("the machine can't serve echo/tcp4, far/tcp4 at the moment\n")
    assert "upper/tcp4  127.0.0.1:0" in output.out
    path.write_text(f"echo {taken}/tcp4 bind=127.0.0.1\nx 0/tcp colour=red\n")
    assert main(["check", str(path)]) == 78


@pytest.mark.parametrize("state", ["on", "paused", "broken"])
def test_addresses_of_the_daemon(taken: int, state: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Addresses that the running daemon serves are no faults, except those that it can't listen on."""
    problem = f"echo/tcp4: can't listen on 127.0.0.1:{taken}: Address already in use; choose another port"
    for problems, status in (([], 0), (["s:1:1: server: no"], 0), ([problem], 1)):
        row = {"service": "echo/tcp4", "state": state, "addresses": [f"127.0.0.1:{taken}"], "problems": problems}
        answer = {"services": [row], "pid": 7}

        def daemon_status(_chosen: argparse.Namespace, _patience: float, answer: object = answer) -> object:
            return answer

        monkeypatch.setattr("svcd.cli.control_commands.daemon_status", daemon_status)
        path = tmp_path / "services"
        path.write_text(f"echo {taken}/tcp4 bind=127.0.0.1\n")
        assert main(["check", str(path)]) == status


def test_the_doubt_about_a_daemon_of_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An ordinary user is warned of root's daemon, if there is one; with --control only that socket counts."""
    from argparse import Namespace

    monkeypatch.setattr("svcd.cli.control_commands.daemon_status", lambda *_: None)
    monkeypatch.setattr("svcd.cli.services_file._ROOTS_FOLDER", tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "running svcd" in KnownAddresses.now(Namespace(control=None)).doubt
    assert KnownAddresses.now(Namespace(control="/c")).doubt == ""
    monkeypatch.setattr("svcd.cli.services_file._ROOTS_FOLDER", tmp_path / "none")
    assert KnownAddresses.now(Namespace(control=None)).doubt == ""
