"""Permissions of another user on a path."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from svcd.host.accounts import login
from svcd.host.info import Host
from svcd.host.permissions import PathUser, cannot_enter, cannot_execute, cannot_read
from svcd.model import RunAs

if TYPE_CHECKING:
    from pathlib import Path

ROOT = PathUser("root", 0, frozenset({0}))
ME = PathUser("me", os.geteuid(), frozenset({os.getegid()}))
SOMEBODY = PathUser("user x", 54_321, frozenset({54_321}))
OF_MY_GROUP = PathUser("user y", 54_322, frozenset({54_322, os.getegid()}))


def _file(path: Path, mode: int = 0o755, content: str = "\x7fELF") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(mode)
    return path


@pytest.fixture
def folder(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory that all users can enter."""
    top = tmp_path_factory.getbasetemp().parent
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Each worker has a directory of its own in that of the run.
        top = top.parent
    for each in (tmp_path, *tmp_path.parents):
        if each.is_relative_to(top):
            each.chmod(0o711)
        elif not each.stat().st_mode & stat.S_IXOTH:
            pytest.skip(f"nobody else may enter {each}")
    return tmp_path


@pytest.mark.parametrize(
    ("mode", "who", "may"),
    [
        (0o700, ME, True), (0o700, OF_MY_GROUP, False), (0o700, SOMEBODY, False),
        (0o710, OF_MY_GROUP, True), (0o710, SOMEBODY, False),
        (0o701, SOMEBODY, True), (0o701, OF_MY_GROUP, False),
        (0o644, SOMEBODY, False), (0o644, ROOT, False), (0o001, ROOT, True),
    ],
)  # fmt: skip
def test_who_may_execute_a_file(folder: Path, mode: int, who: PathUser, may: bool) -> None:
    """The first of owner, group and others that fits decides; root needs any of the three."""
    if who is ME and ME.user == 0:
        pytest.skip("root may more")
    reason = cannot_execute(str(_file(folder / "p", mode)), who)
    assert reason == ("" if may else f"{who.name} may not execute it")


@pytest.mark.parametrize(("mode", "may"), [(0o755, True), (0o711, False), (0o700, False)])
def test_a_script_must_be_read_by_its_interpreter(folder: Path, mode: int, may: bool) -> None:
    """To execute a script alone is not enough; a program in machine code is mapped by the kernel."""
    reason = cannot_execute(str(_file(folder / "p", mode, "#!/bin/sh\n")), SOMEBODY)
    assert (reason == "") is may
    assert mode != 0o711 or reason == "user x may not read it, and it is a script, which its interpreter reads"
    assert cannot_execute(str(_file(folder / "q", 0o711)), SOMEBODY) == ""


def test_who_may_read_a_file(folder: Path) -> None:
    """By its mode, and by the directories on the way; root reads everything."""
    path = str(_file(folder / "p", 0o640))
    assert cannot_read(path, SOMEBODY) == "user x may not read it"
    assert cannot_read(path, OF_MY_GROUP) == ""
    assert cannot_read(path, ROOT) == ""
    assert cannot_read(f"{folder}/none", SOMEBODY) == "No such file or directory"
    private = _file(folder / "private" / "p")
    private.parent.chmod(stat.S_IRWXU)
    assert cannot_read(str(private), SOMEBODY) == f"user x may not enter {folder}/private"


def test_what_is_no_program(folder: Path) -> None:
    """Directories, devices and what does not exist can't be run; files and what does not exist, not be entered."""
    path = str(_file(folder / "p"))
    assert cannot_execute(str(folder), SOMEBODY) == "it is no regular file"
    assert cannot_execute(os.devnull, SOMEBODY) == "it is no regular file"
    assert cannot_execute(f"{folder}/none", SOMEBODY) == "No such file or directory"
    assert cannot_execute(f"{path}/x", SOMEBODY) == "Not a directory"
    assert cannot_enter(path, SOMEBODY) == "Not a directory"
    assert cannot_enter(f"{folder}/none", SOMEBODY) == "No such file or directory"
    assert cannot_enter("/", SOMEBODY) == ""


def test_every_directory_on_the_way_must_be_entered(folder: Path) -> None:
    """The one that can't be is named."""
    path = _file(folder / "private" / "p")
    path.parent.chmod(stat.S_IRWXU)
    assert cannot_execute(str(path), SOMEBODY) == f"user x may not enter {folder}/private"
    assert cannot_enter(str(path.parent), SOMEBODY) == "user x may not enter it"
    assert cannot_execute(str(path), ROOT) == ""


def test_links_are_followed(folder: Path) -> None:
    """Relative and absolute ones, through parents; a loop is an error."""
    path = _file(folder / "a" / "p")
    (folder / "b").mkdir()
    (folder / "b" / "relative").symlink_to("../a/./p")
    (folder / "absolute").symlink_to(path)
    (folder / "circle").symlink_to("circle")
    assert cannot_execute(f"{folder}/b/relative", SOMEBODY) == ""
    assert cannot_execute(f"{folder}/absolute", SOMEBODY) == ""
    assert cannot_execute(f"{folder}/circle", SOMEBODY) == "Too many levels of symbolic links"


def test_a_root_directory_holds_everything(folder: Path) -> None:
    """Paths, absolute links and parents stay inside it."""
    _file(folder / "jail" / "bin" / "p")
    (folder / "jail" / "link").symlink_to("/bin/p")
    root = f"{folder}/jail"
    assert cannot_execute("/bin/p", SOMEBODY, root) == ""
    assert cannot_execute("/link", SOMEBODY, root) == ""
    assert cannot_execute("/../../bin/p", SOMEBODY, root) == ""
    assert cannot_execute("/bin/cat", SOMEBODY, root) == "No such file or directory"
    assert cannot_enter("/bin", SOMEBODY, root) == ""
    assert cannot_enter("/", SOMEBODY, f"{folder}/none") == "No such file or directory"


def test_what_we_may_not_see_is_no_problem(folder: Path) -> None:
    """A check by an ordinary user reports nothing about a directory that only the other user can enter."""
    if os.geteuid() == 0:
        pytest.skip("root sees everything")
    path = _file(folder / "private" / "p")
    path.parent.chmod(0)
    try:
        assert cannot_execute(str(path), ROOT) == ""
        assert cannot_execute(str(path), ME) == f"me may not enter {folder}/private"
    finally:
        path.parent.chmod(0o700)


def test_the_machine_knows_who_somebody_is(folder: Path) -> None:
    """Names become numbers, with the groups of the user where they are asked for."""
    machine = Host()
    path = str(_file(folder / "p", 0o710))
    me, group = login(str(os.geteuid())), str(os.getegid())
    assert me is not None
    assert machine.cannot_execute(path, RunAs()) == ""
    assert machine.cannot_execute(path, RunAs(me.pw_name, groups=True)) == ""
    assert machine.cannot_execute(path, RunAs("54321", group)) == ""
    assert machine.cannot_execute(path, RunAs("54321", "54321")) == "user 54321 may not execute it"
    assert machine.cannot_enter("/", RunAs("54321", "54321", root=str(folder))) == ""
    assert [machine.has_login_group(name) for name in (me.pw_name, "4000000000", "no such user")] == [
        True,
        False,
        False,
    ]


def test_an_access_list_is_not_second_guessed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mode of a file with an ACL is not conclusive, so nothing is reported."""
    path = str(_file(folder / "p", 0o700))
    monkeypatch.setattr(os, "getxattr", lambda _path, _name: b"a list")
    assert cannot_execute(path, SOMEBODY) == ""
