"""Datagrams in batches: what the kernel says of single ones, and what it takes and does not take."""

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
    """A bound socket with a batch, and a client."""

    def __init__(self, *, pktinfo: bool) -> None:
        self.batch = DatagramBatch(socket.AF_INET, pktinfo=pktinfo)
        self.server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.server.bind(("0.0.0.0" if pktinfo else "127.0.0.1", 0))
        if pktinfo:
            self.server.setsockopt(*pktinfo_option(socket.AF_INET), 1)
        self.client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.client.connect(("127.0.0.1", self.server.getsockname()[1]))
        self.client.settimeout(10)

    def ask(self, *questions: bytes) -> list[tuple[bytes, bytes]]:
        """Send, and receive what comes."""
        for question in questions:
            self.client.send(question)
        return self.batch.receive(self.server.fileno())

    def failing(self, *results: int) -> list[int]:
        """Let the next calls of sendmmsg give these numbers, negative ones as errors; returns how many each had."""
        asked: list[int] = []
        send, ffi = self.batch._send, self.batch._ffi
        waiting = list(results)

        class _FFI:
            errno = 0

            def __getattr__(self, name: str) -> Any:
                return getattr(ffi, name)

        fake = _FFI()
        self.batch._ffi = fake

        def sendmmsg(descriptor: int, headers: Any, count: int, flags: int) -> int:
            asked.append(count)
            result = waiting.pop(0) if waiting else count
            if result < 0:
                fake.errno = -result
                return -1
            return int(send(descriptor, headers, min(result, count), flags))

        self.batch._send = sendmmsg
        return asked

    def close(self) -> None:
        self.server.close()
        self.client.close()


@pytest.fixture(params=[False, True])
def pair(request: pytest.FixtureRequest) -> Iterator[_Pair]:
    """With and without destination addresses."""
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


def test_nothing_waits(pair: _Pair) -> None:
    """That is no error, whether or not the socket blocks, and there is nothing to send."""
    assert pair.batch.receive(pair.server.fileno()) == []
    assert pair.batch.send(pair.server.fileno()) == 0


def test_what_is_no_socket_is_an_error(pair: _Pair) -> None:
    """It is not taken for an empty one."""
    with pytest.raises(OSError, match="Bad file descriptor"):
        pair.batch.receive(-1)


def test_data_and_senders_are_as_they_came(pair: _Pair) -> None:
    """In their order, empty ones as well, a batch at most; the lengths of one batch are forgotten in the next."""
    name = socket.AF_INET.to_bytes(2, "little") + pair.client.getsockname()[1].to_bytes(2, "big")
    name += socket.inet_aton("127.0.0.1") + bytes(8)
    assert pair.ask(b"one", b"", b"three") == [(b"one", name), (b"", name), (b"three", name)]
    assert _answer(pair, b"", b"x", b"yy") == 3
    assert _received(pair) == [b"", b"x", b"yy"]
    assert [data for data, _ in pair.ask(*[b"long enough"] * 70)] == [b"long enough"] * BATCH
    assert len(pair.ask()) == 70 - BATCH


def test_a_part_that_is_sent_is_followed_by_the_rest(pair: _Pair) -> None:
    """The kernel may stop in the midst, and says how far it came."""
    pair.ask(b"1", b"2", b"3", b"4")
    asked = pair.failing(1, 2)
    assert _answer(pair, b"1", b"22", b"333", b"4444") == 10
    assert asked == [4, 3, 1]
    assert _received(pair) == [b"1", b"22", b"333", b"4444"]


def test_a_full_buffer_loses_what_is_left(pair: _Pair) -> None:
    """Nothing is kept for later, and nothing is waited for."""
    pair.ask(b"1", b"2", b"3")
    asked = pair.failing(1, -errno.EAGAIN)
    assert _answer(pair, b"1", b"22", b"333") == 1
    assert asked == [3, 2]
    assert _received(pair) == [b"1"]


def test_an_error_loses_one_answer(pair: _Pair) -> None:
    """ENOBUFS, EPERM of a packet filter: the others are sent."""
    pair.ask(b"1", b"2", b"3")
    asked = pair.failing(1, -errno.ENOBUFS, -errno.ENOBUFS)
    assert _answer(pair, b"1", b"22", b"333") == 4
    assert asked == [3, 2, 2, 1]
    assert _received(pair) == [b"1", b"333"]


def test_an_error_of_an_earlier_answer_loses_none(pair: _Pair) -> None:
    """ICMP errors come with the next call, whoever it is for."""
    pair.ask(b"1", b"2")
    pair.failing(-errno.ECONNREFUSED)
    assert _answer(pair, b"1", b"22") == 3
    assert _received(pair) == [b"1", b"22"]


def test_an_address_that_cannot_be_the_source_is_left_out() -> None:
    """A broadcast address, or one that the machine has no more: the kernel chooses another."""
    pair = _Pair(pktinfo=True)
    pair.ask(b"1")
    pair.failing(-errno.EINVAL, -errno.EINVAL)
    assert _answer(pair, b"1") == 1
    assert pair.batch._headers[0].msg_hdr.msg_controllen == 0
    assert _received(pair) == [b"1"]
    pair.close()


def test_other_control_messages_do_no_harm() -> None:
    """A socket that came from elsewhere may have time stamps switched on."""
    pair = _Pair(pktinfo=True)
    pair.server.setsockopt(socket.SOL_SOCKET, 29, 1)  # SO_TIMESTAMP
    pair.ask(b"1", b"2")
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
    """The interface stays with link-local addresses alone, and a group answers by whatever the kernel chooses."""
    host, interface = source
    data = socket.inet_pton(socket.AF_INET6, address) + _INTERFACE
    wanted = socket.inet_pton(socket.AF_INET6, host) + interface.to_bytes(4, "little")
    level, kind = socket.IPPROTO_IPV6, socket.IPV6_PKTINFO
    assert source_control(socket.AF_INET6, [(1, 2, b"?"), (level, kind, data)]) == [(level, kind, wanted)]
    batch = DatagramBatch(socket.AF_INET6, pktinfo=True)
    batch._control_lengths[0] = socket.CMSG_SPACE(20)
    batch._control[16:36] = data
    batch._prepare_sources(1)
    assert batch._control[16:36] == wanted


def test_the_source_of_an_answer_over_ipv4() -> None:
    """It is the address that the kernel names for it, by any interface."""
    data = _INTERFACE + socket.inet_aton("192.0.2.1") + socket.inet_aton("192.0.2.255")
    found = source_control(socket.AF_INET, [(socket.IPPROTO_IP, 8, data)])
    assert found == [(socket.IPPROTO_IP, 8, bytes(4) + data[4:])]
