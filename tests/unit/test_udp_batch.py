"""Batches of datagrams (recvmmsg(2), sendmmsg(2)): partial results, errors and source addresses."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any

import pytest

from svcd.net.udp_batch import BATCH, DatagramBatch, available, pktinfo_option, source_control

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(not available(), reason="this system has no recvmmsg")


class _Pair:
    """Bound socket with a DatagramBatch, and a client."""

    def __init__(self, *, pktinfo: bool) -> None:
        self.batch = DatagramBatch(socket.AF_INET, pktinfo=pktinfo)
        self.server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.server.bind(("0.0.0.0" if pktinfo else "127.0.0.1", 0))
        if pktinfo:
            self.server.setsockopt(*pktinfo_option(socket.AF_INET), 1)
        self.client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.client.connect(("127.0.0.1", self.server.getsockname()[1]))
        self.client.settimeout(10)

    def receive(self, *datagrams: bytes) -> list[tuple[bytes, bytes]]:
        """Send datagrams from the client; return the batch that is received."""
        for datagram in datagrams:
            self.client.send(datagram)
        return self.batch.receive(self.server.fileno())

    def failing(self, *results: int) -> list[int]:
        """Plan the results of the next sendmmsg calls, negative ones as errors; return the list of their counts."""
        counts: list[int] = []
        send, ffi = self.batch._send, self.batch._ffi
        waiting = list(results)

        class _FFI:
            errno = 0

            def __getattr__(self, name: str) -> Any:
                return getattr(ffi, name)

        fake = _FFI()
        self.batch._ffi = fake

        def sendmmsg(descriptor: int, headers: Any, count: int, flags: int) -> int:
            counts.append(count)
            result = waiting.pop(0) if waiting else count
            if result < 0:
                fake.errno = -result
                return -1
            return int(send(descriptor, headers, min(result, count), flags))

        self.batch._send = sendmmsg
        return counts

    def close(self) -> None:
        self.server.close()
        self.client.close()


@pytest.fixture(params=[False, True])
def pair(request: pytest.FixtureRequest) -> Iterator[_Pair]:
    """Yield a pair, with and without destination addresses."""
    made = _Pair(pktinfo=request.param)
    yield made
    made.close()


def _answer(pair: _Pair, *answers: bytes) -> int:
    for index, answer in enumerate(answers):
        pair.batch.answer(index, answer)
    return pair.batch.send(pair.server.fileno())


def _received(pair: _Pair) -> list[bytes]:
    pair.client.setblocking(False)
    found = []
    while True:
        try:
            found.append(pair.client.recv(100))
        except BlockingIOError:
            return found


def test_an_empty_batch(pair: _Pair) -> None:
    """Without waiting datagrams a batch is empty, even on a blocking socket, and there is nothing to send."""
    assert pair.batch.receive(pair.server.fileno()) == []
    assert pair.batch.send(pair.server.fileno()) == 0


def test_a_descriptor_that_is_not_a_socket(pair: _Pair) -> None:
    """A descriptor that is not a socket is an error."""
    with pytest.raises(OSError, match="Bad file descriptor"):
        pair.batch.receive(-1)


def test_data_and_senders(pair: _Pair) -> None:
    """Data and senders are received in order, empty datagrams too, at most BATCH at a time with their own lengths."""
    name = socket.AF_INET.to_bytes(2, "little") + pair.client.getsockname()[1].to_bytes(2, "big")
    name += socket.inet_aton("127.0.0.1") + bytes(8)
    assert pair.receive(b"one", b"", b"three") == [(b"one", name), (b"", name), (b"three", name)]
    assert _answer(pair, b"", b"x", b"yy") == 3
    assert _received(pair) == [b"", b"x", b"yy"]
    assert [data for data, _ in pair.receive(*[b"long enough"] * 70)] == [b"long enough"] * BATCH
    assert len(pair.receive()) == 70 - BATCH


def test_a_partial_send(pair: _Pair) -> None:
    """After a partial sendmmsg() the rest is sent."""
    pair.receive(b"1", b"2", b"3", b"4")
    counts = pair.failing(1, 2)
    assert _answer(pair, b"1", b"22", b"333", b"4444") == 10
    assert counts == [4, 3, 1]
    assert _received(pair) == [b"1", b"22", b"333", b"4444"]


def test_a_full_send_buffer(pair: _Pair) -> None:
    """With a full send buffer the remaining answers are dropped."""
    pair.receive(b"1", b"2", b"3")
    counts = pair.failing(1, -errno.EAGAIN)
    assert _answer(pair, b"1", b"22", b"333") == 1
    assert counts == [3, 2]
    assert _received(pair) == [b"1"]


def test_an_error_drops_one_answer(pair: _Pair) -> None:
    """An error such as ENOBUFS, or EPERM of a packet filter, drops one answer."""
    pair.receive(b"1", b"2", b"3")
    counts = pair.failing(1, -errno.ENOBUFS, -errno.ENOBUFS)
    assert _answer(pair, b"1", b"22", b"333") == 4
    assert counts == [3, 2, 2, 1]
    assert _received(pair) == [b"1", b"333"]


def test_an_icmp_error_drops_no_answer(pair: _Pair) -> None:
    """An ICMP error of an earlier answer drops none."""
    pair.receive(b"1", b"2")
    pair.failing(-errno.ECONNREFUSED)
    assert _answer(pair, b"1", b"22") == 3
    assert _received(pair) == [b"1", b"22"]


def test_an_address_that_can_not_be_the_source() -> None:
    """A source address that the kernel rejects is left out, and the kernel chooses one."""
    pair = _Pair(pktinfo=True)
    pair.receive(b"1")
    pair.failing(-errno.EINVAL, -errno.EINVAL)
    assert _answer(pair, b"1") == 1
    assert pair.batch._headers[0].msg_hdr.msg_controllen == 0
    assert _received(pair) == [b"1"]
    pair.close()


def test_other_control_messages() -> None:
    """Other control messages, such as time stamps, are ignored."""
    pair = _Pair(pktinfo=True)
    pair.server.setsockopt(socket.SOL_SOCKET, 29, 1)  # SO_TIMESTAMP
    pair.receive(b"1", b"2")
    assert _answer(pair, b"1", b"2") == 2
    assert _received(pair) == [b"1", b"2"]
    pair.close()


_INTERFACE = (7).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("2001:db8::1", ("2001:db8::1", 0)),
        ("::1", ("::1", 0)),
        ("::ffff:192.0.2.1", ("::ffff:192.0.2.1", 0)),
        ("fe80::1", ("fe80::1", 7)),
        ("febf::1", ("febf::1", 7)),
        ("fec0::1", ("fec0::1", 0)),
        ("ff02::1", ("::", 0)),
    ],
)
def test_the_source_of_an_answer_over_ipv6(address: str, source: tuple[str, int]) -> None:
    """Link-local addresses keep their interface; for a multicast group the kernel chooses the source."""
    host, interface = source
    data = socket.inet_pton(socket.AF_INET6, address) + _INTERFACE
    expected = socket.inet_pton(socket.AF_INET6, host) + interface.to_bytes(4, "little")
    level, kind = socket.IPPROTO_IPV6, socket.IPV6_PKTINFO
    assert source_control(socket.AF_INET6, [(1, 2, b"?"), (level, kind, data)]) == [(level, kind, expected)]
    batch = DatagramBatch(socket.AF_INET6, pktinfo=True)
    batch._control_lengths[0] = socket.CMSG_SPACE(20)
    batch._control[16:36] = data
    batch._prepare_sources(1)
    assert batch._control[16:36] == expected


def test_the_source_of_an_answer_over_ipv4() -> None:
    """The source is the address that the kernel reports, without an interface."""
    data = _INTERFACE + socket.inet_aton("192.0.2.1") + socket.inet_aton("192.0.2.255")
    found = source_control(socket.AF_INET, [(socket.IPPROTO_IP, 8, data)])
    assert found == [(socket.IPPROTO_IP, 8, bytes(4) + data[4:])]
