"""The watcher of paths, with the kernel's inotify and a reactor in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from svcd.host.path_watch import PathWatcher

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from twisted.internet.interfaces import IReadDescriptor


class _Reactor:
    """Reads watched descriptors when the test says so."""

    def __init__(self) -> None:
        self.readers: list[IReadDescriptor] = []

    def addReader(self, reader: IReadDescriptor) -> None:
        """Watch a descriptor."""
        self.readers.append(reader)

    def removeReader(self, reader: IReadDescriptor) -> None:
        """Watch it no longer."""
        if reader in self.readers:
            self.readers.remove(reader)

    def removeWriter(self, _writer: object) -> None:
        """Twisted calls it."""

    def callLater(self, _delay: float, call: object, *arguments: object) -> None:
        """Close at once."""
        call(*arguments)  # type: ignore[operator]

    def read(self) -> None:
        """Deliver the events that there are."""
        for reader in list(self.readers):
            reader.doRead()


class _Watch:
    """A watcher, and the paths of which it has reported changes."""

    def __init__(self) -> None:
        self.reactor = _Reactor()
        self.found: set[str] = set()
        self.watcher = PathWatcher(self.reactor, self.found.update)  # type: ignore[arg-type]

    def take(self) -> set[str]:
        """Return what was reported since the last call."""
        self.found.clear()
        self.reactor.read()
        return set(self.found)


@pytest.fixture
def watch() -> Iterator[_Watch]:
    """A watcher that is stopped after the test."""
    made = _Watch()
    yield made
    made.watcher.stop()
    assert not made.reactor.readers


def test_a_directory_is_watched_as_a_whole(watch: _Watch, tmp_path: Path) -> None:
    """A path that ends in /* stands for its files, new ones as well; other directories are not meant."""
    inside = f"{tmp_path}/in/*"
    (tmp_path / "in").mkdir()
    watch.watcher.watch([inside, f"{tmp_path}/file"])
    (tmp_path / "in/new").write_text("")
    assert watch.take() == {inside}
    (tmp_path / "other").write_text("")
    assert watch.take() == set()
    (tmp_path / "file").write_text("")
    assert watch.take() == {f"{tmp_path}/file"}


def test_no_event_is_lost_when_other_paths_are_watched(watch: _Watch, tmp_path: Path) -> None:
    """What has changed before and was not reported yet is, if the path is still watched."""
    (tmp_path / "in").mkdir()
    watch.watcher.watch([f"{tmp_path}/file"])
    (tmp_path / "file").write_text("")
    watch.watcher.watch([f"{tmp_path}/file", f"{tmp_path}/in/file"])
    (tmp_path / "in/file").write_text("")
    assert watch.take() == {f"{tmp_path}/file", f"{tmp_path}/in/file"}
    watch.watcher.watch([f"{tmp_path}/in/file"])
    (tmp_path / "file").write_text("again")
    assert watch.take() == set()


def test_a_directory_that_comes_again_is_watched_again(watch: _Watch, tmp_path: Path) -> None:
    """Its end may concern every path, and what happens in the new one is seen."""
    path, other = f"{tmp_path}/in/file", f"{tmp_path}/other"
    (tmp_path / "in").mkdir()
    watch.watcher.watch([path, other])
    (tmp_path / "in").rmdir()
    (tmp_path / "in").mkdir()
    assert watch.take() == {path, other}
    watch.watcher.watch([path, other])
    (tmp_path / "in/file").write_text("")
    assert watch.take() == {path}
