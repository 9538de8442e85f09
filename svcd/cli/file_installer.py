"""Installed files: written, recorded and removed; an edited file is never overwritten or removed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["FileInstaller", "InstalledFile"]


@dataclass(frozen=True, slots=True)
class InstalledFile:
    """A file of an installation.

    Attributes:
        path: its path.
        text: its content.
        mode: its permissions.
        spare: whether it is left out if another file has its path.
    """

    path: Path
    text: str
    mode: int = 0o644
    spare: bool = False


class FileInstaller:
    """Writer and remover of files, which records each file in a line with the SHA-256 of its content.

    Args:
        manifest: the file of these records.
        say: called for each action with a verb and a path.
        dry: whether actions are only reported.
    """

    def __init__(self, manifest: Path, say: Callable[[str, Path], None], *, dry: bool = False) -> None:
        self._manifest = manifest
        self._say = say
        self._dry = dry
        self._files: dict[Path, str] = {}
        self._folders: list[Path] = []
        with contextlib.suppress(FileNotFoundError):
            for line in manifest.read_text("utf-8").splitlines():
                word, _, path = line.partition("  ")
                if word == "directory":
                    self._folders.append(Path(path))
                else:
                    self._files[Path(path)] = word

    def __bool__(self) -> bool:
        """Return whether any file is recorded."""
        return bool(self._files or self._folders)

    def __contains__(self, path: Path) -> bool:
        """Return whether a file is recorded, edited or not."""
        return path in self._files

    def place(self, files: Iterable[InstalledFile]) -> None:
        """Write files; a file that was edited or is not recorded stays, and NAME.new is written beside it.

        Files of an earlier version that are not part of this one are removed.

        Raises:
            OSError: a file can't be written; those before it are written and recorded.
        """
        wanted = list(files)
        try:
            for artefact in wanted:
                self._place(artefact)
            kept = {each.path for each in wanted} | {_beside(each.path) for each in wanted}
            for path in [path for path in self._files if path not in kept]:
                self._take_back(path)
        finally:
            self._remember()

    def _place(self, artefact: InstalledFile) -> None:
        path, data = artefact.path, artefact.text.encode()
        offered, recorded, found = _digest(data), self._files.get(path), _digest_of(path)
        if found is None:
            self._write(artefact, path, "write")
        elif found == offered:
            self._say("unchanged", path)
        elif found == recorded:
            self._write(artefact, path, "update")
        elif artefact.spare:
            self._say("skip, another file exists:", path)
        elif recorded == offered:
            self._say("keep, it was edited:", path)
        else:
            self._say("keep, it was edited:" if recorded else "keep, it was not installed:", path)
            self._write(artefact, _beside(path), "write the new version:")
            if recorded:
                self._files[path] = offered

    def _write(self, artefact: InstalledFile, path: Path, verb: str) -> None:
        self._say(verb, path)
        data = artefact.text.encode()
        if not self._dry:
            self._make_folder(path.parent)
            descriptor, name = tempfile.mkstemp(prefix=".", dir=path.parent)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                    os.fchmod(descriptor, artefact.mode)
                os.replace(name, path)  # noqa: PTH105 - one system call
            except BaseException:
                os.unlink(name)  # noqa: PTH108 - one system call
                raise
        self._files[path] = _digest(data)

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        folder.mkdir()
        # Independent of the umask: other users need to read its files.
        folder.chmod(0o755)
        self._folders.append(folder)

    def _take_back(self, path: Path) -> None:
        found = _digest_of(path)
        if found == self._files.get(path):
            self._say("remove", path)
            if not self._dry:
                path.unlink()
        elif found is not None:
            self._say("keep, it was edited:", path)
        del self._files[path]

    def take_back(self) -> None:
        """Remove the recorded files, and the created directories that are empty then.

        Raises:
            OSError: a file can't be removed; those before it are removed, and their records as well.
        """
        try:
            for path in list(self._files):
                self._take_back(path)
        finally:
            self._remember()
        for folder in sorted(self._folders, reverse=True):
            with contextlib.suppress(OSError):
                if not self._dry:
                    folder.rmdir()
                    self._say("remove", folder)

    def _remember(self) -> None:
        if self._dry:
            return
        if not self._files:
            self._manifest.unlink(missing_ok=True)
            return
        self._make_folder(self._manifest.parent)
        lines = [f"{digest}  {path}" for path, digest in self._files.items()]
        lines += [f"directory  {path}" for path in self._folders]
        self._manifest.write_text("\n".join(lines) + "\n", "utf-8")


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _digest_of(path: Path) -> str | None:
    """Return the digest of a path: None if it does not exist, an impossible digest if it is not a file."""
    if not os.path.lexists(path):
        return None
    return _digest(path.read_bytes()) if path.is_file() and not path.is_symlink() else "-"
