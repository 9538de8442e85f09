"""Reloads of a daemon that serves: no client is refused, reset or gets a partial answer."""

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
    """Reload the daemon with a text and return the line of the result."""
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
def test_services_are_added_removed_and_changed(start: Callable[..., Daemon], reactor: str) -> None:
    """New services listen, removed ones do not, changed ones have the new options for new connections."""
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
        # The open connection goes on.
        assert exchange(old, b"hello") == b"hello"


#: Errors in a services file, each with a text of its log line. {folder} is the directory of the daemon.
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
#: Services that can't be served, each with a text of its log line. {taken} is a port in use; garbage.pem in {folder}
#: is no certificate.
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
    "x {folder}/none/sock/unix echo": "No such file or directory; create its directory",
    "x {taken}/tcp echo": "Address already in use by",
}


@pytest.mark.load
@pytest.mark.parametrize("reactor", REACTORS)
def test_bad_file_changes_nothing(start: Callable[..., Daemon], reactor: str) -> None:
    """Each error is in the log, and no client of 64 in closed loops is affected."""
    text = "@defaults bind=127.0.0.1\necho 0/tcp\nday 0/tcp daytime\n"
    daemon = start(text, twistd_arguments=["--reactor", reactor])
    load = Load(_port(daemon, "echo/tcp"), _port(daemon, "day/tcp"), pause=0.01)
    with load.going_on():
        filled = partial(str.format, folder=daemon.folder)
        for mistake, wanted in MISTAKES.items():
            before = len(daemon.lines)
            _reload(daemon, f"{text}{filled(mistake)}\n", event="reload-failed")
            problems = [fields(line)["text"] for line in daemon.lines[before:] if " problem " in line]
            assert any(filled(wanted) in problem for problem in problems), (mistake, problems)
        # Files that can't be read: a directory, and none.
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
def test_fault_breaks_only_its_service(start: Callable[..., Daemon], tmp_path: Path, reactor: str) -> None:
    """Each fault is in the log, and no client of the other services is affected."""
    (tmp_path / "ours.py").write_text("value = 3\n\ndef fails():\n    raise RuntimeError('no luck')\n")
    text = "@defaults bind=127.0.0.1\necho 0/tcp\nday 0/tcp daytime\n"
    env = {"PYTHONPATH": f"{environment()['PYTHONPATH']}:{tmp_path}"}
    daemon = start(text, twistd_arguments=["--reactor", reactor], env=env)
    (daemon.folder / "garbage.pem").write_text("hello")
    load = Load(_port(daemon, "echo/tcp"), _port(daemon, "day/tcp"), pause=0.01)
    with socket.create_server(("127.0.0.1", 0)) as taken, load.going_on():
        filled = partial(str.format, folder=daemon.folder, taken=taken.getsockname()[1])
        for count, (fault, wanted) in enumerate(FAULTS.items(), 1):
            line = _reload(daemon, f"{text}{filled(fault)}\nnew{count} 0/tcp echo\n")
            assert " broken=1 " in line
            broken = daemon.wait_for(lambda line: " broken service=x/" in line, count)[-1]
            assert filled(wanted) in fields(broken)["reason"], fault
            assert exchange(daemon.connect(f"new{count}/tcp"), b"a") == b"a"
            # Without the line no service is broken.
            assert " broken=0 " in _reload(daemon, text)
    assert load.wrong == []
    assert load.done > 100


@pytest.mark.parametrize("reactor", REACTORS)
def test_address_becomes_wider_and_narrower(start: Callable[..., Daemon], reactor: str) -> None:
    """The new socket is opened before the old one is closed, though their addresses conflict."""
    daemon, texts, port = _start_at_a_free_port(start, reactor)
    for number in range(4):
        assert "opened=1 closed=1" in _reload(daemon, texts[number % 2])
        assert exchange(socket.create_connection(("127.0.0.1", port), PATIENCE), b"x") == b"x"


def _start_at_a_free_port(start: Callable[..., Daemon], reactor: str) -> tuple[Daemon, list[str], int]:
    """Start a daemon at a loopback address with a port that is free at all addresses, also as a client's port."""
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


def test_reload_to_another_program(start: Callable[..., Daemon]) -> None:
    """Open connections keep the old program, new ones get the new program, and the old launcher ends."""
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
def test_fifty_reloads_under_load(start: Callable[..., Daemon], reactor: str) -> None:
    """Under 64 clients in closed loops no connection of a service that stays is refused, reset or cut short."""
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


def test_slow_import_of_the_only_service(start: Callable[..., Daemon], open_folder: Path) -> None:
    """The daemon starts nevertheless, and serves it after the import of its module."""
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
