"""Reloads that are refused as a whole, and diff."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.defer import maybeDeferred

from svcd.config.endpoints import DesiredServices, check
from svcd.errors import ConfigError
from svcd.supervisor.reload import Reloader
from svcd.supervisor.root_given_up import START
from tests.doubles import FakeFiles, FakeMachine, LogCatcher, config_of
from tests.unit.test_supervisor import _Daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

EMPTY = "the services file: no service is enabled in it; to serve nothing, use svcctl reload --allow-empty"


class _Reloaded:
    """Daemon with one service, and a services file that the test writes."""

    def __init__(self, folder: Path) -> None:
        self.text = f"echo {folder}/echo/unix"
        self.daemon = _Daemon(self.text)
        self.daemon.start()
        self.reloader = Reloader(
            self.daemon.supervisor, self._load, maybeDeferred, lambda _services: DesiredServices(())
        )

    def _load(self, _path: str | None) -> DesiredServices:
        return DesiredServices(tuple(check(config_of(self.text), FakeFiles(), FakeMachine())[0]))

    def outcome(self, call: Callable[..., Any], **how: Any) -> Any:
        """Return the result of a call: the plan, or the error because of which nothing was changed."""
        found: list[Any] = []
        call(**how).addBoth(found.append)
        return getattr(found[0], "value", found[0])

    @property
    def served(self) -> list[str]:
        """Return the ids of the running services."""
        return list(self.daemon.supervisor.hosted)


@pytest.fixture
def reloaded(tmp_path: Path) -> Iterator[_Reloaded]:
    """A daemon that can be reloaded."""
    made = _Reloaded(tmp_path)
    yield made
    made.daemon.stop()


@pytest.mark.parametrize("text", ["", "@defaults backlog=5", "echo 7/tcp disable=yes"])
def test_a_reload_to_no_services_is_refused(reloaded: _Reloaded, text: str) -> None:
    """A file without services, which may be truncated, changes nothing: by command, by SIGHUP, and for diff."""
    reloaded.text = text
    for call in (reloaded.reloader.reload, reloaded.reloader.diff):
        error = reloaded.outcome(call)
        assert isinstance(error, ConfigError)
        assert str(error) == EMPTY
    with LogCatcher() as log:
        reloaded.reloader.on_signal()
    assert [event["text"] for event in log.named("problem")] == [EMPTY]
    assert len(log.named("reload-failed")) == 1
    assert reloaded.served == ["echo/unix"]
    assert reloaded.daemon.registry.reloads_failed == 2


def test_allow_empty_removes_all_services(reloaded: _Reloaded) -> None:
    """With allow_empty a reload stops all services, and a later reload starts services again."""
    before, reloaded.text = reloaded.text, ""
    result = reloaded.outcome(reloaded.reloader.reload, allow_empty=True)
    assert [service.id for service in result.plan.removed] == ["echo/unix"]
    assert reloaded.served == []
    reloaded.text = before
    reloaded.outcome(reloaded.reloader.reload)
    assert reloaded.served == ["echo/unix"]


def test_diff_has_faults_and_missing_rights(
    reloaded: _Reloaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diff returns the faults of the check, and the rights that the daemon lacks."""
    reloaded.text += f"\nmine {tmp_path}/mine/unix server=/bin/cat user=root\nbad {tmp_path}/bad/unix server=/none"
    monkeypatch.setattr("os.geteuid", lambda: 54_321)
    machine = FakeMachine(reasons={"/none": "No such file or directory"})
    config = config_of(reloaded.text)
    endpoints, problems = check(config, FakeFiles(), machine)
    desired = DesiredServices.checked(config.enabled, endpoints, problems)
    monkeypatch.setattr(reloaded, "_load", lambda _path: desired)
    reloaded.reloader = Reloader(
        reloaded.daemon.supervisor, reloaded._load, maybeDeferred, lambda _services: DesiredServices(())
    )
    plan, faults, _broken = reloaded.outcome(reloaded.reloader.diff)
    assert [service.id for service in plan.added] == ["mine/unix", "bad/unix"]
    texts = [fault.text for fault in faults]
    assert texts == [
        "server: can't run /none: No such file or directory",
        f"user: this requires root; {START}, or remove the option",
    ]
    assert reloaded.served == ["echo/unix"]
