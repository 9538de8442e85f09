"""The reactor "uv": Twisted protocols on uvloop's own transports.

A Twisted reactor that runs on a uvloop loop. libuv serves stream servers and UDP ports in C, and calls the Twisted
protocol directly; the rest is Twisted's asyncio reactor. `twistd -r uv` and `trial --reactor=uv` choose it.

The suites of Twisted, treq and klein pass on it as on epoll (tests/reactor/run_suites.py). Intended differences:

- A connection's descriptor is closed right after connectionLost() returns, not before, so that its byte counters can
  be read in connectionLost().
- Bytes that are written go to the kernel at once, as far as it takes them, not in the next turn of the loop.
- Datagrams that are longer than listenUDP()'s maxPacketSize are not cut.
- seconds() is the time since 1970 by the monotonic clock: a step of the wall clock moves no timed call.
- iterate(delay) takes the whole delay, since libuv does not report that it has served a descriptor. iterate(0) does
  not wait, as elsewhere. Code that the reactor runs can call neither.
"""

from svcd.reactor.acceptor import SocketPort
from svcd.reactor.core import UvReactor, install

__all__ = ["SocketPort", "UvReactor", "install"]
