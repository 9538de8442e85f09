"""The daemon's end of a launcher, with the test as the launcher."""

from __future__ import annotations

import errno
import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from svcd.handlers.link import MOST_WAITING, Link
from svcd.handlers.messages import (
    LARGEST,
    ONE_DESCRIPTOR,
    Connection,
    Ended,
    Failed,
    Message,
    Ready,
    Said,
    Signal,
    Started,
    pack,
    read,
)
from tests.doubles import FakeReactor, LogCatcher

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Service:
    """A link, who hears its reports, and the launchers that it is given."""

    def __init__(self) -> None:
        self.reactor = FakeReactor()
        self.heard: list[object] = []
        self.asked = 0
        self.ended_by_the_nursery: list[Signal] = []
        self.launcher: socket.socket | None = None
        self.clients: list[socket.socket] = []
        self.link = Link(self.reactor, "cat/tcp", self._launch, self.ended_by_the_nursery.append, self)

    def _launch(self) -> None:
        self.asked += 1

    def started(self, number: int, pid: int) -> None:
        self.heard.append(("started", number, pid))

    def ended(self, report: Ended) -> None:
        self.heard.append(report)

    def failed(self, number: int, errno: int) -> None:
        self.heard.append(("failed", number, errno))

    def forgotten(self, number: int) -> None:
        self.heard.append(("forgotten", number))

    def said(self, number: int, text: bytes) -> None:
        self.heard.append(("said", number, text))

    def restarted(self) -> None:
        """Note."""
        self.heard.append("restarted")

    def room(self) -> None:
        self.heard.append("room")

    def attach(self, pid: int = 100) -> None:
        """Give it a launcher that has not said anything yet."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        self.launcher = theirs
        self.link.attach(ours, pid)

    def serve(self, number: int = 1) -> socket.socket:
        """Hand a connection over; returns the client's end."""
        ours, theirs = socket.socketpair()
        ours.settimeout(10)
        self.clients.append(ours)
        self.link.start(number, b"A=1", theirs.detach())
        return ours

    def say(self, *messages: Message) -> None:
        """Let the launcher report."""
        assert self.launcher is not None
        for message in messages:
            self.launcher.send(pack(message))
        self.link.doRead()

    def order(self) -> tuple[Message, int | None]:
        """What the launcher is told next, and with which descriptor."""
        assert self.launcher is not None
        packet, rights, _, _ = self.launcher.recvmsg(LARGEST, socket.CMSG_SPACE(4))
        return read(packet), ONE_DESCRIPTOR.unpack(rights[0][2])[0] if rights else None

    def take(self) -> int:
        """Take a connection as the launcher does; returns its number."""
        order, descriptor = self.order()
        assert isinstance(order, Connection)
        assert descriptor is not None
        os.close(descriptor)
        return order.number

    def die(self) -> None:
        """End the launcher."""
        assert self.launcher is not None
        self.launcher.close()
        self.link.doRead()


@pytest.fixture
def service() -> Iterator[_Service]:
    """A service whose launcher the test plays."""
    made = _Service()
    yield made
    made.link.stop()
    for each in [*made.clients, made.launcher]:
        if each is not None:
            each.close()


def test_the_first_connection_has_a_launcher_started(service: _Service) -> None:
    """It is asked for once, and what came before it was ready is handed over in its order."""
    service.serve(1)
    service.serve(2)
    assert service.asked == 1
    service.attach()
    with pytest.raises(BlockingIOError):
        service.order()
    service.say(Ready())
    assert [service.take(), service.take()] == [1, 2]
    assert service.link.ready


def test_a_connection_is_handed_over_with_its_environment(service: _Service) -> None:
    """What the launcher gets is the client's connection itself."""
    service.attach()
    service.say(Ready())
    client = service.serve(7)
    order, descriptor = service.order()
    assert order == Connection(7, b"A=1")
    assert descriptor is not None
    os.write(descriptor, b"hello")
    os.close(descriptor)
    assert client.recv(10) == b"hello"


def test_our_copy_is_closed_when_the_handler_has_started(service: _Service) -> None:
    """From then on the handler alone decides when the client sees the end."""
    service.attach()
    service.say(Ready())
    client = service.serve(1)
    assert service.take() == 1
    service.say(Started(1, 55))
    assert client.recv(10) == b""
    assert service.heard == [("started", 1, 55)]
    assert service.link.pids == {1: 55}


def test_reports_are_passed_on_once(service: _Service) -> None:
    """A second end, or one of a connection that never was, is nobody's."""
    service.attach()
    service.say(Ready())
    service.serve(1)
    service.say(Started(1, 55), Said(1, b"hi"), Ended(1, 256), Ended(1, 256), Ended(9, 0), Failed(9, 1))
    assert service.heard == [("started", 1, 55), ("said", 1, b"hi"), Ended(1, 256)]


def test_a_failed_start_closes_the_connection(service: _Service) -> None:
    """The client sees the end, and the keeper the reason."""
    service.attach()
    service.say(Ready())
    client = service.serve(1)
    service.take()
    service.say(Failed(1, errno.ENOENT))
    assert client.recv(10) == b""
    assert service.heard == [("failed", 1, errno.ENOENT)]


def test_a_lost_launcher_costs_no_connection(service: _Service) -> None:
    """What it had not started is given to the next, which comes after a pause."""
    service.attach()
    service.say(Ready())
    service.serve(1)
    service.serve(2)
    service.say(Started(1, 55))
    with LogCatcher() as log:
        service.die()
    (lost,) = log.named("launcher")
    assert (lost["state"], lost["pid"], lost["retry"]) == ("lost", 100, 0.1)
    assert not service.link.ready
    assert service.asked == 0
    service.reactor.advance(0.2)
    assert service.asked == 1
    service.attach(101)
    service.say(Ready())
    assert service.take() == 2


def test_losses_one_after_the_other_are_further_apart(service: _Service) -> None:
    """The pause doubles up to half a minute, and is short again after a good life."""
    pauses = []
    service.serve(1)
    for _ in range(11):
        service.attach()
        with LogCatcher() as log:
            service.die()
        pauses.append(log.named("launcher")[0]["retry"])
        service.reactor.advance(pauses[-1])
    assert pauses[:4] == [0.1, 0.2, 0.4, 0.8]
    assert pauses[-1] == 30.0
    service.attach()
    service.say(Ready())
    service.reactor.advance(60)
    with LogCatcher() as log:
        service.die()
    assert log.named("launcher")[0]["retry"] == 0.1


def test_a_connection_that_kills_launchers_is_given_up(service: _Service) -> None:
    """After three launchers it is the connection's fault, and it is closed."""
    client = service.serve(1)
    for _ in range(3):
        service.attach()
        service.say(Ready())
        service.take()
        service.die()
        service.reactor.advance(30)
    assert service.heard == ["restarted", "restarted", ("failed", 1, 0)]
    assert client.recv(10) == b""


def test_a_launcher_that_can_not_begin_is_told_with_its_reason(service: _Service) -> None:
    """Its own words stand in the log."""
    service.serve(1)
    service.attach()
    with LogCatcher() as log:
        service.say(Ready(b"can't take the user 7"))
    assert log.named("launcher")[0]["reason"] == "can't take the user 7"


@pytest.mark.parametrize("packet", [b"junk", pack(Signal(1, 2, 3)), b"E"])
def test_a_launcher_that_talks_nonsense_is_not_listened_to(service: _Service, packet: bytes) -> None:
    """It is given up as a dead one is."""
    service.attach()
    service.say(Ready())
    assert service.launcher is not None
    service.launcher.send(packet)
    service.link.doRead()
    assert not service.link.ready
    assert service.launcher.recv(10) == b""


def test_so_many_wait_and_no_more(service: _Service) -> None:
    """The link says when it is full, and when there is room again."""
    service.attach()
    service.say(Ready())
    for number in range(MOST_WAITING):
        assert not service.link.full
        service.serve(number)
    assert service.link.full
    service.say(Started(0, 55))
    assert not service.link.full
    assert service.heard == [("started", 0, 55), "room"] or service.heard == ["room", ("started", 0, 55)]


def test_signals_go_by_number_and_pid(service: _Service) -> None:
    """The launcher is told both; a connection without a process gets none."""
    service.attach()
    service.say(Ready())
    service.serve(1)
    service.take()
    service.link.signal(1, signal.SIGTERM)
    service.say(Started(1, 55))
    service.link.signal(1, signal.SIGTERM)
    assert service.order() == (Signal(1, 55, signal.SIGTERM), None)


def test_what_was_given_up_on_its_way_is_ended(service: _Service) -> None:
    """A handler that starts for a dropped connection is killed: nobody would hear that it does not want to stop."""
    service.attach()
    service.say(Ready())
    service.serve(1)
    service.take()
    assert service.link.drop(1)
    service.say(Started(1, 55))
    assert service.order() == (Signal(1, 55, signal.SIGKILL), None)
    assert (service.heard, service.link.pids) == ([], {})


def test_orphans_end_by_the_nurserys_word(service: _Service) -> None:
    """Handlers outlive their launcher; each end is told with its status, once."""
    service.attach()
    service.say(Ready())
    service.serve(1)
    service.serve(2)
    service.say(Started(1, 55), Started(2, 56))
    service.heard.clear()
    assert service.launcher is not None
    service.launcher.send(pack(Ended(2, 9)))
    service.launcher.close()
    # The nursery's word may come first; what the launcher said before it died is heard before it.
    service.link.orphan_ended(55, 256)
    service.link.orphan_ended(55, 256)
    assert service.heard == [Ended(2, 9), Ended(1, 256)]


def test_orphans_are_forgotten_with_the_nursery(service: _Service) -> None:
    """Nobody is left who would know of their end."""
    service.attach()
    service.say(Ready())
    service.serve(1)
    service.say(Started(1, 55))
    service.heard.clear()
    service.die()
    service.link.forget()
    assert service.heard == [("forgotten", 1)]


def test_a_stopped_link_ends_its_launcher(service: _Service) -> None:
    """The launcher sees the end of its socket; who waited is closed; nothing is started again."""
    service.attach()
    client = service.serve(1)
    service.link.stop()
    assert service.heard == [("failed", 1, 0)]
    assert service.launcher is not None
    assert service.launcher.recv(10) == b""
    assert client.recv(10) == b""
    service.link.wake()
    service.reactor.advance(60)
    assert service.asked == 0
    assert not service.reactor.getDelayedCalls()
