"""The end of handlers: by timeouts, and by the stop of the daemon."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from tests.real.daemon import PATIENCE, exchange
from tests.real.processes import Process, all_gone
from tests.real.test_spawned_deaths import idle_cats

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.real.daemon import Daemon

# Three generations: each prints its pid and ignores SIGTERM.
STUBBORN = "trap '' TERM; echo $$; sh -c 'echo $$; sleep 1000 & echo $!; wait'; wait"
# SIGTERM ends the parent; its child ignores it.
ORPHANED = "(trap '' TERM; sh -c 'echo $$; exec sleep 1000') & echo $$; wait"
# A child that cleans up after the end of its parent.
TIDY = (
    "sh -c 'trap \"sleep 0.3; echo tidy > tidied; exit\" TERM; echo $$; while :; do sleep 0.05; done' & echo $$; wait"
)


def scripts(folder: Path, options: str, **texts: str) -> str:
    """Return services that run these shell scripts."""
    lines = []
    for name, text in texts.items():
        (folder / name).write_text(text)
        lines.append(f'{name} 0/tcp bind=127.0.0.1 server="/bin/sh {folder}/{name}" cwd={folder} {options}\n')
    return "".join(lines)


def test_session_timeout_ends_the_group(start: Callable[..., Daemon], open_folder: Path) -> None:
    """After session_timeout the whole group gets SIGTERM, and SIGKILL if any process of it does not end."""
    daemon = start(
        scripts(open_folder, "session_timeout=0.3", stubborn=STUBBORN, orphaned=ORPHANED, tidy=TIDY),
        env={"LC_ALL": "C"},
    )
    clients = {name: daemon.connect(f"{name}/tcp") for name in ("stubborn", "orphaned", "tidy")}
    begun = time.monotonic()
    found: dict[str, list[Process]] = {}
    for name, client in clients.items():
        with client, client.makefile() as lines:
            found[name] = [Process(int(lines.readline())) for _ in range(3 if name == "stubborn" else 2)]
            # Up to the end of the data, which is the end of the last process.
            lines.read()
    all_gone([each for family in found.values() for each in family])
    assert time.monotonic() - begun > 2
    (stubborn,) = daemon.wait_event("end", "stubborn/tcp")
    assert (stubborn["reason"], stubborn["exit"]) == ("session", "SIGKILL")
    (orphaned,) = daemon.wait_event("end", "orphaned/tcp")
    assert (orphaned["reason"], orphaned["exit"]) == ("session", "SIGTERM")
    # It had time to clean up: the end of the leader is not that of the group.
    assert (open_folder / "tidied").read_text() == "tidy\n"
    assert daemon.stop() == 0


def all_processes(daemon: Daemon) -> list[Process]:
    """Return the processes of the daemon: its zygote, and the descendants of the zygote."""
    found, todo = [], [daemon.zygote()]
    while todo:
        process = Process(todo.pop())
        found.append(process)
        todo += process.children()
    return found


def test_stop_waits_for_handlers(start: Callable[..., Daemon]) -> None:
    """A stopped daemon does not listen, waits for its handlers, and leaves no process."""
    daemon = start("cat 0/tcp bind=127.0.0.1 server=/bin/cat shutdown_timeout=30\n")
    clients = idle_cats(daemon, 3)
    daemon.handlers("cat/tcp", 3)
    processes = all_processes(daemon)
    assert len(processes) == 5
    daemon.process.send_signal(signal.SIGTERM)
    daemon.wait_event("close", "cat/tcp")
    for client in clients:
        client.sendall(b"still there")
        assert client.recv(100) == b"still there"
        assert exchange(client) == b""
    assert daemon.process.wait(PATIENCE) == 0
    all_gone(processes)
    ends = daemon.wait_event("end", "cat/tcp", 3)
    assert {(end["reason"], end["exit"]) for end in ends} == {("done", "0")}


def test_stop_ends_handlers_after_shutdown_timeout(start: Callable[..., Daemon], open_folder: Path) -> None:
    """After shutdown_timeout handlers are ended, also those that ignore SIGTERM."""
    services = scripts(open_folder, "shutdown_timeout=0.2", stubborn=STUBBORN)
    daemon = start(services + "cat 0/tcp bind=127.0.0.1 server=/bin/cat shutdown_timeout=0.2\n")
    with idle_cats(daemon, 1)[0], daemon.connect("stubborn/tcp") as client, client.makefile() as lines:
        pids = [int(lines.readline()) for _ in range(3)]
        processes = all_processes(daemon)
        assert set(pids) < {each.pid for each in processes}
        assert daemon.stop() == 0
        all_gone(processes)
    (end,) = daemon.wait_event("end", "cat/tcp")
    assert (end["reason"], end["exit"]) == ("shutdown", "SIGTERM")
    (end,) = daemon.wait_event("end", "stubborn/tcp")
    assert (end["reason"], end["exit"]) == ("shutdown", "SIGKILL")


def test_second_signal_ends_handlers(start: Callable[..., Daemon]) -> None:
    """A second SIGTERM ends handlers before shutdown_timeout."""
    daemon = start("cat 0/tcp bind=127.0.0.1 server=/bin/cat shutdown_timeout=1h\n")
    with idle_cats(daemon, 1)[0]:
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_event("close", "cat/tcp")
        processes = all_processes(daemon)
        assert daemon.stop() == 0
        all_gone(processes)
    assert daemon.wait_event("end", "cat/tcp")[0]["reason"] == "shutdown"
