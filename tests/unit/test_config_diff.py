"""The plan of a reload."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcd.config.diff import ReloadPlan, diff, socket_key
from svcd.config.endpoints import Endpoint, check
from tests.doubles import FakeFiles, FakeMachine, config_of


def _endpoints(text: str) -> list[Endpoint]:
    endpoints, problems = check(config_of(text), FakeFiles(), FakeMachine())
    assert not problems
    return endpoints


def _plan(old: str, new: str) -> ReloadPlan:
    return diff(_endpoints(old), _endpoints(new))


OLD = "echo 7/tcp4"
#: A new file, and what the way to it looks like.
ROWS = [
    (OLD, []),
    ("# a comment\n\necho 7/tcp4 backlog=1024", []),
    ("echo 7/tcp4 backlog=5", ["~ echo/tcp4: backlog 1024 -> 5"]),
    ("echo 7/tcp4 resolve=yes keepalive=yes", ["~ echo/tcp4: keepalive no -> yes, resolve no -> yes"]),
    ("echo 7/tcp4 description=mine", ["~ echo/tcp4: description default -> mine"]),
    ("echo 7/tcp4 again", ["~ echo/tcp4: aliases"]),
    (
        "echo 8/tcp4",
        ["~ echo/tcp4: port 7 -> 8", "- echo/tcp4 on 0.0.0.0:7", "+ echo/tcp4 on 0.0.0.0:8"],
    ),
    ("discard 7/tcp4", ["- echo/tcp4", "+ discard/tcp4"]),
    (
        "echo 7/udp4",
        ["- echo/tcp4", "+ echo/udp4", "- echo/tcp4 on 0.0.0.0:7", "+ echo/udp4 on 0.0.0.0:7"],
    ),
    ("", ["- echo/tcp4", "- echo/tcp4 on 0.0.0.0:7"]),
    (
        "echo 7/tcp4 bind=127.0.0.1",
        ["~ echo/tcp4: bind default -> 127.0.0.1", "- echo/tcp4 on 0.0.0.0:7", "+ echo/tcp4 on 127.0.0.1:7"],
    ),
    (
        "echo 7/tcp4 reuse_port=yes",
        ["~ echo/tcp4: reuse_port no -> yes", "- echo/tcp4 on 0.0.0.0:7", "+ echo/tcp4 on 0.0.0.0:7"],
    ),
    ("echo 7/tcp4 server=/bin/cat", ["~ echo/tcp4: runs echo -> server, server default -> /bin/cat"]),
    ("echo 7/tcp4\ntime 37/tcp4", ["+ time/tcp4", "+ time/tcp4 on 0.0.0.0:37"]),
]


@pytest.mark.parametrize(("new", "lines"), ROWS)
def test_plan_lists_the_changes(new: str, lines: list[str]) -> None:
    """The plan has every difference, and no unchanged service."""
    made = _plan(OLD, new)
    assert list(made.lines()) == lines
    assert made.empty == (not lines)


def test_a_socket_is_kept_for_another_service() -> None:
    """A socket is kept by its address, whichever service had it."""
    made = _plan("echo 7/tcp4", "discard 7/tcp4")
    ((before, after),) = made.kept
    assert (before.service.name, after.service.name) == ("echo", "discard")
    assert not made.opened
    assert not made.closed


def test_socket_with_port_0_is_kept_for_its_service() -> None:
    """A socket with port 0 is identified by its service."""
    made = _plan("echo 0/tcp4\ntime 0/tcp4", "time 0/tcp4\ndiscard 0/tcp4")
    assert [(old.service.name, new.service.name) for old, new in made.kept] == [("time", "time")]
    assert [endpoint.service.name for endpoint in made.opened] == ["discard"]
    assert [endpoint.service.name for endpoint in made.closed] == ["echo"]


def test_a_local_socket_is_kept_by_its_path() -> None:
    """Mode and owner of a UNIX socket are changed without a new socket."""
    made = _plan("echo /run/a/unix", "echo /run/a/unix mode=0600\nmore /run/b/unix echo")
    assert [old.address for old, _ in made.kept] == ["/run/a"]
    assert [endpoint.address for endpoint in made.opened] == ["/run/b"]


@pytest.mark.parametrize("where", ["7/tcp4", "7/udp4", "/run/a/unix", "/run/a/unixgram"])
def test_socket_of_a_wait_service_is_kept_for_wait_services(where: str) -> None:
    """A service that stops being wait=yes gets a new socket; a service that becomes wait=yes keeps its socket."""
    waits, other = f"x {where} server=/bin/a wait=yes", f"x {where} echo"
    made = _plan(waits, other)
    assert (made.kept, len(made.opened), len(made.closed)) == ((), 1, 1)
    for old, new in [(other, waits), (waits, f"{waits} nice=3"), (waits, f"y {where} server=/bin/b wait=yes")]:
        made = _plan(old, new)
        assert (len(made.kept), made.opened, made.closed) == (1, (), ())


LINES = st.lists(
    st.sampled_from(
        [
            "echo 7/tcp",
            "echo 7/udp4",
            "echo 8/tcp6",
            "echo 7/udp4 server=/bin/a wait=yes",
            "time 37/tcp4",
            "time 37/tcp4 backlog=3",
            "discard 9/tcp bind=::1",
        ]
    ),
    unique_by=lambda line: " ".join(line.split()[:1]) + line.split()[1].partition("/")[2],
)


@given(LINES, LINES)
def test_plan_covers_both_files(old: list[str], new: list[str]) -> None:
    """Every old socket is kept or closed, every new one is kept or opened, each once."""
    before, after = _endpoints("\n".join(old)), _endpoints("\n".join(new))
    made = diff(before, after)
    assert sorted(map(str, [*(first for first, _ in made.kept), *made.closed])) == sorted(map(str, before))
    assert sorted(map(str, [*(second for _, second in made.kept), *made.opened])) == sorted(map(str, after))
    names = [service.id for service in (*made.added, *made.same, *(new for _, new in made.changed))]
    assert sorted(names) == sorted({endpoint.service.id for endpoint in after})
    assert diff(after, after).empty


def test_unreachable_socket_is_opened_again() -> None:
    """The plan opens the socket of an unchanged line again, and the service stays the same."""
    endpoints = _endpoints("echo /run/a/unix\ndiscard /run/b/unix")
    made = diff(endpoints, endpoints, {socket_key(endpoints[0])})
    assert list(made.lines()) == ["- echo/unix on /run/a", "+ echo/unix on /run/a"]
    assert [service.id for service in made.same] == ["echo/unix", "discard/unix"]
    assert [new.service.id for _, new in made.kept] == ["discard/unix"]


def test_first_of_several_services_gets_an_address() -> None:
    """The other services are contested and get no socket: names of bind= may resolve to one address."""
    first, second, apart = _endpoints("a 7/tcp4 echo"), _endpoints("b 7/tcp4 echo"), _endpoints("c 8/tcp4 echo")
    for old in ([], first, second):
        made = diff(old, [*first, *second, *apart])
        assert [new.service.id for _, new in made.kept] == ["a/tcp4"] * bool(old)
        assert [endpoint.service.id for endpoint in made.opened] == ["a/tcp4"] * (not old) + ["c/tcp4"]
        assert made.contested == ((second[0], first[0]),)
        assert made.closed == ()
