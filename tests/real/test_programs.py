"""Programs for inetd, xinetd, tcpserver or systemd run unchanged under svcd."""

from __future__ import annotations

import os
import re
import socket
import sys
from typing import TYPE_CHECKING

import pytest

from tests.real.clients import run
from tests.real.daemon import Daemon, exchange

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: sd_listen_fds(3), and a typical use of its descriptors.
SOCKET_ACTIVATED = """
import os, socket
assert int(os.environ["LISTEN_PID"]) == os.getpid()
assert os.environ["LISTEN_FDS"] == "1"
given = socket.socket(fileno=3)
if given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
    given, _ = given.accept()
given.sendall(f"{os.environ['LISTEN_FDNAMES']}: ".encode() + given.recv(100))
"""


def ended_well(daemon: Daemon, service: str, count: int = 1) -> None:
    """Wait for the ends of `count` connections; their programs have exited with status 0."""
    assert {end["exit"] for end in daemon.wait_event("end", service, count)} == {"0"}


def test_cat_and_date(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """cat is an echo service over TCP and over a UNIX socket, and date prints the time."""
    daemon = start(
        "@defaults bind=127.0.0.1\n"
        "cat   0/tcp  server=/bin/cat\n"
        "date  0/tcp  server='/bin/date +%Y-%m'\n"
        f"local {tmp_path}/s/unix  server=/bin/cat\n"
    )
    assert exchange(daemon.connect("cat/tcp"), b"hi") == b"hi"
    assert exchange(daemon.connect("local/unix", socket.AF_UNIX), b"there") == b"there"
    assert re.fullmatch(rb"2\d{3}-[01]\d\n", exchange(daemon.connect("date/tcp")))
    for service in ("cat/tcp", "date/tcp", "local/unix"):
        ended_well(daemon, service)


def test_shell_script(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """A script with #! reads a question and answers; its standard error goes to the client, too."""
    script = tmp_path / "script"
    script.write_text('#!/bin/sh\nread name\necho "hello $name"\necho complaint >&2\nexit 3\n')
    script.chmod(0o755)
    daemon = start(f"greet 0/tcp bind=127.0.0.1 server={script}\n")
    assert exchange(daemon.connect("greet/tcp"), b"world\n") == b"hello world\ncomplaint\n"
    (end,) = daemon.wait_event("end", "greet/tcp")
    assert end["exit"] == "3"


def test_rblsmtpd(start: Callable[..., Daemon], program: Callable[[str], str]) -> None:
    """A program for tcpserver gets the client in the environment, and its standard error is in the log."""
    daemon = start(
        f"smtp 0/tcp bind=127.0.0.1 server='{program('rblsmtpd')} /bin/false' env='RBLSMTPD=go-away' stderr=log\n"
    )
    answer = exchange(daemon.connect("smtp/tcp"), b"HELO me\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nQUIT\r\n")
    assert answer.startswith(b"220 rblsmtpd.local\r\n")
    assert b"\r\n451 go-away\r\n" in answer
    pid = daemon.wait_event("end", "smtp/tcp")[0]["pid"]
    (line,) = daemon.wait_for(lambda line: "rblsmtpd: " in line)
    assert f"127.0.0.1 pid {pid}: 451 go-away" in line


def test_tcpserver_environment(start: Callable[..., Daemon], program: Callable[[str], str]) -> None:
    """The environment has the variables of ucspi-tcp, xinetd and systemd, and none of the daemon's."""
    daemon = start(
        f"env 0/tcp bind=127.0.0.1 server={program('env')} env='COLOUR=\"light blue\"' passenv=TERM\n",
        env={"TERM": "vt100", "SECRET": "of the daemon"},
    )
    with daemon.connect("env/tcp") as client:
        host, port = client.getsockname()
        told = dict(line.split("=", 1) for line in client.makefile().read().splitlines())
    assert told == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "SVCD_SERVICE": "env",
        "COLOUR": "light blue",
        "TERM": "vt100",
        "PROTO": "TCP",
        "TCPLOCALIP": "127.0.0.1",
        "TCPLOCALPORT": str(daemon.port("env/tcp")),
        "TCPREMOTEIP": host,
        "TCPREMOTEPORT": str(port),
        "TCPCONNNUM": "1",
        "REMOTE_HOST": host,
        "REMOTE_ADDR": host,
        "REMOTE_PORT": str(port),
    }


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
def test_user_of_a_program(start: Callable[..., Daemon], program: Callable[[str], str]) -> None:
    """With user= a program runs as that user, in the group of that user only."""
    daemon = start(f"who 0/tcp bind=127.0.0.1 server={program('id')} user=daemon\n")
    assert exchange(daemon.connect("who/tcp")) == b"uid=1(daemon) gid=1(daemon) groups=1(daemon)\n"


@pytest.mark.parametrize("wait", ["no", "yes"])
def test_socket_activation(start: Callable[..., Daemon], tmp_path: Path, wait: str) -> None:
    """A program for systemd has the connection, or with wait=yes the listening socket, as descriptor 3."""
    script = tmp_path / "activated.py"
    script.write_text(SOCKET_ACTIVATED)
    daemon = start(
        f"hail 0/tcp bind=127.0.0.1 server='{sys.executable} -I {script}' stderr=log listen_fds=yes wait={wait}\n"
    )
    name = b"hail" if wait == "yes" else b"connection"
    for _ in range(3):
        assert exchange(daemon.connect("hail/tcp"), b"hello") == name + b": hello"
    ended_well(daemon, "hail/tcp", 3)


def test_systemd_socket_proxyd(start: Callable[..., Daemon]) -> None:
    """systemd-socket-proxyd gets the listening socket and serves several clients."""
    proxy = "/lib/systemd/systemd-socket-proxyd"
    if not os.access(proxy, os.X_OK):
        pytest.skip("systemd-socket-proxyd is not installed")
    target = start("upper 0/tcp bind=127.0.0.1\n")
    words = f"{proxy} --exit-idle-time=100ms 127.0.0.1:{target.port('upper/tcp')}"
    daemon = start(f"proxy 0/tcp bind=127.0.0.1 server='{words}' wait=yes listen_fds=yes stderr=log\n")
    for number in range(1, 3):
        # It has exited by the second time, and is started again.
        with daemon.connect("proxy/tcp") as client:
            client.sendall(b"hello")
            assert client.recv(100) == b"HELLO"
        ended_well(daemon, "proxy/tcp", number)


def git(program: Callable[[str], str], folder: Path, *words: str) -> bytes:
    """Run git without the user's configuration and return its output."""
    person = {"NAME": "N", "EMAIL": "n@example.org"}
    settings = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in person.items()}
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1", **settings}
    return run(program("git"), *words, cwd=folder, env=environment)


def test_git_daemon(start: Callable[..., Daemon], program: Callable[[str], str], tmp_path: Path) -> None:
    """`git clone git://` and `git push` work with git daemon --inetd."""
    git(program, tmp_path, "init", "--bare", "--initial-branch=main", "project.git")
    daemon = start(
        f"git 0/tcp bind=127.0.0.1 server='{program('git')} daemon --inetd --export-all --enable=receive-pack "
        f"--base-path={tmp_path}' stderr=log\n"
    )
    url = f"git://127.0.0.1:{daemon.port('git/tcp')}/project.git"
    git(program, tmp_path, "clone", url, "first")
    first = tmp_path / "first"
    (first / "big").write_bytes(os.urandom(3_000_000))
    git(program, first, "add", "big")
    git(program, first, "commit", "-m", "a commit")
    assert b"HEAD -> main" in git(program, first, "push", url, "HEAD:main")
    git(program, tmp_path, "clone", url, "second")
    assert (tmp_path / "second" / "big").read_bytes() == (first / "big").read_bytes()
    ended_well(daemon, "git/tcp", 3)


def test_rsync(start: Callable[..., Daemon], program: Callable[[str], str], tmp_path: Path) -> None:
    """rsync --daemon lists its modules, sends a tree and receives one."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "big").write_bytes(os.urandom(3_000_000))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note").write_text("a note\n")
    ids = "uid = 0\ngid = 0\n" if os.geteuid() == 0 else ""
    config = tmp_path / "rsyncd.conf"
    config.write_text(
        f"use chroot = no\nreverse lookup = no\nlog file = {tmp_path}/log\n{ids}"
        f"[files]\npath = {tmp_path}/served\ncomment = all there is\nread only = no\n"
    )
    rsync = program("rsync")
    daemon = start(f"rsync 0/tcp bind=127.0.0.1 server='{rsync} --daemon --config={config}'\n")
    url = f"rsync://127.0.0.1:{daemon.port('rsync/tcp')}/"
    assert re.search(rb"files\s+all there is", run(rsync, url))
    assert run(rsync, "-a", f"{url}files/", f"{tmp_path}/fetched/") == b""
    assert (tmp_path / "fetched" / "big").read_bytes() == (tmp_path / "served" / "big").read_bytes()
    assert run(rsync, "-a", f"{tmp_path}/mine/", f"{url}files/") == b""
    assert (tmp_path / "served" / "note").read_text() == "a note\n"
    listing, *transfers = daemon.wait_event("end", "rsync/tcp", 3)
    # rsync exits with this status after a list under any super-server.
    assert listing["exit"] == "255"
    assert [end["exit"] for end in transfers] == ["0", "0"]
    assert "connect from" in (tmp_path / "log").read_text()
    assert "127.0.0.1" in (tmp_path / "log").read_text()


def test_tftp(start: Callable[..., Daemon], program: Callable[[str], str], tmp_path: Path) -> None:
    """atftpd gets the datagram socket, sends files and receives one, and is started again after its exit."""
    data = os.urandom(200_001)
    served = tmp_path / "served"
    served.mkdir()
    (served / "image").write_bytes(data)
    daemon = start(
        f"tftp 0/udp4 bind=127.0.0.1 wait=yes stderr=log "
        f"server='{program('atftpd')} --tftpd-timeout 1 --logfile {tmp_path}/log {served}'\n"
    )
    port = str(daemon.port("tftp/udp4"))
    client = [program("tftp"), "-m", "binary", "127.0.0.1", port, "-c"]
    assert run(program("curl"), "-sS", f"tftp://127.0.0.1:{port}/image") == data
    assert run(*client, "get", "image", "fetched", cwd=tmp_path) == b""
    assert (tmp_path / "fetched").read_bytes() == data
    # One process has served both, and exits after a second without a request.
    ended_well(daemon, "tftp/udp4")
    assert run(*client, "put", "fetched", "upload", cwd=tmp_path) == b""
    assert (served / "upload").read_bytes() == data
    ended_well(daemon, "tftp/udp4", 2)
    first, second = daemon.wait_event("accept", "tftp/udp4", 2)
    assert first["peer"].startswith("127.0.0.1:")
    assert first["pid"] != second["pid"]
