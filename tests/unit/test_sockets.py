"""Opening of listening sockets: their options, and errors with cause and remedy."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from svcd.config.endpoints import Endpoint, check
from svcd.config.parser import parse_text
from svcd.errors import ListenError, ListenErrors
from svcd.host.accounts import group_id, user_id
from svcd.host.info import Host
from svcd.net.socket_options import is_mptcp, unix_address, unix_path
from svcd.protocols.catalog import BUILTINS
from svcd.sockets.listening import ListeningSocket, open_socket
from tests.doubles import FakeFiles, FakeMachine, config_of, open_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def _endpoints(text: str) -> list[Endpoint]:
    endpoints, problems = check(config_of(text), FakeFiles(), FakeMachine())
    assert not problems, problems
    return endpoints


class _Opened:
    """Function that opens a line; it records the sockets.

    Attributes:
        all: the sockets opened.
    """

    def __init__(self) -> None:
        self.all: list[ListeningSocket] = []

    def __call__(self, line: str) -> ListeningSocket:
        """Open the only endpoint of a line."""
        (endpoint,) = _endpoints(line)
        self.all.append(open_socket(endpoint))
        return self.all[-1]


@pytest.fixture
def opened() -> Iterator[_Opened]:
    """Yield a function that opens a line; close the sockets after the test."""
    opener = _Opened()
    yield opener
    for each in opener.all:
        each.close()


def _error(line: str) -> ListenError:
    (endpoint,) = _endpoints(line)
    with pytest.raises(ListenError) as caught:
        open_socket(endpoint)
    return caught.value


def _flag(sock: ListeningSocket, level: int, name: int) -> bool:
    return bool(sock.socket.getsockopt(level, name))


def test_a_port_that_the_kernel_chooses(opened: _Opened) -> None:
    """With port 0 the address has the port that the kernel has chosen."""
    sock = opened("echo 0/tcp4 bind=127.0.0.1")
    assert sock.address == f"127.0.0.1:{sock.socket.getsockname()[1]}"
    assert not sock.address.endswith(":0")
    assert not sock.socket.getblocking()
    assert not sock.socket.get_inheritable()
    assert _flag(sock, socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


def test_options_of_a_tcp_socket(opened: _Opened) -> None:
    """keepalive, nodelay and reuse_port are set on the listening socket, from which accepted ones inherit."""
    plain = opened("echo 0/tcp4 bind=127.0.0.1")
    other = opened("echo 0/tcp4 bind=127.0.0.1 keepalive=yes nodelay=no reuse_port=yes")
    for sock, expected in ((plain, (False, True, False)), (other, (True, False, True))):
        assert _flag(sock, socket.SOL_SOCKET, socket.SO_KEEPALIVE) is expected[0]
        assert _flag(sock, socket.IPPROTO_TCP, socket.TCP_NODELAY) is expected[1]
        assert _flag(sock, socket.SOL_SOCKET, socket.SO_REUSEPORT) is expected[2]
        assert _flag(sock, socket.SOL_SOCKET, socket.SO_REUSEADDR)


def test_the_bound_of_the_send_buffer(opened: _Opened) -> None:
    """Accepted sockets inherit the bound of the send buffer."""
    listener = opened("echo 0/tcp4 bind=127.0.0.1")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        client.connect(listener.socket.getsockname())
        server, _ = listener.socket.accept()
        with server:
            server.setblocking(False)
            taken = 0
            with contextlib.suppress(BlockingIOError):
                while taken < 10_000_000:
                    taken += server.send(bytes(65_536))
            assert taken < 1_000_000


@pytest.mark.skipif(6 not in Host().versions(), reason="this machine has no IPv6")
@pytest.mark.parametrize("v6only", ["yes", "no"])
def test_v6only(opened: _Opened, v6only: str) -> None:
    """An IPv6 socket is IPv6-only unless v6only=no."""
    sock = opened(f"echo 0/tcp6 v6only={v6only}")
    assert _flag(sock, socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) is (v6only == "yes")


def test_a_datagram_socket_does_not_share_its_port(opened: _Opened) -> None:
    """A datagram socket has no SO_REUSEADDR, with which two could bind the same port."""
    sock = opened("echo 0/udp4 bind=127.0.0.1")
    assert not _flag(sock, socket.SOL_SOCKET, socket.SO_REUSEADDR)
    port = sock.socket.getsockname()[1]
    assert _error(f"discard {port}/udp4 bind=127.0.0.1").cause == os.strerror(errno.EADDRINUSE)


def test_a_port_in_use(opened: _Opened) -> None:
    """The error has the service, the address, the cause and the remedy."""
    port = opened("echo 0/tcp4 bind=127.0.0.1").socket.getsockname()[1]
    assert str(_error(f"upper {port}/tcp4 bind=127.0.0.1")) == (
        f"upper/tcp4: can't listen on 127.0.0.1:{port}: Address already in use; "
        "stop the program that listens there, or choose another port"
    )


def test_an_address_of_another_machine() -> None:
    """The remedy for an address of another machine is bind=."""
    error = _error("echo 0/tcp4 bind=192.0.2.1")
    assert (error.address, error.cause) == ("192.0.2.1:0", os.strerror(errno.EADDRNOTAVAIL))
    assert "bind=" in error.remedy


def test_a_low_port_without_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy for a low port without rights is the capability, or --port-offset."""

    def bind(_self: socket.socket, _address: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(socket.socket, "bind", bind, raising=False)
    error = _error("echo 7/tcp4")
    assert "CAP_NET_BIND_SERVICE" in error.remedy
    assert "--port-offset 10000" in error.remedy


@pytest.mark.parametrize("mode", ["0600", "0660", "0777", "0666"])
@pytest.mark.parametrize("net", ["unix", "unixgram"])
def test_the_mode_of_a_socket_file(opened: _Opened, tmp_path: Path, net: str, mode: str) -> None:
    """A socket file has exactly the mode of its option, whatever the umask, which is unchanged."""
    before = os.umask(0o077)
    try:
        opened(f"echo {tmp_path}/s/{net} mode={mode}")
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    status = (tmp_path / "s").stat()
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == int(mode, 8)


def test_close_removes_the_socket_file(tmp_path: Path) -> None:
    """close() removes the socket file, but not another file in its place."""
    path = tmp_path / "s"
    (endpoint,) = _endpoints(f"echo {path}/unix")
    open_socket(endpoint).close()
    assert not path.exists()
    sock = open_socket(endpoint)
    path.unlink()
    path.write_text("not ours")
    sock.close()
    assert path.read_text() == "not ours"
    open_path = tmp_path / "gone"
    sock = open_socket(_endpoints(f"echo {open_path}/unix")[0])
    open_path.unlink()
    sock.close()
    assert sock.socket.fileno() == -1


@pytest.mark.parametrize(("net", "kind"), [("unix", socket.SOCK_STREAM), ("unixgram", socket.SOCK_DGRAM)])
def test_a_stale_socket_is_replaced(opened: _Opened, tmp_path: Path, net: str, kind: int) -> None:
    """The file of a socket that is closed is replaced."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, kind) as left:
        left.bind(str(path))
    assert path.is_socket()
    sock = opened(f"echo {path}/{net}")
    assert sock.address == str(path)


@pytest.mark.parametrize("net", ["unix", "unixgram"])
def test_a_socket_in_use(opened: _Opened, tmp_path: Path, net: str) -> None:
    """The file of a socket that a server listens on is kept, and that is an error."""
    path = tmp_path / "s"
    opened(f"echo {path}/{net}")
    inode = path.stat().st_ino
    error = _error(f"discard {path}/{net}")
    assert str(error) == (
        f"discard/{net}: can't listen on {path}: Address already in use; "
        "stop the program that listens there, or choose another path"
    )
    assert path.stat().st_ino == inode


def test_a_socket_in_use_with_a_full_backlog(opened: _Opened, tmp_path: Path) -> None:
    """A server whose backlog is full counts as listening."""
    path = tmp_path / "s"
    opened(f"echo {path}/unix backlog=1")
    waiting: list[socket.socket] = []
    try:
        with pytest.raises(BlockingIOError):
            _fill(path, waiting)
        assert _error(f"upper {path}/unix").cause == os.strerror(errno.EADDRINUSE)
    finally:
        for each in waiting:
            each.close()


def _fill(path: Path, waiting: list[socket.socket]) -> None:
    for _ in range(10):
        waiting.append(socket.socket(socket.AF_UNIX))
        waiting[-1].setblocking(False)
        waiting[-1].connect(str(path))


def test_a_file_that_is_not_a_socket(tmp_path: Path) -> None:
    """A file that is not a socket is an error, and is kept."""
    path = tmp_path / "s"
    path.write_text("precious")
    error = _error(f"echo {path}/unix")
    assert error.cause == "the path is a file that is not a socket"
    assert error.remedy == "move it away, or choose another path"
    assert path.read_text() == "precious"


def test_a_path_in_no_directory(tmp_path: Path) -> None:
    """A missing directory is named in the remedy."""
    assert _error(f"echo {tmp_path}/none/s/unix").remedy == "create its directory"
    (tmp_path / "file").touch()
    assert "not a directory" in _error(f"echo {tmp_path}/file/s/unix").remedy


def test_an_owner_that_can_not_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the owner can't be set, the socket file is removed."""

    def chown(*_arguments: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chown", chown)
    error = _error(f"echo {tmp_path}/s/unix owner=12345")
    assert error.cause == os.strerror(errno.EPERM)
    assert not (tmp_path / "s").exists()


def test_an_owner_that_vanished_since_the_check(tmp_path: Path) -> None:
    """A user that does not exist any more at the start is a ListenError."""
    endpoints = check(
        config_of(f"echo {tmp_path}/s/unix owner=no-such-user"),
        FakeFiles(),
        FakeMachine(users=frozenset({"no-such-user"})),
    )[0]
    with pytest.raises(ListenErrors) as caught:
        open_all(endpoints)
    assert caught.value.exit_code == 71
    assert "no-such-user" in str(caught.value)
    assert not (tmp_path / "s").exists()


def test_nothing_stays_open_when_one_of_several_fails(opened: _Opened, tmp_path: Path) -> None:
    """All addresses that can't be opened are reported, and the others are closed."""
    taken = opened("echo 0/tcp4 bind=127.0.0.1").socket.getsockname()[1]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    endpoints = _endpoints(
        f"@defaults bind=127.0.0.1\nchargen {free}/tcp4\nupper {taken}/tcp4\nlocal {tmp_path}/s/unix echo\n"
        f"other {tmp_path}/none/s/unix echo\n"
    )
    with pytest.raises(ListenErrors) as caught:
        open_all(endpoints)
    assert [error.service for error in caught.value.errors] == ["upper/tcp4", "other/unix"]
    assert str(caught.value).count("\n") == 1
    assert not (tmp_path / "s").exists()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free))


def test_sockets_are_in_the_order_of_the_file(tmp_path: Path) -> None:
    """The sockets are in the order of the endpoints."""
    endpoints = _endpoints(f"a {tmp_path}/a/unix echo\nb 0/udp4 echo bind=127.0.0.1")
    sockets = open_all(endpoints)
    try:
        assert [each.endpoint for each in sockets] == endpoints
    finally:
        for each in sockets:
            each.close()


def test_numbers_of_users_and_groups() -> None:
    """Names are looked up, and numbers are used as they are."""
    machine = Host()
    assert (user_id("root"), user_id("12345"), group_id("54321")) == (0, 12_345, 54_321)
    assert machine.has_user("root")
    assert machine.has_user("12345")
    assert not machine.has_user("no-such-user")
    assert not machine.has_group("no-such-group")


def test_addresses_of_a_name() -> None:
    """addresses() returns a normalized literal, or the addresses of an interface or host name; otherwise an OSError."""
    machine = Host()
    assert machine.addresses("127.0.0.1") == ["127.0.0.1"]
    assert machine.addresses("0:0:0:0:0:0:0:1") == ["::1"]
    assert "127.0.0.1" in machine.addresses("lo")
    for name in ("no such host", "x" * 300, "a..b"):
        with pytest.raises(OSError):
            machine.addresses(name)


def _size(sock: socket.socket, option: int) -> int:
    """Return the size of a buffer as it was set (socket(7): the kernel doubles it)."""
    return sock.getsockopt(socket.SOL_SOCKET, option) // 2


@pytest.mark.parametrize("net", ["tcp4", "udp4"])
def test_buffer_sizes(opened: _Opened, net: str) -> None:
    """Buffers have the sizes of the options, also after retune()."""
    found = opened(f"echo 0/{net} bind=127.0.0.1 sndbuf=32K rcvbuf=16K")
    sizes = [_size(found.socket, option) for option in (socket.SO_SNDBUF, socket.SO_RCVBUF)]
    assert sizes == [32_768, 16_384]
    (other,) = _endpoints(f"echo 0/{net} bind=127.0.0.1 sndbuf=64K rcvbuf=20K")
    found.retune(other)
    sizes = [_size(found.socket, option) for option in (socket.SO_SNDBUF, socket.SO_RCVBUF)]
    assert sizes == [65_536, 20_480]


def test_connections_inherit_the_size_of_buffers(opened: _Opened) -> None:
    """Accepted connections inherit the buffer sizes of the listening socket."""
    found = opened("echo 0/tcp4 bind=127.0.0.1 sndbuf=32K rcvbuf=16K")
    with socket.create_connection(found.socket.getsockname()):
        accepted, _ = found.socket.accept()
        with accepted:
            assert [_size(accepted, each) for each in (socket.SO_SNDBUF, socket.SO_RCVBUF)] == [32_768, 16_384]


@pytest.mark.parametrize("net", ["tcp4", "udp4", "tcp6", "udp6"])
def test_packets_have_the_traffic_class(opened: _Opened, net: str) -> None:
    """A socket has the traffic class of tos=, also after retune(), which may set it back to 0."""
    v6 = net.endswith("6")
    if v6 and 6 not in Host().versions():
        pytest.skip("this machine has no IPv6")
    host = "::1" if v6 else "127.0.0.1"
    option = (socket.IPPROTO_IPV6, socket.IPV6_TCLASS) if v6 else (socket.IPPROTO_IP, socket.IP_TOS)
    found = opened(f"echo 0/{net} bind={host} tos=EF")
    assert found.socket.getsockopt(*option) == 0xB8
    for text, value in (("0x10", 0x10), ("af11", 0x28), ("32", 32), ("0", 0)):
        (other,) = _endpoints(f"echo 0/{net} bind={host} tos={text}")
        found.retune(other)
        assert found.socket.getsockopt(*option) == value


def test_connections_inherit_the_traffic_class(opened: _Opened) -> None:
    """An accepted connection has the traffic class of the listening socket."""
    found = opened("echo 0/tcp4 bind=127.0.0.1 tos=CS1")
    with socket.create_connection(found.socket.getsockname()):
        accepted, _ = found.socket.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 0x20


@pytest.mark.parametrize(
    "text",
    ["1", "3", "256", "-4", "0x", "0xzz", "010", "EG", "AF14", "AF51", "CS8", "0x1_0", "\N{ARABIC-INDIC DIGIT FOUR}"],
)
def test_malformed_traffic_classes(text: str) -> None:
    """Other words, and values with one of the two ECN bits (RFC 3168), are problems."""
    _, problems = parse_text(f"echo 0/tcp tos={text}\n", "services", FakeFiles(), BUILTINS)
    [problem] = problems
    assert "code point" in str(problem)


def test_sockets_of_multipath_tcp(opened: _Opened) -> None:
    """An MPTCP socket is recognized by its protocol, and has the options of TCP."""
    if not Host().has_mptcp():
        pytest.skip("this kernel has no Multipath TCP")
    found = opened("echo 0/tcp4 bind=127.0.0.1 mptcp=yes sndbuf=32K keepalive=yes")
    assert is_mptcp(found.socket)
    assert not is_mptcp(opened("echo 0/tcp4 bind=127.0.0.1").socket)
    assert _flag(found, socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    with socket.create_connection(found.socket.getsockname()):
        accepted, _ = found.socket.accept()
        accepted.close()


def test_a_kernel_without_multipath_tcp_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without Multipath TCP is named in the remedy."""
    monkeypatch.setattr("svcd.sockets.listening.IPPROTO_MPTCP", 211)
    error = _error("echo 0/tcp4 bind=127.0.0.1 mptcp=yes")
    assert error.cause == os.strerror(errno.EPROTONOSUPPORT)
    assert "no Multipath TCP" in error.remedy


@pytest.mark.parametrize("net", ["unix", "unixgram"])
def test_an_abstract_socket(opened: _Opened, net: str, tmp_path: Path) -> None:
    """An abstract socket has a name and no file; a name in use is an error."""
    name = f"@svcd-test/{os.getpid()}/{tmp_path.name}"
    found = opened(f"echo {name}/{net}")
    assert (found.address, found.file) == (name, None)
    kind = socket.SOCK_STREAM if net == "unix" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_UNIX, kind) as client:
        client.connect(unix_address(name))
    (endpoint,) = _endpoints(f"echo {name}/{net} backlog=5" if net == "unix" else f"echo {name}/{net}")
    found.set_permissions(endpoint)
    found.retune(endpoint)
    found.reapply()
    error = _error(f"other {name}/{net} echo")
    assert (error.address, error.cause) == (name, os.strerror(errno.EADDRINUSE))
    found.close()
    opened(f"echo {name}/{net}")


def test_addresses_of_unix_sockets() -> None:
    """unix_address() and unix_path() convert between `@name` and the kernel's form."""
    for path, address in [("/run/x", "/run/x"), ("@x", "\0x"), ("@é", "\0é")]:
        assert unix_address(path) == address
        assert unix_path(address) == unix_path(os.fsencode(address)) == path
    assert unix_path("") == unix_path(b"") == ""
