"""What the access options of a service must hold beyond their own words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svcd.addresses import LOCAL
from svcd.config.options import TABLE
from svcd.model import SocketType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svcd.config.service import Service
    from svcd.interfaces import FileReader, HostInfo
    from svcd.model import ConfigProblem

__all__ = ["AT_ACCEPT", "BANNERS", "access_problems", "most_banner_bytes"]

BANNERS = ("banner", "banner_success", "banner_fail")

#: The longest text of a banner, in bytes.
_MOST_BANNER = 65_536
#: The same where connections are handed on as they are. Nobody waits in the daemon until a client takes it: it must
#: fit in a new socket's buffer, together with the other.
_MOST_BANNER_HANDED_ON = 16_384

#: Options about the client of a connection, which take effect when svcd accepts it.
AT_ACCEPT = ("only_from", "no_access", "proxy_protocol", "per_source", "per_source_rate", *BANNERS)


def most_banner_bytes(service: Service) -> int:
    """How long each of a service's banners may be."""
    return _MOST_BANNER_HANDED_ON if service.spawned or service.builtin.multiplexer else _MOST_BANNER


def access_problems(service: Service, files: FileReader, machine: HostInfo) -> Iterator[ConfigProblem]:
    """What is wrong with the access options of a service."""
    options = service.options
    if options.access_zone and not machine.has_zone(options.access_zone):
        text = f"no time zone {options.access_zone!r} on this machine; name one of tzselect(8), or install tzdata"
        yield service.fault("access_zone", text)
    if options.wait and service.net.shape is SocketType.STREAM:
        # Silently to let everybody in would be worse than not to start.
        for option in AT_ACCEPT:
            if option in service.places and getattr(options, option) != TABLE[option].default:
                text = (
                    "with wait=yes the process accepts by itself, and svcd does not see who comes; remove one of them"
                )
                yield service.problem(option, text)
        return
    if service.has_own("proxy_protocol"):
        yield from _proxy_problems(service)
    for option in BANNERS:
        path = getattr(options, option)
        if path:
            yield from _banner_problems(service, option, path, files)


def _proxy_problems(service: Service) -> Iterator[ConfigProblem]:
    """Proxies of which none can connect to the service."""
    proxies = service.options.proxy_protocol
    if proxies and not any((each.first == LOCAL) == service.net.local for each in proxies):
        text = (
            "who connects to a UNIX socket has no address; say local"
            if service.net.local
            else "local is for UNIX sockets; name the addresses of the proxies"
        )
        yield service.problem("proxy_protocol", text)


def _banner_problems(service: Service, option: str, path: str, files: FileReader) -> Iterator[ConfigProblem]:
    most = most_banner_bytes(service)
    try:
        length = len(files.read(path))
    except OSError as error:
        yield service.fault(option, f"can't read {path}: {error.strerror or error}")
        return
    if length > most:
        yield service.fault(option, f"{path} has {length} bytes; a banner of {service.id} has at most {most}")
