"""What a service's TLS options must hold beyond their own words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svcd.model import SocketType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svcd.config.service import Service
    from svcd.config.tls_files import TlsFiles
    from svcd.interfaces import FileReader
    from svcd.model import ConfigProblem

__all__ = ["tls_problems"]

#: What has no meaning without something else: the options, of which one must be there, and what to do.
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
    """What is wrong with the TLS options of a service, and with the files that they name.

    Args:
        service: it.
        files: reads them.
        now: in seconds since 1970; None to take certificates whatever the time is.
    """
    options = service.options
    if service.net.shape is not SocketType.STREAM:
        return
    for option, (wanted, remedy) in _NEEDED.items():
        if service.has_own(option) and getattr(options, option) and not _any_set(service, wanted):
            names = " or ".join(wanted)
            yield service.problem(option, f"this means nothing without {names}; {remedy}, or remove it")
    if not service.tls:
        return
    if options.wait:
        text = "with wait=yes the process accepts by itself, and svcd can't speak TLS for it; remove one of them"
        yield service.problem("tls_cert" if options.tls_cert else "tls_sni", text)
        return
    if options.banner_fail and service.has_own("banner_fail"):
        text = "who is refused gets no TLS, and in the clear a client of TLS can't read it; remove it"
        yield service.problem("banner_fail", text)
    if options.tls_cert is None and options.tls_unknown_name == "default":
        text = "clients that ask for another name need a certificate too; add tls_cert=FILE, or tls_unknown_name=refuse"
        yield service.problem("tls_sni", text)
    # Only now: to load what reads certificates takes longer than to read a services file without any.
    from svcd.config.tls_files import read_material

    material, problems = read_material(service, files, now)
    yield from problems
    if now is not None:
        yield from _ending(service, material, now)


def _ending(service: Service, material: TlsFiles, now: float) -> Iterator[ConfigProblem]:
    """Warn of certificates and revocation lists that end soon."""
    from svcd.config.tls_files import DAY, list_ends

    options = service.options
    found = {f"{options.tls_sni}/{name}.pem": ("tls_sni", each) for name, each in material.named.items()}
    if material.default is not None:
        found[str(options.tls_cert)] = ("tls_cert", material.default)
    for path, (option, credentials) in found.items():
        left = credentials.expires - now
        if 0 < left < options.tls_warn * DAY:
            yield service.warning(option, f"the certificate in {path} expires {_when(left)}; get a new one")
    for until, warned in list_ends(service, material):
        if warned < now < until:
            yield service.warning("tls_crl", f"a list in {options.tls_crl} ends {_when(until - now)}; get the newest")


def _when(seconds: float) -> str:
    days = int(seconds // 86_400)
    return f"in {days} day{'' if days == 1 else 's'}" if days else "within a day"


def _any_set(service: Service, options: tuple[str, ...]) -> bool:
    return any(getattr(service.options, option) is not None for option in options)
