"""Checks of options against each other and against the host, by group of options."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from svcd.addresses import LOCAL
from svcd.config.options import TABLE
from svcd.interfaces import STILL_IMPORTING
from svcd.model import SocketType

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from svcd.config.service import Service
    from svcd.config.tls_files import TlsFiles
    from svcd.interfaces import FileReader, HostInfo
    from svcd.model import ConfigProblem

__all__ = [
    "AT_ACCEPT",
    "BANNERS",
    "access_problems",
    "datagram_problems",
    "handler_problems",
    "max_banner_bytes",
    "timeout_problems",
    "tls_problems",
]


#: The options that name banner files.
BANNERS = ("banner", "banner_success", "banner_fail")

#: The longest banner, in bytes.
_MAX_BANNER = 65_536
#: The longest banner of a service whose connections are passed on, in bytes. The daemon does not wait until the client
#: takes it, so two banners have to fit in the buffer of a new socket.
_MAX_BANNER_PASSED_ON = 16_384

#: The options that take effect when svcd accepts a connection.
AT_ACCEPT = ("only_from", "no_access", "proxy_protocol", "per_source", "per_source_rate", *BANNERS)


def max_banner_bytes(service: Service) -> int:
    """Return the longest banner that a service may have, in bytes."""
    return _MAX_BANNER_PASSED_ON if service.spawned or service.builtin.multiplexer else _MAX_BANNER


def access_problems(service: Service, files: FileReader, machine: HostInfo) -> Iterator[ConfigProblem]:
    """Yield the problems of the access options of a service."""
    options = service.options
    if options.access_zone and not machine.has_zone(options.access_zone):
        text = f"no time zone {options.access_zone!r} on this machine; name one of tzselect(8), or install tzdata"
        yield service.fault("access_zone", text)
    if options.wait and service.net.shape is SocketType.STREAM:
        # A mistake, not a warning: the option would restrict access, and all clients would be admitted without it.
        for option in AT_ACCEPT:
            if option in service.locations and getattr(options, option) != TABLE[option].default:
                text = (
                    "with wait=yes the process accepts the connections, and svcd can't check its clients; remove "
                    "one of the two"
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
    """Yield a problem if none of the proxies can connect to the service."""
    proxies = service.options.proxy_protocol
    if proxies and not any((each.first == LOCAL) == service.net.local for each in proxies):
        text = (
            "clients of a UNIX socket have no address; use local"
            if service.net.local
            else "local is for UNIX sockets; use the addresses of the proxies"
        )
        yield service.problem("proxy_protocol", text)


def _banner_problems(service: Service, option: str, path: str, files: FileReader) -> Iterator[ConfigProblem]:
    most = max_banner_bytes(service)
    try:
        length = len(files.read(path))
    except OSError as error:
        yield service.fault(option, f"can't read {path}: {error.strerror or error}")
        return
    if length > most:
        yield service.fault(option, f"{path} has {length} bytes; a banner of {service.id} has at most {most}")


def timeout_problems(service: Service) -> Iterator[ConfigProblem]:
    """Yield a problem for each timeout on the line of a service that can't have it; from @defaults it is ignored."""
    if not service.options.wait:
        return
    for option in ("idle_timeout", "first_byte_timeout"):
        if service.has_own(option):
            text = "with wait=yes the process accepts the connections, and svcd can't time them; use session_timeout"
            yield service.problem(option, text)


def datagram_problems(service: Service) -> Iterator[ConfigProblem]:
    """Yield a problem for each rule that would need the host names of senders, which may be forged."""
    if service.net.shape is not SocketType.DATAGRAM or service.net.local:
        return
    for option in ("only_from", "no_access"):
        domains = [each.text for each in getattr(service.options, option) or () if each.name.startswith(".")]
        if domains:
            text = f"names of clients are not looked up over {service.net}, so {domains[0]} matches no client"
            yield service.problem(option, f"{text}; use host names, addresses or networks on the service's own line")


#: Options that need others: the options of which one must be set, and the remedy.
_NEEDED = {
    "tls_key": (("tls_cert",), "add tls_cert=FILE"),
    "tls_min": (("tls_cert", "tls_sni"), "add tls_cert=FILE"),
    "tls_alpn": (("tls_cert", "tls_sni"), "add tls_cert=FILE"),
    "tls_client_ca": (("tls_cert", "tls_sni"), "add tls_cert=FILE"),
    "tls_warn": (("tls_cert", "tls_sni"), "add tls_cert=FILE"),
    "tls_unknown_name": (("tls_sni",), "add tls_sni=DIRECTORY"),
    "tls_client": (("tls_client_ca",), "add tls_client_ca=FILE"),
    "tls_client_names": (("tls_client_ca",), "add tls_client_ca=FILE"),
    "tls_crl": (("tls_client_ca",), "add tls_client_ca=FILE"),
}


def tls_problems(service: Service, files: FileReader, now: float | None) -> Iterator[ConfigProblem]:
    """Yield the problems of the TLS options of a service, and of the files that they name.

    Args:
        service: the service.
        files: reads the files.
        now: the time in seconds since 1970; None to ignore the validity periods of certificates.
    """
    options = service.options
    if service.net.shape is not SocketType.STREAM:
        return
    for option, (wanted, remedy) in _NEEDED.items():
        if service.has_own(option) and getattr(options, option) and not _any_set(service, wanted):
            names = " or ".join(wanted)
            yield service.problem(option, f"this has no effect without {names}; {remedy}, or remove it")
    if not service.tls:
        return
    if options.wait:
        text = "with wait=yes the process accepts the connections, and svcd can't terminate TLS; remove one of the two"
        yield service.problem("tls_cert" if options.tls_cert else "tls_sni", text)
        return
    if options.banner_fail and service.has_own("banner_fail"):
        text = "refused clients are closed before the TLS handshake and get no banner; remove it"
        yield service.problem("banner_fail", text)
    if options.tls_cert is None and options.tls_unknown_name == "default":
        text = (
            "clients that request another name need a certificate, too; add tls_cert=FILE, or tls_unknown_name=refuse"
        )
        yield service.problem("tls_sni", text)
    # Imported late: it takes longer to load the certificate library than to read a services file without TLS.
    from svcd.config.tls_files import read_tls_files

    tls_files, problems = read_tls_files(service, files, now)
    yield from problems
    if now is not None:
        yield from _expiry_problems(service, tls_files, now)


def _expiry_problems(service: Service, tls_files: TlsFiles, now: float) -> Iterator[ConfigProblem]:
    """Yield a warning for each certificate and revocation list that expires soon."""
    from svcd.config.tls_files import DAY, revocation_list_ends

    options = service.options
    found = {f"{options.tls_sni}/{name}.pem": ("tls_sni", each) for name, each in tls_files.named.items()}
    if tls_files.default is not None:
        found[str(options.tls_cert)] = ("tls_cert", tls_files.default)
    for path, (option, credentials) in found.items():
        left = credentials.expires - now
        if 0 < left < options.tls_warn * DAY:
            yield service.warning(option, f"the certificate in {path} expires {_when(left)}; renew it")
    for until, warned in revocation_list_ends(service, tls_files):
        if warned < now < until:
            yield service.warning("tls_crl", f"a list in {options.tls_crl} expires {_when(until - now)}; renew it")


def _when(seconds: float) -> str:
    days = int(seconds // 86_400)
    return f"in {days} day{'' if days == 1 else 's'}" if days else "within a day"


def _any_set(service: Service, options: tuple[str, ...]) -> bool:
    return any(getattr(service.options, option) is not None for option in options)


#: The largest number of services that one warning names.
_MAX_NAMES = 5


def handler_problems(services: Sequence[Service], machine: HostInfo) -> Iterator[ConfigProblem]:
    """Yield the problems of handlers: programs, users, directories and Python modules that the host lacks.

    Options that need root (another user, a root directory) are no problem here: any user may run a check.
    """
    importing, served = [], []
    for service in services:
        if service.launches:
            problems = list(_account_problems(service, machine)) or list(_path_problems(service, machine))
            yield from problems
            if not problems and service.runs == "python":
                importing.append(service)
        elif service.runs == "factory":
            served.append(service)
    # All at once, because an import may take long.
    wanted = [
        (each.options.python, each.options.python_path, each.runner, each.options.start_timeout) for each in importing
    ]
    for service, reason in zip(importing, machine.cannot_import(wanted) if wanted else (), strict=True):
        if reason:
            yield service.fault("python", f"can't import {service.options.python}: {reason}")
    makers = [(each.options.factory, each.options, each.options.start_timeout) for each in served]
    for service, reason in zip(served, machine.cannot_serve(makers) if makers else (), strict=True):
        if reason:
            pending = reason.endswith(STILL_IMPORTING)
            yield replace(service.fault("factory", reason), pending=pending)
    yield from _daemon_user_problems(services, machine)


def _daemon_user_problems(services: Sequence[Service], machine: HostInfo) -> Iterator[ConfigProblem]:
    """Yield a warning about handlers that run as the user of the daemon, and so have all its permissions."""
    spawned = [service for service in services if service.launches]
    user = machine.handlers_user() if spawned else ""
    own = [service for service in spawned if not service.options.user or _names_daemon_user(service, user)]
    if not user or not own:
        return
    names = ", ".join(service.id for service in own[:_MAX_NAMES])
    if len(own) > _MAX_NAMES:
        names += f" and {len(own) - _MAX_NAMES} more"
    run = "runs" if len(own) == 1 else "run"
    if user == "root":
        text = f"{names} {run} as root, so a bug in a handler compromises the machine; add user=NAME"
    else:
        keys = dict.fromkeys(path for service in services for path in _key_paths(service) if machine.can_read(path))
        remedy = "use another user=" if all(service.options.user for service in own) else "add user=NAME"
        things = ", ".join(["the daemon's log and control socket", *keys])
        text = f"{names} {run} as the daemon's own user, {user}, with access to {things}; {remedy}"
    yield own[0].warning("user", text)


def _names_daemon_user(service: Service, user: str) -> bool:
    """Return whether user= is the daemon's user and the handler can reach the control socket; root is a choice."""
    return service.options.user == user != "root" and not service.options.chroot


def _key_paths(service: Service) -> Iterator[str]:
    """Yield the paths of a service that contain or may contain a private key."""
    options = service.options
    for path in (options.tls_key or options.tls_cert, options.tls_sni):
        if path is not None:
            yield path


def _account_problems(service: Service, machine: HostInfo) -> Iterator[ConfigProblem]:
    user, group = service.options.user, service.options.group
    if group and not machine.has_group(group):
        yield service.fault("group", f"no group {group!r} on this machine")
    if not user:
        return
    if not machine.has_user(user):
        yield service.fault("user", f"no user {user!r} on this machine{_group_remedy(user, machine)}")
    elif not group and not machine.has_login_group(user):
        yield service.fault("user", f"no login group is known for user {user}; add group=")


def _group_remedy(user: str, machine: HostInfo) -> str:
    """Return the remedy for a user with a group, as inetd.conf(5) has it; empty for others."""
    match = re.fullmatch("([^.:]+)[.:]([^.:]+)", user)
    if match is None or not machine.has_user(match[1]):
        return ""
    return f"; write user={match[1]} group={match[2]}"


def _path_problems(service: Service, machine: HostInfo) -> Iterator[ConfigProblem]:
    options, runner = service.options, service.runner
    inside = f" inside {runner.root}" if runner.root else ""
    if runner.root:
        reason = machine.cannot_enter("/", runner)
        if reason:
            # Nothing inside can be checked.
            yield service.fault("chroot", f"can't use {runner.root}: {reason}")
            return
    if options.server:
        reason = machine.cannot_execute(options.server[0], runner)
        if reason:
            yield service.fault("server", f"can't run {options.server[0]}{inside}: {reason}")
    folders = (("cwd", options.cwd), ("cgi", options.cgi)) if options.cgi else (("cwd", options.cwd),)
    for option, folder in (*folders, *(("python_path", each) for each in options.python_path)):
        reason = machine.cannot_enter(folder, runner)
        if reason:
            yield service.fault(option, f"can't use {folder}{inside}: {reason}")
