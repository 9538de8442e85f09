"""Batches of UDP datagrams: recvmmsg(2) and sendmmsg(2), with the destination address of each datagram.

A server on a wildcard address must send an answer from the destination address of the question, or the client drops it.
With IP_PKTINFO (ip(7)) and IPV6_RECVPKTINFO (RFC 3542, section 6.1) each datagram has a control message with that
address, and the same control message sets the source address of the answer. An answer is sent with the header of its
question, in which the kernel has already written the peer's address and the control message.

The system calls are made through cffi in ABI mode, since the standard library lacks them. Without cffi or the calls
available() returns False.
"""

from __future__ import annotations

import errno
import os
import socket
from array import array
from functools import cache
from typing import Any, Final

__all__ = ["BATCH", "LARGEST_DATAGRAM", "DatagramBatch", "available", "batch_for", "pktinfo_option", "source_control"]

#: The maximum number of datagrams in a batch.
BATCH: Final = 64
#: The maximum size of an IP datagram, in bytes; it exceeds the maximum of UDP (65,507 over IPv4, 65,527 over IPv6).
LARGEST_DATAGRAM: Final = 65_535

_DEFINITIONS = """
struct iovec { void *iov_base; size_t iov_len; };
struct msghdr {
    void *msg_name; unsigned int msg_namelen; struct iovec *msg_iov; size_t msg_iovlen;
    void *msg_control; size_t msg_controllen; int msg_flags;
};
struct mmsghdr { struct msghdr msg_hdr; unsigned int msg_len; };
int recvmmsg(int, struct mmsghdr *, unsigned int, int, void *);
int sendmmsg(int, struct mmsghdr *, unsigned int, int);
"""

#: From linux/in.h and linux/in6.h; the socket module has no IP_PKTINFO before Python 3.12.
_IP_PKTINFO = 8
#: The sizes of sockaddr_in and in_pktinfo (interface, source, destination), sockaddr_in6 and in6_pktinfo (address,
#: interface).
_SIZES = {socket.AF_INET: (16, 12), socket.AF_INET6: (28, 20)}
#: The offset of the data of the first control message: the size of a cmsghdr, aligned.
_DATA = socket.CMSG_LEN(0)
#: The space for the control messages of a datagram, in bytes.
_CONTROL = 64
#: The distance between the data of two datagrams, in bytes. With a power of two all data would share cache lines.
_STRIDE = LARGEST_DATAGRAM + 1 + 192
# A flag of recv(2), as an int: operations on the enumeration take longer than the system call.
_NOW = int(socket.MSG_DONTWAIT)
#: The lowest first byte of link-local and multicast addresses of IPv6.
_FIRST_SPECIAL = 0xFE


def pktinfo_option(family: int) -> tuple[int, int]:
    """Return the level and name of the socket option for control messages with the destination address."""
    if family == socket.AF_INET6:
        return socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO
    return socket.IPPROTO_IP, _IP_PKTINFO


def _source(family: int, pktinfo: bytes) -> bytes:
    """Return the packet information of an answer, from that of its question.

    The interface is omitted, so that the routing table determines it as for all other packets; only a link-local source
    needs it (RFC 4007, section 11). For a multicast address, which can't be a source, the kernel chooses the source.
    """
    if family == socket.AF_INET:
        return bytes(4) + pktinfo[4:]
    if pktinfo[0] == 0xFF:
        return bytes(20)
    local = pktinfo[0] == 0xFE and pktinfo[1] & 0xC0 == 0x80
    return pktinfo if local else pktinfo[:16] + bytes(4)


def source_control(family: int, control: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    """Return the control messages of an answer, from those of its question, for socket.sendmsg()."""
    level, kind = pktinfo_option(family)
    # The option IPV6_RECVPKTINFO enables control messages of the kind IPV6_PKTINFO.
    kind = socket.IPV6_PKTINFO if family == socket.AF_INET6 else kind
    return [(level, kind, _source(family, data)) for *found, data in control if found == [level, kind]]


@cache
def _calls() -> tuple[Any, Any] | None:
    """Return the FFI and the C library; None if cffi or a call is missing."""
    try:
        import cffi

        ffi = cffi.FFI()
        ffi.cdef(_DEFINITIONS)
        library = ffi.dlopen(None)
        _ = library.recvmmsg, library.sendmmsg
    except (ImportError, OSError, AttributeError):
        return None
    return ffi, library


def available() -> bool:
    """Return whether datagrams can be received and sent in batches."""
    return _calls() is not None


@cache
def _buffers() -> Any:  # noqa: ANN401 - cffi is not typed
    """Return the memory for the data of a batch: 4 MiB of address space, whose pages are allocated at the first write.

    All batches share it, since a batch ends before the next batch begins.
    """
    calls = _calls()
    assert calls is not None  # noqa: S101 - the caller has checked available()
    allocate = calls[0].new_allocator(should_clear_after_alloc=False)
    return allocate("char[]", BATCH * _STRIDE)


@cache
def batch_for(family: int, *, pktinfo: bool) -> DatagramBatch:
    """Return the batch that all sockets of a family share, with or without destination addresses.

    It requires that available() is true.
    """
    return DatagramBatch(family, pktinfo=pktinfo)


class DatagramBatch:
    """Memory for a batch of datagrams and their answers. The result of receive() is valid until the next call.

    Args:
        family: AF_INET or AF_INET6.
        pktinfo: whether the sockets have the option of pktinfo_option(), and the source of an answer is the
            destination of its question.
    """

    def __init__(self, family: int, *, pktinfo: bool) -> None:
        calls = _calls()
        assert calls is not None  # noqa: S101 - the caller has checked available()
        self._ffi, library = calls
        self._receive, self._send = library.recvmmsg, library.sendmmsg
        self._null = self._ffi.NULL
        self._family = family
        self._pktinfo = pktinfo
        self._name_size, self._pktinfo_size = _SIZES[family]  # type: ignore[index]
        self._control_length = socket.CMSG_SPACE(self._pktinfo_size)
        self._expected = [self._control_length] * BATCH
        self._zeros = memoryview(array("i", [0] * BATCH))
        self._found: list[tuple[bytes, bytes]] = []
        self._answers = self._bytes = 0
        self._lay_out()

    def _lay_out(self) -> None:
        """Point the headers to their memory, and make views of the fields that differ between datagrams."""
        ffi = self._ffi
        self._header_size, vector_size = ffi.sizeof("struct mmsghdr"), ffi.sizeof("struct iovec")
        # Headers and vectors are contiguous, and are reset before each call: the kernel overwrites lengths.
        memory = ffi.new("char[]", BATCH * (self._header_size + vector_size))
        self._headers = ffi.cast("struct mmsghdr *", memory)
        vectors = ffi.cast("struct iovec *", memory + BATCH * self._header_size)
        data, names, control = _buffers(), ffi.new("char[]", BATCH * 32), ffi.new("char[]", BATCH * _CONTROL)
        for index in range(BATCH):
            vector, header = vectors[index], self._headers[index].msg_hdr
            vector.iov_base = data + index * _STRIDE
            vector.iov_len = LARGEST_DATAGRAM + 1
            header.msg_name, header.msg_namelen = names + index * 32, self._name_size
            header.msg_iov, header.msg_iovlen = vectors + index, 1
            if self._pktinfo:
                header.msg_control, header.msg_controllen = control + index * _CONTROL, _CONTROL
        self._owned = memory, names, control
        self._memory, self._data, self._names = ffi.buffer(memory), ffi.buffer(data), ffi.buffer(names)
        self._control = ffi.buffer(control)
        self._fresh = bytes(self._memory)
        view = memoryview(self._memory).cast("B")
        heads, rest = view[: BATCH * self._header_size], view[BATCH * self._header_size :]
        self._lengths = _column(heads, "I", ffi.offsetof("struct mmsghdr", "msg_len"), self._header_size)
        self._control_lengths = _column(heads, "N", ffi.offsetof("struct msghdr", "msg_controllen"), self._header_size)
        self._answer_lengths = _column(rest, "N", ffi.offsetof("struct iovec", "iov_len"), vector_size)
        cells = memoryview(self._control).cast("B")
        interface, address = (0, 4) if self._family == socket.AF_INET else (16, 0)
        self._interfaces = _column(cells, "i", _DATA + interface, _CONTROL)
        self._firsts = _column(cells, "B", _DATA + address, _CONTROL)

    def receive(self, fd: int) -> list[tuple[bytes, bytes]]:
        """Receive the waiting datagrams of a socket without blocking.

        Returns:
            The data and the sender's struct sockaddr of at most BATCH datagrams.

        Raises:
            OSError: the socket reports an error, or fd is no socket.
        """
        self._memory[:] = self._fresh
        self._answers = self._bytes = 0
        # MSG_DONTWAIT is needed, since another process that shares the socket may make it blocking at any time.
        count = self._receive(fd, self._headers, BATCH, _NOW, self._null)
        if count <= 0:
            code = self._ffi.errno
            if count == 0 or code == errno.EAGAIN:
                return []
            raise OSError(code, os.strerror(code))
        data, names, size = self._data, self._names, self._name_size
        if count == 1:
            if self._pktinfo:
                self._prepare_source()
            found = [(data[: self._lengths[0]], names[:size])]
        else:
            if self._pktinfo:
                self._prepare_sources(count)
            lengths = self._lengths[:count].tolist()
            found = [
                (data[at : at + length], names[name : name + size])
                for length, at, name in zip(lengths, _DATA_OFFSETS, _NAME_OFFSETS, strict=False)
            ]
        self._found = found
        return found

    def _prepare_sources(self, count: int) -> None:
        """Replace the packet information of the questions by that of their answers."""
        found = self._control_lengths[:count].tolist()
        if found == self._expected[:count] and max(self._firsts[:count].tolist()) < _FIRST_SPECIAL:
            self._interfaces[:count] = self._zeros[:count]
            return
        for index, length in enumerate(found):
            if length != self._control_length:
                # The datagram has another control message, too: its answer is sent without control messages.
                self._control_lengths[index] = 0
            else:
                start = index * _CONTROL + _DATA
                end = start + self._pktinfo_size
                self._control[start:end] = _source(self._family, self._control[start:end])

    def _prepare_source(self) -> None:
        """Replace the packet information of a single question; faster than _prepare_sources()."""
        if self._control_lengths[0] == self._control_length and self._firsts[0] < _FIRST_SPECIAL:
            self._interfaces[0] = 0
        else:
            self._prepare_sources(1)

    def answer(self, index: int, data: bytes) -> None:
        """Set the answer to a datagram of this batch, for send(); at most once for each datagram, in their order.

        Args:
            index: the index of the datagram in the batch.
            data: at most LARGEST_DATAGRAM bytes.
        """
        length = len(data)
        if data is not self._found[index][0]:
            # Only the answer of an echo is in place already.
            at = index * _STRIDE
            self._data[at : at + length] = data
        self._answer_lengths[index] = length
        position = self._answers
        if position != index:
            # Some earlier questions have no answer, so the header is moved next to that of the last answer.
            size = self._header_size
            self._memory[position * size : position * size + size] = self._memory[index * size : index * size + size]
        self._answers = position + 1
        self._bytes += length

    def send(self, fd: int) -> int:
        """Send the answers without blocking. An answer that the kernel does not take is lost.

        Returns:
            The number of bytes that were sent.
        """
        count = self._answers
        if not count:
            return 0
        sent = self._send(fd, self._headers, count, _NOW)
        total = self._bytes
        return total if sent == count else total - self._send_rest(fd, max(sent, 0), count)

    def _send_rest(self, fd: int, position: int, count: int) -> int:
        """Send the answers after that at which sendmmsg() failed; return the number of bytes that are lost.

        An error may belong to an earlier answer (ICMP), so each answer is tried twice; after EINVAL without its
        source address, which may be a broadcast address, or may have been removed from the machine.
        """
        lost: int = 0
        tried = -1
        while position < count:
            sent = self._send(fd, self._headers + position, count - position, _NOW)
            if sent > 0:
                position += sent
                continue
            header = self._headers[position].msg_hdr
            if self._ffi.errno == errno.EAGAIN:
                # The socket's buffer is full, so all remaining answers are lost.
                return lost + sum(int(self._headers[each].msg_hdr.msg_iov.iov_len) for each in range(position, count))
            if tried < position:
                tried = position
                if self._ffi.errno == errno.EINVAL:
                    header.msg_controllen = 0
                continue
            lost += int(header.msg_iov.iov_len)
            position += 1
        return lost


_DATA_OFFSETS = range(0, BATCH * _STRIDE, _STRIDE)
_NAME_OFFSETS = range(0, BATCH * 32, 32)


def _column(view: memoryview, kind: str, offset: int, size: int) -> memoryview:
    """Return a view of a member of each structure in an array."""
    cells = view.cast(kind)  # type: ignore[call-overload]
    return cells[offset // cells.itemsize :: size // cells.itemsize]  # type: ignore[no-any-return]
