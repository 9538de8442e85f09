"""Broken services: retries, log lines, and the services that a change must not affect."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import Factory, Protocol

from svcd.config.endpoints import DesiredServices, check
from svcd.errors import ConfigError, ListenError, ListenErrors
from svcd.sockets.acquire import SocketPool
from svcd.sockets.activation import InheritedSocket
from svcd.sockets.ports import StreamPort
from svcd.supervisor.broken_services import BrokenService, BrokenServices
from tests.doubles import FakeFiles, FakeMachine, FakeReactor, LogCatcher, config_of
from tests.unit.test_supervisor import _Daemon

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


def desired(text: str, machine: FakeMachine | None = None) -> DesiredServices:
    """Return the services of a text, checked on a machine."""
    config = config_of(text)
    endpoints, problems = check(config, FakeFiles(), machine or FakeMachine())
    return DesiredServices.checked(config.enabled, endpoints, problems)


def _broken(text: str = "x 7/tcp4 echo", number: int = errno.EADDRINUSE, cause: str = "no") -> BrokenService:
    endpoints = desired(text).endpoints
    error = ListenError("x/tcp4", endpoints[0].address, cause, "do something", number)
    return BrokenService(endpoints[0].service, endpoints, (error,))


class _Registry:
    def __init__(self) -> None:
        self.reactor = FakeReactor()
        self.services = BrokenServices(self.reactor)
        self.tried: list[tuple[float, Sequence[str]]] = []
        self.services.start(lambda ids: self.tried.append((self.reactor.seconds(), ids)))


@pytest.fixture
def registry() -> Iterator[_Registry]:
    """A registry whose retries are recorded."""
    made = _Registry()
    yield made
    made.services.stop()
    assert not made.reactor.getDelayedCalls()


def test_pauses_grow_up_to_30_seconds(registry: _Registry) -> None:
    """A service that stays broken is tried after 1, 2, 4, 8, 16, 30, 30 seconds, and logged once."""
    with LogCatcher() as log:
        registry.services.update({"x/tcp4": _broken()})
        for _ in range(7):
            registry.reactor.advance(30)
            registry.services.update({"x/tcp4": _broken()}, ["x/tcp4"])
        assert len(log.named("broken")) == 1
        pauses, now = [], registry.reactor.seconds()
        registry.reactor.advance(30)
        pauses = [registry.tried[-1][0] - now]
        assert pauses == [30]
        registry.services.update({"x/tcp4": _broken(cause="something else")}, ["x/tcp4"])
        assert [event["reason"] for event in log.named("broken")][1].startswith("x/tcp4: can't listen on")
        registry.services.update({}, ["x/tcp4"])
    assert [event["service"] for event in log.named("recovered")] == ["x/tcp4"]
    assert len(registry.services) == 0


def test_the_first_pauses(registry: _Registry) -> None:
    """The pauses before the first attempts are 1, 2, 4 and 8 seconds."""
    registry.services.update({"x/tcp4": _broken()})
    times = []
    for _ in range(4):
        before = len(registry.tried)
        while len(registry.tried) == before:
            registry.reactor.advance(0.5)
        times.append(registry.reactor.seconds())
        registry.services.update({"x/tcp4": _broken()}, ["x/tcp4"])
    assert [later - earlier for earlier, later in zip([0.0, *times], times, strict=False)] == [1, 2, 4, 8]


def test_an_answer_waits_for_the_name_of_the_process(registry: _Registry) -> None:
    """The answer waits for the search, but no longer than three seconds, and no longer than the daemon serves."""
    searches: list[Deferred[Any]] = []

    def in_thread(_call: Any) -> Any:
        searches.append(Deferred())
        return searches[-1]

    assert registry.services.when_named().called
    registry.services.in_thread = in_thread
    found = _broken()
    registry.services.update({"x/tcp4": found})
    first = registry.services.when_named()
    named = ListenError("x/tcp4", found.endpoints[0].address, "in use by nc (pid 7)", "stop nc", errno.EADDRINUSE)
    assert not first.called
    searches[0].callback([(named,)])
    assert first.called
    other = ListenError("y/tcp4", "0.0.0.0:7", "no", "no")
    fault = found.service.fault("server", "no")
    assert registry.services.named([_broken().errors[0], fault, other]) == [named, fault, other]
    registry.services.update({"x/tcp4": _broken(cause="another")})
    late, ended = registry.services.when_named(), registry.services.when_named()
    registry.reactor.advance(2.9)
    assert not late.called
    registry.reactor.advance(0.2)
    assert (late.called, ended.called) == (True, True)
    stopped = registry.services.when_named()
    registry.services.stop()
    assert stopped.called


def test_retry_after_a_change_of_addresses(registry: _Registry) -> None:
    """Services that lack an address are tried soon; a service whose port is in use is not."""
    registry.services.update({"x/tcp4": _broken(number=errno.EADDRNOTAVAIL)})
    other = _broken("y 8/tcp4 echo")
    registry.services.update({"y/tcp4": other}, ["y/tcp4"])
    registry.reactor.advance(0.5)
    registry.services.addresses_changed()
    registry.reactor.advance(0.25)
    assert registry.tried[-1][1] == ["x/tcp4"]


def test_retry_after_a_file_appears(registry: _Registry, tmp_path: Path) -> None:
    """The nearest existing directory of a missing file is watched; other files in it cause no retry."""
    text = f"x 7/tcp4 server={tmp_path}/bin/program"
    machine = FakeMachine(reasons={f"{tmp_path}/bin/program": "No such file or directory"})
    (faulty,) = desired(text, machine).faulty
    registry.services.update({"x/tcp4": BrokenService(faulty.service, faulty.endpoints, faulty.problems)})

    def events() -> None:
        for reader in list(registry.reactor.readers):
            reader.doRead()

    (tmp_path / "other").write_text("")
    events()
    registry.reactor.advance(0.9)
    assert registry.tried == []
    registry.services.update({"x/tcp4": _broken_again(registry)}, ["x/tcp4"])
    (tmp_path / "bin").mkdir()
    events()
    registry.reactor.advance(0.25)
    assert len(registry.tried) == 1


def _broken_again(registry: _Registry) -> BrokenService:
    known = registry.services["x/tcp4"]
    return BrokenService(known.service, known.endpoints, known.errors)


def test_owner_of_a_port_is_searched_for_in_a_thread(registry: _Registry) -> None:
    """The log line waits for the search; among many services only the first ones are searched for."""
    calls: list[Any] = []

    def in_thread(call: Any) -> Any:
        calls.append(call)
        return succeed(call())

    registry.services.in_thread = in_thread
    with LogCatcher() as log:
        registry.services.update({"x/tcp4": _broken()})
    assert len(calls) == 1
    assert len(log.named("broken")) == 1


class _Raising(Factory):
    """Factory that raises in the methods that the test names."""

    noisy = False
    protocol = Protocol
    raises: ClassVar[frozenset[str]] = frozenset()
    calls: ClassVar[list[str]] = []

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.raises:
            raise RuntimeError(f"not in {name}")

    def startFactory(self) -> None:
        self._call("startFactory")

    def stopFactory(self) -> None:
        self._call("stopFactory")


FACTORY = "factory=tests.unit.test_broken_services:_Raising"


@pytest.mark.parametrize("where", ["start", "reload", "change"])
def test_a_factory_that_can_not_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Its service is broken: at the start, when a reload adds it, and when a reload replaces its factory."""
    monkeypatch.setattr(_Raising, "raises", frozenset({"startFactory"}))
    ok, mine = f"echo {tmp_path}/echo/unix", f"mine {tmp_path}/mine/unix"
    before = {"start": f"{ok}\n{mine} {FACTORY}", "reload": ok, "change": f"{ok}\n{mine} upper"}[where]
    daemon = _Daemon(before)
    daemon.start()
    supervisor = daemon.supervisor
    if where != "start":
        result = supervisor.change_to(desired(f"{ok}\n{mine} {FACTORY}\nnew {tmp_path}/new/unix echo"))
        assert "not in startFactory" in str(result.faults[0])
        assert "new/unix" in supervisor.hosted
    assert supervisor.broken.ids == ("mine/unix",)
    # The service continues with its former factory.
    assert ("mine/unix" in supervisor.hosted) is (where == "change")
    assert (tmp_path / "mine").exists() is (where == "change")
    monkeypatch.setattr(_Raising, "raises", frozenset())
    supervisor.serve(desired(f"{mine} {FACTORY}"))
    assert not supervisor.broken
    assert supervisor.hosted["mine/unix"].service.runs == "factory"
    daemon.stop()


def test_a_factory_that_can_not_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of stopFactory() is logged; the reload and the stop continue."""
    monkeypatch.setattr(_Raising, "raises", frozenset({"stopFactory"}))
    ok, mine = f"echo {tmp_path}/echo/unix", f"mine {tmp_path}/mine/unix {FACTORY}"
    daemon = _Daemon(f"{ok}\n{mine}")
    daemon.start()
    with LogCatcher() as log:
        daemon.supervisor.change_to(desired(ok))
        (problem,) = log.named("problem")
        assert problem["text"].startswith("mine/unix: _call raises RuntimeError: not in stopFactory")
        daemon.supervisor.change_to(desired(f"{ok}\n{mine}"))
        assert daemon.stop().called
    assert len(log.named("problem")) == 2
    assert not daemon.supervisor.hosted["echo/unix"].tracker.connections  # type: ignore[union-attr]


def test_socket_of_a_broken_service_goes_to_another(tmp_path: Path) -> None:
    """A service that loses its last socket to another service ends, although its new configuration is broken."""
    daemon = _Daemon(f"a {tmp_path}/s/unix echo\nok {tmp_path}/ok/unix echo")
    daemon.start()
    (tmp_path / "taken").write_text("in the way")
    result = daemon.supervisor.change_to(
        desired(f"a {tmp_path}/taken/unix echo\nb {tmp_path}/s/unix upper\nok {tmp_path}/ok/unix echo")
    )
    assert len(result.faults) == 1
    assert sorted(daemon.supervisor.hosted) == ["b/unix", "ok/unix"]
    assert daemon.supervisor.broken.ids == ("a/unix",)
    (tmp_path / "taken").unlink()
    daemon.supervisor.serve(desired(f"a {tmp_path}/taken/unix echo"))
    assert sorted(daemon.supervisor.hosted) == ["a/unix", "b/unix", "ok/unix"]
    daemon.stop()


def test_a_socket_whose_new_service_is_broken_is_closed(tmp_path: Path) -> None:
    """The service with the socket was removed, and the service that takes it over can't be created."""
    daemon = _Daemon(f"a {tmp_path}/s/unix echo\nok {tmp_path}/ok/unix echo")
    daemon.start()
    daemon.supervisor.change_to(desired(f"b {tmp_path}/s/unix factory=no_such_module:x\nok {tmp_path}/ok/unix echo"))
    assert list(daemon.supervisor.hosted) == ["ok/unix"]
    assert not (tmp_path / "s").exists()
    assert daemon.supervisor.broken.ids == ("b/unix",)
    # A broken service can be removed.
    with LogCatcher() as log:
        daemon.supervisor.change_to(desired(f"ok {tmp_path}/ok/unix echo"))
    assert not daemon.supervisor.broken
    assert not log.named("recovered")
    daemon.stop()


def test_a_running_service_outlives_a_fault_of_its_line(tmp_path: Path) -> None:
    """A running service with an unchanged line continues despite a new fault, which the reload returns."""
    text = f"x {tmp_path}/x/unix echo access_zone=UTC access_times=0:00-23:59\nok {tmp_path}/ok/unix echo"
    daemon = _Daemon(text)
    daemon.start()
    with LogCatcher() as log:
        result = daemon.supervisor.change_to(desired(text, FakeMachine(zones=frozenset())))
    assert "no time zone 'UTC'" in str(result.faults[0])
    assert "no time zone 'UTC'" in log.named("problem")[0]["text"]
    assert not daemon.supervisor.broken
    assert sorted(daemon.supervisor.hosted) == ["ok/unix", "x/unix"]
    assert (tmp_path / "x").exists()
    daemon.stop()


def test_a_reload_names_the_changes_of_broken_services(tmp_path: Path) -> None:
    """Services that were added, changed or removed are in the result and the log, although they can't be served."""
    ok, taken = f"ok {tmp_path}/ok/unix echo", tmp_path / "taken"
    daemon = _Daemon(f"{ok}\nx {tmp_path}/x/unix echo")
    daemon.start()
    taken.write_text("in the way")

    def reload(text: str) -> tuple[list[str], list[str], list[str], list[str]]:
        expected = daemon.supervisor.difference(desired(text)).plan
        with LogCatcher() as log:
            plan, _, broken = daemon.supervisor.change_to(desired(text))
        (event,) = log.named("reload")
        counts = [event[name] for name in ("added", "removed", "changed", "broken")]
        assert counts == list(map(len, (plan.added, plan.removed, plan.changed, broken)))
        assert [*plan.lines()][: sum(counts[:3])] == [*expected.lines()][: sum(counts[:3])]
        added, removed = ([service.id for service in found] for found in (plan.added, plan.removed))
        return added, removed, [service.id for _, service in plan.changed], sorted(broken)

    new = f"new {tmp_path}/new/unix factory=no_such_module:x"
    assert reload(f"{ok}\n{new}\nx {taken}/unix echo") == (["new/unix"], [], ["x/unix"], ["new/unix", "x/unix"])
    assert daemon.supervisor.hosted["x/unix"].service.path == f"{tmp_path}/x"
    assert reload(f"{ok}\n{new}\nx {taken}/unix echo") == ([], [], [], ["new/unix", "x/unix"])
    assert reload(f"{ok}\n{new}2\nx {taken}/unix echo") == ([], [], ["new/unix"], ["new/unix", "x/unix"])
    assert reload(f"{ok}\nx {taken}/unix echo") == ([], ["new/unix"], [], ["x/unix"])
    taken.unlink()
    plan, faults, broken = daemon.supervisor.change_to(desired(f"{ok}\nx {taken}/unix echo"))
    assert ([new.id for _, new in plan.changed], faults, broken) == (["x/unix"], (), ())
    daemon.stop()


def test_nothing_changes_with_strict(tmp_path: Path) -> None:
    """With strict one fault undoes what was prepared for the other services."""
    daemon = _Daemon(f"ok {tmp_path}/ok/unix echo")
    daemon.start()
    (tmp_path / "taken").write_text("in the way")
    text = f"ok {tmp_path}/ok/unix upper\nnew {tmp_path}/new/unix echo\nx {tmp_path}/taken/unix echo"
    with pytest.raises(Exception, match="can't listen on"):
        daemon.supervisor.change_to(desired(text), strict=True)
    assert daemon.supervisor.hosted["ok/unix"].service.runs == "echo"
    assert not (tmp_path / "new").exists()
    assert not daemon.supervisor.broken
    daemon.stop()


@pytest.mark.parametrize("strict", [True, False])
def test_reasons_of_a_failed_change_are_in_the_order_of_the_file(tmp_path: Path, strict: bool) -> None:
    """Faults of the check, of sockets and of factories are in the order of the lines, also if no service is served."""
    for name in ("b", "d", "e"):
        (tmp_path / name).write_text("in the way")
    text = "\n".join(
        (
            f"e {tmp_path}/e/unix echo",
            f"d {tmp_path}/d/unix echo",
            f"c {tmp_path}/c/unix factory=no_such_module:x",
            f"b {tmp_path}/b/unix echo",
            f"a {tmp_path}/a/unix server=/none user=daemon",
        )
    )
    daemon = _Daemon(f"ok {tmp_path}/ok/unix echo")
    daemon.supervisor._desired = desired(text, FakeMachine(reasons={"/none": "No such file or directory"}))
    daemon.supervisor._strict = strict
    with pytest.raises(ListenErrors) as caught:
        daemon.supervisor.privilegedStartService()
    marks = [f"{tmp_path}/e:", f"{tmp_path}/d:", ":3:", f"{tmp_path}/b:", ":5:"]
    lines = str(caught.value).splitlines()
    assert len(lines) == len(marks)
    assert all(mark in line for mark, line in zip(marks, lines, strict=True))


def test_connection_that_raises_at_the_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a protocol raises while it is drained is logged; the other connections of its service end."""
    daemon = _Daemon(f"echo {tmp_path}/echo/unix\nok {tmp_path}/ok/unix echo")
    daemon.start()
    for name in ("echo", "ok"):
        daemon.connect(tmp_path / name)
    first, second = (each for name in ("echo/unix", "ok/unix") for each in daemon.tracker(name).all_connections())
    ended: list[object] = []

    def drain(wrapper: object) -> None:
        ended.append(wrapper)
        if wrapper is first:
            raise ZeroDivisionError

    monkeypatch.setattr(type(first), "drain", drain)
    with LogCatcher() as log:
        daemon.stop()
    assert ended == [first, second]
    assert "ZeroDivisionError" in log.named("problem")[0]["text"]
    monkeypatch.undo()
    daemon.close()


@pytest.mark.parametrize("fault", ["at the check", "when it is made"])
def test_an_inherited_socket_waits_for_its_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """A service that was broken at the start gets the socket of its socket unit, with the clients in its queue."""
    path = tmp_path / "lent"
    lent = socket.socket(socket.AF_UNIX)
    lent.bind(str(path))
    lent.listen()
    line = {"at the check": f"mine {path}/unix echo access_zone=UTC access_times=0:00-23:59",
            "when it is made": f"mine {path}/unix {FACTORY}"}[fault]  # fmt: skip
    monkeypatch.setattr(_Raising, "raises", frozenset({"startFactory"}))
    text = f"ok {tmp_path}/ok/unix echo\n{line}"
    machine = FakeMachine(zones=frozenset()) if fault == "at the check" else FakeMachine()
    daemon = _Daemon(f"ok {tmp_path}/ok/unix echo", None, SocketPool([InheritedSocket("mine", lent)]))
    daemon.supervisor._desired = desired(text, machine)
    with LogCatcher() as log:
        daemon.start()
    assert daemon.supervisor.broken.ids == ("mine/unix",)
    assert not log.named("leftover")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        monkeypatch.setattr(_Raising, "raises", frozenset())
        with LogCatcher() as log:
            daemon.supervisor.serve(desired(line))
        assert [event["origin"] for event in log.named("listen")] == ["activation"]
        assert not daemon.supervisor.broken
        daemon.reactor.advance(1)
        for port in daemon.ports:
            if isinstance(port, StreamPort):
                port.doRead()
        assert len(daemon.tracker("mine/unix").connections) == 1
        daemon.close()
    assert lent.fileno() == -1


def test_an_inherited_socket_goes_with_its_line(tmp_path: Path) -> None:
    """A reload that removes a broken service closes the inherited socket that was kept for it."""
    path = tmp_path / "lent"
    lent = socket.socket(socket.AF_UNIX)
    lent.bind(str(path))
    lent.listen()
    ok = f"ok {tmp_path}/ok/unix echo"
    daemon = _Daemon(ok, None, SocketPool([InheritedSocket("mine", lent)]))
    daemon.supervisor._desired = desired(f"{ok}\nmine {path}/unix factory=no_such_module:x", FakeMachine())
    daemon.start()
    assert lent.fileno() >= 0
    daemon.supervisor.change_to(desired(ok))
    assert lent.fileno() == -1
    daemon.close()


@pytest.fixture
def port() -> int:
    """A free port of 127.77.0.5 and 127.77.0.6."""
    with socket.create_server(("127.77.0.5", 0)) as taken:
        return int(taken.getsockname()[1])


def _listening(daemon: _Daemon) -> dict[str, list[str]]:
    """Return the addresses on which each service listens."""
    found: dict[str, list[str]] = {}
    for listener in daemon.supervisor.listeners_of():
        found.setdefault(listener.endpoint.service.id, []).append(listener.opened.address)
    return found


def test_new_interface_address_stays_with_its_service(port: int) -> None:
    """A service bound to an interface is broken while another service has its new address, and serves on the others."""
    vip, other = f"vip {port}/tcp4 echo bind=127.77.0.5", f"other {port}/tcp4 upper bind=eth9"
    daemon = _Daemon(vip)
    daemon.start()
    supervisor = daemon.supervisor
    supervisor.change_to(desired(f"{vip}\n{other}"))
    assert supervisor.broken.ids == ("other/tcp4",)
    supervisor.serve(desired(other, FakeMachine(names={"eth9": ["127.77.0.5"]})))
    assert _listening(daemon) == {"vip/tcp4": [f"127.77.0.5:{port}"]}
    assert sorted(supervisor.hosted) == ["vip/tcp4"]
    assert supervisor.broken["other/tcp4"].reason == (
        f"other/tcp4: can't listen on 127.77.0.5:{port}: vip/tcp4 at s:1:1 has it; change one of the two"
    )
    both = FakeMachine(names={"eth9": ["127.77.0.5", "127.77.0.6"]})
    supervisor.serve(desired(other, both))
    assert _listening(daemon) == {"vip/tcp4": [f"127.77.0.5:{port}"], "other/tcp4": [f"127.77.0.6:{port}"]}
    assert supervisor.broken.ids == ("other/tcp4",)
    # Another address of the interface may repair the service.
    daemon.reactor.advance(0.5)
    tried: list[str] = []
    supervisor.broken.start(tried.extend)
    supervisor.broken.addresses_changed()
    daemon.reactor.advance(0.25)
    assert tried == ["other/tcp4"]
    supervisor.disable("vip/tcp4")
    supervisor.serve(desired(other, both))
    assert not supervisor.broken
    assert sorted(_listening(daemon)["other/tcp4"]) == [f"127.77.0.5:{port}", f"127.77.0.6:{port}"]
    daemon.stop()


def test_service_without_sockets_is_broken(port: int) -> None:
    """A service that loses its interface, and its socket to another service, is broken despite its unchanged line."""
    vip, other = f"vip {port}/tcp4 echo bind=127.77.0.5", f"other {port}/tcp4 upper bind=eth9"
    ok = f"ok {port}/tcp4 echo bind=127.77.0.6"
    daemon = _Daemon(ok)
    daemon.start()
    supervisor = daemon.supervisor
    supervisor.change_to(desired(f"{ok}\n{other}", FakeMachine(names={"eth9": ["127.77.0.5"]})))
    assert not supervisor.broken
    with pytest.raises(ConfigError, match="'eth9' is not an address"):
        supervisor.change_to(desired(f"{ok}\n{vip}\n{other}"), strict=True)
    assert sorted(_listening(daemon)) == ["ok/tcp4", "other/tcp4"]
    # The interface disappears, and no other service has its address: the service continues.
    supervisor.change_to(desired(f"{ok}\n{other}"))
    assert not supervisor.broken
    supervisor.change_to(desired(f"{ok}\n{vip}\n{other}"))
    assert sorted(_listening(daemon)) == sorted(supervisor.hosted) == ["ok/tcp4", "vip/tcp4"]
    assert "'eth9' is not an address" in supervisor.broken["other/tcp4"].reason
    daemon.stop()


def test_inherited_socket_goes_to_the_service_that_can_be_served(port: int) -> None:
    """A new daemon gives an inherited socket to the service with its address, not to one with a fault there."""
    with socket.create_server(("127.77.0.5", port)) as inherited:
        stored = socket.socket(fileno=os.dup(inherited.fileno()))
    text = f"other {port}/tcp4 upper bind=eth9\nvip {port}/tcp4 echo bind=127.77.0.5"
    wanted = desired(text, FakeMachine(names={"eth9": ["127.77.0.5"]}))
    daemon = _Daemon(f"vip {port}/tcp4 echo bind=127.77.0.5", None, SocketPool([InheritedSocket("vip", stored)]))
    daemon.supervisor._desired = wanted
    with LogCatcher() as log:
        daemon.start()
    assert [event["origin"] for event in log.named("listen")] == ["activation"]
    assert _listening(daemon) == {"vip/tcp4": [f"127.77.0.5:{port}"]}
    assert daemon.supervisor.broken.ids == ("other/tcp4",)
    daemon.stop()


@pytest.mark.parametrize("strict", [True, False])
def test_failed_change_restores_permissions(tmp_path: Path, strict: bool) -> None:
    """A UNIX socket whose service continues as before has its former mode again."""
    daemon = _Daemon(f"x {tmp_path}/x/unix echo mode=0600\nok {tmp_path}/ok/unix echo")
    daemon.start()
    (tmp_path / "taken").write_text("in the way")
    ok = f"ok {tmp_path}/ok/unix echo"
    if strict:
        text = f"x {tmp_path}/x/unix echo mode=0666\ny {tmp_path}/taken/unix echo\n{ok}"
        with pytest.raises(ListenErrors):
            daemon.supervisor.change_to(desired(text), strict=True)
    else:
        daemon.supervisor.change_to(desired(f"x {tmp_path}/x/unix factory=no_such_module:x mode=0666\n{ok}"))
        assert daemon.supervisor.broken.ids == ("x/unix",)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600
    daemon.stop()


@pytest.mark.parametrize(("raised", "passes"), [(KeyboardInterrupt, True), (SystemExit, False), (GeneratorExit, False)])
@pytest.mark.parametrize("where", ["startFactory", "stopFactory", "buildProtocol", "drain"])
def test_keyboard_interrupt_reaches_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, raised: type[BaseException], passes: bool
) -> None:
    """A KeyboardInterrupt in a service's code reaches the daemon; other exceptions affect the service only."""

    def raising(*_arguments: object) -> None:
        raise raised

    daemon = _Daemon(f"ok {tmp_path}/ok/unix echo\nmine {tmp_path}/mine/unix {FACTORY}")
    if where != "drain":
        monkeypatch.setattr(_Raising, where, raising)
    expected = pytest.raises(raised) if passes else contextlib.nullcontext()
    with expected if where == "startFactory" else contextlib.nullcontext():
        daemon.start()
    if where == "startFactory":
        assert list(daemon.supervisor.hosted) == [] if passes else ["ok/unix"]
        assert (tmp_path / "ok").exists() is not passes
    else:
        with expected if where == "buildProtocol" else contextlib.nullcontext():
            daemon.connect(tmp_path / "mine")
        if where == "drain":
            (wrapper,) = daemon.tracker("mine/unix").all_connections()
            monkeypatch.setattr(type(wrapper), "drain", raising)
        with expected if where in ("stopFactory", "drain") else contextlib.nullcontext():
            daemon.stop()
    monkeypatch.undo()
    daemon.supervisor.stop_listening()
    daemon.close()
