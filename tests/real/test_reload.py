"""A daemon that changes while it serves: nobody is refused, reset or served short."""

from __future__ import annotations

import os
import select
import signal
import socket
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.real.daemon import PATIENCE, environment, exchange, fields
from tests.real.load import Load

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.real.daemon import Daemon

REACTORS = ["uv", "epoll"]


def _reload(daemon: Daemon, text: str, *, event: str = "reload") -> str:
    """Let the daemon reload another text; returns the line that says what came of it."""
    before = len([line for line in daemon.lines if f" {event} " in line])
    daemon.file.write_text(text)
    daemon.process.send_signal(signal.SIGHUP)
    return daemon.wait_for(lambda line: f" {event} " in line, before + 1)[-1]


def _port(daemon: Daemon, service: str) -> int:
    return int(daemon.addresses(service)[-1].rpartition(":")[2])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("reactor", REACTORS)
def test_services_come_go_and_change(start: Callable[..., Daemon], reactor: str) -> None:
    """New ones are served, removed ones are closed, changed ones have the new options for new connections."""
    text = "@defaults bind=127.0.0.1\nkeep 0/tcp echo\ngone 0/tcp echo\nother 0/tcp echo\n"
    daemon = start(text, twistd_arguments=["--reactor", reactor])
    keep, gone, other = (_port(daemon, f"{name}/tcp") for name in ("keep", "gone", "other"))
    with socket.create_connection(("127.0.0.1", gone), PATIENCE) as old:
        new = "@defaults bind=127.0.0.1\nkeep 0/tcp echo\nother 0/tcp upper\nfresh 0/tcp daytime\n"
        line = _reload(daemon, new)
        assert "added=1 removed=1 changed=1 opened=1 closed=1" in line
        assert exchange(socket.create_connection(("127.0.0.1", keep), PATIENCE), b"a") == b"a"
        assert exchange(socket.create_connection(("127.0.0.1", other), PATIENCE), b"a") == b"A"
        assert b"20" in exchange(daemon.connect("fresh/tcp"))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", gone), PATIENCE)
        # Who came before goes on.
        assert exchange(old, b"hello") == b"hello"


#: Mistakes that a services file may have, each with what the log says of it. {folder} is the daemon's folder.
MISTAKES = {
    "ecoh 0/tcp": "did you mean 'echo'?",
    "x 0/tcp": "no handler for 'x'",
    "x": "'x' has no port",
    "echo 7/sctp": "SCTP is not supported",
    "x 70000/tcp echo": "not a number from 0 to 65535",
    'x 0/tcp echo description="no end': 'no closing "',
    "x 0/tcp echo colour=red": "unknown option 'colour'",
    "x 0/tcp echo backlog=none": "backlog takes a whole number",
    "x 0/tcp echo backlog=1 backlog=2": "backlog is set twice",
    "x 0/udp server=/bin/cat": "udp has no connections",
    "x 0/tcp server=/bin/cat python=os:x": "already selects the handler",
    "x 0/tcp redirect=nowhere": "redirect takes host:port",
    "echo 0/tcp": "echo/tcp is already defined at",
    "x 5001/tcp echo\ny 5001/tcp echo": "is taken by x/tcp",
    "x 0/tcp\0": "control character",
    "@include none": "can't read {folder}/none",
    "@include services": "includes itself",
    "@inclde x": "unknown directive '@inclde'",
}
#: What the machine may lack for a service, each with what the log says of it. {taken} is a port that is in use;
#: garbage.pem in {folder} is no certificate.
FAULTS = {
    "x 0/tcp server=/no/such/program": "can't run /no/such/program",
    "x 0/tcp server=/bin/cat user=no_such_user": "no user 'no_such_user'",
    "x 0/tcp server=/bin/cat chroot=/no/such": "can't use /no/such",
    "x 0/tcp factory=no_such_module:x": "No module named 'no_such_module'",
    "x 0/tcp factory=ours:value": "neither a Factory nor callable",
    "x 0/tcp factory=ours:fails": "no luck",
    "x 0/tcp python=no_such_module:x": "can't import no_such_module:x",
    "x 0/tcp http root=/no/such/folder": "not a readable directory",
    "x 0/tcp echo banner=/no/such": "can't read /no/such",
    "x 0/tcp echo tls_cert={folder}/none.pem": "can't read {folder}/none.pem",
    "x 0/tcp echo tls_cert={folder}/garbage.pem": "there is no certificate in it",
    "x 0/tcp echo access_zone=Mars/Base": "no time zone 'Mars/Base'",
    "x 0/tcp echo bind=no-such-interface": "not an address, interface or known host name",
    "x 0/tcp echo bind=192.0.2.1": "this machine has no such address",
    "x {folder}/none/sock/unix echo": "its directory does not exist",
    "x {taken}/tcp echo": "Address already in use by",
}


@pytest.mark.load
@pytest.mark.parametrize("reactor", REACTORS)
def test_a_bad_file_changes_nothing(start: Callable[..., Daemon], reactor: str) -> None:
    """Whatever is wrong with it, the log says so, and no client of 64 in closed loops notices anything."""
    text = "@defaults bind=127.0.0.1\necho 0/tcp\nday 0/tcp daytime\n"
    daemon = start(text, twistd_arguments=["--reactor", reactor])
    load = Load(_port(daemon, "echo/tcp"), _port(daemon, "day/tcp"), pause=0.01)
    with load.going_on():
        said = partial(str.format, folder=daemon.folder)
        for mistake, wanted in MISTAKES.items():
            before = len(daemon.lines)
            _reload(daemon, f"{text}{said(mistake)}\n", event="reload-failed")
            problems = [fields(line)["text"] for line in daemon.lines[before:] if " problem " in line]
            assert any(said(wanted) in problem for problem in problems), (mistake, problems)
        # A file that can't be read: it is a folder, it is not there.
        daemon.file.unlink()
        daemon.file.mkdir()
        for reason in ("Is a directory", "No such file or directory"):
            before = len(daemon.lines)
            daemon.process.send_signal(signal.SIGHUP)
            daemon.wait_for(lambda line: " reload-failed " in line, len(MISTAKES) + (1 if "Is" in reason else 2))
            assert any(" problem " in line and reason in line for line in daemon.lines[before:])
            if daemon.file.exists():
                daemon.file.rmdir()
    assert load.wrong == []
    assert load.done > 100
    assert len([line for line in daemon.lines if " listen service=" in line]) == 2
    _reload(daemon, text)


@pytest.mark.load
@pytest.mark.parametrize("reactor", REACTORS)
def test_a_fault_breaks_its_service_alone(start: Callable[..., Daemon], tmp_path: Path, reactor: str) -> None:
    """Whatever the machine lacks for a service, the log says so, and no client of the others notices anything."""
    (tmp_path / "ours.py").write_text("value = 3\n\ndef fails():\n    raise RuntimeError('no luck')\n")
    text = "@defaults bind=127.0.0.1\necho 0/tcp\nday 0/tcp daytime\n"
    env = {"PYTHONPATH": f"{environment()['PYTHONPATH']}:{tmp_path}"}
    daemon = start(text, twistd_arguments=["--reactor", reactor], env=env)
    (daemon.folder / "garbage.pem").write_text("hello")
    load = Load(_port(daemon, "echo/tcp"), _port(daemon, "day/tcp"), pause=0.01)
    with socket.create_server(("127.0.0.1", 0)) as taken, load.going_on():
        said = partial(str.format, folder=daemon.folder, taken=taken.getsockname()[1])
        for count, (fault, wanted) in enumerate(FAULTS.items(), 1):
            line = _reload(daemon, f"{text}{said(fault)}\nnew{count} 0/tcp echo\n")
            assert " broken=1 " in line
            broken = daemon.wait_for(lambda line: " broken service=x/" in line, count)[-1]
            assert said(wanted) in fields(broken)["reason"], fault
            assert exchange(daemon.connect(f"new{count}/tcp"), b"a") == b"a"
            # Without the line nothing is broken any more.
            assert " broken=0 " in _reload(daemon, text)
    assert load.wrong == []
    assert load.done > 100


@pytest.mark.parametrize("reactor", REACTORS)
def test_an_address_may_become_wider_and_narrower(start: Callable[..., Daemon], reactor: str) -> None:
    """The new socket is there before the old one goes, though they are in each other's way."""
    daemon, texts, port = _at_a_port_of_its_own(start, reactor)
    for number in range(4):
        assert "opened=1 closed=1" in _reload(daemon, texts[number % 2])
        assert exchange(socket.create_connection(("127.0.0.1", port), PATIENCE), b"x") == b"x"


def _at_a_port_of_its_own(start: Callable[..., Daemon], reactor: str) -> tuple[Daemon, list[str], int]:
    """A daemon at a narrow address whose port nobody has at any other: a client of somebody's may have got it."""
    for _ in range(10):
        port = _free_port()
        texts = [f"echo {port}/tcp4 bind=127.0.0.1\n", f"echo {port}/tcp4\n"]
        daemon = start(texts[0], twistd_arguments=["--reactor", reactor])
        daemon.file.write_text(texts[1])
        daemon.process.send_signal(signal.SIGHUP)
        (line,) = daemon.wait_for(lambda line: " reload " in line)
        if " broken=0 " in line:
            return daemon, texts, port
    raise AssertionError("no port is free at all addresses")


def test_a_spawned_service_gets_another_program(start: Callable[..., Daemon]) -> None:
    """Connections that run go on with the old one, new ones have the new one, and the old launcher ends."""
    daemon = start("x 0/tcp bind=127.0.0.1 server=/bin/cat\n")
    port = _port(daemon, "x/tcp")
    old = socket.create_connection(("127.0.0.1", port), PATIENCE)
    old.sendall(b"one\n")
    assert old.recv(10) == b"one\n"
    (first,) = daemon.wait_event("launcher", "x/tcp")
    _reload(daemon, 'x 0/tcp bind=127.0.0.1 server="/bin/echo new"\n')
    assert exchange(socket.create_connection(("127.0.0.1", port), PATIENCE)) == b"new\n"
    gone = os.pidfd_open(int(first["pid"]))
    try:
        assert exchange(old, b"two\n") == b"two\n"
        poll = select.poll()
        poll.register(gone, select.POLLIN)
        assert poll.poll(PATIENCE * 1000)
    finally:
        os.close(gone)


@pytest.mark.load
@pytest.mark.parametrize("reactor", REACTORS)
def test_nobody_notices_fifty_reloads(start: Callable[..., Daemon], reactor: str) -> None:
    """Under 64 clients in closed loops, no connection of a service that stays is refused, reset or short."""
    common = "@defaults bind=127.0.0.1\n"
    one = common + "echo 0/tcp\nday 0/tcp daytime\nbrief 0/tcp discard\ncat 0/tcp server=/bin/cat\n"
    two = common + "day 0/tcp daytime utc=yes backlog=300\necho 0/tcp keepalive=yes resolve=no shutdown_timeout=3s\n"
    two += 'cat 0/tcp server="/bin/cat -u"\nother 0/udp echo\n'
    daemon = start(one, twistd_arguments=["--reactor", reactor])
    load = Load(_port(daemon, "echo/tcp"), _port(daemon, "day/tcp"))
    with load.going_on():
        for number in range(50):
            _reload(daemon, two if number % 2 == 0 else one)
    assert load.wrong == []
    assert load.done > 100


def test_the_only_service_is_slow_to_import(start: Callable[..., Daemon], open_folder: Path) -> None:
    """The daemon starts all the same, and serves it when its module is there."""
    (open_folder / "slow.py").write_text(
        "import time\nfrom twisted.internet.protocol import Factory\nfrom twisted.protocols.wire import Echo\n"
        "time.sleep(2.5)\n\n\ndef make():\n    return Factory.forProtocol(Echo)\n"
    )
    env = {"PYTHONPATH": f"{environment()['PYTHONPATH']}:{open_folder}"}
    daemon = start("own 0/tcp4 factory=slow:make bind=127.0.0.1\n", env=env)
    daemon.wait_event("recovered", "own/tcp4")
    with daemon.connect("own/tcp4") as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
