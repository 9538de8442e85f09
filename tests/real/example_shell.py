"""A shell for the examples of a page: a network, processes and system folders of its own."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import shutil
import site
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.real.daemon import PATIENCE, environment

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.booted import Booted

__all__ = ["Background", "Shell", "is_foreground", "machine_shell", "private_shell"]

#: Gives the page copies of the system's folders that it may write, which go with it.
_ENTER = r"""
set -e
layers=$1 user=$2
shift 2
ip link set lo up
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs "$layers"
for each in etc var srv opt usr/local root home; do
    case $PWD/ in /$each/*) continue ;; esac
    mkdir -p "$layers/$each/upper" "$layers/$each/work"
    mount -t overlay -o "lowerdir=/$each,upperdir=$layers/$each/upper,workdir=$layers/$each/work" overlay "/$each"
done
mkdir -p "$XDG_RUNTIME_DIR"
chmod 700 "$XDG_RUNTIME_DIR"
[ -z "$user" ] || chown "$user:$user" "$XDG_RUNTIME_DIR"
[ -z "$user" ] || exec setpriv --reuid="$user" --regid="$user" --clear-groups "$@"
exec "$@"
"""


class _Lines:
    """Lines that a thread reads from a stream, and the wait for them."""

    def __init__(self, open_stream: Callable[[], object]) -> None:
        self.text = ""
        self.ended = False
        self._changed = threading.Condition()
        self._open = open_stream
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with self._open() as stream:  # type: ignore[attr-defined]
            for line in stream:
                with self._changed:
                    self.text += line
                    self._changed.notify_all()
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def wait(self, wanted: Callable[[str], bool]) -> bool:
        """Return whether the text became what is wanted, before it ended or the patience did."""
        with self._changed:
            self._changed.wait_for(lambda: wanted(self.text) or self.ended, PATIENCE)
            return wanted(self.text)


class Background:
    """A command that runs to the end of the page.

    Args:
        shell: its shell.
        command: the command.
    """

    def __init__(self, shell: Shell, command: str) -> None:
        self.command = command
        self._shell = shell
        name = f".{uuid.uuid4().hex}"
        fifo = shell.private / name
        os.mkfifo(fifo)
        fifo.chmod(0o666)
        self.output = _Lines(lambda: fifo.open(encoding="utf-8", errors="replace"))
        status, pid = shell.run(f"{{ {command}\n}} < /dev/null > {shell.private_inside / name} 2>&1 & echo $!")
        assert status == 0, pid
        self._pid = pid.strip()

    def end(self, signal: str = "INT") -> int:
        """End it, and wait until it has; its exit status."""
        # A job of a shell with job control is a process group; a shell in it that waits for the program dies of SIGINT.
        status, _ = self._shell.run(f"kill -{signal} -- -{self._pid} 2> /dev/null; wait {self._pid}")
        self.output.wait(lambda _: False)
        return status

    def wait(self) -> int:
        """Wait until it ends; its exit status."""
        return self._shell.run(f"wait {self._pid}")[0]


class Shell:
    """A running bash that takes commands.

    Args:
        words: the command line that starts it.
        folder: the page's folder, as this machine sees it.
        private: a folder for what the shell needs, as this machine sees it.
        inside: the same, as the shell sees it.
        env: its environment.
    """

    def __init__(self, words: list[str], folder: Path, private: Path, inside: Path, env: dict[str, str]) -> None:
        self.folder, self.private, self.private_inside = folder, private, inside
        self._process = subprocess.Popen(
            words, cwd=folder, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", bufsize=1,
        )  # fmt: skip
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._status = 0

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def run(self, command: str) -> tuple[int, str]:
        """Run a command, which finds the exit status of the one before in $?; its exit status and its output."""
        mark = uuid.uuid4().hex
        # Not the mark: bash names the script in its error messages.
        script = self.private / f"{uuid.uuid4().hex}.sh"
        script.write_text(f"{command}\n", "utf-8")
        script.chmod(0o644)
        line = f"(exit {self._status}); . {self.private_inside / script.name} < /dev/null; printf '{mark} %d\\n' $?\n"
        assert self._process.stdin is not None
        output = ""
        try:
            self._process.stdin.write(line)
            while (line := self._lines.get(timeout=PATIENCE) or "") and mark not in line:
                output += line
        except (BrokenPipeError, queue.Empty):
            line = ""
        assert line, f"the shell does not answer to {command}: {output}"
        rest, _, status = line.rpartition(mark)
        self._status = int(status)
        return self._status, output + rest

    def put(self, name: str, text: str) -> None:
        """Write a file, with the folders that it needs."""
        copy = self.private / uuid.uuid4().hex
        copy.write_text(text, "utf-8")
        copy.chmod(0o644)
        status, output = self.run(f'mkdir -p "$(dirname {name})" && cat {self.private_inside / copy.name} > {name}')
        assert status == 0, output

    def end(self) -> None:
        """End it, with all that it started."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert self._process.stdout is not None
        self._process.stdout.close()


def private_shell(folder: Path, user: int | None, wheels: Path | None, name: str) -> Shell:
    """Start a shell in namespaces of its own; the test is skipped where there are none.

    Args:
        folder: the page's folder.
        user: number of the user that it runs as, None for the one that runs the tests.
        wheels: the folder from which pip installs, None if the page does not use pip.
        name: of the folder beside it that holds what the shell needs.
    """
    private = folder.parent / name
    for each in ("home", "bin", "layers"):
        (private / each).mkdir(parents=True)
    private.chmod(0o777)
    (private / "home").chmod(0o777)
    if shutil.which("sudo") is None and user is None and os.geteuid() == 0:
        (private / "bin/sudo").write_text('#!/bin/sh\nexec "$@"\n')
        (private / "bin/sudo").chmod(0o755)
    flags = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid() != 0:
        flags[:0] = ["--user", "--map-current-user", "--keep-caps"]
    enter = ["unshare", *flags, "sh", "-c", _ENTER, "sh", str(private / "layers"), "" if user is None else str(user)]
    env = _environment(private, os.geteuid() if user is None else user) | _pip(wheels)
    tried = subprocess.run([*enter, "true"], cwd=folder, env=env, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no namespaces here: {tried.stderr.strip()}")
    shell = Shell([*enter, "bash", "--noprofile", "--norc"], folder, private, private, env)
    shell.run("set -m")  # a job is a process group, and SIGINT ends it
    return shell


def machine_shell(machine: Booted, page: str, wheels: Path | None, name: str) -> Shell:
    """Start a shell on a booted machine.

    Args:
        machine: the machine.
        page: the text of the page; if it makes /opt/svcd, the one that is there goes.
        wheels: the folder from which pip installs, None if the page does not use pip.
        name: of the folder that holds what the shell needs.
    """
    home = machine.root / "root"
    (home / "page").mkdir(exist_ok=True)
    (home / name).mkdir()
    if "venv /opt/svcd" in page:
        shutil.rmtree(machine.root / "opt/svcd")
    if wheels is not None:
        shutil.copytree(wheels, machine.root / "opt/page-wheels")
    path = "/opt/svcd/bin:/opt/python/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    env = {"PATH": path, "HOME": "/root", "LC_ALL": "C.UTF-8", "COLUMNS": "100", "PYTHONUNBUFFERED": "1"}
    env |= _pip(None if wheels is None else Path("/opt/page-wheels"))
    words = machine.command("bash", "--noprofile", "--norc")
    shell = Shell(words, home / "page", home / name, Path("/root") / name, env)
    shell.run("set -m; cd ~root/page")
    return shell


def _pip(wheels: Path | None) -> dict[str, str]:
    """Return the variables with which pip installs from a folder."""
    if wheels is None:
        return {}
    quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_CACHE_DIR": "1", "PIP_ROOT_USER_ACTION": "ignore"}
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull, **quiet}


def _environment(private: Path, user: int) -> dict[str, str]:
    """Return the environment of a page's commands: the user's, with what this Python needs."""
    kept = ["TZ"]
    if user == os.geteuid():
        # Another user can't write the data of a coverage run, and each command would print that.
        kept += ["COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG"]
    system = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
    found = {name: os.environ[name] for name in kept if name in os.environ}
    found["PYTHONUNBUFFERED"] = "1"
    if (path := environment()["PYTHONPATH"]) not in site.getsitepackages():
        # An interpreter finds what is installed for it; for pip of another environment it would be installed there.
        found["PYTHONPATH"] = path
    return found | {
        "PATH": ":".join([f"{private}/bin", str(Path(sys.executable).parent), *system]),
        "HOME": str(private / "home"),
        "XDG_RUNTIME_DIR": f"/run/user/{user}",
        "LC_ALL": "C.UTF-8",
        "COLUMNS": "100",
    }


def is_foreground(command: str) -> bool:
    """Return whether a command is a daemon that runs until it is interrupted."""
    begins = re.match(r"(?:sudo +)?(?:\w+=\S* +)*(?:\S*/)?(?:twistd +(?:-n|--nodaemon)\b|svcd(?: |$))", command)
    return begins is not None and not re.search(r"--help|--version|--check|&\s*$|\|", command)
