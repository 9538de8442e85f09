"""A real systemd starts the unit, hears that it is ready, and stops it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import svcd
from tests.real.daemon import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UNIT = "svcd.service"
SERVICES = "echo 7/tcp\necho 7/udp\nupper 7007/tcp\n"


def unit_text() -> str:
    """The unit as it is installed, or as the checkout has it."""
    installed = Path(sysconfig.get_path("data")) / "share" / "svcd" / UNIT
    checkout = Path(__file__).parents[2] / "etc" / "systemd" / UNIT
    found = next((path for path in (checkout, installed) if path.exists()), None)
    if found is None:
        pytest.skip("the unit is neither installed nor in a checkout")
    return found.read_text()


def with_python(text: str, python: str, scripts: str) -> str:
    """The unit with its programs started by a Python that is named, since their first lines name another."""
    return text.replace("=/opt/svcd/bin/svcctl", f"={python} -m svcd").replace(
        "=/opt/svcd/bin/twistd", f"={python} {scripts}/twistd"
    )


def test_unit_verifies(tmp_path: Path, program: Callable[[str], str]) -> None:
    """`systemd-analyze verify` finds nothing to say about the unit."""
    unit = tmp_path / UNIT
    unit.write_text(with_python(unit_text(), sys.executable, str(Path(sys.executable).parent)))
    words = [program("systemd-analyze"), "verify", "--man=no", str(unit)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
    about = [line for line in (done.stdout + done.stderr).splitlines() if UNIT in line]
    assert (done.returncode, about) == (0, [])


@pytest.fixture
def container(tmp_path: Path, program: Callable[[str], str]) -> Iterator[Callable[..., str]]:
    """A booted systemd over an overlay of this machine; gives a way to run commands in it.

    The overlay's upper folder takes all that it writes, so this machine stays as it is.
    """
    nspawn, nsenter = program("systemd-nspawn"), program("nsenter")
    root = tmp_path / "root"
    layers = [tmp_path / name for name in ("upper", "work")]
    for folder in (root, *layers):
        folder.mkdir()
    options = f"lowerdir=/,upperdir={layers[0]},workdir={layers[1]}"
    mounted = subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(root)], capture_output=True)
    if mounted.returncode:
        # An overlay can't stand on an overlay; a memory file system can bear one.
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(tmp_path / "upper")], check=True)
        for name in ("upper", "work"):
            (tmp_path / "upper" / name).mkdir()
        options = f"lowerdir=/,upperdir={tmp_path}/upper/upper,workdir={tmp_path}/upper/work"
        mounted = subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(root)], capture_output=True)
    if mounted.returncode:
        subprocess.run(["umount", str(tmp_path / "upper")], check=False)
        pytest.skip(f"no overlay mount here: {mounted.stderr.decode().strip()}")
    process = None
    try:
        (root / "etc" / "machine-id").write_text(f"{uuid.uuid4().hex}\n")
        # Nothing of this machine's own services is wanted in there.
        shutil.rmtree(root / "etc/systemd/system/multi-user.target.wants", ignore_errors=True)
        binds = _binds(root)
        log = (tmp_path / "boot.log").open("wb")
        words = [nspawn, "--quiet", "--register=no", "--keep-unit", "--private-network", "--boot", *binds]
        words += ["--machine", f"svcd-test-{os.getpid()}", "--directory", str(root), "systemd.unit=basic.target"]
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        log.close()
        leader = _leader(process)
        if leader is None:
            pytest.skip(f"systemd does not boot here: {(tmp_path / 'boot.log').read_text(errors='replace')[-500:]}")

        def inside(*command: str, check: bool = True) -> str:
            enter = [nsenter, f"--target={leader}", "--all", f"--root=/proc/{leader}/root", f"--wd=/proc/{leader}/root"]
            done = subprocess.run([*enter, *command], capture_output=True, text=True, timeout=PATIENCE)
            assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
            return done.stdout

        inside("systemctl", "is-system-running", "--wait", check=False)
        yield inside
    finally:
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(PATIENCE)
        subprocess.run(["umount", str(root)], check=True)
        if os.path.ismount(tmp_path / "upper"):
            subprocess.run(["umount", str(tmp_path / "upper")], check=True)


SOURCE = Path(svcd.__file__).parent.parent


def _binds(root: Path) -> list[str]:
    """This virtual environment as /opt/svcd, its Python where it says it is, and the svcd under test."""
    base = Path(sys.base_prefix)
    binds = [f"--bind-ro={sys.prefix}:/opt/svcd", f"--bind-ro={SOURCE}:/opt/svcd-source"]
    if base.parts[1] != "usr":
        binds.append(f"--bind-ro={base}")
        for folder in [*base.parents][:-1]:
            # In the overlay's copy alone: the daemon's user must get through to Python.
            (root / folder.relative_to("/")).chmod(0o755)
    return binds


def _leader(process: subprocess.Popen[bytes]) -> int | None:
    """The container's process 1, as this machine counts, once its systemd can be asked; None if it ended."""
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
        # Not a wait for luck: process 1 gives no other sign of life to its outside.
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    return None


@pytest.mark.usefixtures("as_root")
def test_systemd_runs_the_unit(container: Callable[..., str]) -> None:
    """systemd starts the unit, has READY before `start` returns, echo answers, and the stop is clean."""
    inside = container

    def put(path: str, text: str) -> None:
        inside("sh", "-c", f"mkdir -p $(dirname {path}) && cat > {path} <<'END'\n{text}END\n")

    python = "/opt/svcd/bin/python3"
    put("/etc/systemd/system/svcd.service", with_python(unit_text(), python, "/opt/svcd/bin"))
    put("/etc/svcd/services", SERVICES)
    put("/etc/systemd/system/svcd.service.d/here.conf", "[Service]\nEnvironment=PYTHONPATH=/opt/svcd-source\n")
    inside("systemctl", "daemon-reload")
    inside("sh", "-c", f"systemctl start {UNIT} || (journalctl --no-pager -u {UNIT}; false)")
    properties = "ActiveState,SubState,Type,MainPID,NotifyAccess"
    shown = dict(line.split("=", 1) for line in inside("systemctl", "show", "-p", properties, UNIT).splitlines())
    assert (shown["ActiveState"], shown["SubState"], shown["Type"]) == ("active", "running", "notify")
    # READY came before the sockets were asked anything, so that the first connection must be served.
    code = (
        "import socket;c=socket.create_connection(('127.0.0.1',7),30);c.sendall(b'hi');c.shutdown(1);"
        "print(c.recv(9).decode())"
    )
    assert inside(python, "-c", code) == "hi\n"
    status = inside("cat", f"/proc/{shown['MainPID']}/status")
    uid = re.search(r"^Uid:\s+(\d+)", status, re.MULTILINE)
    assert uid is not None
    assert int(uid[1]) != 0
    capabilities = re.search(r"^CapEff:\s+([0-9a-f]+)", status, re.MULTILINE)
    assert capabilities is not None
    assert int(capabilities[1], 16) == 1 << 10  # CAP_NET_BIND_SERVICE alone
    inside("systemctl", "stop", UNIT)
    result = inside("systemctl", "show", "-p", "ActiveState,Result,ExecMainStatus", UNIT).split()
    assert sorted(result) == ["ActiveState=inactive", "ExecMainStatus=0", "Result=success"]
    # Nobody asked for it: the standard output is the journal, so the entries have fields.
    entries = inside("journalctl", "--no-pager", "-o", "json", "-u", UNIT, "SVCD_EVENT=end", "SVCD_SERVICE=echo/tcp")
    (entry,) = map(json.loads, entries.splitlines())
    assert entry["MESSAGE"].startswith("end service=echo/tcp peer=127.0.0.1:")
    assert (entry["SYSLOG_IDENTIFIER"], entry["PRIORITY"], entry["_TRANSPORT"]) == ("svcd", "6", "journal")
    assert (entry["SVCD_ID"], entry["SVCD_IN"], entry["SVCD_OUT"], entry["SVCD_REASON"]) == ("1", "2", "2", "done")
    notices = inside("journalctl", "--no-pager", "-o", "cat", "-u", UNIT, "-t", "svcd", "-p", "notice").splitlines()
    assert {line.split()[0] for line in notices} == {"listen", "ready", "stop", "close"}
