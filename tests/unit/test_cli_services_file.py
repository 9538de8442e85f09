"""Which services file svcctl check and explain are about, and as whom it is checked."""

from __future__ import annotations

import argparse
import os
import pwd
from typing import TYPE_CHECKING, Any

import pytest

from svcd.cli import main
from svcd.cli import services_file as sources
from svcd.cli.services_file import ServicesFileSource, become, require_modules, source_of
from svcd.defaults import DEFAULT_NAME, SERVICES_FILE
from svcd.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

OWN = pwd.getpwuid(os.geteuid()).pw_name
#: A user whom passwd(5) does not know.
STRANGER = 54_321


def _source(
    monkeypatch: pytest.MonkeyPatch, status: dict[str, Any] | None, named: str | None = None, control: str | None = None
) -> ServicesFileSource:
    monkeypatch.setattr("svcd.cli.control_commands.daemon_status", lambda *_: status)
    monkeypatch.setattr(sources, "_unit_user", lambda: "svcd")
    return source_of(named, argparse.Namespace(control=control))


def test_the_running_daemons_file_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its offset, and the users who read the file and run handlers."""
    status = {"pid": 7, "services_file": "/s", "port_offset": 10, "reader": 0, "user": STRANGER}
    found = _source(monkeypatch, status)
    assert found == ServicesFileSource("/s", "the file of the running daemon (pid 7)", 10, "root", str(STRANGER))
    assert found.name == "/s, the file of the running daemon (pid 7)"
    same = _source(monkeypatch, {**status, "reader": STRANGER})
    assert (same.reader, same.handlers) == (str(STRANGER), "")
    embedded = _source(monkeypatch, {**status, "services_file": DEFAULT_NAME})
    assert embedded.file is None
    assert _source(monkeypatch, status, "/s", "/control") == found


def test_a_file_that_is_named_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon's users are not its own, unless it is the daemon's file."""
    status = {"pid": 7, "services_file": "/s", "port_offset": 10, "reader": 0, "user": STRANGER}
    assert _source(monkeypatch, status, "/other") == ServicesFileSource("/other")
    assert _source(monkeypatch, status, "/other", "/control") == ServicesFileSource("/other")


def test_without_a_daemon_the_unit_says_who_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual file is the unit's; an older daemon that says nothing of its file is none."""
    for status in (None, {"pid": 7}):
        assert _source(monkeypatch, status) == ServicesFileSource(None, reader="svcd")
    assert _source(monkeypatch, None, SERVICES_FILE) == ServicesFileSource(SERVICES_FILE, reader="svcd")


def test_a_check_says_whose_eyes_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root becomes the user, others say who could."""
    assert become("") == become(OWN) == OWN
    with pytest.raises(UsageError, match="no user 'nosuchuser' on this machine"):
        become("nosuchuser")
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    other = pwd.getpwuid(1).pw_name
    assert become("root") == f"{other} (as root, the check would run as root, the user that serves)"


def _check_as_nobody(path: Path) -> int:
    pid = os.fork()
    if not pid:
        # To be another user is for good.
        os._exit(main(["check", "--user", "nobody", str(path)]))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_check_as_another_user(
    public_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What that user can't read can't be served."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    monkeypatch.setattr(sources, "require_modules", lambda _: None)
    path = public_path / "services"
    path.write_text("echo 7/tcp\n")
    path.chmod(0o600)
    assert _check_as_nobody(path) == 78
    said = capfd.readouterr()
    assert said.err == f"svcctl check: {path}; as user nobody\n{path}: can't read {path}: Permission denied\n"


def test_a_check_as_a_user_that_can_not_read_python(
    public_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line has the path, the directory that the user can't enter, and the remedy; the status is that of faults."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    path, library = public_path / "services", public_path / "root" / "lib" / "os.py"
    path.write_text("echo 7/tcp\n")
    library.parent.mkdir(parents=True)
    library.touch()
    library.parents[1].chmod(0o700)
    monkeypatch.setattr(os, "__file__", str(library))
    require_modules("root")
    assert _check_as_nobody(path) == 1
    assert capfd.readouterr().err == (
        f"svcctl check: {path}; as user nobody\n"
        f"{library}: can't read the modules of Python and svcd: nobody may not enter {library.parents[1]}; install "
        "Python and svcd where nobody can read them, or check as another user with --user USER\n"
    )
