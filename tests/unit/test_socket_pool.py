"""Inherited sockets: which endpoint takes them, how they are closed, and what is logged about the others."""

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
    """Yield a stack that closes what a test has opened."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def bound(end: ExitStack) -> Callable[..., socket.socket]:
    """Return a function that binds a socket, and lets a stream socket listen."""

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
    """Return the sockets that the endpoints of a line take from a pool of inherited ones."""
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
    """An endpoint takes the socket with its address, whatever its name, and sets its own options."""
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
def test_a_socket_with_another_address_is_not_taken(
    line: str, bound: Callable[..., socket.socket], end: ExitStack
) -> None:
    """A socket with a wider, a narrower or another address is not taken."""
    sock = bound()
    port = sock.getsockname()[1]
    assert _take(line.format(port=port), InheritedSocket("x", sock), end=end) == [None]


@pytest.mark.parametrize("name", ["echo", "echo/tcp4"])
def test_a_socket_unit_names_the_service(name: str, bound: Callable[..., socket.socket], end: ExitStack) -> None:
    """A name from a socket unit names the service, which has the socket's address; svcd's own names do not."""
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
    """One dual-stack socket serves both endpoints of a line, but not an endpoint of a single family."""
    sock = bound("::", both=True)
    port = sock.getsockname()[1]
    found = _take(line.format(port=port), InheritedSocket("x", sock), end=end)
    assert [each is not None for each in found] == taken
    for each in found:
        assert each is None or each.address == f"[::]:{port}"
    if taken == [True, True]:
        found = _take("echo 7/tcp", InheritedSocket("echo", bound("::", both=True)), end=end)
        assert None not in found
        # A socket from the FD store belongs to the line that its name has.
        name = "svcd/-/echo/tcp6@[::]:7"
        assert _take(line.format(port=port), InheritedSocket(name, bound("::", both=True)), end=end) == [None, None]


@needs_ipv6
def test_a_socket_for_each_family(bound: Callable[..., socket.socket], end: ExitStack) -> None:
    """Each endpoint of a line takes a socket of its own."""
    first, second = bound(), bound("::1")
    found = _take("echo 7/tcp", InheritedSocket("echo", second), InheritedSocket("echo", first), end=end)
    assert [each and each.socket for each in found] == [first, second]
    port = second.getsockname()[1]
    (local,) = _take(f"echo {port}/tcp bind=::1", InheritedSocket("x", second), end=end)
    assert local is not None
    assert local.address == f"[::1]:{port}"


def test_the_kernels_choice_of_a_port_is_kept(end: ExitStack) -> None:
    """A port that the kernel chose is kept over a restart, by the name in the FD store."""
    (endpoint,) = _endpoints("echo 0/tcp4 bind=127.0.0.1")
    (first,) = open_all([endpoint])
    end.callback(first.close)
    (found,) = _take("echo 0/tcp4 bind=127.0.0.1", InheritedSocket(fd_name(endpoint), first.socket), end=end)
    assert found is not None
    assert (found.address, found.origin, found.stored) == (first.address, "store", fd_name(endpoint))


@pytest.mark.parametrize("port", [0, None])
def test_a_socket_that_programs_share(port: int | None, bound: Callable[..., socket.socket], end: ExitStack) -> None:
    """A socket that programs share is taken by a wait=yes service only, which leaves its flags unchanged."""
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
    # The socket of another service may be taken by a wait=yes service.
    (endpoint,) = _endpoints(other)
    (found,) = _take(waits, InheritedSocket(fd_name(endpoint), sock.dup()), end=end)
    assert found is not None


def test_a_socket_of_a_service_that_becomes_wait(bound: Callable[..., socket.socket]) -> None:
    """A socket is stored again under a new name when its service becomes wait=yes."""
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
    """A UNIX socket is taken while its path is its own; it gets the mode of its line, and its file is removed."""
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
    """The file of a socket unit's socket keeps its mode, and is not removed."""
    path = tmp_path / "s"
    sock = bound(str(path))
    path.chmod(0o640)
    (found,) = _take(f"echo {path}/unix mode=0777", InheritedSocket("x", sock), end=end)
    assert found is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    found.close()
    assert path.is_socket()


def test_a_mode_that_can_not_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mode that can't be set is reported as for a new socket, and the socket is closed."""
    (endpoint,) = _endpoints(f"echo {tmp_path}/s/unix")
    (first,) = open_all([endpoint])
    (stricter,) = _endpoints(f"echo {tmp_path}/s/unix mode=0600")

    def chmod(_path: str, _mode: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chmod", chmod)
    with pytest.raises(ListenErrors, match="change the socket's owner"):
        open_all([stricter], SocketPool([InheritedSocket(fd_name(endpoint), first.socket)]))
    assert first.socket.fileno() == -1


def test_unused_sockets_are_logged_and_closed(bound: Callable[..., socket.socket], tmp_path: Path) -> None:
    """Sockets that no endpoint takes are logged, closed, and removed from the FD store, with a barrier."""
    given, stored, local = bound(), bound(), bound(str(tmp_path / "s"))
    (endpoint,) = _endpoints(f"echo {tmp_path}/s/unix")
    names = ["svcd.socket", "svcd/-/gone/tcp@127.0.0.1", fd_name(endpoint)]
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in (given, stored)]
    pieces = zip(names, (given, stored, local), strict=True)
    socket_pool = SocketPool(
        [*(InheritedSocket(*each) for each in pieces), InheritedSocket("file", None, "it is not a socket")]
    )
    assert socket_pool
    manager = ManagerDouble()
    with LogCatcher() as log:
        assert open_all([], socket_pool, FdStore(manager)) == []
    logged = [(event["name"], event["address"], event["reason"]) for event in log.named("leftover")]
    unused = "no service of the services file uses it"
    assert logged == [
        ("file", "-", "it is not a socket"),
        (names[0], addresses[0], unused),
        (names[1], addresses[1], unused),
        (names[2], str(tmp_path / "s"), unused),
    ]
    assert [each.fileno() for each in (given, stored, local)] == [-1, -1, -1]
    assert manager.messages == [f"FDSTOREREMOVE=1 FDNAME={name}" for name in names[1:]]
    assert manager.barriers == 1
    assert not (tmp_path / "s").exists()
    assert not socket_pool


def test_a_path_changes_its_type(tmp_path: Path, end: ExitStack) -> None:
    """A path may change from a stream service to a datagram service in one start."""
    (before,) = _endpoints(f"echo {tmp_path}/s/unix")
    (first,) = open_all([before])
    socket_pool = SocketPool([InheritedSocket(fd_name(before), first.socket)])
    (now,) = open_all(_endpoints(f"echo {tmp_path}/s/unixgram"), socket_pool, FdStore(ManagerDouble()))
    end.callback(now.close)
    assert now.origin == ""
    assert now.socket.type == socket.SOCK_DGRAM


def test_services_that_a_socket_unit_lacks(bound: Callable[..., socket.socket], end: ExitStack) -> None:
    """A service that a socket unit lacks is logged; a service that is new since the last daemon is not."""
    endpoints = _endpoints("echo 0/tcp4 bind=127.0.0.1\nupper 0/tcp4 bind=127.0.0.1\n")
    for name, logged in (("upper", ["echo/tcp4"]), (fd_name(endpoints[1]), [])):
        with LogCatcher() as log:
            opened = open_all(endpoints, SocketPool([InheritedSocket(name, bound())]))
        for each in opened:
            end.callback(each.close)
        assert [event["service"] for event in log.named("ungiven")] == logged
        assert [each.origin for each in opened] == ["", "store" if not logged else "activation"]


def test_a_start_that_fails(bound: Callable[..., socket.socket], tmp_path: Path) -> None:
    """A start that fails leaves the FD store unchanged, and closes and removes the sockets it has opened."""
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
    """A socket is stored once, under its name, if the manager accepts it; it is removed when it is closed."""
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
    unit_socket = ListeningSocket(endpoint, bound(), "", origin="activation")
    store.store(unit_socket)
    store.close(unit_socket)
    assert not [each for each in manager.messages[1:] if each.startswith("FDSTORE=1")]


def test_names_in_the_fd_store(tmp_path: Path) -> None:
    """Names in the FD store are unique, and at most 255 ASCII characters without colons or control characters."""
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


def test_descriptors_for_another_process() -> None:
    """Descriptors for another process (LISTEN_PID) are ignored, and the variables are removed."""
    environment = {"LISTEN_PID": "1", "LISTEN_FDS": "3", "LISTEN_FDNAMES": "a:b:c", "HOME": "/"}
    assert not inherited_socket_pool(environment, 17)
    assert environment == {"HOME": "/"}
    assert listen_fds({"LISTEN_PID": "17"}, 17) == []
    assert not SocketPool()


@pytest.mark.parametrize("count", ["x", "-1"])
def test_a_malformed_count_is_an_error(count: str) -> None:
    """A malformed LISTEN_FDS is an error that names the variable."""
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


def _activated(*given: int, names: str | None = None, more: int = 0) -> list[str]:
    """Return what a process prints that is started with descriptors from 3 on."""
    # A child places them: other descriptors of this process may have these numbers.
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
    """Descriptors have a name and an address, or the reason why no service can use them."""
    stream, local = bound(), bound(str(tmp_path / "s"), socket.SOCK_DGRAM)
    not_listening, packets, far = (
        end.enter_context(socket.socket(*kind))
        for kind in ((socket.AF_INET,), (socket.AF_UNIX, socket.SOCK_SEQPACKET), (socket.AF_NETLINK, socket.SOCK_RAW))
    )
    abstract = end.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    abstract.bind(f"\0svcd-test-{os.getpid()}")
    with (tmp_path / "file").open("wb") as file:
        numbers = [each.fileno() for each in (stream, local, file, not_listening, packets, far, abstract)]
        logged = _activated(*numbers, names="echo:b")
    assert logged == [
        f"echo|127.0.0.1:{stream.getsockname()[1]}|False|",
        f"b|{tmp_path}/s|False|",
        "unknown|-|False|it is not a socket",
        "unknown|0.0.0.0:0|False|it does not listen",
        "unknown|-|False|no service has sockets of this type",
        "unknown|-|False|no service has sockets of this family",
        f"unknown|@svcd-test-{os.getpid()}|False|",
    ]


def test_a_connection_is_an_error(bound: Callable[..., socket.socket], end: ExitStack) -> None:
    """A connection (Accept=yes) is an error with the remedy."""
    stream = bound()
    client = end.enter_context(socket.create_connection(stream.getsockname()))
    logged = _activated(client.fileno(), names="connection")
    assert logged[0].startswith(
        "ActivationError|descriptor 'connection' is a connection: its socket unit has Accept=yes"
    )


def test_a_count_that_is_too_large_is_an_error(bound: Callable[..., socket.socket]) -> None:
    """A count above the number of descriptors is an error that names the missing one."""
    logged = _activated(bound().fileno(), more=20)
    assert logged[0].startswith("ActivationError|LISTEN_FDS counts descriptor")
    assert logged[0].endswith("Bad file descriptor")


@pytest.mark.parametrize("net", ["unix", "unixgram"])
def test_an_abstract_socket(net: str, end: ExitStack, tmp_path: Path) -> None:
    """An abstract socket is taken by its address, from a socket unit or the FD store; closing it removes nothing."""
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


def test_a_socket_with_a_buffer_size(bound: Callable[..., socket.socket], end: ExitStack) -> None:
    """A stored socket with a buffer size is not taken by a service without one, as the size can't be reset."""
    sock = bound()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    if has_sized_buffers(sock) is None:
        pytest.skip("this kernel does not tell (SO_BUF_LOCK, Linux 5.14)")
    line = f"echo {sock.getsockname()[1]}/tcp4 bind=127.0.0.1"
    given = fd_name(_endpoints(line)[0])
    assert _take(line, InheritedSocket(given, sock.dup()), end=end) == [None]
    (unit_socket,) = _take(line, InheritedSocket("svcd.socket", sock.dup()), end=end)
    assert unit_socket is not None
    (sized,) = _take(f"{line} rcvbuf=8K", InheritedSocket(given, sock.dup()), end=end)
    assert sized is not None
    assert sized.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 16_384


def test_a_socket_for_multipath_tcp(bound: Callable[..., socket.socket], end: ExitStack) -> None:
    """A stored socket without MPTCP is not taken by a service with mptcp=yes; a socket unit's is."""
    sock = bound()
    line = f"echo {sock.getsockname()[1]}/tcp4 bind=127.0.0.1 mptcp=yes"
    given = fd_name(_endpoints(line)[0])
    assert _take(line, InheritedSocket(given, sock.dup()), end=end) == [None]
    (unit_socket,) = _take(line, InheritedSocket("svcd.socket", sock.dup()), end=end)
    assert unit_socket is not None
