"""Files put in their places, remembered and taken back; the commands that do it; completion of shells."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import svcd.cli.install
from svcd.cli import main
from svcd.cli.completion import bash, zsh
from svcd.cli.file_installer import FileInstaller, InstalledFile
from svcd.cli.install_files import InstallPath, files_of, why_not

if TYPE_CHECKING:
    from collections.abc import Callable


class _House:
    """A folder that is furnished, from one version to the next."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []

    def placer(self, *, dry: bool = False) -> FileInstaller:
        """As a new process has it."""
        self.said.clear()

        def say(verb: str, path: Path) -> None:
            self.said.append(f"{verb} {path.relative_to(self.folder)}")

        return FileInstaller(self.folder / "share/manifest", say, dry=dry)

    def place(self, *, dry: bool = False, spare: bool = False, **texts: str) -> None:
        """Install files of these names in the folder `a`."""
        self.placer(dry=dry).place(
            [InstalledFile(self.folder / "a" / name, text, spare=spare) for name, text in texts.items()]
        )

    def take_back(self) -> None:
        """Remove them."""
        self.placer().take_back()

    def files(self) -> dict[str, str]:
        """What there is, but for the manifest."""
        found = sorted(path for path in (self.folder).rglob("*") if path.is_file() and path.name != "manifest")
        return {str(path.relative_to(self.folder)): path.read_text() for path in found}


@pytest.fixture
def house(tmp_path: Path) -> _House:
    """An empty one."""
    return _House(tmp_path)


def test_what_is_written_is_taken_back(house: _House) -> None:
    """Files and the folders that were made for them, whatever the umask is; nothing is left."""
    before = os.umask(0o077)
    try:
        house.place(one="1", two="2")
    finally:
        os.umask(before)
    assert house.said == ["write a/one", "write a/two"]
    assert house.files() == {"a/one": "1", "a/two": "2"}
    assert stat.S_IMODE((house.folder / "a/one").stat().st_mode) == 0o644
    assert stat.S_IMODE((house.folder / "a").stat().st_mode) == 0o755
    house.take_back()
    assert not list(house.folder.iterdir())
    assert not house.placer()


def test_the_same_again_changes_nothing(house: _House) -> None:
    """Nothing is written twice."""
    house.place(one="1")
    inode = (house.folder / "a/one").stat().st_ino
    house.place(one="1")
    assert house.said == ["unchanged a/one"]
    assert (house.folder / "a/one").stat().st_ino == inode


def test_a_new_version_takes_the_place_of_an_unedited_file(house: _House) -> None:
    """And what is no part of it any more goes."""
    house.place(one="1", two="2")
    house.place(one="1.1")
    assert house.said == ["update a/one", "remove a/two"]
    assert house.files() == {"a/one": "1.1"}


def test_an_edited_file_is_never_overwritten(house: _House) -> None:
    """The new version is written beside it, once; while there is none, nothing is."""
    edited = house.folder / "a/one"
    house.place(one="1")
    edited.write_text("mine")
    house.place(one="1")
    assert house.said == ["keep, it was edited: a/one"]
    house.place(one="2")
    assert house.said == ["keep, it was edited: a/one", "write the new version: a/one.new"]
    assert house.files() == {"a/one": "mine", "a/one.new": "2"}
    house.place(one="2")
    assert house.said == ["keep, it was edited: a/one"]
    house.take_back()
    assert house.said[:2] == ["keep, it was edited: a/one", "remove a/one.new"]
    assert house.files() == {"a/one": "mine"}


@pytest.mark.parametrize("link", [False, True])
def test_a_file_that_was_there_before_is_not_ours(house: _House, link: bool) -> None:
    """It is neither overwritten nor removed, be it a link, or the very same text."""
    (house.folder / "a").mkdir()
    foreign, elsewhere = house.folder / "a/one", house.folder / "elsewhere"
    elsewhere.write_text("theirs")
    if link:
        foreign.symlink_to(elsewhere)
    else:
        foreign.write_text("theirs")
    house.place(one="ours")
    assert house.said == ["keep, it is not ours: a/one", "write the new version: a/one.new"]
    house.take_back()
    assert foreign.read_text() == elsewhere.read_text() == "theirs"
    assert foreign.is_symlink() is link
    house.place(one="theirs")
    house.take_back()
    assert foreign.read_text() == "theirs"
    house.place(one="ours", spare=True)
    assert house.said == ["skip, another one is there: a/one"]
    assert not (house.folder / "a/one.new").exists()


def test_a_file_that_was_removed_is_written_again(house: _House) -> None:
    """And taking back does not mind that one is gone."""
    house.place(one="1", two="2")
    (house.folder / "a/one").unlink()
    house.place(one="1", two="2")
    assert house.said == ["write a/one", "unchanged a/two"]
    (house.folder / "a/one").unlink()
    house.take_back()
    assert house.said[0] == "remove a/two"
    assert not list(house.folder.iterdir())


def test_a_dry_run_does_nothing(house: _House) -> None:
    """It says the same."""
    house.place(one="1", dry=True)
    assert house.said == ["write a/one"]
    assert not list(house.folder.iterdir())
    house.place(one="1")
    placer = house.placer(dry=True)
    placer.take_back()
    assert house.said == ["remove a/one"]
    assert house.files() == {"a/one": "1"}


def test_what_was_written_before_a_failure_is_remembered(house: _House) -> None:
    """So that it can be taken back; no half of a file is left."""
    with pytest.raises(OSError):
        house.placer().place(
            [
                InstalledFile(house.folder / "one", "1"),
                InstalledFile(house.folder / "one/two", "2"),
                InstalledFile(house.folder / "x", ""),
            ]
        )
    assert house.files() == {"one": "1"}
    house.take_back()
    assert not list(house.folder.iterdir())


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    """One with everything that completion knows."""
    made = argparse.ArgumentParser("tool")
    made.add_argument("--control", metavar="PATH", help="a [socket]: where's it")
    commands = made.add_subparsers()
    show = commands.add_parser("show", help="say it's so: now")
    show.add_argument("--sort", choices=["name", "count"], help="100%% sorted")
    show.add_argument("--hidden", help=argparse.SUPPRESS)
    show.add_argument("what", choices=["all", "some"])
    read = commands.add_parser("read", help="read")
    read.add_argument("file", nargs="*")
    read.add_argument("--to", metavar="DIR")
    return made


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["sh"], {"show"}),
        (["--c"], {"--control"}),
        ([""], {"show", "read"}),
        (["show", "--sort", ""], {"name", "count"}),
        (["show", "--sort", "n"], {"name"}),
        (["show", "-"], {"--sort", "-h", "--help"}),
        (["show", ""], {"all", "some"}),
        (["read", "a"], {"a file", "an folder"}),
        (["read", "--to", "a"], {"an folder"}),
        (["--control", "a", "sh"], {"show"}),
        (["--control", "a f"], {"a file"}),
    ],
)
def test_bash_completes(parser: argparse.ArgumentParser, tmp_path: Path, words: list[str], completed: set[str]) -> None:
    """Commands, options, and values, whatever blanks are in them."""
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("no bash here")
    (tmp_path / "a file").touch()
    (tmp_path / "an folder").mkdir()
    code = bash(parser) + 'COMP_WORDS=(tool "$@"); COMP_CWORD=$#; _tool; printf "%s\\n" "${COMPREPLY[@]}"\n'
    done = subprocess.run([shell, "-c", code, "-", *words], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert set(done.stdout.splitlines()) == completed, done.stderr


def test_zsh_gets_specifications(parser: argparse.ArgumentParser) -> None:
    """As _arguments reads them, with what means something to it escaped."""
    made = zsh(parser)
    assert made.startswith("#compdef tool\n")
    assert "'(--control)--control=[a \\[socket\\]\\: where'\"'\"'s it]:PATH:_files'" in made
    assert "'show:say it'\"'\"'s so\\: now'" in made
    assert "'(--sort)--sort=[100% sorted]:sort:(name count)'" in made
    assert "'*:file:_files'" in made
    assert "'(--to)--to=[]:DIR:_files -/'" in made
    assert "hidden" not in made
    shell = shutil.which("zsh")
    if shell is not None:
        done = subprocess.run([shell, "-n"], input=made, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """Runs svcctl for a prefix, in an environment that a daemon could run from; the lines of its output."""
    monkeypatch.setattr(svcd.cli.install_files, "why_not", lambda _place, _python: "")

    def run_it(*words: str, status: int = 0) -> list[str]:
        assert main([*words, "--prefix", str(tmp_path / "p")]) == status
        said = capsys.readouterr()
        return (said.out + said.err).splitlines()

    return run_it


def test_install_and_uninstall(run: Callable[..., list[str]], tmp_path: Path) -> None:
    """Everything is written with the paths of this environment; nothing is left, but what was edited."""
    prefix = tmp_path / "p"
    assert any("would write" in line for line in run("install", "--dry-run"))
    assert not prefix.exists()
    said = run("install")
    unit = (prefix / "lib/systemd/system/svcd.service").read_text()
    assert f"svcd --services {prefix}/etc/svcd/services --control" in unit
    assert "/opt/svcd" not in unit
    assert said[-1] == f"Edit {prefix}/etc/svcd/services, and start: systemctl enable --now svcd"
    assert os.access(prefix / "bin/svcctl", os.X_OK)
    for name in (
        "share/man/man1/svcctl.1",
        "share/man/man5/svcd-services.5",
        "share/bash-completion/completions/svcctl",
        "lib/sysusers.d/svcd.conf",
    ):
        assert (prefix / name).is_file()
    services = prefix / "etc/svcd/services"
    services.write_text("echo 7/tcp\n")
    assert f"keep, it was edited: {services}" in run("install")
    assert f"keep, it was edited: {services}" in run("uninstall")
    assert [path for path in prefix.rglob("*") if path.is_file()] == [services]
    assert "nothing is installed" in run("uninstall")[0]


def test_install_where_nothing_can_be_written(run: Callable[..., list[str]], tmp_path: Path) -> None:
    """It says which file and why, and exits by EX_CANTCREAT."""
    (tmp_path / "p").write_text("a file")
    assert "Not a directory" in run("install", status=73)[-1] or "File exists" in run("install", status=73)[-1]


def test_install_without_permission(
    run: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what to do, and exits by EX_NOPERM."""

    def mkdir(path: Path, *_arguments: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    (line,) = [line for line in run("install", status=77) if "Permission denied" in line]
    assert str(tmp_path / "p") in line
    assert "as root" in line


def test_an_environment_that_the_daemon_cannot_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For the machine's own prefix it is an error, with what to do, and nothing is written."""
    monkeypatch.setattr(svcd.cli.install_files, "why_not", lambda _place, _python: "it lies below /home")
    assert main(["install", "--prefix=/usr/local", "--dry-run"]) == 69
    said = capsys.readouterr()
    assert "it lies below /home; install svcd into an environment of its own" in said.err
    assert said.out == ""
    assert main(["install", "--dry-run", "--prefix", str(tmp_path)]) == 0
    assert "warning: " in capsys.readouterr().err


def _environment(folder: Path, script: str) -> InstallPath:
    scripts = folder / "env/bin"
    scripts.mkdir(parents=True)
    twistd = scripts / "twistd"
    twistd.write_text(f"#!/bin/sh\n{script}\n")
    twistd.chmod(0o755)
    return InstallPath(Path("/usr/local"), scripts)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("exit 0", ""),
        ("echo svcd is unknown >&2; exit 1", "svcd --version ends with 1: svcd is unknown"),
        ("exit 3", "with 3"),
    ],
)
def test_the_environment_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, why: str) -> None:
    """Without this shell's variables, as the unit will start it."""
    monkeypatch.setattr("svcd.cli.install_files._HIDDEN", ())
    monkeypatch.setattr("svcd.cli.install_files._open_to_all", lambda _folder: True)
    found = why_not(_environment(tmp_path, script), Path("/usr/bin/python3"))
    assert found.endswith(why) if why else found == ""


def test_folders_that_the_daemon_cannot_enter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the unit hides, and those that are closed to its user."""
    place = _environment(tmp_path, "exit 0")
    monkeypatch.setattr("svcd.cli.install_files._HIDDEN", (tmp_path,))
    assert f"lies below {tmp_path}" in why_not(place, Path("/usr/bin/python3"))
    monkeypatch.setattr("svcd.cli.install_files._HIDDEN", ())
    (tmp_path / "env").chmod(0o700)
    assert f"may not enter {tmp_path / 'env'}" in why_not(place, Path("/usr/bin/python3"))
    missing = InstallPath(Path("/usr/local"), Path("/nowhere/bin"))
    monkeypatch.setattr("svcd.cli.install_files._open_to_all", lambda _folder: True)
    assert "/nowhere/bin/twistd does not start" in why_not(missing, Path("/usr/bin/python3"))


def test_unusual_paths_are_quoted(tmp_path: Path, parser: argparse.ArgumentParser) -> None:
    """As systemd and the shell read them."""
    place = InstallPath(tmp_path / "a b%c", Path("/opt/my svcd's/bin"))
    texts = {str(each.path.relative_to(place.prefix)): each.text for each in files_of(place, parser)}
    services = str(place.services).replace("%", "%%")
    start = f'"/opt/my svcd\'s/bin/twistd" --nodaemon --pidfile= svcd --services "{services}" --control /run'
    assert f"ExecStart={start}" in texts["lib/systemd/system/svcd.service"]
    assert texts["bin/svcctl"] == "#!/bin/sh\nexec '/opt/my svcd'\\''s/bin/svcctl' \"$@\"\n"
    assert InstallPath(Path("/usr")).services == InstallPath(Path("/usr/local")).services == Path("/etc/svcd/services")


@pytest.mark.parametrize("fails", ["", "systemctl"])
def test_the_machines_systemd_is_told(
    run: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """Users and folders are made, units are read again, the service is stopped before its unit goes; or it fails."""
    monkeypatch.setattr(svcd.cli.install, "_BOOTED", tmp_path)
    monkeypatch.setattr(svcd.cli.install_files, "SYSTEM_PREFIXES", (tmp_path / "p",))
    monkeypatch.setattr(InstallPath, "services", tmp_path / "p/etc/svcd/services")
    tools = tmp_path / "tools"
    tools.mkdir()
    log = tmp_path / "log"
    for name in ("systemctl", "systemd-sysusers", "systemd-tmpfiles"):
        (tools / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {log}\n' + ("exit 1\n" if name == fails else ""))
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    said = run("install", status=69 if fails else 0)
    assert f"run systemd-sysusers {tmp_path}/p/lib/sysusers.d/svcd.conf" in said
    assert (said[-1] == "svcctl: systemctl daemon-reload failed") is bool(fails)
    said = run("uninstall", status=69 if fails else 0)
    assert log.read_text().splitlines() == [
        f"systemd-sysusers {tmp_path}/p/lib/sysusers.d/svcd.conf",
        f"systemd-tmpfiles --create {tmp_path}/p/lib/tmpfiles.d/svcd.conf",
        "systemctl daemon-reload",
        "systemctl disable --now svcd.service",
        *(["systemctl daemon-reload"] if not fails else []),
    ]
    # A service that can't be stopped keeps its unit.
    assert (tmp_path / "p/lib/systemd/system/svcd.service").exists() is bool(fails)


def test_a_machine_without_systemd(
    run: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are written; it says what is to be done once it runs."""
    monkeypatch.setattr(svcd.cli.install, "_BOOTED", tmp_path / "none")
    monkeypatch.setattr(svcd.cli.install_files, "SYSTEM_PREFIXES", (tmp_path / "p",))
    monkeypatch.setattr(InstallPath, "services", tmp_path / "p/etc/svcd/services")
    assert "systemd does not run here; once it does: systemctl enable --now svcd" in run("install")
    run("uninstall")
    assert json.dumps([str(path) for path in tmp_path.iterdir()]) == "[]"
