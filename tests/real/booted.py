"""A systemd booted in a container over an overlay of this machine, with svcd installed in /opt/svcd."""

from __future__ import annotations

import os
import shutil
import signal
import site
import subprocess
import sys
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import svcd
from tests.real.daemon import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["PYTHON", "Booted", "booted"]

#: The Python interpreter inside the container.
PYTHON = "/opt/svcd/bin/python3"
_BASE = "/opt/python"
_SCRIPT = "#!{python}\nimport sys\nfrom {module} import {name}\nsys.exit({name}())\n"


class Booted:
    """A container that runs systemd.

    Args:
        leader: pid of its process 1 on this machine.
        root: its file system.
    """

    def __init__(self, leader: int, root: Path) -> None:
        self.root = root
        self._enter = ["nsenter", f"--target={leader}", "--all", f"--root=/proc/{leader}/root"]
        self._enter.append(f"--wd=/proc/{leader}/root")

    def __call__(self, *words: str, check: bool = True) -> str:
        """Run a command in the container and return its output."""
        command = (*self._enter, *words)
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=_ENVIRONMENT)
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}{self.journal()}"
        return done.stdout + done.stderr

    def command(self, *words: str) -> list[str]:
        """The command line that runs a command in there."""
        return [*self._enter, *words]

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """Start a command in the container."""
        return subprocess.Popen(
            [*self._enter, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_ENVIRONMENT
        )

    def put(self, path: str, text: str) -> None:
        """Write a file in the container."""
        words = ["sh", "-c", f"mkdir -p $(dirname {path}) && cat > {path}"]
        subprocess.run([*self._enter, *words], input=text, text=True, check=True, timeout=PATIENCE)

    def show(self, *properties: str, unit: str = "svcd.service") -> dict[str, str]:
        """Return properties of a unit."""
        lines = self("systemctl", "show", "-p", ",".join(properties), unit).splitlines()
        return dict(line.split("=", 1) for line in lines)

    def journal(self) -> str:
        """Return the journal of the unit svcd.service."""
        words = [*self._enter, "journalctl", "--no-pager", "-o", "cat", "-u", "svcd.service"]
        return subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, env=_ENVIRONMENT).stdout

    def ask(self, port: int, question: str = "") -> str:
        """Return the answer of a service to a question."""
        code = (
            "import socket,sys;c=socket.create_connection(('127.0.0.1',int(sys.argv[1])),30);"
            "c.sendall(sys.argv[2].encode());c.shutdown(1);"
            "print(b''.join(iter(lambda:c.recv(4096),b'')).decode(),end='')"
        )
        return self(PYTHON, "-c", code, str(port), question)


_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


@contextmanager
def booted(folder: Path, program: Callable[[str], str]) -> Iterator[Booted]:
    """Boot a container, and shut it down at the end.

    The upper directory of the overlay takes all writes, so this machine stays as it is.
    """
    nspawn = program("systemd-nspawn")
    program("nsenter")
    with _overlay(folder) as root:
        (root / "etc" / "machine-id").write_text(f"{uuid.uuid4().hex}\n")
        # The services of this machine must not start in the container.
        shutil.rmtree(root / "etc/systemd/system/multi-user.target.wants", ignore_errors=True)
        words = [nspawn, "--quiet", "--register=no", "--keep-unit", "--private-network", "--boot", *_environment(root)]
        words += ["--machine", f"svcd-test-{os.getpid()}", "--directory", str(root), "systemd.unit=basic.target"]
        log = folder / "boot.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        try:
            leader = _leader(process)
            if leader is None:
                pytest.skip(f"systemd does not boot here: {log.read_text(errors='replace')[-500:]}")
            inside = Booted(leader, root)
            inside("systemctl", "is-system-running", "--wait", check=False)
            inside("ldconfig")
            yield inside
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(PATIENCE)


@contextmanager
def _overlay(folder: Path) -> Iterator[Path]:
    root, layers = folder / "root", folder / "layers"
    for each in (root, layers):
        each.mkdir()
    mounted = _mount(layers, root)
    if mounted.returncode:
        # The upper directory can't be on an overlay file system; it can be on tmpfs.
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(layers)], check=True)
        mounted = _mount(layers, root)
    try:
        if mounted.returncode:
            pytest.skip(f"no overlay mount here: {mounted.stderr.decode().strip()}")
        yield root
    finally:
        for each in (root, layers):
            if os.path.ismount(each):
                subprocess.run(["umount", str(each)], check=True)


def _mount(layers: Path, root: Path) -> subprocess.CompletedProcess[bytes]:
    for name in ("upper", "work"):
        (layers / name).mkdir()
    options = f"lowerdir=/,upperdir={layers}/upper,workdir={layers}/work"
    return subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(root)], capture_output=True)


def _environment(root: Path) -> list[str]:
    """Make the virtual environment /opt/svcd with the packages of this one and the svcd under test; return its mounts.

    It is made and not mounted: scripts name their interpreter, and the unit hides some directories from the daemon.
    """
    home = root / "opt/svcd"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = home / "lib" / version / "site-packages"
    for each in (home / "bin", packages, root / "opt/source", root / "opt/python", root / "opt/packages"):
        each.mkdir(parents=True)
    base = Path(sys.base_prefix)
    binds = [f"--bind-ro={Path(svcd.__file__).parent.parent}:/opt/source"]
    binds += [f"--bind-ro={site.getsitepackages()[0]}:/opt/packages"]
    python = base / "bin" / version
    if base.parts[1] != "usr":
        binds.append(f"--bind-ro={base}:{_BASE}")
        python = Path(_BASE) / "bin" / version
        # The daemon can't read the directory in which the interpreter looks for its library.
        (root / "etc/ld.so.conf.d/0-svcd.conf").write_text(f"{_BASE}/lib\n")
    (home / "pyvenv.cfg").write_text(f"home = {python.parent}\ninclude-system-site-packages = false\n")
    (home / "bin/python3").symlink_to(python)
    # The svcd under test precedes an installed one.
    (packages / "here.pth").write_text("/opt/source\n/opt/packages\n")
    for name, module in (("twistd", "twisted.scripts.twistd"), ("svcctl", "svcd.cli")):
        script = home / "bin" / name
        function = "run" if name == "twistd" else "main"
        script.write_text(_SCRIPT.format(python=PYTHON, module=module, name=function))
        script.chmod(0o755)
    return binds


def _leader(process: subprocess.Popen[bytes]) -> int | None:
    """Return the pid of process 1 of the container on this machine once systemd answers; None if it ended."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    ready = ["systemctl", "list-units", "--no-legend"]
    for _ in range(200):
        if process.poll() is not None:
            return None
        pids = children.read_text().split()
        if pids:
            enter = ["nsenter", f"--target={pids[0]}", "--all", f"--root=/proc/{pids[0]}/root"]
            try:
                done = subprocess.run([*enter, *ready], capture_output=True, timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                return None
            if done.returncode == 0:
                return int(pids[0])
        # Polled, because process 1 gives no other sign of its state outside the container.
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    return None
