"""The reactor "uv": Twisted protocols on uvloop's own transports.

A Twisted reactor that runs on a uvloop loop. Stream servers and UDP ports are served by libuv in C, and the Twisted
protocol is called straight from there; all the rest is what Twisted's asyncio reactor has. `twistd -r uv` chooses it.
"""

from svcd.reactor.core import UvReactor, install
from svcd.reactor.listener import StreamPort

__all__ = ["StreamPort", "UvReactor", "install"]
