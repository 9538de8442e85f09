"""The reactor "uv": Twisted protocols on uvloop's own transports.

A Twisted reactor that runs on a uvloop loop. Stream servers and UDP ports are served by libuv in C, and the Twisted
protocol is called straight from there; all the rest is what Twisted's asyncio reactor has. `twistd -r uv` and
`trial --reactor=uv` choose it.

The suites of Twisted, treq and klein pass on it as on epoll (tests/reactor/run_suites.py). What differs on purpose:

- A connection's descriptor is closed right after connectionLost() returns, not before: it can be asked for its counts.
- Bytes that are written go to the kernel at once, as far as it takes them, not in the next turn of the loop.
- Datagrams that are longer than listenUDP()'s maxPacketSize are not cut.
- seconds() is the time since 1970 by the monotonic clock: a step of the wall clock moves no timed call.
- iterate(delay) takes the whole delay, since libuv does not say that it has served something. iterate(0) waits for
  nothing, as elsewhere. Neither can be called by what the reactor runs.
"""

from svcd.reactor.acceptor import SocketPort
from svcd.reactor.core import UvReactor, install

__all__ = ["SocketPort", "UvReactor", "install"]
