"""What twistd finds: the service maker of `twistd svcd`, and the reactor of `twistd -r uv`."""

import gc

from twisted.application.reactors import Reactor
from twisted.application.service import ServiceMaker


class _SvcdMaker(ServiceMaker):
    @property
    def options(self) -> object:
        """The options class, asked for when the command line names svcd.

        From here until the daemon serves (Daemon starts the collector again) nothing is collected: what the start
        makes, stays, and to look through it again and again takes 60 of 330 ms of CPU time.
        """
        gc.disable()
        return super().options


svcd = _SvcdMaker("svcd", "svcd.tap", "A super-server: the small internet services from a services file.", "svcd")
uv = Reactor("uv", "svcd.reactor", "Twisted protocols on uvloop: native stream servers and UDP ports.")
