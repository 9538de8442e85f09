"""Sockets that are open already: whose they are, what becomes of them, and what is said of the others."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from svcd.config.endpoints import Endpoint, check
from svcd.daemon.startup import inherited_socket_pool
from svcd.errors import ActivationError, ListenErrors
from svcd.host.info import Host
from svcd.net.socket_options import has_sized_buffers, unix_address
from svcd.sockets.acquire import FdStore, SocketPool
from svcd.sockets.activation import InheritedSocket, fd_name, handover_name, listen_fds
from svcd.sockets.listening import ListeningSocket
from tests.doubles import FakeFiles, FakeMachine, LogCatcher, ManagerDouble, config_of, open_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

needs_ipv6 = pytest.mark.skipif(6 not in Host().versions(), reason="this machine has no IPv6")


def _endpoints(text: str) -> list[Endpoint]:
    endpoints, problems = check(config_of(text), FakeFiles(), FakeMachine())
    assert not problems, problems
    return endpoints


@pytest.fixture
def end() -> Iterator[ExitStack]:
    """Closes what a test opened."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def bound(end: ExitStack) -> Callable[..., socket.socket]:
    """What makes a bound socket, listening if it can."""

    def make(host: str = "127.0.0.1", kind: int = socket.SOCK_STREAM, *, both: bool = False) -> socket.socket:
        family = socket.AF_UNIX if "/" in host else socket.AF_INET6 if ":" in host else socket.AF_INET
        made = end.enter_context(socket.socket(family, kind))
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        made.bind(host if family == socket.AF_UNIX else (host, 0))
        if kind == socket.SOCK_STREAM:
            made.listen(1)
        return made

    return make


def _take(line: str, *inherited: InheritedSocket, end: ExitStack) -> list[ListeningSocket | None]:
    """What the endpoints of a line get from a stock."""
    for each in inherited:
        assert each.socket is not None
        end.callback(each.socket.close)
    socket_pool = SocketPool(inherited)
    found = [socket_pool.take(endpoint) for endpoint in _endpoints(line)]
    for opened in found:
        if opened is not None:
            end.callback(opened.socket.close)
    return found


def test_a_socket_is_found_by_its_address(bound: Callable[..., socket.socket], end: ExitStack) -> None:
    """Whatever its name is, it serves the line that is to stand where it stands, with that line's options."""
    sock = bound()
    port = sock.getsockname()[1]
    line = f"echo {port}/tcp bind=127.0.0.1 keepalive=yes nodelay=no"
    (found,) = _take(line, InheritedSocket("svcd.socket", sock), end=end)
    assert found is not None
    assert (found.address, found.origin, found.stored, found.borrowed) == (f"127.0.0.1:{port}", "activation", "", True)
    assert found.socket is sock
    assert not sock.getblocking()
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert not sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(
    "line",
    [
        "echo {port}/udp4 bind=127.0.0.1",  # another type
        "echo {port}/tcp4",  # wider
        "echo {port}/tcp4 bind=127.0.0.2",  # elsewhere
        "echo 1/tcp4 bind=127.0.0.1",  # another port
        "echo 0/tcp4 bind=127.0.0.1",  # any port
        "echo {port}/tcp6",  # another family
        "echo /run/nowhere/unix",
    ],
)
def test_a_socket_elsewhere_is_not_taken(line: str, bound: Callable[..., socket.socket], end: ExitStack) -> None:
    """An address that is wider or narrower than the line's is another address."""
    sock = bound()
    port = sock.getsockname()[1]
    assert _take(line.format(port=port), InheritedSocket("x", sock), end=end) == [None]


@pytest.mark.parametrize("name", ["echo", "echo/tcp4"])
def test_a_socket_unit_names_the_service(name: str, bound: Callable[..., socket.socket], end: ExitStack) -> None:
    """Then it says where that stands; a name that svcd gave does not, nor one of another protocol."""
    sock = bound()
    (found,) = _take("echo 7/tcp4", InheritedSocket(name, sock), end=end)
    assert found is not None
    assert found.address == f"127.0.0.1:{sock.getsockname()[1]}"
    for line, other in (("echo 7/udp4", name), ("upper 7/tcp4", name), ("echo 7/tcp4", "svcd/-/echo/tcp4@0.0.0.0:7")):
        assert _take(line, InheritedSocket(other, bound()), end=end) == [None]


@needs_ipv6
@pytest.mark.parametrize(
    ("line", "taken"),
    [
        ("echo {port}/tcp", [True, True]),
        ("echo {port}/tcp bind=::,0.0.0.0", [True, True]),
        ("echo {port}/tcp bind=::,127.0.0.1", [True, False]),
        ("echo {port}/tcp4", [False]),
        ("echo {port}/tcp6", [False]),
        ("echo {port}/tcp6 v6only=no", [True]),
        ("echo {port}/tcp bind=::1", [False]),
    ],
)
def test_one_socket_for_both_families(
    line: str, taken: list[bool], bound: Callable[..., socket.socket], end: ExitStack
) -> None:
    """It serves a line for both, whose two endpoints share it; but not one that wants a single family."""
    sock = bound("::", both=True)
    port = sock.getsockname()[1]
    found = _take(line.format(port=port), InheritedSocket("x", sock), end=end)
    assert [each is not None for each in found] == taken
    for each in found:
        assert each is None or each.address == f"[::]:{port}"
    if taken == [True, True]:
        found = _take("echo 7/tcp", InheritedSocket("echo", bound("::", both=True)), end=end)
        assert None not in found
        # What a daemon before us has stored is for the line that it was for.
        name = "svcd/-/echo/tcp6@[::]:7"
        assert _take(line.format(port=port), InheritedSocket(name, bound("::", both=True)), end=end) == [None, None]


@needs_ipv6
def test_a_socket_for_each_family(bound: Callable[..., socket.socket], end: ExitStack) -> None:
    """Each endpoint of a line gets its own."""
    first, second = bound(), bound("::1")
    found = _take("echo 7/tcp", InheritedSocket("echo", second), InheritedSocket("echo", first), end=end)
    assert [each and each.socket for each in found] == [first, second]
    port = second.getsockname()[1]
    (local,) = _take(f"echo {port}/tcp bind=::1", InheritedSocket("x", second), end=end)
    assert local is not None
    assert local.address == f"[::1]:{port}"


def test_the_kernels_choice_of_a_port_is_kept(end: ExitStack) -> None:
    """Port 0 stands where it stood before, because its name in the store says whose it is."""
    (endpoint,) = _endpoints("echo 0/tcp4 bind=127.0.0.1")
    (first,) = open_all([endpoint])
    end.callback(first.close)
    (found,) = _take("echo 0/tcp4 bind=127.0.0.1", InheritedSocket(fd_name(endpoint), first.socket), end=end)
    assert found is not None
    assert (found.address, found.origin, found.stored) == (first.address, "store", fd_name(endpoint))


@pytest.mark.parametrize("port", [0, None])
def test_a_socket_that_programs_share_is_known_by_its_name(
    port: int | None, bound: Callable[..., socket.socket], end: ExitStack
) -> None:
    """It goes to a wait=yes service alone, which leaves its flags as they are."""
    sock = bound(kind=socket.SOCK_DGRAM)
    number = sock.getsockname()[1] if port is None else port
    waits, other = (f"x {number}/udp4 {words} bind=127.0.0.1" for words in ("server=/bin/a wait=yes", "echo"))
    (endpoint,) = _endpoints(waits)
    for name in (fd_name(endpoint), handover_name(endpoint, None)):
        inherited = InheritedSocket(name, sock.dup())
        assert inherited.waits
        assert _take(other, inherited, end=end) == [None]
        (found,) = _take(waits, InheritedSocket(name, sock.dup()), end=end)
        assert found is not None
        assert found.socket.getblocking()
    # What was another service's may become a wait=yes service's.
    (endpoint,) = _endpoints(other)
    (found,) = _take(waits, InheritedSocket(fd_name(endpoint), sock.dup()), end=end)
    assert found is not None


def test_a_socket_is_stored_anew_when_programs_begin_to_share_it(bound: Callable[..., socket.socket]) -> None:
    """Its name says so."""
    manager = ManagerDouble(keeps=True)
    store = FdStore(manager)
    before, after = (_endpoints(f"x 7/tcp4 {words}")[0] for words in ("echo", "server=/bin/a wait=yes"))
    opened = ListeningSocket(before, bound(), "")
    store.store(opened)
    opened.endpoint = after
    store.store(opened)
    store.store(opened)
    assert manager.messages[1:] == [
        f"FDSTOREREMOVE=1 FDNAME={fd_name(before)}",
        f"FDSTORE=1 FDPOLL=0 FDNAME={fd_name(before)}+wait",
    ]


@pytest.mark.parametrize(("net", "kind"), [("unix", socket.SOCK_STREAM), ("unixgram", socket.SOCK_DGRAM)])
def test_a_unix_socket_from_the_store(tmp_path: Path, net: str, kind: int, end: ExitStack) -> None:
    """It is taken while its path is its own, gets the mode of its line, and takes its file along at its end."""
    path = tmp_path / "s"
    (endpoint,) = _endpoints(f"echo {path}/{net}")
    (first,) = open_all([endpoint])
    name = fd_name(endpoint)
    (found,) = _take(f"echo {path}/{net} mode=0600", InheritedSocket(name, first.socket.dup()), end=end)
    assert found is not None
    assert found.socket.type == kind
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    copy = found.socket.dup()
    path.rename(tmp_path / "elsewhere")
    assert _take(f"echo {path}/{net}", InheritedSocket(name, copy.dup()), end=end) == [None]
    path.write_text("somebody else's")
    assert _take(f"echo {path}/{net}", InheritedSocket(name, copy.dup()), end=end) == [None]
    (tmp_path / "elsewhere").rename(path)
    (found,) = _take(f"echo {path}/{net}", InheritedSocket(name, copy), end=end)
    assert found is not None
    found.close(for_good=False)
    assert path.is_socket()
    found.close()
    assert not path.exists()
    first.close()


def test_a_unix_socket_of_a_socket_unit(tmp_path: Path, bound: Callable[..., socket.socket], end: ExitStack) -> None:
    """Its file is the unit's: neither its mode changes nor does it go with us."""
    path = tmp_path / "s"
    sock = bound(str(path))
    path.chmod(0o640)
    (found,) = _take(f"echo {path}/unix mode=0777", InheritedSocket("x", sock), end=end)
    assert found is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    found.close()
    assert path.is_socket()


def test_a_mode_that_cannot_be_had_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a socket of our own; nothing stays open."""
    (endpoint,) = _endpoints(f"echo {tmp_path}/s/unix")
    (first,) = open_all([endpoint])
    (stricter,) = _endpoints(f"echo {tmp_path}/s/unix mode=0600")

    def chmod(_path: str, _mode: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chmod", chmod)
    with pytest.raises(ListenErrors, match="change the socket's owner"):
        open_all([stricter], SocketPool([InheritedSocket(fd_name(endpoint), first.socket)]))
    assert first.socket.fileno() == -1


def test_what_nobody_asked_for_is_said_and_closed(bound: Callable[..., socket.socket], tmp_path: Path) -> None:
    """With its name and address; what a daemon before us had stored is removed from the store, and waited for."""
    given, ours, local = bound(), bound(), bound(str(tmp_path / "s"))
    (endpoint,) = _endpoints(f"echo {tmp_path}/s/unix")
    names = ["svcd.socket", "svcd/-/gone/tcp@127.0.0.1", fd_name(endpoint)]
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in (given, ours)]
    pieces = zip(names, (given, ours, local), strict=True)
    socket_pool = SocketPool(
        [*(InheritedSocket(*each) for each in pieces), InheritedSocket("file", None, "it is no socket")]
    )
    assert socket_pool
    manager = ManagerDouble()
    with LogCatcher() as log:
        assert open_all([], socket_pool, FdStore(manager)) == []
    said = [(event["name"], event["address"], event["reason"]) for event in log.named("leftover")]
    unasked = "no line of the services file asks for it"
    assert said == [
        ("file", "-", "it is no socket"),
        (names[0], addresses[0], unasked),
        (names[1], addresses[1], unasked),
        (names[2], str(tmp_path / "s"), unasked),
    ]
    assert [each.fileno() for each in (given, ours, local)] == [-1, -1, -1]
    assert manager.messages == [f"FDSTOREREMOVE=1 FDNAME={name}" for name in names[1:]]
    assert manager.barriers == 1
    assert not (tmp_path / "s").exists()
    assert not socket_pool


def test_an_address_changes_hands(tmp_path: Path, end: ExitStack) -> None:
    """A path that was a stream's becomes a datagram service's within one start."""
    (before,) = _endpoints(f"echo {tmp_path}/s/unix")
    (first,) = open_all([before])
    socket_pool = SocketPool([InheritedSocket(fd_name(before), first.socket)])
    (now,) = open_all(_endpoints(f"echo {tmp_path}/s/unixgram"), socket_pool, FdStore(ManagerDouble()))
    end.callback(now.close)
    assert now.origin == ""
    assert now.socket.type == socket.SOCK_DGRAM


def test_what_a_socket_unit_lacks_is_said(bound: Callable[..., socket.socket], end: ExitStack) -> None:
    """Svcd opens it by itself; a socket that is new since the daemon before is not worth a word."""
    endpoints = _endpoints("echo 0/tcp4 bind=127.0.0.1\nupper 0/tcp4 bind=127.0.0.1\n")
    for name, said in (("upper", ["echo/tcp4"]), (fd_name(endpoints[1]), [])):
        with LogCatcher() as log:
            opened = open_all(endpoints, SocketPool([InheritedSocket(name, bound())]))
        for each in opened:
            end.callback(each.close)
        assert [event["service"] for event in log.named("ungiven")] == said
        assert [each.origin for each in opened] == ["", "store" if not said else "activation"]


def test_a_start_that_fails_removes_nothing_from_the_store(bound: Callable[..., socket.socket], tmp_path: Path) -> None:
    """The daemon that is started next may do better; what was opened meanwhile is closed and gone."""
    taken = bound().getsockname()[1]
    first, second = _endpoints(f"echo {tmp_path}/s/unix\nupper {tmp_path}/new/unix\n")
    (opened,) = open_all([first])
    socket_pool = SocketPool([InheritedSocket(fd_name(first), opened.socket)])
    manager = ManagerDouble()
    third = _endpoints(f"discard {taken}/tcp4 bind=127.0.0.1")
    with pytest.raises(ListenErrors):
        open_all([first, second, *third], socket_pool, FdStore(manager))
    assert opened.socket.fileno() == -1
    assert (tmp_path / "s").is_socket()
    assert not (tmp_path / "new").exists()
    assert manager.messages == []


@pytest.mark.parametrize("keeps", [True, False])
def test_a_socket_is_stored_once(tmp_path: Path, keeps: bool, bound: Callable[..., socket.socket]) -> None:
    """Under a name of its own, if the manager takes it; it is removed when the socket closes for good."""
    manager = ManagerDouble(keeps=keeps)
    store = FdStore(manager)
    (endpoint,) = _endpoints(f"echo {tmp_path}/s/unix")
    (opened,) = open_all([endpoint])
    name = fd_name(endpoint)
    store.store(opened)
    assert manager.messages == [f"FDSTORE=1 FDPOLL=0 FDNAME={name}"]
    assert opened.stored == (name if keeps else "")
    if keeps:
        store.store(opened)
        assert len(manager.messages) == 1
    store.close(opened)
    assert manager.messages[1:] == ([f"FDSTOREREMOVE=1 FDNAME={name}"] if keeps else [])
    assert not (tmp_path / "s").exists()
    lent = ListeningSocket(endpoint, bound(), "", origin="activation")
    store.store(lent)
    store.close(lent)
    assert not [each for each in manager.messages[1:] if each.startswith("FDSTORE=1")]


def test_names_are_what_systemd_takes(tmp_path: Path) -> None:
    """At most 255 characters of ASCII without a colon or a control character, and each socket has its own."""
    lines = [
        "echo 7/tcp",
        "écho 8/tcp4 echo",
        f"{'x' * 300} 9/tcp4 echo",
        f"{'x' * 300}y 10/tcp4 echo",
        f"{'x' * 300}z 10/udp4 server=/bin/a wait=yes",
        f"local {tmp_path}/a:b/unix echo",
        "d 0/udp4 echo bind=127.0.0.1,127.0.0.2",
    ]
    names = [fd_name(each) for each in _endpoints("\n".join(lines))]
    assert len(set(names)) == len(names) == 9
    for name in names:
        assert name.isascii()
        assert name.isprintable()
        assert len(name) <= 255
        assert ":" not in name


def test_what_is_meant_for_another_process_is_left_alone() -> None:
    """But the variables go: they are not our children's either."""
    environment = {"LISTEN_PID": "1", "LISTEN_FDS": "3", "LISTEN_FDNAMES": "a:b:c", "HOME": "/"}
    assert not inherited_socket_pool(environment, 17)
    assert environment == {"HOME": "/"}
    assert listen_fds({"LISTEN_PID": "17"}, 17) == []
    assert not SocketPool()


@pytest.mark.parametrize("count", ["x", "-1"])
def test_a_count_that_is_none_is_an_error(count: str) -> None:
    """It says which variable is wrong."""
    with pytest.raises(ActivationError, match=f"LISTEN_FDS={count}"):
        listen_fds({"LISTEN_PID": "17", "LISTEN_FDS": count, "LISTEN_FDNAMES": ""}, 17)


_CHILD = """
import os
from svcd.sockets.activation import listen_fds
os.environ["LISTEN_PID"] = str(os.getpid())
try:
    for each in listen_fds(os.environ, os.getpid()):
        inheritable = each.socket is not None and each.socket.get_inheritable()
        print(each.name, each.address, inheritable, each.reason, sep="|")
except Exception as error:
    print(type(error).__name__, error, sep="|")
"""


def _received(*given: int, names: str | None = None, more: int = 0) -> list[str]:
    """What a process sees that is started with descriptors, from 3 on."""
    # Placed by a child of ours, since other descriptors of this process may stand in the way.
    placing = (
        "import fcntl, os, sys\n"
        "spare = [fcntl.fcntl(int(word), fcntl.F_DUPFD, 100) for word in sys.argv[1].split(',')]\n"
        "for number, each in enumerate(spare): os.dup2(each, 3 + number); os.close(each)\n"
        f"exec({_CHILD!r})"
    )
    environment = {
        **os.environ,
        "LISTEN_FDS": str(len(given) + more),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    if names is not None:
        environment["LISTEN_FDNAMES"] = names
    words = [sys.executable, "-c", placing, ",".join(map(str, given))]
    return subprocess.check_output(words, env=environment, pass_fds=given, text=True, timeout=60).splitlines()


def test_descriptors_become_sockets(bound: Callable[..., socket.socket], tmp_path: Path, end: ExitStack) -> None:
    """With names and addresses; whatever is no socket that a service could have has its reason with it."""
    stream, local = bound(), bound(str(tmp_path / "s"), socket.SOCK_DGRAM)
    deaf, packets, far = (
        end.enter_context(socket.socket(*kind))
        for kind in ((socket.AF_INET,), (socket.AF_UNIX, socket.SOCK_SEQPACKET), (socket.AF_NETLINK, socket.SOCK_RAW))
    )
    abstract = end.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    abstract.bind(f"\0svcd-test-{os.getpid()}")
    with (tmp_path / "file").open("wb") as file:
        numbers = [each.fileno() for each in (stream, local, file, deaf, packets, far, abstract)]
        said = _received(*numbers, names="echo:b")
    assert said == [
        f"echo|127.0.0.1:{stream.getsockname()[1]}|False|",
        f"b|{tmp_path}/s|False|",
        "unknown|-|False|it is no socket",
        "unknown|0.0.0.0:0|False|it does not listen",
        "unknown|-|False|no service has sockets of this type",
        "unknown|-|False|no service has sockets of this family",
        f"unknown|@svcd-test-{os.getpid()}|False|",
    ]


def test_a_connection_is_an_error(bound: Callable[..., socket.socket], end: ExitStack) -> None:
    """It says what is to be changed, and where."""
    stream = bound()
    client = end.enter_context(socket.create_connection(stream.getsockname()))
    said = _received(client.fileno(), names="connection")
    assert said[0].startswith("ActivationError|descriptor 'connection' is a connection: its socket unit has Accept=yes")


def test_a_count_that_is_too_large_is_an_error(bound: Callable[..., socket.socket]) -> None:
    """It says which descriptor is not there."""
    said = _received(bound().fileno(), more=20)
    assert said[0].startswith("ActivationError|LISTEN_FDS counts descriptor")
    assert said[0].endswith("Bad file descriptor")


@pytest.mark.parametrize("net", ["unix", "unixgram"])
def test_an_abstract_socket_is_found_by_its_name(net: str, end: ExitStack, tmp_path: Path) -> None:
    """Lent by a socket unit, or given away by the daemon before; nothing of it is removed."""
    name = f"@svcd-test/{os.getpid()}/{tmp_path.name}"
    line = f"echo {name}/{net}"
    for given in ("svcd.socket", fd_name(_endpoints(line)[0])):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM if net == "unix" else socket.SOCK_DGRAM) as sock:
            sock.bind(unix_address(name))
            if net == "unix":
                sock.listen(1)
            inherited = InheritedSocket(given, sock)
            assert inherited.address == name
            (found,) = _take(line, inherited, end=end)
            assert found is not None
            assert (found.address, found.file, found.borrowed) == (name, None, given == "svcd.socket")
            assert found.handover_name == (f"echo/{net}" if found.borrowed else given)
            found.close()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(unix_address(name))
        InheritedSocket(fd_name(_endpoints(line)[0]), sock).close()


def test_a_buffer_that_was_sized_fits_no_service_without_a_size(
    bound: Callable[..., socket.socket], end: ExitStack
) -> None:
    """The kernel does not take a size back: a socket of ours is opened anew then; another size it can have."""
    sock = bound()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    if has_sized_buffers(sock) is None:
        pytest.skip("this kernel does not tell (SO_BUF_LOCK, Linux 5.14)")
    line = f"echo {sock.getsockname()[1]}/tcp4 bind=127.0.0.1"
    given = fd_name(_endpoints(line)[0])
    assert _take(line, InheritedSocket(given, sock.dup()), end=end) == [None]
    (lent,) = _take(line, InheritedSocket("svcd.socket", sock.dup()), end=end)
    assert lent is not None
    (sized,) = _take(f"{line} rcvbuf=8K", InheritedSocket(given, sock.dup()), end=end)
    assert sized is not None
    assert sized.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 16_384


def test_multipath_tcp_wants_a_socket_of_its_own(bound: Callable[..., socket.socket], end: ExitStack) -> None:
    """One of ours that is made otherwise is not taken; what a socket unit lends is as the unit says."""
    sock = bound()
    line = f"echo {sock.getsockname()[1]}/tcp4 bind=127.0.0.1 mptcp=yes"
    given = fd_name(_endpoints(line)[0])
    assert _take(line, InheritedSocket(given, sock.dup()), end=end) == [None]
    (lent,) = _take(line, InheritedSocket("svcd.socket", sock.dup()), end=end)
    assert lent is not None
