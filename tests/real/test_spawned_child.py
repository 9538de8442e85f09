"""The process of a handler: descriptors, environment, identity, limits."""

from __future__ import annotations

import os
import pwd
import re
import resource
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.real.daemon import PATIENCE
from tests.real.processes import Process, ignore_and_block

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.daemon import Daemon

CAT = "/bin/cat"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def look(daemon: Daemon, service: str = "cat/tcp", family: int = socket.AF_INET) -> tuple[Process, socket.socket]:
    """Start a daemon with a handler that waits for its client; return the handler and the client."""
    client = daemon.connect(service, family)
    client.sendall(b"?")
    assert client.recv(1) == b"?"
    return Process(daemon.handlers(service)[0]), client


def connection_variables(client: socket.socket) -> dict[str, str]:
    """Return the variables of a TCP handler for the only client."""
    (host, port), (local_host, local_port) = client.getsockname()[:2], client.getpeername()[:2]
    return {
        "PROTO": "TCP",
        "TCPLOCALIP": local_host,
        "TCPLOCALPORT": str(local_port),
        "TCPREMOTEIP": host,
        "TCPREMOTEPORT": str(port),
        "TCPCONNNUM": "1",
        "REMOTE_HOST": host,
        "REMOTE_ADDR": host,
        "REMOTE_PORT": str(port),
    }


#: Signals 32 and 33 belong to the C library: its posix_spawn(3) leaves them ignored, and they can't be reset.
_OF_LIBC = 3 << 31


def signals(child: Process) -> set[int]:
    """Return the blocked, ignored, caught and pending signals of a process."""
    found = {name: int(child.status(name), 16) for name in ("SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd")}
    found["SigIgn"] &= ~_OF_LIBC
    return set(found.values())


def _other_limits() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, 3000))


def check_plain(daemon: Daemon) -> None:
    """Check that a handler without options has default attributes."""
    child, client = look(daemon)
    with client:
        sockets = child.descriptors()
        assert list(sockets) == [0, 1, 2]
        assert len(set(sockets.values())) == 1
        assert sockets[0].startswith("socket:")
        assert not child.flags(0) & os.O_NONBLOCK
        assert child.environment() == {"PATH": PATH, "SVCD_SERVICE": "cat"} | connection_variables(client)
        assert child.session == child.pid
        assert child.link("cwd") == child.link("root") == "/"
        assert child.status("Umask") == "0022"
        assert child.status("NoNewPrivs") == "0"
        assert signals(child) == {0}
        # The daemon has raised its own limit.
        assert child.limits()["open files"] == ("300", "3000")
        others = Process(daemon.process.pid).limits()
        assert {**child.limits(), "open files": ()} == {**others, "open files": ()}
        assert child.nice == Process(daemon.process.pid).nice
        for name in ("Uid", "Gid", "Groups"):
            assert child.status(name) == Process(daemon.process.pid).status(name)


SERVICES = f"cat 0/tcp bind=127.0.0.1 server={CAT}\n"
# Descriptors that programs inherit by mistake, and variables that change an interpreter.
HOSTILE = {"LD_LIBRARY_PATH": "/tmp", "PYTHONSTARTUP": "/tmp/x", "SECRET": "of the daemon", "LC_ALL": "C"}


def _hostile() -> None:
    _other_limits()
    # Signals as a careless parent leaves them.
    ignore_and_block()
    os.umask(0o002)


@pytest.mark.parametrize("program", [CAT, "rlimit"])
def test_child_of_a_daemon_with_signals_and_descriptors(start: Callable[..., Daemon], program: str) -> None:
    """Whatever the daemon inherits, a handler has only its socket and the documented environment, as root or not."""
    # With stderr=client and a limit of descriptors the program is started by fork and exec, not by posix_spawn.
    services = SERVICES if program == CAT else SERVICES.replace("\n", " rlimit_cpu=100\n")
    reading, writing = os.pipe()
    try:
        daemon = start(services, preexec_fn=_hostile, pass_fds=[writing], env=HOSTILE)
    finally:
        os.close(reading)
        os.close(writing)
    if program == CAT:
        check_plain(daemon)
    else:
        child, client = look(daemon)
        with client:
            assert child.limits()["cpu time"] == ("100", "100")
            assert list(child.descriptors()) == [0, 1, 2]
            assert signals(child) == {0}
            # A program that is started this way has the signals of the C library by default, too.
            assert int(child.status("SigIgn"), 16) == 0
            assert child.session == child.pid
            assert child.environment() == {"PATH": PATH, "SVCD_SERVICE": "cat"} | connection_variables(client)
    assert daemon.stop() == 0


def test_child_of_an_ordinary_user(ordinary: Callable[..., Daemon]) -> None:
    """The same holds for a daemon of an ordinary user."""
    daemon = ordinary(SERVICES, preexec_fn=_hostile, env=HOSTILE)
    check_plain(daemon)
    assert daemon.stop() == 0


ALL = {
    "rlimit_as": ("address space", 500 * 1024**2, "500M"),
    "rlimit_data": ("data size", 100 * 1024**2, "100M"),
    "rlimit_stack": ("stack size", 4 * 1024**2, "4M"),
    "rlimit_core": ("core file size", 0, "0"),
    "rlimit_cpu": ("cpu time", 60, "1m"),
    "rlimit_nofile": ("open files", 20, "20"),
    "rlimit_nproc": ("processes", 5000, "5000"),
}


WAYS = {"cat": "", "fds": "listen_fds=yes", "logged": "stderr=log", "counted": "log_on_success=PID,TRAFFIC"}


def test_limits_and_options(ordinary: Callable[..., Daemon]) -> None:
    """The child has the values of rlimit_*, nice, umask, cwd and no_new_privs, however it is started."""
    words = " ".join(f"{name}={text}" for name, (_, _, text) in ALL.items())
    words += " nice=3 umask=077 cwd=/usr no_new_privs=yes"
    daemon = ordinary("".join(f"{name} 0/tcp bind=127.0.0.1 server={CAT} {words} {WAYS[name]}\n" for name in WAYS))
    for name in WAYS:
        child, client = look(daemon, f"{name}/tcp")
        with client:
            assert child.limits() | {limit: (str(value),) * 2 for limit, value, _ in ALL.values()} == child.limits()
            assert child.nice == Process(daemon.process.pid).nice + 3
            assert child.status("Umask") == "0077"
            assert child.link("cwd") == "/usr"
            assert child.status("NoNewPrivs") == "1"
            assert child.session == child.pid
            variables = connection_variables(client) | {"PATH": PATH, "SVCD_SERVICE": name}
            if name == "fds":
                variables |= {"LISTEN_FDS": "1", "LISTEN_PID": str(child.pid), "LISTEN_FDNAMES": "connection"}
            assert child.environment() == variables
            opened = child.descriptors()
            assert list(opened) == ([0, 1, 2, 3] if name == "fds" else [0, 1, 2])
            others = {number for number, target in opened.items() if target != opened[0]}
            assert others == ({2} if name == "logged" else set())
    assert daemon.stop() == 0


def test_limits_that_are_none(start: Callable[..., Daemon], as_root: None) -> None:  # noqa: ARG001
    """A limit of none is no limit, or for open files the hard limit of the daemon."""
    daemon = start(
        f"cat 0/tcp bind=127.0.0.1 server={CAT} rlimit_nofile=none rlimit_core=none rlimit_stack=none\n",
        preexec_fn=_other_limits,
    )
    child, client = look(daemon)
    with client:
        limits = child.limits()
        assert limits["open files"] == ("3000", "3000")
        assert limits["core file size"] == limits["stack size"] == ("unlimited", "unlimited")
    assert daemon.stop() == 0


WHO = [("", "gid", ""), ("group=daemon", "1", ""), ("groups=yes", "gid", "all"), ("group=1 groups=yes", "1", "all")]


@pytest.mark.usefixtures("as_root")
def test_identity(start: Callable[..., Daemon]) -> None:
    """With user= the child has that user, its group or that of group=, and its groups only with groups=yes."""
    entry = pwd.getpwnam("nobody")
    lines = [f"s{row} 0/tcp bind=127.0.0.1 server={CAT} user=nobody {who[0]}\n" for row, who in enumerate(WHO)]
    daemon = start("".join(lines))
    for row, (_, group, groups) in enumerate(WHO):
        child, client = look(daemon, f"s{row}/tcp")
        with client:
            wanted = entry.pw_gid if group == "gid" else int(group)
            assert child.status("Uid") == ids(entry.pw_uid)
            assert child.status("Gid") == ids(wanted)
            expected = sorted(os.getgrouplist("nobody", wanted)) if groups else []
            assert sorted(map(int, child.status("Groups").split())) == expected
            for name in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
                assert int(child.status(name), 16) == 0
            of_user = {"USER": "nobody", "LOGNAME": "nobody", "HOME": entry.pw_dir, "SHELL": entry.pw_shell}
            common = {"PATH": PATH, "SVCD_SERVICE": f"s{row}"}
            assert child.environment() == common | of_user | connection_variables(client)
        # The launcher already runs as that user.
        assert Process(daemon.launcher(f"s{row}/tcp")).status("Uid") == ids(entry.pw_uid)
    assert daemon.stop() == 0


def ids(number: int) -> str:
    """Return a line of ids of a process with the same id four times."""
    return "\t".join([str(number)] * 4)


@pytest.mark.usefixtures("as_root")
def test_root_folder(start: Callable[..., Daemon], open_folder: Path, program: Callable[[str], str]) -> None:
    """With chroot= the program, its root and its working directory are inside."""
    root = open_folder / "root"
    (root / "bin").mkdir(parents=True)
    (root / "work").mkdir()
    shutil.copy(CAT, root / "bin" / "own-cat")
    for library in re.findall(r"(/\S+)", subprocess.check_output([program("ldd"), CAT], text=True)):
        if library.startswith("/"):
            target = root / library.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, target)
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        folder.chmod(0o755)
    daemon = start(f"cat 0/tcp bind=127.0.0.1 server=/bin/own-cat chroot={root} cwd=/work user=nobody nice=-1\n")
    child, client = look(daemon)
    with client:
        assert child.link("root") == str(root)
        assert child.link("cwd") == str(root / "work")
        assert list(child.descriptors()) == [0, 1, 2]
        assert child.nice == Process(daemon.process.pid).nice - 1
    assert daemon.stop() == 0


def test_chosen_environment(start: Callable[..., Daemon]) -> None:
    """env= adds and overrides variables, passenv= passes those of the daemon, argv0= sets the program's name."""
    daemon = start(
        f"cat 0/tcp bind=127.0.0.1 server={CAT} env='A=1 PATH=/bin' passenv=GIVEN,MISSING argv0=kitten\n",
        env={"GIVEN": "yes, given"},
    )
    child, client = look(daemon)
    with client:
        expected = {"PATH": "/bin", "A": "1", "GIVEN": "yes, given", "SVCD_SERVICE": "cat"}
        assert child.environment() == expected | connection_variables(client)
        assert Path(f"/proc/{child.pid}/cmdline").read_bytes() == b"kitten\0"
    assert daemon.stop() == 0


def test_names_and_other_addresses(start: Callable[..., Daemon], has_ipv6: bool) -> None:
    """A handler gets the client's name with resolve=yes, an IPv6 address unchanged, and a mapped address as IPv4."""
    services = SERVICES + f"named 0/tcp bind=127.0.0.1 server={CAT} resolve=yes\n"
    if has_ipv6:
        services += f"six 0/tcp bind=::1 server={CAT}\nboth 0/tcp6 bind=:: v6only=no server={CAT}\n"
    daemon = start(services)
    child, client = look(daemon, "named/tcp")
    with client:
        name = socket.gethostbyaddr("127.0.0.1")[0]
        variables = connection_variables(client) | {"PATH": PATH, "SVCD_SERVICE": "named"}
        assert child.environment() == variables | {"TCPREMOTEHOST": name, "TCPLOCALHOST": name}
    if has_ipv6:
        child, client = look(daemon, "six/tcp", socket.AF_INET6)
        with client:
            assert child.environment()["TCPREMOTEIP"] == child.environment()["TCPLOCALIP"] == "::1"
        client = socket.create_connection(("127.0.0.1", daemon.port("both/tcp6")), PATIENCE)
        with client:
            child = Process(daemon.handlers("both/tcp6")[0])
            expected = connection_variables(client) | {"PATH": PATH, "SVCD_SERVICE": "both"}
            assert child.environment() == expected
    assert daemon.stop() == 0


def test_unix_client(start: Callable[..., Daemon], open_folder: Path) -> None:
    """A handler at a UNIX socket gets the pid, user and group of the client."""
    daemon = start(f"cat {open_folder}/s/unix server={CAT}\n")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(f"{open_folder}/s")
        client.sendall(b"?")
        assert client.recv(1) == b"?"
        child = Process(daemon.handlers("cat/unix")[0])
        assert child.environment() == {
            "PATH": PATH,
            "SVCD_SERVICE": "cat",
            "PROTO": "UNIX",
            "UNIXREMOTEPID": str(os.getpid()),
            "UNIXREMOTEUID": str(os.geteuid()),
            "UNIXREMOTEGID": str(os.getegid()),
        }
    assert daemon.stop() == 0
