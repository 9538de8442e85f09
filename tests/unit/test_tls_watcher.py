"""CertificateWatcher: changed files are put into use if they are valid."""

from __future__ import annotations

import errno
import os
from datetime import timedelta
from typing import TYPE_CHECKING

from twisted.internet.task import Clock

from svcd.tls.certificates import ServerTls
from svcd.tls.watcher import CHECK_SECONDS, CertificateWatcher
from tests.certificates import Authority
from tests.doubles import FakeFiles, LogCatcher, service_of

if TYPE_CHECKING:
    from twisted.logger import LogEvent

CA = Authority()
NOW = CA.now.timestamp()
SOON = CA.sign("a.example", expires=CA.now + timedelta(days=20, minutes=1))
LATER = CA.sign("a.example")


class _Watched:
    """A CertificateWatcher for one service, a clock, and files that a test changes."""

    def __init__(self, options: str = "tls_cert=/c/a tls_key=/c/b", folders: tuple[str, ...] = ()) -> None:
        contents = {"/c/a": LATER.pem, "/c/b": LATER.key_pem, "/c/a.example.pem": LATER.bundle}
        self.files = FakeFiles({**contents, "/c/ca": CA.pem, "/c/crl": CA.crl()}, folders)
        self.clock = Clock()
        self.server = ServerTls(service_of(f"echo 7/tcp {options}"), self.files, self.wall)
        self.others: list[ServerTls] = []
        self.changes = 0
        self.served = True
        self.watch = CertificateWatcher(self.clock, self.servers, self.changed, self.wall)

    def wall(self) -> float:
        """Return the time of day; the clock starts at NOW."""
        return NOW + self.clock.seconds()

    def servers(self) -> list[ServerTls]:
        """Return the TLS of the services, unless they are not served."""
        return [self.server, *self.others] if self.served else []

    def changed(self) -> None:
        """Count the call."""
        self.changes += 1

    def check(self, times: int = 1) -> None:
        """Advance the clock by intervals of checks."""
        for _ in range(times):
            self.clock.advance(CHECK_SECONDS)

    @property
    def serial(self) -> int:
        """The serial number of the certificate in use."""
        return _serial(self.server)


def _serial(server: ServerTls) -> int:
    certificate = server.serverConnectionForTLS(None).get_certificate(as_cryptography=True)
    assert certificate is not None
    return certificate.serial_number


def _texts(events: list[LogEvent]) -> list[str]:
    return [event["text"] for event in events]


def test_new_certificate_is_put_into_use() -> None:
    """Certificate and key are put into use once both have stopped changing, which is logged."""
    watched = _Watched()
    watched.watch.start()
    watched.check(3)
    new = CA.sign("a.example")
    with LogCatcher() as log:
        watched.files.put("/c/a", new.pem)
        watched.check()
        watched.files.put("/c/b", new.key_pem)
        watched.check()
        assert watched.serial == LATER.certificate.serial_number
        watched.check()
        assert watched.serial == new.certificate.serial_number
        watched.check(3)
    assert not log.named("problem")
    (event,) = log.named("certificate")
    expires = f"{new.certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
    assert (event["service"], event["file"], event["expires"], event["count"]) == ("echo/tcp", "/c/a", expires, 1)
    assert watched.changes == 1
    watched.watch.stop()
    assert not watched.clock.getDelayedCalls()


def test_invalid_certificate_is_not_put_into_use() -> None:
    """The old certificate stays in use; the reason is logged once, and again after the next change."""
    watched = _Watched()
    watched.watch.start()
    with LogCatcher() as log:
        watched.files.put("/c/a", SOON.pem)
        watched.check(10)
        watched.files.put("/c/a", b"")
        watched.check(10)
    assert _texts(log.named("problem")) == [
        (
            "s:1:21: tls_cert: can't use /c/a with /c/b: the key does not belong to the certificate; use the key "
            "that the certificate was made with; echo/tcp keeps its previous certificates"
        ),
        (
            "s:1:21: tls_cert: can't use /c/a with /c/b: there is no certificate in it (PEM: -----BEGIN "
            "CERTIFICATE-----); echo/tcp keeps its previous certificates"
        ),
    ]
    assert watched.serial == LATER.certificate.serial_number
    assert watched.changes == 0
    assert "there is no certificate in it" in str(*watched.server.problems)
    watched.files.put("/c/a", LATER.pem)
    with LogCatcher() as log:
        watched.check(10)
    assert not log.named("problem")
    assert not watched.server.problems


def test_invalid_file_does_not_affect_others() -> None:
    """Each name keeps its certificate until a valid one replaces it; the expiry of one in use is not a new problem."""
    watched = _Watched("tls_cert=/c/a tls_key=/c/b tls_sni=/c tls_client_ca=/c/ca tls_crl=/c/crl", ("/c",))
    old = CA.sign("old.example", expires=CA.now + timedelta(minutes=1))
    for name, both in {"old": old, "bad": CA.sign("bad.example"), "next": CA.sign("next.example")}.items():
        watched.files.put(f"/c/{name}.example.pem", both.bundle)
    watched.watch.check_now()
    watched.clock.advance(3600)
    before = dict(watched.server._state.contexts.tls_files.named)
    newer = CA.sign("next.example")
    watched.files.put("/c/next.example.pem", newer.bundle)
    watched.files.put("/c/bad.example.pem", b"")
    watched.files.put("/c/a.example.pem", old.bundle)
    watched.files.put("/c/b.example.pem", CA.sign("c.example").bundle)
    watched.files.put("/c/none.example.pem", b"")
    watched.files.put("/c/crl", b"")
    with LogCatcher() as log:
        watched.watch.check_now()
    after = watched.server._state.contexts.tls_files.named
    assert after.keys() == before.keys()
    assert [name for name in after if after[name] is not before[name]] == ["next.example"]
    assert after["next.example"].chain == (newer.certificate,)
    assert [text.partition("/c/")[2].split()[0] for text in _texts(log.named("problem"))] == [
        "a.example.pem",
        "b.example.pem",
        "bad.example.pem:",
        "none.example.pem:",
        "crl:",
    ]
    assert len(log.named("certificate")) == 1


def test_revocation_list_is_put_into_use() -> None:
    """A changed revocation list is put into use as a certificate."""
    watched = _Watched("tls_cert=/c/a tls_key=/c/b tls_client_ca=/c/ca tls_crl=/c/crl")
    watched.files.put("/c/crl", CA.crl(until=CA.now + timedelta(days=40)))
    with LogCatcher() as log:
        watched.watch.check_now()
        watched.watch.check_now()
    assert len(log.named("certificate")) == 1


def test_check_now_does_not_wait() -> None:
    """check_now(), called by a reload, puts changed files into use at once."""
    watched = _Watched()
    watched.watch.start()
    new = CA.sign("a.example")
    watched.files.put("/c/a", new.pem)
    watched.files.put("/c/b", new.key_pem)
    watched.watch.check_now()
    assert watched.serial == new.certificate.serial_number


def test_files_that_are_no_longer_readable() -> None:
    """After root is given up, unreadable files are logged at once, with a remedy; the old ones stay in use."""
    watched = _Watched()
    # With another service with the same files it is logged once.
    watched.others.append(ServerTls(service_of("upper 8/tcp tls_cert=/c/a tls_key=/c/b"), watched.files, watched.wall))
    denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/c/b")
    watched.files.put("/c/b", denied)
    text = (
        "/c/b can't be read again (Permission denied): the certificate in use stays until a restart; make "
        "the file readable for the user that svcd runs as, or restart svcd after a renewal"
    )
    with LogCatcher() as log:
        watched.watch.start()
        assert _texts(log.named("problem")) == [text]
        watched.files.put("/c/a", SOON.pem)
        watched.check(10)
    assert _texts(log.named("problem")) == [text] * 2
    assert watched.serial == LATER.certificate.serial_number


def test_sni_file_that_is_no_longer_readable() -> None:
    """In a tls_sni directory only changed files are read again; all are read at the start."""
    watched = _Watched("tls_cert=/c/a tls_key=/c/b tls_sni=/c", ("/c",))
    watched.watch.start()
    path = "/c/b.example.pem"
    watched.files.put(path, CA.sign("b.example").bundle)
    watched.check(2)
    denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    watched.files.put(path, denied)
    with LogCatcher() as log:
        watched.check(10)
    (text,) = _texts(log.named("problem"))
    assert text.startswith(f"{path} can't be read again")
    assert [each.file for each in watched.server.certificates] == ["/c/a", "/c/a.example.pem", path]


def test_sni_file_is_added_and_removed() -> None:
    """An added or removed file in tls_sni is a change."""
    watched = _Watched("tls_cert=/c/a tls_key=/c/b tls_sni=/c", ("/c",))
    watched.watch.start()
    watched.files.put("/c/b.example.pem", CA.sign("b.example").bundle)
    watched.check(2)
    assert [each.file for each in watched.server.certificates] == ["/c/a", "/c/a.example.pem", "/c/b.example.pem"]


def test_expiry_warning() -> None:
    """In the time of tls_warn before the expiry the log warns daily, with the first certificate and their number."""
    watched = _Watched("tls_cert=/c/a tls_key=/c/b tls_sni=/c tls_warn=20d", ("/c",))
    watched.files.put("/c/a.example.pem", SOON.bundle)
    watched.server.prepare(watched.server.service)()
    expires = f"{SOON.certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
    with LogCatcher() as log:
        watched.watch.start()
        assert not log.named("certificate-expires")
        for _ in range(21):
            for _ in range(12):
                watched.clock.advance(7200)
    events = log.named("certificate-expires")
    assert [event["days"] for event in events] == [*range(19, -2, -1)]
    first = events[0]
    assert (first["file"], first["expires"], first["count"]) == ("/c/a.example.pem", expires, 1)


def test_expiry_warning_of_a_new_service() -> None:
    """A new service with a certificate that expires soon is warned of at once."""
    watched = _Watched()
    watched.watch.start()
    watched.check(3)
    watched.files.put("/c/soon", SOON.bundle)
    watched.others.append(ServerTls(service_of("upper 8/tcp tls_cert=/c/soon"), watched.files, watched.wall))
    with LogCatcher() as log:
        watched.watch.check_now()
    assert [event["service"] for event in log.named("certificate-expires")] == ["upper/tcp"]


def test_ticket_keys_are_renewed() -> None:
    """Ticket keys are renewed twice a day, so that one key decrypts TLS 1.2 of half a day at most."""
    watched = _Watched()
    watched.watch.start()
    contexts = set()
    for _ in range(48):
        watched.clock.advance(3600)
        contexts.add(watched.server.serverConnectionForTLS(None).get_context())
    assert len(contexts) == 5


def test_no_timer_without_tls() -> None:
    """The timer starts with the first service with TLS, also after a reload, and stops after the last one."""
    watched = _Watched()
    watched.served = False
    watched.watch.start()
    assert not watched.clock.getDelayedCalls()
    watched.served = True
    watched.watch.check_now()
    watched.watch.check_now()
    assert len(watched.clock.getDelayedCalls()) == 1
    watched.served = False
    watched.check()
    assert not watched.clock.getDelayedCalls()
    watched.watch.stop()


def test_expiry_warning_of_a_revocation_list() -> None:
    """The log warns daily, from tls_warn or in the last third of its validity, but not of a list without an end."""
    watched = _Watched("tls_cert=/c/a tls_key=/c/b tls_client_ca=/c/ca tls_crl=/c/crl")
    until = CA.now + timedelta(days=30)
    with LogCatcher() as log:
        watched.watch.start()
        for _ in range(32 * 12):
            watched.clock.advance(7200)
    events = log.named("certificate-expires")
    # It is valid for 31 days.
    assert [event["days"] for event in events] == [*range(10, -3, -1)]
    assert {(event["file"], event["expires"]) for event in events} == {("/c/crl", f"{until:%Y-%m-%dT%H:%M:%SZ}")}
    watched = _Watched("tls_cert=/c/a tls_key=/c/b tls_client_ca=/c/ca tls_crl=/c/crl tls_warn=2d")
    watched.clock.advance(27 * 86_400)
    assert watched.server.expiring == []
    watched.clock.advance(86_401)
    assert [held.file for held in watched.server.expiring] == ["/c/crl"]
