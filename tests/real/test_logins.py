"""telnetd, vsftpd, sshd and fingerd run unchanged under svcd."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.real.clients import run
from tests.real.daemon import PATIENCE, exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.real.daemon import Daemon

#: The port of finger(1), which has no option for another one.
FINGER_PORT = 79


@pytest.fixture
def public() -> Iterator[Path]:
    """Return a directory that all users can read, unlike that of the test."""
    folder = Path(tempfile.mkdtemp(prefix="svcd-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def shows(words: list[str], wanted: bytes, typed: bytes = b"") -> bytes:
    """Run a client whose input stays open, and return its output up to a text."""
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(typed)
        client.stdin.flush()
        shown = b""
        while wanted not in shown:
            piece = os.read(client.stdout.fileno(), 4096)
            assert piece, shown
            shown += piece
        client.kill()
    return shown


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
def test_telnet_login(start: Callable[..., Daemon], program: Callable[[str], str]) -> None:
    """telnet negotiates options with telnetd, and shows the prompt of login."""
    daemon = start(f"telnet 0/tcp bind=127.0.0.1 server='{program('telnetd')} -h'\n")
    shows([program("telnet"), "127.0.0.1", str(daemon.port("telnet/tcp"))], b"login: ")
    daemon.wait_event("end", "telnet/tcp")


def test_telnet_session(start: Callable[..., Daemon], program: Callable[[str], str], tmp_path: Path) -> None:
    """The input of telnet reaches a program that telnetd runs on a terminal."""
    shell = tmp_path / "shell"
    # The shell must not exit at once: telnetd does not read the last line from a terminal that has hung up.
    shell.write_text('#!/bin/sh\ntty\nread line\necho "<$line>"\nread end\n')
    shell.chmod(0o755)
    daemon = start(f"telnet 0/tcp bind=127.0.0.1 server='{program('telnetd')} -h -E {shell}'\n")
    words = [program("telnet"), "127.0.0.1", str(daemon.port("telnet/tcp"))]
    shown = shows(words, b"<typed by hand>", b"typed by hand\n")
    assert b"/dev/pts/" in shown
    daemon.wait_event("end", "telnet/tcp")


def test_ftp(start: Callable[..., Daemon], program: Callable[[str], str], public: Path) -> None:
    """curl lists a directory of vsftpd and fetches a file; an anonymous user may not store one."""
    data = os.urandom(3_000_000)
    (public / "pub").mkdir()
    (public / "pub" / "big").write_bytes(data)
    config = public / "vsftpd.conf"
    ids = "" if os.geteuid() == 0 else "run_as_launching_user=YES\n"
    config.write_text(
        "listen=NO\nanonymous_enable=YES\nlocal_enable=NO\nxferlog_enable=NO\nseccomp_sandbox=NO\n"
        f"anon_root={public}/pub\nsecure_chroot_dir={public}\n{ids}"
    )
    daemon = start(f"ftp 0/tcp bind=127.0.0.1 server='{program('vsftpd')} {config}'\n")
    curl = program("curl")
    url = f"ftp://127.0.0.1:{daemon.port('ftp/tcp')}/"
    assert run(curl, "-sS", "--list-only", url) == b"big\n"
    assert run(curl, "-sS", f"{url}big") == data
    assert b"upload: 550" in run(curl, "-sS", "-T", "-", f"{url}new", data=b"x")
    daemon.wait_event("end", "ftp/tcp", 3)


@pytest.fixture
def sshd(program: Callable[[str], str], tmp_path: Path) -> str:
    """Return the command line of an sshd with its own host key, which accepts the key of the test."""
    path, keygen = program("sshd"), program("ssh-keygen")
    for name in ("host", "mine"):
        run(keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name))
    if os.geteuid() == 0:
        # Where sshd runs as a service, systemd makes this directory.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    config = tmp_path / "sshd_config"
    config.write_text(
        f"HostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/mine.pub\nStrictModes no\nUsePAM no\n"
        "PermitRootLogin yes\nPasswordAuthentication no\n"
    )
    return f"{path} -i -e -f {config}"


def test_ssh(start: Callable[..., Daemon], program: Callable[[str], str], sshd: str, tmp_path: Path) -> None:
    """ssh logs in to sshd -i with a key, runs a command, and returns its output and exit status."""
    me = pwd.getpwuid(os.geteuid())
    if Path(me.pw_shell).name in ("nologin", "false"):
        pytest.skip(f"{me.pw_name} has no shell to log in to")
    daemon = start(f"ssh 0/tcp bind=127.0.0.1 server='{sshd}' stderr=log\n")
    words = [program("ssh"), "-F", "none", "-p", str(daemon.port("ssh/tcp")), "-i", str(tmp_path / "mine")]
    for option in (
        "BatchMode=yes", "StrictHostKeyChecking=no", f"UserKnownHostsFile={tmp_path}/known", "LogLevel=ERROR",
    ):  # fmt: skip
        words += ["-o", option]
    words += [f"{me.pw_name}@127.0.0.1", "cat; echo $SSH_CONNECTION; exit 7"]
    done = subprocess.run(words, input=b"sent there and back\n", capture_output=True, timeout=PATIENCE)
    assert done.stdout.startswith(b"sent there and back\n127.0.0.1 "), (done, daemon.lines)
    assert done.returncode == 7
    daemon.wait_for(lambda line: "Accepted publickey for" in line)
    daemon.wait_event("end", "ssh/tcp")


def test_ssh_keyscan(start: Callable[..., Daemon], program: Callable[[str], str], sshd: str, tmp_path: Path) -> None:
    """ssh-keyscan gets the host key."""
    daemon = start(f"ssh 0/tcp bind=127.0.0.1 server='{sshd}' stderr=log\n")
    shown = run(program("ssh-keyscan"), "-t", "ed25519", "-p", str(daemon.port("ssh/tcp")), "127.0.0.1")
    assert (tmp_path / "host.pub").read_bytes().split()[1] in shown


def test_fingerd(start: Callable[..., Daemon], program: Callable[[str], str]) -> None:
    """in.fingerd answers with the output of finger for a user."""
    program("finger")
    daemon = start(f"finger 0/tcp bind=127.0.0.1 server={program('in.fingerd')}\n")
    told = exchange(daemon.connect("finger/tcp"), b"root\r\n")
    assert b"Login: root" in told
    assert b"\r\n" in told


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
def test_finger(start: Callable[..., Daemon], program: Callable[[str], str]) -> None:
    """`finger root@host` gets an answer of in.fingerd, which runs as the user nobody."""
    finger, server = program("finger"), program("in.fingerd")
    try:
        socket.create_server(("127.0.0.1", FINGER_PORT)).close()
    except OSError as error:
        pytest.skip(f"port {FINGER_PORT}: {error}")
    daemon = start(f"finger {FINGER_PORT}/tcp bind=127.0.0.1 server={server} user=nobody\n")
    assert b"Login: root" in run(finger, "root@127.0.0.1")
    daemon.wait_event("end", "finger/tcp")
