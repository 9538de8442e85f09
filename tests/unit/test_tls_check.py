"""Checks of TLS options and files: each problem with its position and its remedy."""

from __future__ import annotations

import base64
import contextlib
import errno
import itertools
import os
import pwd
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519
from hypothesis import given
from hypothesis import strategies as st

from svcd.config.endpoints import check
from svcd.host.files import LocalFiles
from svcd.model import Severity
from svcd.wire.certificates import issued, read_authorities, read_credentials, read_revocations
from tests.certificates import Authority
from tests.doubles import FakeFiles, FakeMachine, config_of, problems_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CA = Authority()
NOW = CA.now.timestamp()
GOOD = CA.sign("www.example.org")
DENIED = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
UNDER = Authority("Under", issuer=CA)


def _problems(options: str, contents: Mapping[str, bytes | OSError], exposed: str = "") -> list[str]:
    """Return the problems of a service with files below /c, without their positions."""
    files = FakeFiles({f"/c/{name}": content for name, content in contents.items()}, ["/c"])
    files.exposed.add(exposed)
    found = check(config_of(f"echo 7/tcp {options}", files), files, FakeMachine(time=NOW))[1]
    assert all(problem.location.line == 1 and problem.location.column > 11 for problem in found)
    return [problem.text for problem in found]


def test_banner_fail_is_an_error_with_tls() -> None:
    """banner_fail is an error with TLS, except in a @defaults line, which may apply to other services."""
    contents = {"a": GOOD.bundle, "text": b"no\n"}
    assert _problems("tls_cert=/c/a banner_fail=/c/text", contents) == [
        "banner_fail: refused clients are closed before the TLS handshake and get no banner; remove it"
    ]
    files = FakeFiles({f"/c/{name}": content for name, content in contents.items()})
    text = "@defaults banner_fail=/c/text\necho 7/tcp tls_cert=/c/a\n"
    assert check(config_of(text, files), files, FakeMachine(time=NOW))[1] == []


@pytest.mark.parametrize(
    "options",
    [
        "tls_cert=/c/both",
        "tls_cert=/c/cert tls_key=/c/key",
        "tls_cert=/c/cert tls_key=/c/key tls_client_ca=/c/ca",
        "tls_cert=/c/both tls_client_ca=/c/ca tls_crl=/c/crl tls_client=optional tls_client_names=a.example",
        "tls_sni=/s tls_unknown_name=refuse tls_min=1.3 tls_alpn=x tls_warn=3d",
    ],
)
def test_valid_options(options: str) -> None:
    """Valid combinations of options have no problem."""
    contents = {
        "/c/both": b"comment\n" + GOOD.bundle,
        "/c/cert": GOOD.pem,
        "/c/key": b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n" + GOOD.key_pem,
        "/c/ca": CA.pem + UNDER.pem,
        "/c/crl": CA.crl() + UNDER.crl(),
        "/s/www.example.org.pem": GOOD.bundle,
        "/s/.hidden.pem": b"",
        "/s/README": b"",
        "/s/_.example.net.pem": CA.sign("*.example.net").bundle,
    }
    files = FakeFiles(contents, ["/s"])
    assert check(config_of(f"echo 7/tcp {options}", files), files, FakeMachine(time=NOW))[1] == []


@pytest.mark.parametrize("option", ["tls_cert", "tls_key", "tls_client_ca", "tls_crl"])
def test_unreadable_file(option: str) -> None:
    """A missing or denied file is a problem of the option that names it."""
    paths = {"tls_cert": "/c/cert", "tls_key": "/c/key", "tls_client_ca": "/c/ca", "tls_crl": "/c/crl"}
    contents: dict[str, bytes | OSError] = {
        "cert": GOOD.pem,
        "key": GOOD.key_pem,
        "ca": CA.pem,
        "crl": CA.crl(),
    }
    options = " ".join(map("=".join, paths.items()))
    path = paths[option]
    contents[path.removeprefix("/c/")] = DENIED
    assert _problems(options, contents) == [
        f"{option}: can't read {path}: Permission denied; make it readable for the user svcd"
    ]
    del contents[path.removeprefix("/c/")]
    assert _problems(options, contents) == [f"{option}: can't read {path}: No such file or directory"]


_PKCS8 = serialization.PrivateFormat.PKCS8
_LOCKED = GOOD.key.private_bytes(serialization.Encoding.PEM, _PKCS8, serialization.BestAvailableEncryption(b"x"))
_KEY_DER = GOOD.key.private_bytes(serialization.Encoding.DER, _PKCS8, serialization.NoEncryption())
_LATE = CA.sign("a", not_before=CA.now + timedelta(hours=1))
_OLD = CA.sign("a", expires=CA.now)


@pytest.mark.parametrize(
    ("certificate", "key", "text"),
    [
        (b"", GOOD.key_pem, "there is no certificate in it"),
        (GOOD.key_pem, GOOD.key_pem, "there is no certificate in it"),
        (GOOD.pem.replace(b"MII", b"MIJ"), GOOD.key_pem, "certificate 1 of 1 in it can't be read: it is damaged"),
        (GOOD.pem, CA.own.key_pem, "the key does not belong to the certificate"),
        (CA.pem + GOOD.pem, GOOD.key_pem, "put the server's own first"),
    ],
)
def test_invalid_certificate(certificate: bytes, key: bytes, text: str) -> None:
    """Errors of a certificate or its key name both files."""
    (problem,) = _problems("tls_cert=/c/a tls_key=/c/b", {"a": certificate, "b": key})
    assert problem.startswith("tls_cert: can't use /c/a with /c/b: ")
    assert text in problem


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (GOOD.pem, "there is no private key in it (PEM: -----BEGIN PRIVATE KEY-----)"),
        (GOOD.key_pem.replace(b"MI", b"MJ"), "the private key can't be read: it is damaged, or its type is not"),
        (_LOCKED, "the key has a passphrase; remove it with openssl pkey"),
        (
            _KEY_DER,
            (
                "there is no private key in it (PEM: -----BEGIN PRIVATE KEY-----); the file is binary: convert it "
                "to PEM with "
            ),
        ),
    ],
)
def test_invalid_key(key: bytes, text: str) -> None:
    """The problem names the file of the key and its option."""
    (problem,) = _problems("tls_cert=/c/a tls_key=/c/b", {"a": GOOD.pem, "b": key})
    assert problem.startswith(f"tls_key: can't use /c/b: {text}")


def test_missing_key() -> None:
    """A certificate file that others may read can't contain the key: the remedy is a separate file."""
    text = "there is no private key in it (PEM: -----BEGIN PRIVATE KEY-----); set tls_key= to the file that contains it"
    assert _problems("tls_cert=/c/a", {"a": GOOD.pem}, "/c/a") == [f"tls_cert: can't use /c/a: {text}"]


@pytest.mark.parametrize(
    ("options", "command"),
    [("tls_cert=/c/der", "x509"), ("tls_cert=/c/a tls_client_ca=/c/der", "x509"),
     ("tls_cert=/c/a tls_client_ca=/c/ca tls_crl=/c/der", "crl")],
)  # fmt: skip
def test_der_file(options: str, command: str) -> None:
    """The message names the command that converts the file to PEM."""
    der = GOOD.certificate.public_bytes(serialization.Encoding.DER)
    (problem,) = _problems(options, {"a": GOOD.bundle, "ca": CA.pem, "der": der})
    assert (
        f"; the file is binary: convert it to PEM with openssl {command} -inform der, or with openssl pkcs12" in problem
    )


@pytest.mark.parametrize(
    ("key", "algorithm", "text"),
    [
        (rsa.generate_private_key(65_537, 1024), hashes.SHA256(), "RSA key of 1024 bits is too weak"),
        (ec.generate_private_key(ec.SECP256K1()), hashes.SHA256(), "few clients support the curve secp256k1"),
        (x25519.X25519PrivateKey.generate(), hashes.SHA256(), "TLS does not support keys of this type"),
    ],
)
def test_weak_key(key: object, algorithm: object, text: str) -> None:
    """Keys and signatures that clients refuse are problems."""
    both = CA.sign("a", key=key, algorithm=algorithm).bundle
    with pytest.raises(ValueError, match=text):
        read_credentials(both, both)


@pytest.mark.parametrize(
    ("both", "text"),
    [
        (_OLD.bundle, f"the certificate in /c/a expired on {CA.now:%Y-%m-%d}; renew it"),
        (_LATE.bundle, f"the certificate in /c/a is not valid before {CA.now + timedelta(hours=1):%Y-%m-%d %H:%M} UTC"),
    ],
)
def test_certificate_outside_its_validity(both: bytes, text: str) -> None:
    """A certificate that has expired or is not yet valid is a problem."""
    assert _problems("tls_cert=/c/a", {"a": both}) == [f"tls_cert: {text}"]


def test_daemon_accepts_an_expired_certificate() -> None:
    """An expired certificate is a problem of a check, but does not keep a daemon from starting."""
    files = FakeFiles({"/c/a": _OLD.bundle, "/c/ca": CA.pem, "/c/crl": CA.crl(until=CA.now)})
    config = config_of("echo 7/tcp tls_cert=/c/a tls_client_ca=/c/ca tls_crl=/c/crl", files)
    assert check(config, files, FakeMachine(time=None))[1] == []
    assert len(check(config, files, FakeMachine(time=NOW))[1]) == 2


@pytest.mark.parametrize(
    ("options", "exposed", "option"),
    [
        ("tls_cert=/c/a", "/c/a", "tls_cert"),
        ("tls_cert=/c/b tls_key=/c/a", "/c/a", "tls_key"),
        ("tls_cert=/c/b tls_key=/c/a", "/c/b", ""),
    ],
)
def test_key_readable_by_others(options: str, exposed: str, option: str) -> None:
    """A private key readable by others is a problem; a certificate may be readable by others."""
    text = f"{option}: /c/a contains a private key, and all users can read or change it; run chmod o= /c/a"
    assert _problems(options, {"a": GOOD.bundle, "b": GOOD.pem}, exposed) == ([text] if option else [])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("tls_key=/c/a", "tls_key: this has no effect without tls_cert; add tls_cert=FILE, or remove it"),
        ("tls_min=1.3", "tls_min: this has no effect without tls_cert or tls_sni; add tls_cert=FILE, or remove it"),
        ("tls_crl=/c/a", "tls_crl: this has no effect without tls_client_ca; add tls_client_ca=FILE, or remove it"),
        (
            "tls_client_names=a.example",
            "tls_client_names: this has no effect without tls_client_ca; add tls_client_ca=FILE, or remove it",
        ),
        (
            "tls_unknown_name=refuse",
            "tls_unknown_name: this has no effect without tls_sni; add tls_sni=DIRECTORY, or remove it",
        ),
        (
            "tls_sni=/c",
            (
                "tls_sni: clients that request another name need a certificate, too; add tls_cert=FILE, or "
                "tls_unknown_name=refuse"
            ),
        ),
        (
            "server=/bin/cat wait=yes tls_cert=/c/a",
            (
                "tls_cert: with wait=yes the process accepts the connections, and svcd can't terminate TLS; remove "
                "one of the two"
            ),
        ),
    ],
)
def test_incompatible_options(options: str, text: str) -> None:
    """An option without another one that it needs is a problem."""
    both = CA.sign("a.example").bundle
    assert _problems(options, {"a": GOOD.bundle, "a.example.pem": both}) == [text]


def test_tls_options_in_defaults() -> None:
    """TLS options in a @defaults line apply to services with TLS; tls_cert=none removes TLS."""
    text = "@defaults tls_min=1.3 tls_key=/c/a\necho 7/tcp\n@defaults tls_cert=/c/a\nupper 8/tcp tls_cert=none"
    files = FakeFiles({"/c/a": DENIED})
    config = config_of(text, files)
    assert [service.tls for service in config.services] == [False, False]
    assert check(config, files, FakeMachine())[1] == []


@pytest.mark.parametrize("line", ["echo 7/udp", "tcpmux 1/tcp", "x /s/unixgram server=/bin/cat wait=yes"])
def test_services_without_tls(line: str) -> None:
    """Datagram services and tcpmux, which hands connections over, can't have TLS."""
    (problem,) = problems_of(f"{line} tls_cert=/c/a")
    assert "tls_cert is for stream services (tcp, unix), except tcpmux, not for" in problem


def test_sni_directory() -> None:
    """Each file in tls_sni must be named after a host name of its certificate."""
    options = "tls_cert=/c/www.example.org.pem tls_sni=/s"
    good = {"/c/www.example.org.pem": GOOD.bundle}

    def problems(contents: Mapping[str, bytes], *folders: str) -> list[str]:
        files = FakeFiles(good | {f"/s/{name}": content for name, content in contents.items()}, folders)
        return [each.text for each in check(config_of(f"echo 7/tcp {options}"), files, FakeMachine(time=NOW))[1]]

    assert problems({}) == ["tls_sni: can't list /s: Not a directory"]
    assert problems({}, "/s") == [
        ("tls_sni: /s has no *.pem files; name each after its host, as in www.example.org.pem")
    ]
    assert problems({"*.example.org.pem": GOOD.bundle}, "/s") == [
        (
            "tls_sni: /s/*.example.org.pem is not named after a host; use a name such as www.example.org.pem or "
            "_.example.org.pem"
        )
    ]
    assert problems({"_.example.org.pem": GOOD.bundle}, "/s") == [
        "tls_sni: the certificate in /s/_.example.org.pem is not for *.example.org; rename the file"
    ]
    assert problems({"x.example.org.pem": CA.sign("*.example.org").bundle}, "/s") == []
    assert problems({"x.example.org.pem": GOOD.pem}, "/s") == [
        "tls_sni: can't use /s/x.example.org.pem: there is no private key in it (PEM: -----BEGIN PRIVATE KEY-----)"
    ]


def test_authorities() -> None:
    """Certificates in tls_client_ca must be able to sign others."""
    assert _problems("tls_cert=/c/a tls_client_ca=/c/b", {"a": GOOD.bundle, "b": b""}) == [
        "tls_client_ca: can't use /c/b: there is no certificate in it (PEM: -----BEGIN CERTIFICATE-----)"
    ]
    assert _problems("tls_cert=/c/a tls_client_ca=/c/b", {"a": GOOD.bundle, "b": GOOD.pem}) == [
        (
            "tls_client_ca: can't use /c/b: CN=www.example.org is not a certificate authority (basicConstraints "
            "CA:FALSE); use the certificate of the authority"
        )
    ]


def test_revocation_lists() -> None:
    """Each authority needs a revocation list that it has signed and that has not expired."""
    options = "tls_cert=/c/a tls_client_ca=/c/b tls_crl=/c/c"
    missing = "tls_crl: /c/c has no revocation list of CN=Under; add it, otherwise all clients are refused"

    def problems(*lists: bytes) -> list[str]:
        return _problems(options, {"a": GOOD.bundle, "b": CA.pem + UNDER.pem, "c": b"".join(lists)})

    assert problems(CA.crl(), UNDER.crl()) == []
    assert problems(CA.crl()) == [missing]
    assert problems(CA.crl(), UNDER.crl(key=CA.own.key)) == [missing]
    assert problems(CA.crl(), UNDER.crl(until=CA.now)) == [
        "tls_crl: the revocation list of CN=Under in /c/c is out of date; install the newest"
    ]
    assert _problems(options, {"a": GOOD.bundle, "b": UNDER.pem, "c": UNDER.crl()}) == [
        "tls_client_ca: with tls_crl the certificate of CN=Test CA, the issuer of CN=Under, is required; add it"
    ]
    assert problems(b"x") == [
        "tls_crl: can't use /c/c: there is no revocation list in it (PEM: -----BEGIN X509 CRL-----)"
    ]


def test_expiry_warnings() -> None:
    """A check warns of certificates and revocation lists before they expire (tls_warn); a daemon's load does not."""
    soon = CA.sign("www.example.org", expires=CA.now + timedelta(days=5, minutes=1))
    until = CA.now + timedelta(days=1)
    files = FakeFiles({"/c/a": soon.bundle, "/c/ca": CA.pem, "/c/crl": CA.crl(until=until)})
    line = "echo 7/tcp tls_cert=/c/a tls_client_ca=/c/ca tls_crl=/c/crl"

    def warnings(more: str, now: float | None) -> list[str]:
        problems = check(config_of(line + more, files), files, FakeMachine(time=now))[1]
        assert all(each.severity is Severity.WARNING for each in problems)
        return [each.text for each in problems]

    certificate = "tls_cert: the certificate in /c/a expires in 5 days; renew it"
    late = until.timestamp() - 3600
    assert warnings("", NOW) == [certificate]
    assert warnings("", late) == [
        "tls_cert: the certificate in /c/a expires in 4 days; renew it",
        "tls_crl: a list in /c/crl expires within a day; renew it",
    ]
    assert warnings(" tls_warn=3d", NOW) == []
    assert warnings("", None) == []


_DER = {
    b"CERTIFICATE": UNDER.own.certificate.public_bytes(serialization.Encoding.DER),
    b"X509 CRL": x509.load_pem_x509_crl(UNDER.crl()).public_bytes(serialization.Encoding.DER),
}


@given(st.sampled_from(list(_DER)), st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6))
def test_random_files(kind: bytes, changes: list[tuple[int, int]]) -> None:
    """Any content is either accepted or has an error message; no other exception is raised."""
    data = bytearray(_DER[kind])
    for place, value in changes:
        data[place % len(data)] = value
    pem = b"-----BEGIN %s-----\n%s-----END %s-----\n" % (kind, base64.encodebytes(data), kind)
    for read in (read_authorities, read_revocations, lambda content: read_credentials(content, UNDER.own.key_pem)):
        with contextlib.suppress(ValueError):
            for each in read(pem) if read is read_revocations else ():
                issued(each, CA.own.certificate)


@pytest.mark.parametrize(
    "bad",
    # An invalid version, and a duplicate extension, for which cryptography has its own errors.
    [
        _DER[b"CERTIFICATE"].replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x30"),
        _DER[b"CERTIFICATE"].replace(b"\x06\x03U\x1d\x0f", b"\x06\x03U\x1d\x13"),
    ],
)
def test_partly_invalid_authorities(bad: bytes) -> None:
    """An authority with an invalid part is a problem."""
    assert bad not in _DER.values()
    with pytest.raises(ValueError, match="can't be read"):
        read_authorities(b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(bad) + b"-----END CERTIFICATE-----\n")


def test_files_that_are_no_longer_readable(tmp_path: Path) -> None:
    """If one of several files is denied, all keep their former content; the same applies to a tls_sni directory."""
    first, second = tmp_path / "a", tmp_path / "b"
    files = _Denying()
    first.write_bytes(b"1")
    second.write_bytes(b"1")
    paths = [str(first), str(second)]
    both = dict.fromkeys(paths, b"1")
    files.denied = paths[1]
    assert isinstance(files.read_together(paths)[paths[1]], PermissionError)
    files.denied = ""
    assert files.read_together(paths) == both
    first.write_bytes(b"2")
    files.denied = paths[1]
    assert files.read_together(paths) == both
    files.denied = ""
    second.write_bytes(b"2")
    assert files.read_together(paths) == dict.fromkeys(paths, b"2")


class _Denying(LocalFiles):
    """LocalFiles that denies one file."""

    denied = ""

    def read(self, path: str) -> bytes:
        """Return the content of a file, or raise PermissionError."""
        if path == self.denied:
            raise DENIED
        return super().read(path)


def test_the_user_that_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the effective user now: after root is given up it is another one than before."""
    files = LocalFiles()
    for number, name in ((0, "root"), (pwd.getpwnam("nobody").pw_uid, "nobody"), (54_321, "54321")):
        monkeypatch.setattr(os, "geteuid", lambda number=number: number)
        assert files.user == name


def test_file_stat(tmp_path: Path) -> None:
    """file_stat() changes only when the file is written or replaced, or a link is changed."""
    seen = []
    files, link = LocalFiles(), tmp_path / "link"
    for number in range(3):
        (tmp_path / str(number)).write_text("same")
    link.symlink_to(tmp_path / "0")

    def stamp() -> None:
        seen.append(files.file_stat(str(link)))
        assert files.file_stat(str(link)) == seen[-1]

    stamp()
    (tmp_path / "0").write_text("other")
    stamp()
    (tmp_path / "1").replace(tmp_path / "0")
    stamp()
    (tmp_path / "new").symlink_to(tmp_path / "2")
    (tmp_path / "new").replace(link)
    stamp()
    assert all(one != other for one, other in itertools.combinations(seen, 2))
    with pytest.raises(FileNotFoundError):
        files.file_stat(str(tmp_path / "none"))


def test_readable_by_others(tmp_path: Path) -> None:
    """Permissions for others count, permissions of the group do not."""
    path = tmp_path / "key"
    path.touch()
    for mode, exposed in {0o600: False, 0o660: False, 0o640: False, 0o644: True, 0o602: True}.items():
        path.chmod(mode)
        assert LocalFiles().is_exposed(str(path)) is exposed


def test_list_directory(tmp_path: Path) -> None:
    """The paths of all entries are returned, sorted."""
    for name in "ba":
        (tmp_path / name).touch()
    assert LocalFiles().entries(str(tmp_path)) == [str(tmp_path / "a"), str(tmp_path / "b")]
    with pytest.raises(NotADirectoryError):
        LocalFiles().entries(str(tmp_path / "a"))
