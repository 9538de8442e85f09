"""The reactor "uv": Twisted protocols on uvloop's own transports.

It is a Twisted reactor on a uvloop loop. libuv serves stream servers and UDP ports in C, and calls the Twisted protocol
directly; the rest is Twisted's asyncio reactor. `twistd -r uv` and `trial --reactor=uv` select it.

The test suites of Twisted, treq and klein pass on it as on epoll (tests/reactor/run_suites.py). Intended differences:

- A connection's descriptor is closed right after connectionLost() returns, not before, so that its byte counters can
  be read in connectionLost().
- Output is written to the kernel at once, as far as it takes it, not in the next iteration of the loop.
- Datagrams longer than maxPacketSize of listenUDP() are not truncated.
- seconds() is the time since 1970 by the monotonic clock: a step of the wall clock does not shift timed calls.
- iterate(delay) takes the whole delay, since libuv does not report that it has served a descriptor. iterate(0) does
  not wait, as in other reactors. Code that the reactor runs must call neither.
"""

from svcd.reactor.acceptor import SocketPort
from svcd.reactor.core import UvReactor, install

__all__ = ["SocketPort", "UvReactor", "install"]
