"""What this machine has: users, groups, IP versions, and the addresses behind a name."""

from __future__ import annotations

import errno
import grp
import ipaddress
import pwd
import socket
from typing import TYPE_CHECKING

import ifaddr

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["LocalMachine", "group_id", "user_id"]

_LOOPBACKS = {4: (socket.AF_INET, "127.0.0.1"), 6: (socket.AF_INET6, "::1")}


def user_id(name: str) -> int:
    """The number of a user, who may be given by number.

    Raises:
        KeyError: passwd(5) does not know the name.
    """
    return _number(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid


def group_id(name: str) -> int:
    """The number of a group, which may be given by number.

    Raises:
        KeyError: group(5) does not know the name.
    """
    return _number(name) if name.isdecimal() else grp.getgrnam(name).gr_gid


def _number(digits: str) -> int:
    """A number for chown(2), whose greatest one means no change.

    Raises:
        KeyError: it is too great.
    """
    number = int(digits)
    if number >= 0xFFFF_FFFF:
        raise KeyError(f"{digits} is too great")
    return number


class LocalMachine:
    """svcd.interfaces.Machine, for real."""

    def has_user(self, name: str) -> bool:
        """Whether there is such a user; a number always is one."""
        return _known(user_id, name)

    def has_group(self, name: str) -> bool:
        """Whether there is such a group; a number always is one."""
        return _known(group_id, name)

    def versions(self) -> frozenset[int]:
        """The versions of IP whose loopback address a socket can be bound to."""
        return frozenset(version for version, (family, host) in _LOOPBACKS.items() if _can_bind(family, host))

    def addresses(self, name: str) -> Sequence[str]:
        """The literals behind a literal, an interface or a host name, in this order of preference."""
        try:
            # In its one spelling, so that an address is recognized when it stands twice.
            return [str(ipaddress.ip_address(name))]
        except ValueError:
            pass
        for adapter in ifaddr.get_adapters():
            if adapter.name == name:
                return [_literal(ip.ip, adapter.name) for ip in adapter.ips]
        try:
            found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise OSError(errno.EADDRNOTAVAIL, error.strerror) from error
        except UnicodeError as error:
            raise OSError(errno.EINVAL, "not a host name") from error
        return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _known(number_of: Callable[[str], int], name: str) -> bool:
    try:
        number_of(name)
    except KeyError:
        return False
    return True


def _can_bind(family: int, host: str) -> bool:
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True


def _literal(ip: str | tuple[str, int, int], interface: str) -> str:
    if isinstance(ip, str):
        return ip
    host = ip[0]
    # A link-local address means nothing without its interface (RFC 4007, section 11).
    return f"{host}%{interface}" if ipaddress.IPv6Address(host).is_link_local else host
