"""Installation and removal of files, the commands for it, and shell completion."""

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


class _Installation:
    """Directory in which files are installed, with one FileInstaller per command.

    Attributes:
        log: the actions that the last installer has reported.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log: list[str] = []

    def installer(self, *, dry: bool = False) -> FileInstaller:
        """Return a FileInstaller as a new process has it."""
        self.log.clear()

        def report(verb: str, path: Path) -> None:
            self.log.append(f"{verb} {path.relative_to(self.folder)}")

        return FileInstaller(self.folder / "share/manifest", report, dry=dry)

    def install(self, *, dry: bool = False, spare: bool = False, **texts: str) -> None:
        """Install files with these names in the directory `a`."""
        self.installer(dry=dry).place(
            [InstalledFile(self.folder / "a" / name, text, spare=spare) for name, text in texts.items()]
        )

    def remove(self) -> None:
        """Remove the installed files."""
        self.installer().take_back()

    def files(self) -> dict[str, str]:
        """Return path and content of all files except the manifest."""
        found = sorted(path for path in (self.folder).rglob("*") if path.is_file() and path.name != "manifest")
        return {str(path.relative_to(self.folder)): path.read_text() for path in found}


@pytest.fixture
def installation(tmp_path: Path) -> _Installation:
    """Return an empty directory."""
    return _Installation(tmp_path)


def test_installed_files_are_removed(installation: _Installation) -> None:
    """Files and their directories are installed with fixed modes, whatever the umask, and all are removed."""
    before = os.umask(0o077)
    try:
        installation.install(one="1", two="2")
    finally:
        os.umask(before)
    assert installation.log == ["write a/one", "write a/two"]
    assert installation.files() == {"a/one": "1", "a/two": "2"}
    assert stat.S_IMODE((installation.folder / "a/one").stat().st_mode) == 0o644
    assert stat.S_IMODE((installation.folder / "a").stat().st_mode) == 0o755
    installation.remove()
    assert not list(installation.folder.iterdir())
    assert not installation.installer()


def test_a_second_installation_changes_nothing(installation: _Installation) -> None:
    """A second installation of the same files changes nothing."""
    installation.install(one="1")
    inode = (installation.folder / "a/one").stat().st_ino
    installation.install(one="1")
    assert installation.log == ["unchanged a/one"]
    assert (installation.folder / "a/one").stat().st_ino == inode


def test_a_new_version_replaces_unedited_files(installation: _Installation) -> None:
    """A new version replaces unedited files, and removes those that are no longer part of it."""
    installation.install(one="1", two="2")
    installation.install(one="1.1")
    assert installation.log == ["update a/one", "remove a/two"]
    assert installation.files() == {"a/one": "1.1"}


def test_an_edited_file_is_never_overwritten(installation: _Installation) -> None:
    """An edited file is kept, and a new version is written beside it, once."""
    edited = installation.folder / "a/one"
    installation.install(one="1")
    edited.write_text("mine")
    installation.install(one="1")
    assert installation.log == ["keep, it was edited: a/one"]
    installation.install(one="2")
    assert installation.log == ["keep, it was edited: a/one", "write the new version: a/one.new"]
    assert installation.files() == {"a/one": "mine", "a/one.new": "2"}
    installation.install(one="2")
    assert installation.log == ["keep, it was edited: a/one"]
    installation.remove()
    assert installation.log[:2] == ["keep, it was edited: a/one", "remove a/one.new"]
    assert installation.files() == {"a/one": "mine"}


@pytest.mark.parametrize("link", [False, True])
def test_a_file_that_was_there_before_is_kept(installation: _Installation, link: bool) -> None:
    """A file that was there before is neither overwritten nor removed, even a link or a file with the same content."""
    (installation.folder / "a").mkdir()
    foreign, elsewhere = installation.folder / "a/one", installation.folder / "elsewhere"
    elsewhere.write_text("theirs")
    if link:
        foreign.symlink_to(elsewhere)
    else:
        foreign.write_text("theirs")
    installation.install(one="ours")
    assert installation.log == ["keep, it was not installed: a/one", "write the new version: a/one.new"]
    installation.remove()
    assert foreign.read_text() == elsewhere.read_text() == "theirs"
    assert foreign.is_symlink() is link
    installation.install(one="theirs")
    installation.remove()
    assert foreign.read_text() == "theirs"
    installation.install(one="ours", spare=True)
    assert installation.log == ["skip, another file exists: a/one"]
    assert not (installation.folder / "a/one.new").exists()


def test_a_file_that_was_removed_is_written_again(installation: _Installation) -> None:
    """A file that was removed is written again; removal ignores missing files."""
    installation.install(one="1", two="2")
    (installation.folder / "a/one").unlink()
    installation.install(one="1", two="2")
    assert installation.log == ["write a/one", "unchanged a/two"]
    (installation.folder / "a/one").unlink()
    installation.remove()
    assert installation.log[0] == "remove a/two"
    assert not list(installation.folder.iterdir())


def test_a_dry_run_changes_nothing(installation: _Installation) -> None:
    """A dry run reports the same actions and changes nothing."""
    installation.install(one="1", dry=True)
    assert installation.log == ["write a/one"]
    assert not list(installation.folder.iterdir())
    installation.install(one="1")
    installer = installation.installer(dry=True)
    installer.take_back()
    assert installation.log == ["remove a/one"]
    assert installation.files() == {"a/one": "1"}


def test_a_failure_leaves_a_complete_manifest(installation: _Installation) -> None:
    """Files written before a failure are in the manifest, so that they can be removed; no partial file is left."""
    with pytest.raises(OSError):
        installation.installer().place(
            [
                InstalledFile(installation.folder / "one", "1"),
                InstalledFile(installation.folder / "one/two", "2"),
                InstalledFile(installation.folder / "x", ""),
            ]
        )
    assert installation.files() == {"one": "1"}
    installation.remove()
    assert not list(installation.folder.iterdir())


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    """Return a parser with everything that the completion supports."""
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
    """bash completes commands, options and values, also those with blanks."""
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("no bash here")
    (tmp_path / "a file").touch()
    (tmp_path / "an folder").mkdir()
    code = bash(parser) + 'COMP_WORDS=(tool "$@"); COMP_CWORD=$#; _tool; printf "%s\\n" "${COMPREPLY[@]}"\n'
    done = subprocess.run([shell, "-c", code, "-", *words], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert set(done.stdout.splitlines()) == completed, done.stderr


def test_the_specifications_for_zsh(parser: argparse.ArgumentParser) -> None:
    """zsh completion has specifications for _arguments, with special characters escaped."""
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
    """Return a function that runs svcctl with a temporary prefix and returns the lines of its output."""
    monkeypatch.setattr(svcd.cli.install_files, "why_not", lambda _place, _python: "")

    def run_it(*words: str, status: int = 0) -> list[str]:
        assert main([*words, "--prefix", str(tmp_path / "p")]) == status
        output = capsys.readouterr()
        return (output.out + output.err).splitlines()

    return run_it


def test_install_and_uninstall(run: Callable[..., list[str]], tmp_path: Path) -> None:
    """install writes all files with the paths of this environment; uninstall removes them except edited ones."""
    prefix = tmp_path / "p"
    assert any("would write" in line for line in run("install", "--dry-run"))
    assert not prefix.exists()
    output = run("install")
    unit = (prefix / "lib/systemd/system/svcd.service").read_text()
    assert f"svcd --services {prefix}/etc/svcd/services --control" in unit
    assert "/opt/svcd" not in unit
    assert output[-1] == f"Edit {prefix}/etc/svcd/services, and start: systemctl enable --now svcd"
    unread = " ".join(output)
    for path in ("sysusers.d/svcd.conf to /etc/sysusers.d", "tmpfiles.d/svcd.conf to /etc/tmpfiles.d"):
        assert f"{prefix}/lib/{path}" in unread
    assert all(os.access(prefix / "bin" / name, os.X_OK) for name in ("svcctl", "svcd"))
    for name in (
        "share/man/man1/svcctl.1",
        "share/man/man5/svcd-services.5",
        "share/man/man8/svcd.8",
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


def test_install_into_a_prefix_that_can_not_be_written(run: Callable[..., list[str]], tmp_path: Path) -> None:
    """A file that can't be written is reported with the reason, and the status is EX_CANTCREAT."""
    (tmp_path / "p").write_text("a file")
    assert "Not a directory" in run("install", status=73)[-1] or "File exists" in run("install", status=73)[-1]


def test_install_without_permission(
    run: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without permission the message proposes root, and the status is EX_NOPERM."""

    def mkdir(path: Path, *_arguments: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    (line,) = [line for line in run("install", status=77) if "Permission denied" in line]
    assert str(tmp_path / "p") in line
    assert "as root" in line


def test_an_environment_that_the_daemon_cannot_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An environment that the daemon can't use is an error for a system prefix, and a warning for others."""
    monkeypatch.setattr(svcd.cli.install_files, "why_not", lambda _place, _python: "it lies below /home")
    assert main(["install", "--prefix=/usr/local", "--dry-run"]) == 69
    output = capsys.readouterr()
    assert "it lies below /home; install svcd into an environment of its own" in output.err
    assert output.out == ""
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
def test_twistd_of_the_environment_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, why: str
) -> None:
    """twistd of the environment is run without this shell's variables, as by the unit."""
    monkeypatch.setattr("svcd.cli.install_files._HIDDEN", ())
    monkeypatch.setattr("svcd.cli.install_files._open_to_all", lambda _folder: True)
    found = why_not(_environment(tmp_path, script), Path("/usr/bin/python3"))
    assert found.endswith(why) if why else found == ""


def test_folders_that_the_daemon_cannot_enter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories that the unit hides, or that its user may not enter, are reported."""
    path = _environment(tmp_path, "exit 0")
    monkeypatch.setattr("svcd.cli.install_files._HIDDEN", (tmp_path,))
    assert f"lies below {tmp_path}" in why_not(path, Path("/usr/bin/python3"))
    monkeypatch.setattr("svcd.cli.install_files._HIDDEN", ())
    (tmp_path / "env").chmod(0o700)
    assert f"has no access to {tmp_path / 'env'}" in why_not(path, Path("/usr/bin/python3"))
    missing = InstallPath(Path("/usr/local"), Path("/nowhere/bin"))
    monkeypatch.setattr("svcd.cli.install_files._open_to_all", lambda _folder: True)
    assert "/nowhere/bin/twistd does not start" in why_not(missing, Path("/usr/bin/python3"))


def test_unusual_paths_are_quoted(tmp_path: Path, parser: argparse.ArgumentParser) -> None:
    """Paths with special characters are quoted for systemd and for the shell."""
    path = InstallPath(tmp_path / "a b%c", Path("/opt/my svcd's/bin"))
    texts = {str(each.path.relative_to(path.prefix)): each.text for each in files_of(path, parser)}
    services = str(path.services).replace("%", "%%")
    start = f'"/opt/my svcd\'s/bin/twistd" --nodaemon --pidfile= svcd --services "{services}" --control /run'
    assert f"ExecStart={start}" in texts["lib/systemd/system/svcd.service"]
    assert texts["bin/svcctl"] == "#!/bin/sh\nexec '/opt/my svcd'\\''s/bin/svcctl' \"$@\"\n"
    assert InstallPath(Path("/usr")).services == InstallPath(Path("/usr/local")).services == Path("/etc/svcd/services")


@pytest.mark.parametrize("fails", ["", "systemctl"])
def test_systemd_is_reloaded(
    run: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """install creates users and directories and reloads systemd; uninstall stops the service before the removal."""
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
    output = run("install", status=69 if fails else 0)
    assert f"run systemd-sysusers {tmp_path}/p/lib/sysusers.d/svcd.conf" in output
    assert (output[-1] == "svcctl: systemctl daemon-reload failed") is bool(fails)
    output = run("uninstall", status=69 if fails else 0)
    assert log.read_text().splitlines() == [
        f"systemd-sysusers {tmp_path}/p/lib/sysusers.d/svcd.conf",
        f"systemd-tmpfiles --create {tmp_path}/p/lib/tmpfiles.d/svcd.conf",
        "systemctl daemon-reload",
        "systemctl disable --now svcd.service",
        *(["systemctl daemon-reload"] if not fails else []),
    ]
    # The unit of a service that can't be stopped is kept.
    assert (tmp_path / "p/lib/systemd/system/svcd.service").exists() is bool(fails)


def test_a_machine_without_systemd(
    run: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without systemd the files are written, and the message has the command for later."""
    monkeypatch.setattr(svcd.cli.install, "_BOOTED", tmp_path / "none")
    monkeypatch.setattr(svcd.cli.install_files, "SYSTEM_PREFIXES", (tmp_path / "p",))
    monkeypatch.setattr(InstallPath, "services", tmp_path / "p/etc/svcd/services")
    assert "systemd is not running; when it is: systemctl enable --now svcd" in run("install")
    run("uninstall")
    assert json.dumps([str(path) for path in tmp_path.iterdir()]) == "[]"
