"""svcd under a real systemd: install, start, watchdog, reload, restart under load, uninstall."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import svcd
from tests.certificates import Authority
from tests.real.booted import PYTHON, Booted, booted
from tests.real.daemon import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Highest exposure level of `systemd-analyze security`.
_EXPOSURE = 2.0
SERVICES = "echo 7/tcp\necho 7/udp\nupper 7007/tcp\ndaytime 13/tcp\nlocal /run/svcd/local/unix echo\n"


def etc() -> Path:
    """Return the directory etc/ of the installation or of the checkout."""
    package = Path(svcd.__file__).parent
    return package / "etc" if (package / "etc").is_dir() else package.parent / "etc"


def _startable(unit: Path) -> str:
    """Return a unit whose programs exist on this machine."""
    return re.sub(r"/opt/svcd/bin/\w+", sys.executable, unit.read_text())


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """Return a directory with the units."""
    for name in ("svcd.service", "svcd.socket"):
        (tmp_path / name).write_text(_startable(etc() / "systemd" / name))
    return tmp_path


def test_units_verify(units: Path, program: Callable[[str], str]) -> None:
    """`systemd-analyze verify` prints nothing, with and without all drop-ins."""
    words = [program("systemd-analyze"), "verify", "--man=no", str(units / "svcd.service"), str(units / "svcd.socket")]
    for drop_ins in (False, True):
        if drop_ins:
            (units / "svcd.service.d").mkdir()
            for each in (etc() / "systemd/drop-ins").iterdir():
                (units / "svcd.service.d" / each.name).write_text(_startable(each))
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
        about = [line for line in (done.stdout + done.stderr).splitlines() if "svcd" in line]
        assert (done.returncode, about) == (0, [])


def test_exposure_of_the_unit(units: Path, program: Callable[[str], str]) -> None:
    """`systemd-analyze security` reports 2.0 or less."""
    words = [program("systemd-analyze"), "security", "--offline=true", "--no-pager", str(units / "svcd.service")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze knows no --offline")
    level = re.search(r"Overall exposure level for svcd.service: ([\d.]+)", done.stdout)
    assert level is not None, done.stderr
    assert float(level[1]) <= _EXPOSURE


@pytest.fixture
def machine(tmp_path: Path, program: Callable[[str], str], as_root: None) -> Iterator[Booted]:  # noqa: ARG001 - it skips
    """Return a container with svcd installed and not started."""
    with booted(tmp_path, program) as inside:
        said = inside("/opt/svcd/bin/svcctl", "install")
        assert "write /usr/local/lib/systemd/system/svcd.service" in said
        assert "run systemctl daemon-reload" in said
        inside.put("/etc/svcd/services", SERVICES)
        yield inside


def _await(what: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def _journal_has_fields(machine: Booted) -> None:
    """Check that the end of the connection to upper/tcp is a journal entry with its fields."""
    words = ["journalctl", "--no-pager", "-o", "json", "-u", "svcd", "SVCD_EVENT=end", "SVCD_SERVICE=upper/tcp"]
    _await(lambda: bool(machine(*words).strip()))
    (entry,) = map(json.loads, machine(*words).splitlines())
    assert (entry["SVCD_IN"], entry["SVCD_OUT"], entry["SVCD_REASON"], entry["PRIORITY"]) == ("2", "2", "done", "6")
    assert entry["SVCD_PEER"].startswith("127.0.0.1:")
    assert entry["MESSAGE"].startswith("end service=upper/tcp peer=127.0.0.1:")
    assert entry["SYSLOG_IDENTIFIER"] == "svcd"


def _check_control_socket(machine: Booted) -> None:
    """Check that the daemon's user can't reach or replace the control socket, nor see the daemon."""
    pid = machine.show("MainPID")["MainPID"]
    for _ in range(2):
        assert machine("stat", "-c", "%U %a", "/run/svcd/control") == "root 600\n"
        svcd = ["setpriv", "--reuid=svcd", "--regid=svcd", "--clear-groups"]
        words = [*svcd, "/opt/svcd/bin/svcctl", "--control", "/run/svcd/control", "status"]
        assert "Permission denied" in machine(*words, check=False)
        assert "not permitted" in machine(*svcd, "rm", "-f", "/run/svcd/control", check=False)
        assert "Permission denied" in machine(*svcd, "cat", f"/proc/{pid}/environ", check=False)
        machine("systemctl", "reload", "svcd")


def test_install_start_stop_and_uninstall(machine: Booted) -> None:
    """systemd gets READY and STATUS; the only capability is for low ports; uninstall keeps edited files."""
    machine("systemd-analyze", "verify", "--man=no", "svcd.service")
    machine("systemctl", "enable", "--now", "svcd")
    shown = machine.show("ActiveState", "SubState", "Type", "MainPID", "StatusText", "NFileDescriptorStore", "User")
    assert (shown["ActiveState"], shown["SubState"], shown["Type"]) == ("active", "running", "notify")
    # IPv4 and IPv6 for services with a port.
    listeners = 4 * len(machine("sh", "-c", "ls /proc/net/tcp*").split()) + 1
    assert shown["StatusText"] == f"services: 5, listeners: {listeners}, connections: 0"
    assert shown["NFileDescriptorStore"] == str(listeners)
    assert machine.ask(7, "hi") == "hi"
    assert machine.ask(7007, "hi") == "HI"
    status = machine("cat", f"/proc/{shown['MainPID']}/status")
    assert int(re.findall(r"^Uid:\s+(\d+)", status, re.MULTILINE)[0]) == int(machine("id", "-u", "svcd"))
    capabilities = re.findall(r"^Cap(?:Prm|Eff|Bnd):\s+([0-9a-f]+)", status, re.MULTILINE)
    assert {int(each, 16) for each in capabilities} == {1 << 10}  # only CAP_NET_BIND_SERVICE
    assert re.findall(r"^(?:NoNewPrivs|Seccomp):\s+(\d)", status, re.MULTILINE) == ["1", "2"]
    assert "reactor=UvReactor" in machine.journal()
    assert "upper/tcp" in machine("svcctl", "status")
    _check_control_socket(machine)
    declined = machine("svcctl", "upgrade", check=False)
    assert "systemctl restart refuses no client" in declined
    assert machine.show("MainPID")["MainPID"] == shown["MainPID"]
    _journal_has_fields(machine)
    machine("systemctl", "stop", "svcd")
    result = machine.show("ActiveState", "Result", "ExecMainStatus", "NFileDescriptorStore")
    wanted = {"ActiveState": "inactive", "Result": "success", "ExecMainStatus": "0", "NFileDescriptorStore": "0"}
    assert result == wanted
    machine("systemctl", "start", "svcd")
    said = machine("svcctl", "uninstall")
    assert "run systemctl disable --now svcd.service" in said
    assert "keep, it was edited: /etc/svcd/services" in said
    assert machine.show("LoadState", "ActiveState") == {"LoadState": "not-found", "ActiveState": "inactive"}
    left = machine("find", "/usr/local", "/etc", "-newer", "/opt/svcd/bin/svcctl", "-path", "*svcd*", "-type", "f")
    assert left.split() == ["/etc/svcd/services"]


_LOAD = """
import collections, json, socket, sys, threading, time
counts, stop = collections.Counter(), threading.Event()
longest = 0.0
def client(number):
    global longest
    while not stop.is_set():
        began = time.monotonic()
        try:
            with socket.socket() as c:
                c.settimeout(30)
                c.bind((f"127.0.0.{2 + number}", 0))
                c.connect(("127.0.0.1", 13))
                answer = b"".join(iter(lambda: c.recv(4096), b""))
            counts["served" if answer.endswith(b"\\n") else "short"] += 1
        except OSError as error:
            counts[type(error).__name__] += 1
        longest = max(longest, time.monotonic() - began)
threads = [threading.Thread(target=client, args=(n,)) for n in range(64)]
for t in threads: t.start()
print("begun", flush=True)
sys.stdin.read()
stop.set()
for t in threads: t.join()
print(json.dumps({**counts, "longest": longest}))
"""


def test_restarts_under_load_refuse_no_client(machine: Booted) -> None:
    """Five restarts while 64 clients read the time repeatedly: each client gets its answer."""
    # With its rate limit the journal would drop lines of the last daemon: connections cause thousands a second.
    limits = "[Unit]\nStartLimitIntervalSec=0\n[Service]\nLogRateLimitIntervalSec=0\n"
    machine.put("/etc/systemd/system/svcd.service.d/often.conf", limits)
    # journald forgets the limit of a unit when the unit stops, and it may read the last entries of a daemon after that.
    machine.put("/etc/systemd/journald.conf.d/rate.conf", "[Journal]\nRateLimitIntervalSec=0\n")
    machine("systemctl", "restart", "systemd-journald")
    machine("systemctl", "daemon-reload")
    machine("systemctl", "start", "svcd")
    stored = machine.show("NFileDescriptorStore")["NFileDescriptorStore"]
    load = machine.begin(PYTHON, "-c", _LOAD)
    with load:
        assert load.stdin is not None
        assert load.stdout is not None
        assert load.stdout.readline() == "begun\n"
        pids = {machine.show("MainPID")["MainPID"]}
        for _ in range(5):
            time.sleep(0.3)
            machine("systemctl", "restart", "svcd")
            pids.add(machine.show("MainPID")["MainPID"])
        time.sleep(0.3)
        load.stdin.close()
        counts = json.loads(load.stdout.read())
    # Shown by pytest -rP.
    print(counts)
    longest = counts.pop("longest")
    assert counts.keys() == {"served"}, counts
    assert counts["served"] > 500
    assert longest < PATIENCE
    assert len(pids) == 6
    # Lines of the last daemon may not be in the journal yet.
    _await(lambda: machine.journal().count("origin=store") == 5 * int(stored))


def test_watchdog_restarts_a_hanging_daemon(machine: Booted) -> None:
    """Without watchdog messages systemd restarts the daemon, and a client that connected meanwhile is served."""
    machine.put("/etc/systemd/system/svcd.service.d/soon.conf", "[Service]\nWatchdogSec=1\nLimitCORE=0\n")
    machine("systemctl", "daemon-reload")
    machine("systemctl", "start", "svcd")
    before = machine.show("MainPID", "NRestarts")
    time.sleep(2.5)
    assert machine.show("MainPID", "NRestarts") == before
    machine("kill", "-STOP", before["MainPID"])
    assert machine.ask(7, "hello?") == "hello?"
    after = machine.show("MainPID", "NRestarts")
    assert after["MainPID"] != before["MainPID"]
    assert after["NRestarts"] == "1"
    _await(lambda: machine.show("ActiveState")["ActiveState"] == "active")
    assert "Watchdog timeout" in machine.journal()


def test_reload(machine: Booted) -> None:
    """`systemctl reload` applies the new file; with errors in the file it fails and changes nothing."""
    machine("systemctl", "start", "svcd")
    pid = machine.show("MainPID")
    machine.put("/etc/svcd/services", "echo 7/tcp4\nupper 77/tcp4\n")
    machine("systemctl", "reload", "svcd")
    assert machine.ask(77, "hi") == "HI"
    _await(lambda: machine.show("NFileDescriptorStore")["NFileDescriptorStore"] == "2")
    machine.put("/etc/svcd/services", "ecoh 7/tcp4\n")
    assert "failed" in machine("systemctl", "reload", "svcd", check=False)
    assert "ecoh" in machine.journal()
    assert machine.ask(77, "hi") == "HI"
    assert machine.show("MainPID") == pid
    assert machine.show("ActiveState", "StatusText") == {
        "ActiveState": "active",
        "StatusText": "services: 2, listeners: 2, connections: 0",
    }


def test_tls_under_the_unit(machine: Booted) -> None:
    """Certificates that the daemon's user can read are selected by name under MemoryDenyWriteExecute=."""
    authority = Authority()
    machine.put("/etc/svcd/names/localhost.pem", authority.sign("localhost").bundle.decode())
    machine.put("/etc/svcd/ca.pem", authority.pem.decode())
    machine("chown", "-R", "svcd", "/etc/svcd/names")
    machine("chmod", "-R", "go=", "/etc/svcd/names")
    secure = "tls_sni=/etc/svcd/names tls_unknown_name=refuse tls_client_ca=/etc/svcd/ca.pem tls_client=optional"
    machine.put("/etc/svcd/services", f"https 443/tcp4 http {secure}\n")
    machine("systemctl", "start", "svcd")
    said = machine("/opt/svcd/bin/svcctl", "get", "--ca", "/etc/svcd/ca.pem", "https://localhost/")
    assert "<html" in said


def test_socket_activation(machine: Booted) -> None:
    """The first client starts the daemon; systemd keeps the sockets after its stop, and another client starts it."""
    text = machine("cat", "/usr/local/share/svcd/svcd.socket")
    machine.put("/etc/systemd/system/svcd.socket", text)
    lines = "echo 7/tcp\necho 7/udp\nlocal /run/svcd/echo.sock/unix echo\nupper 7007/tcp4\n"
    machine.put("/etc/svcd/services", f"@defaults bind=127.0.0.1,::1\n{lines}")
    machine("systemctl", "daemon-reload")
    machine("systemctl", "start", "svcd.socket")
    assert machine.show("ActiveState")["ActiveState"] == "inactive"
    for _ in range(2):
        assert machine.ask(7, "hi") == "hi"
        assert machine.ask(7007, "hi") == "HI"
        # Sockets of the socket unit are not in the store; sockets that svcd has opened are.
        _await(lambda: machine.show("NFileDescriptorStore")["NFileDescriptorStore"] == "1")
        machine("systemctl", "stop", "svcd.service")
        assert machine("ls", "-A", "/run/svcd").split() == ["echo.sock"]
    assert "leftover" not in machine.journal()


def test_handlers_run_under_the_unit(machine: Booted) -> None:
    """Programs and Python handlers run as the daemon's user; with the drop-ins as other users and in a chroot."""
    handler = "import os\n\ndef who(client, address):\n    client.sendall(b'%d' % os.getuid())\n"
    machine.put("/opt/handlers/ours.py", handler)
    handlers = "id 1001/tcp4 server='/usr/bin/id -un'{}\nwho 1002/tcp4 python=ours:who python_path=/opt/handlers{}\n"
    machine.put("/etc/svcd/services", SERVICES + handlers.format("", ""))
    machine("systemctl", "start", "svcd")
    assert machine.ask(1001) == "svcd\n"
    assert machine.ask(1002) == machine("id", "-u", "svcd").strip()
    machine("sh", "-c", "mkdir -p /etc/systemd/system/svcd.service.d /srv/jail; cp /bin/true /srv/jail/")
    machine("sh", "-c", "cp /usr/local/share/svcd/drop-ins/spawn-as-users.conf /etc/systemd/system/svcd.service.d/")
    machine("sh", "-c", "cp /usr/local/share/svcd/drop-ins/chroot.conf /etc/systemd/system/svcd.service.d/")
    machine.put("/etc/svcd/services", SERVICES + handlers.format(" user=nobody", " user=games nice=-5 chroot=/"))
    machine("systemctl", "daemon-reload")
    machine("systemctl", "restart", "svcd")
    assert machine.ask(1001) == "nobody\n"
    assert machine.ask(1002) == machine("id", "-u", "games").strip()
    assert machine.ask(7, "hi") == "hi"
    pid = machine.show("MainPID")["MainPID"]
    owner = machine("stat", "-c", "%U", f"/proc/{pid}")
    assert owner == "svcd\n"
    machine("systemctl", "reload", "svcd")
    assert "id/tcp4" in machine("svcctl", "status")
