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
OTHER = PathUser("user x", 54_321, frozenset({54_321}))
SAME_GROUP = PathUser("user y", 54_322, frozenset({54_322, os.getegid()}))


def _file(path: Path, mode: int = 0o755, content: str = "\x7fELF") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(mode)
    return path


@pytest.fixture
def folder(public_path: Path) -> Path:
    """Return a directory that all users can enter."""
    return public_path


@pytest.mark.parametrize(
    ("mode", "user", "may"),
    [
        (0o700, ME, True), (0o700, SAME_GROUP, False), (0o700, OTHER, False),
        (0o710, SAME_GROUP, True), (0o710, OTHER, False),
        (0o701, OTHER, True), (0o701, SAME_GROUP, False),
        (0o644, OTHER, False), (0o644, ROOT, False), (0o001, ROOT, True),
    ],
)  # fmt: skip
def test_permission_to_execute(folder: Path, mode: int, user: PathUser, may: bool) -> None:
    """The first of owner, group and others that applies decides; root needs any of the three."""
    if user is ME and ME.user == 0:
        pytest.skip("root may more")
    reason = cannot_execute(str(_file(folder / "p", mode)), user)
    assert reason == ("" if may else f"{user.name} may not execute it")


@pytest.mark.parametrize(("mode", "may"), [(0o755, True), (0o711, False), (0o700, False)])
def test_a_script_must_be_read_by_its_interpreter(folder: Path, mode: int, may: bool) -> None:
    """A script must also be readable for its interpreter; a binary program is mapped by the kernel."""
    reason = cannot_execute(str(_file(folder / "p", mode, "#!/bin/sh\n")), OTHER)
    assert (reason == "") is may
    assert mode != 0o711 or reason == "user x may not read it, and it is a script, which its interpreter reads"
    assert cannot_execute(str(_file(folder / "q", 0o711)), OTHER) == ""


def test_permission_to_read(folder: Path) -> None:
    """A file is readable by its mode and by the directories of its path; root can read everything."""
    path = str(_file(folder / "p", 0o640))
    assert cannot_read(path, OTHER) == "user x may not read it"
    assert cannot_read(path, SAME_GROUP) == ""
    assert cannot_read(path, ROOT) == ""
    assert cannot_read(f"{folder}/none", OTHER) == "No such file or directory"
    private = _file(folder / "private" / "p")
    private.parent.chmod(stat.S_IRWXU)
    assert cannot_read(str(private), OTHER) == f"user x may not enter {folder}/private"


def test_paths_that_are_not_programs(folder: Path) -> None:
    """Directories, devices and missing paths can't be executed; files and missing paths can't be entered."""
    path = str(_file(folder / "p"))
    assert cannot_execute(str(folder), OTHER) == "it is not a regular file"
    assert cannot_execute(os.devnull, OTHER) == "it is not a regular file"
    assert cannot_execute(f"{folder}/none", OTHER) == "No such file or directory"
    assert cannot_execute(f"{path}/x", OTHER) == "Not a directory"
    assert cannot_enter(path, OTHER) == "Not a directory"
    assert cannot_enter(f"{folder}/none", OTHER) == "No such file or directory"
    assert cannot_enter("/", OTHER) == ""


def test_every_directory_on_the_way_must_be_entered(folder: Path) -> None:
    """A directory of the path that can't be entered is named."""
    path = _file(folder / "private" / "p")
    path.parent.chmod(stat.S_IRWXU)
    assert cannot_execute(str(path), OTHER) == f"user x may not enter {folder}/private"
    assert cannot_enter(str(path.parent), OTHER) == "user x may not enter it"
    assert cannot_execute(str(path), ROOT) == ""


def test_links_are_followed(folder: Path) -> None:
    """Relative and absolute symbolic links are followed; a loop is an error."""
    path = _file(folder / "a" / "p")
    (folder / "b").mkdir()
    (folder / "b" / "relative").symlink_to("../a/./p")
    (folder / "absolute").symlink_to(path)
    (folder / "circle").symlink_to("circle")
    assert cannot_execute(f"{folder}/b/relative", OTHER) == ""
    assert cannot_execute(f"{folder}/absolute", OTHER) == ""
    assert cannot_execute(f"{folder}/circle", OTHER) == "Too many levels of symbolic links"


def test_a_root_directory(folder: Path) -> None:
    """With a root directory absolute paths, absolute links and `..` stay inside it."""
    _file(folder / "jail" / "bin" / "p")
    (folder / "jail" / "link").symlink_to("/bin/p")
    root = f"{folder}/jail"
    assert cannot_execute("/bin/p", OTHER, root) == ""
    assert cannot_execute("/link", OTHER, root) == ""
    assert cannot_execute("/../../bin/p", OTHER, root) == ""
    assert cannot_execute("/bin/cat", OTHER, root) == "No such file or directory"
    assert cannot_enter("/bin", OTHER, root) == ""
    assert cannot_enter("/", OTHER, f"{folder}/none") == "No such file or directory"


def test_paths_that_the_checking_user_can_not_see(folder: Path) -> None:
    """An ordinary user's check reports nothing about a directory that only the other user can enter."""
    if os.geteuid() == 0:
        pytest.skip("root sees everything")
    path = _file(folder / "private" / "p")
    path.parent.chmod(0)
    try:
        assert cannot_execute(str(path), ROOT) == ""
        assert cannot_execute(str(path), ME) == f"me may not enter {folder}/private"
    finally:
        path.parent.chmod(0o700)


def test_users_and_groups_are_resolved(folder: Path) -> None:
    """Host resolves users and groups by name and number, with the user's groups if requested."""
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


def test_a_file_with_an_acl(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mode of a file with an ACL is not conclusive, so nothing is reported."""
    path = str(_file(folder / "p", 0o700))
    monkeypatch.setattr(os, "getxattr", lambda _path, _name: b"a list")
    assert cannot_execute(path, OTHER) == ""
