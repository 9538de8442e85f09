"""What twistd finds: the service maker of `twistd svcd`."""

from twisted.application.service import ServiceMaker

svcd = ServiceMaker("svcd", "svcd.tap", "A super-server: the small internet services from a services file.", "svcd")
