"""Access logs of HTTP services in files: rotation, other users, and files that can't be opened."""

from __future__ import annotations

import json
import re
import signal
from typing import TYPE_CHECKING

import pytest

from tests.real.clients import run
from tests.real.conftest import NOBODY
from tests.real.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.real.daemon import Daemon

LINE = re.compile(
    r'127\.0\.0\.1 - - \[\d\d/[A-Z][a-z][a-z]/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "GET /(\w*) HTTP/1\.1" (\d+) (\d+) '
    r'"-" "client \\x22(?:\w+)\\x22"'
)


def _get(daemon: Daemon, service: str, path: str) -> None:
    run("curl", "-s", "-A", f'client "{path}"', f"http://127.0.0.1:{daemon.port(service)}/{path}")


def _lines(path: Path, count: int) -> list[str]:
    """Return the lines of a file once it has a number of them."""
    wait_until(lambda: path.exists() and path.read_text().count("\n") >= count, f"{path} has {count} lines")
    return path.read_text().splitlines()


def test_the_files_of_two_services(start: Callable[..., Daemon], program: Callable[[str], str], tmp_path: Path) -> None:
    """Services write to the same file, and after SIGUSR1 to a new one; the JSON of another service is in its own."""
    program("curl")
    log, other = tmp_path / "access.log", tmp_path / "access.json"
    daemon = start(
        "@defaults bind=127.0.0.1\n"
        f"http 0/tcp id=one access_log=combined access_log_file={log}\n"
        f"http 0/tcp id=two access_log=combined access_log_file={log}\n"
        f"http 0/tcp id=three access_log=json access_log_file={other}\n"
        "http 0/tcp id=four access_log=json\n"
    )
    for service in ("one", "two", "three", "four"):
        _get(daemon, f"{service}/tcp", service)
    found = [LINE.fullmatch(line) for line in _lines(log, 2)]
    assert [match and match.groups() for match in found] == [("one", "404", "14"), ("two", "404", "14")]
    (line,) = _lines(other, 1)
    assert json.loads(line)["service"] == "three/tcp"
    daemon.wait_for(lambda line: " request service=four/tcp " in line and "target=/four " in line)
    log.rename(tmp_path / "access.log.1")
    daemon.process.send_signal(signal.SIGUSR1)
    wait_until(log.exists, "there is a new file")
    _get(daemon, "one/tcp", "later")
    assert "GET /later " in _lines(log, 1)[0]
    # What is buffered at the stop is written.
    _get(daemon, "two/tcp", "last")
    assert daemon.stop() == 0
    assert "GET /last " in log.read_text()


def test_a_file_that_can_not_be_opened(
    start: Callable[..., Daemon], program: Callable[[str], str], tmp_path: Path
) -> None:
    """Only the service that names it can't be served; the log has the reason."""
    program("curl")
    daemon = start(
        "@defaults bind=127.0.0.1\nhttp 0/tcp id=good\n"
        f"http 0/tcp id=bad access_log=json access_log_file={tmp_path}/no/a\n"
    )
    (line,) = daemon.wait_for(lambda line: " broken service=bad/tcp " in line)
    assert f"can't open access_log_file {tmp_path}/no/a: No such file or directory; create" in line
    _get(daemon, "good/tcp", "")


@pytest.mark.usefixtures("as_root")
def test_a_daemon_that_has_given_up_root(
    start: Callable[..., Daemon], program: Callable[[str], str], open_folder: Path
) -> None:
    """With --uid the file is that user's, so that user can open the file of that name again."""
    program("curl")
    folder = open_folder / "logs"
    folder.mkdir(mode=0o755)
    log = folder / "access.log"
    daemon = start(
        f"http 0/tcp id=one bind=127.0.0.1 access_log=combined access_log_file={log}\n",
        twistd_arguments=["--uid", str(NOBODY), "--gid", str(NOBODY)],
    )
    _get(daemon, "one/tcp", "a")
    assert len(_lines(log, 1)) == 1
    assert (log.stat().st_uid, log.stat().st_gid) == (NOBODY, NOBODY)
    log.write_text("")
    daemon.process.send_signal(signal.SIGUSR1)
    _get(daemon, "one/tcp", "b")
    assert "GET /b " in _lines(log, 1)[0]
