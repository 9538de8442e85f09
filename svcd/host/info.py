"""Facts about the host: users, groups, addresses, time zones, permissions, imports, and the load average."""

from __future__ import annotations

import errno
import importlib.util
import ipaddress
import os
import pickle
import socket
import time
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from twisted.internet.interfaces import IProtocolFactory

from svcd.host.accounts import group_id, login, user_id
from svcd.host.permissions import PathUser, cannot_enter, cannot_execute, cannot_read
from svcd.interfaces import STILL_IMPORTING
from svcd.model import RunAs, ip_literal
from svcd.net.lookups import LookupPool, PendingLookup
from svcd.net.resolver import Name, system_addresses
from svcd.net.socket_options import IPPROTO_MPTCP
from svcd.process.background_imports import import_in_background
from svcd.process.imports import import_object

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from svcd.process.background_imports import BackgroundImport
    from svcd.process.import_check import ImportCheck

__all__ = ["Host", "LoadAverage", "broadcasts"]

#: Time limit of a lookup of bind=NAME, in seconds.
_LOOKUP_SECONDS = 2.0
#: The same for names whose last lookup had no answer; names in /etc/hosts take no longer.
_UNANSWERED_SECONDS = 0.2
_LOOKUPS: LookupPool[list[Name]] = LookupPool("svcd-bind", active=16, threads=32, queued=1000)
_LOOPBACKS = {4: (socket.AF_INET, "127.0.0.1"), 6: (socket.AF_INET6, "::1")}


class Host:
    """svcd.interfaces.HostInfo of the local host.

    Args:
        check_expiry: whether an expired certificate is an error. It is in a check, but a daemon must be able to start
            and reload with one.
        thorough: whether to call factories and to check permissions of handlers, as in a check.
        user: name or number of the user that runs handlers without user=; empty for the current user.
        import_wait: time limit of all imports together, in seconds, and an upper limit for lookups of bind= names; None
            for the time limit of each import.
        check_wait: the same for imports of Python handlers, which launchers repeat themselves.
        unanswered: names in bind= whose last lookup had no answer; their lookups have a short time limit.
    """

    def __init__(
        self,
        *,
        check_expiry: bool = True,
        thorough: bool = False,
        user: str = "",
        import_wait: float | None = None,
        check_wait: float | None = None,
        unanswered: frozenset[str] = frozenset(),
    ) -> None:
        self._unanswered = unanswered
        self._import_wait = import_wait
        self._check_wait = check_wait
        self._lookup_seconds = _LOOKUP_SECONDS if import_wait is None else min(_LOOKUP_SECONDS, import_wait)
        self._lookups: dict[str, PendingLookup[list[Name]]] = {}
        self._lookups_begin = 0.0
        self._check_expiry = check_expiry
        self._thorough = thorough
        self._user = user

    def has_user(self, name: str) -> bool:
        """Return whether a user exists; a number always does."""
        return _known(user_id, name)

    def has_group(self, name: str) -> bool:
        """Return whether a group exists; a number always does."""
        return _known(group_id, name)

    def now(self) -> float | None:
        """Return the time of day in seconds since 1970; None if expiry is not checked."""
        return time.time() if self._check_expiry else None

    def has_zone(self, name: str) -> bool:
        """Return whether the time zone database has a zone."""
        try:
            ZoneInfo(name)
        except (OSError, ValueError, KeyError):
            # ZoneInfoNotFoundError is a KeyError; OSError and ValueError are for names of directories and other files.
            return False
        return True

    def has_module(self, name: str) -> bool:
        """Return whether a Python module of an optional package is installed."""
        # It may have been installed since the last search.
        importlib.invalidate_caches()
        return importlib.util.find_spec(name) is not None

    def has_mptcp(self) -> bool:
        """Return whether the kernel supports Multipath TCP."""
        try:
            socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP).close()
        except OSError:
            return False
        return True

    def versions(self) -> frozenset[int]:
        """Return the IP versions (4, 6) whose loopback address can be bound."""
        return frozenset(version for version, (family, host) in _LOOPBACKS.items() if _can_bind(family, host))

    def look_up(self, names: Iterable[str]) -> None:
        """Start concurrent lookups, so that several unanswered names take no longer than a single one."""
        self._lookups_begin = time.monotonic()
        for name in names:
            if name not in self._lookups and not ip_literal(name) and name not in self._interfaces:
                self._lookups[name] = _LOOKUPS.begin(name, partial(system_addresses, name))

    def addresses(self, name: str) -> Sequence[str]:
        """Return the addresses of a literal, an interface or a host name, in this order of precedence.

        Raises:
            OSError: there are none, or the lookup has reached its time limit.
        """
        literal = ip_literal(name)
        if literal:
            return [literal]
        found = self._interfaces.get(name)
        if found is not None:
            return found
        if name not in self._lookups:
            self.look_up([name])
        try:
            seconds = _UNANSWERED_SECONDS if name in self._unanswered else self._lookup_seconds
            answer = self._lookups[name].wait(self._lookups_begin + seconds - time.monotonic())
        except TimeoutError as error:
            text = f"no name server has answered within {seconds:g} s"
            raise TimeoutError(errno.ETIMEDOUT, text) from error
        except socket.gaierror as error:
            raise OSError(errno.EADDRNOTAVAIL, error.strerror) from error
        except UnicodeError as error:
            raise OSError(errno.EINVAL, "not a host name") from error
        return list(dict.fromkeys(str(address[0]) for _family, address in answer))

    @cached_property
    def _interfaces(self) -> dict[str, list[str]]:
        """The addresses of the network interfaces by name, read once for each Host."""
        # Imported here, since it loads ctypes, and few services name an interface.
        import ifaddr

        return {
            adapter.name: [_literal(ip.ip, adapter.name) for ip in adapter.ips] for adapter in ifaddr.get_adapters()
        }

    def has_login_group(self, user: str) -> bool:
        """Return whether passwd(5) has the group of a user."""
        return login(user) is not None

    def cannot_execute(self, path: str, runner: RunAs) -> str:
        """Return why a user can't execute a file; see HostInfo."""
        return cannot_execute(path, self._account(runner), runner.root)

    def cannot_enter(self, path: str, runner: RunAs) -> str:
        """Return why a user can't enter a directory; see HostInfo."""
        return cannot_enter(path, self._account(runner), runner.root)

    def cannot_import(self, wanted: Sequence[tuple[str, Sequence[str], RunAs, float]]) -> Sequence[str]:
        """Return why Python handlers can't be imported; see HostInfo."""
        # Imported here, since few services have Python handlers.
        from svcd.process.import_check import check_imports

        return check_imports([self._import_check(*each) for each in wanted], self._check_wait)

    def cannot_serve(self, wanted: Sequence[tuple[str, object, float]]) -> Sequence[str]:
        """Return why references are no Twisted factories; see HostInfo. A check calls each in a separate process."""
        if not self._thorough:
            longest = max((seconds for _, _, seconds in wanted), default=0.0)
            wait = longest if self._import_wait is None else self._import_wait
            imports = import_in_background([reference for reference, _, _ in wanted], wait)
            return [_cannot_resolve(reference, imports[reference], seconds) for reference, _, seconds in wanted]
        # Imported here, since a daemon does not call factories to check them.
        from svcd.process.import_check import check_imports

        checks = [self._import_check(reference, (), RunAs(), seconds) for reference, _, seconds in wanted]
        return check_imports([
            check._replace(options=pickle.dumps(options).hex())
            for check, (_, options, _) in zip(checks, wanted, strict=True)
        ])  # fmt: skip

    def handlers_user(self) -> str:
        """Return the user that runs handlers without user=; empty unless this is a check."""
        if not self._thorough:
            return ""
        entry = login(self._user or str(os.geteuid()))
        return entry.pw_name if entry is not None else self._user or str(os.geteuid())

    def can_read(self, path: str) -> bool:
        """Return whether handlers without user= may read a file."""
        return not cannot_read(path, self._account(RunAs()))

    def _runner(self, runner: RunAs) -> RunAs:
        return runner if runner.user or not self._user else replace(runner, user=self._user)

    def _account(self, runner: RunAs) -> PathUser:
        runner = self._runner(runner)
        user = user_id(runner.user) if runner.user else os.geteuid()
        name = f"user {runner.user}" if runner.user else "the user that runs this"
        return PathUser(name, user, frozenset(_groups(runner)))

    def _import_check(self, reference: str, path: Sequence[str], runner: RunAs, seconds: float) -> ImportCheck:
        runner = self._runner(runner)
        first, *others = _groups(runner)
        user = user_id(runner.user) if runner.user else None
        group = first if runner.user or runner.group else None
        from svcd.process.import_check import ImportCheck

        return ImportCheck(reference, tuple(path), user, group, tuple(others), runner.root, seconds=seconds)


def _cannot_resolve(reference: str, imported: BackgroundImport, seconds: float) -> str:
    reason = imported.reason
    if reason is None:
        pending = f"its import takes longer than start_timeout={seconds:g}s, and continues"
        reason = pending if imported.seconds > seconds else STILL_IMPORTING
    if reason:
        return f"can't serve {reference}: {reason}"
    found = import_object(reference)
    if IProtocolFactory.providedBy(found) or callable(found):
        return ""
    return f"can't serve {reference}: it is neither a Factory nor callable"


def _groups(runner: RunAs) -> tuple[int, ...]:
    """Return the gids of a user, the primary one first. Its names must exist."""
    entry = login(runner.user) if runner.user else None
    first = group_id(runner.group) if runner.group else entry.pw_gid if entry else os.getegid()
    if entry is None:
        return (first, *os.getgroups()) if not runner.user else (first,)
    others = os.getgrouplist(entry.pw_name, first) if runner.groups else []
    return (first, *(group for group in others if group != first))


def broadcasts() -> frozenset[str]:
    """Return the current broadcast addresses of the host's networks (RFC 919)."""
    # Imported here, since it loads ctypes, and only datagram services need it.
    import ifaddr

    found = set()
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            # Networks with one or two addresses have no broadcast address (RFC 3021).
            if isinstance(ip.ip, str) and ip.network_prefix < 31:
                network = ipaddress.IPv4Network(f"{ip.ip}/{ip.network_prefix}", strict=False)
                found.add(str(network.broadcast_address))
    return frozenset(found)


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
    # A link-local address is ambiguous without its interface (RFC 4007, section 11).
    return f"{host}%{interface}" if ipaddress.IPv6Address(host).is_link_local else host


class LoadAverage:
    """Load average of one minute (getloadavg(3)), read at most once a second; the kernel updates it every 5 s.

    Args:
        now: returns monotonic time in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._value = 0.0
        self._until = float("-inf")

    def __call__(self) -> float:
        """Return the load average; 0 if the system has none."""
        now = self._now()
        if now >= self._until:
            self._until = now + 1
            try:
                self._value = os.getloadavg()[0]
            except OSError:
                self._value = 0.0
        return self._value
