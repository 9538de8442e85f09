"""What twistd finds: the service maker of `twistd svcd`, and the reactor of `twistd -r uv`."""

from twisted.application.reactors import Reactor
from twisted.application.service import ServiceMaker

svcd = ServiceMaker("svcd", "svcd.tap", "A super-server: the small internet services from a services file.", "svcd")
uv = Reactor("uv", "svcd.reactor", "Twisted protocols on uvloop: native stream servers and UDP ports.")
