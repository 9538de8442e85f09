"""The watch over certificates: what changes on disk comes into use, and nothing worse ever does."""

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


class _World:
    """A watch over one service, on a clock, over files that a test changes."""

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
        """The clock began NOW."""
        return NOW + self.clock.seconds()

    def servers(self) -> list[ServerTls]:
        """The one, if it is served."""
        return [self.server, *self.others] if self.served else []

    def changed(self) -> None:
        """Count."""
        self.changes += 1

    def look(self, times: int = 1) -> None:
        """Let the watch look."""
        for _ in range(times):
            self.clock.advance(CHECK_SECONDS)

    @property
    def serial(self) -> int:
        """Of the certificate that is in use."""
        return _serial(self.server)


def _serial(server: ServerTls) -> int:
    certificate = server.serverConnectionForTLS(None).get_certificate(as_cryptography=True)
    assert certificate is not None
    return certificate.serial_number


def _texts(events: list[LogEvent]) -> list[str]:
    return [event["text"] for event in events]


def test_a_new_certificate_comes_into_use() -> None:
    """Certificate and key are put into use when both have stopped changing; it is logged."""
    world = _World()
    world.watch.start()
    world.look(3)
    new = CA.sign("a.example")
    with LogCatcher() as log:
        world.files.put("/c/a", new.pem)
        world.look()
        world.files.put("/c/b", new.key_pem)
        world.look()
        assert world.serial == LATER.certificate.serial_number
        world.look()
        assert world.serial == new.certificate.serial_number
        world.look(3)
    assert not log.named("problem")
    (event,) = log.named("certificate")
    expires = f"{new.certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
    assert (event["service"], event["file"], event["expires"], event["count"]) == ("echo/tcp", "/c/a", expires, 1)
    assert world.changes == 1
    world.watch.stop()
    assert not world.clock.getDelayedCalls()


def test_a_certificate_that_cannot_be_used_changes_nothing() -> None:
    """The old one stays in use; the reason is logged once, and again after the next change."""
    world = _World()
    world.watch.start()
    with LogCatcher() as log:
        world.files.put("/c/a", SOON.pem)
        world.look(10)
        world.files.put("/c/a", b"")
        world.look(10)
    assert _texts(log.named("problem")) == [
        (
            "s:1:21: tls_cert: can't use /c/a with /c/b: the key is not that of the certificate; name the key that "
            "it was made with; echo/tcp goes on with what it had"
        ),
        (
            "s:1:21: tls_cert: can't use /c/a with /c/b: there is no certificate in it (PEM: "
            "-----BEGIN CERTIFICATE-----); echo/tcp goes on with what it had"
        ),
    ]
    assert world.serial == LATER.certificate.serial_number
    assert world.changes == 0
    assert "there is no certificate in it" in str(*world.server.problems)
    world.files.put("/c/a", LATER.pem)
    with LogCatcher() as log:
        world.look(10)
    assert not log.named("problem")
    assert not world.server.problems


def test_one_bad_file_keeps_no_other_from_coming_into_use() -> None:
    """Each name has what it had until there is something better; that one has expired since is no news."""
    world = _World("tls_cert=/c/a tls_key=/c/b tls_sni=/c tls_client_ca=/c/ca tls_crl=/c/crl", ("/c",))
    old = CA.sign("old.example", expires=CA.now + timedelta(minutes=1))
    for name, both in {"old": old, "bad": CA.sign("bad.example"), "next": CA.sign("next.example")}.items():
        world.files.put(f"/c/{name}.example.pem", both.bundle)
    world.watch.check_now()
    world.clock.advance(3600)
    before = dict(world.server._state.contexts.tls_files.named)
    newer = CA.sign("next.example")
    world.files.put("/c/next.example.pem", newer.bundle)
    world.files.put("/c/bad.example.pem", b"")
    world.files.put("/c/a.example.pem", old.bundle)
    world.files.put("/c/b.example.pem", CA.sign("c.example").bundle)
    world.files.put("/c/none.example.pem", b"")
    world.files.put("/c/crl", b"")
    with LogCatcher() as log:
        world.watch.check_now()
    after = world.server._state.contexts.tls_files.named
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


def test_a_revocation_comes_into_use() -> None:
    """As a certificate does."""
    world = _World("tls_cert=/c/a tls_key=/c/b tls_client_ca=/c/ca tls_crl=/c/crl")
    world.files.put("/c/crl", CA.crl(until=CA.now + timedelta(days=40)))
    with LogCatcher() as log:
        world.watch.check_now()
        world.watch.check_now()
    assert len(log.named("certificate")) == 1


def test_who_says_that_all_is_there_need_not_wait() -> None:
    """A reload takes in at once what has changed."""
    world = _World()
    world.watch.start()
    new = CA.sign("a.example")
    world.files.put("/c/a", new.pem)
    world.files.put("/c/b", new.key_pem)
    world.watch.check_now()
    assert world.serial == new.certificate.serial_number


def test_files_that_can_be_read_no_more() -> None:
    """After root is given up, unreadable files are logged at once, with a remedy; the old ones stay in use."""
    world = _World()
    # Another service with the same files is no reason to say it twice.
    world.others.append(ServerTls(service_of("upper 8/tcp tls_cert=/c/a tls_key=/c/b"), world.files, world.wall))
    denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/c/b")
    world.files.put("/c/b", denied)
    text = (
        "/c/b can't be read again (Permission denied): what is in use stays until svcd is restarted; let the user that "
        "svcd runs as read it, or restart svcd when there is a new one"
    )
    with LogCatcher() as log:
        world.watch.start()
        assert _texts(log.named("problem")) == [text]
        world.files.put("/c/a", SOON.pem)
        world.look(10)
    assert _texts(log.named("problem")) == [text] * 2
    assert world.serial == LATER.certificate.serial_number


def test_a_name_that_can_be_read_no_more() -> None:
    """Of a directory with names the one that has changed is looked at, and all at the start."""
    world = _World("tls_cert=/c/a tls_key=/c/b tls_sni=/c", ("/c",))
    world.watch.start()
    path = "/c/b.example.pem"
    world.files.put(path, CA.sign("b.example").bundle)
    world.look(2)
    denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    world.files.put(path, denied)
    with LogCatcher() as log:
        world.look(10)
    (text,) = _texts(log.named("problem"))
    assert text.startswith(f"{path} can't be read again")
    assert [each.file for each in world.server.certificates] == ["/c/a", "/c/a.example.pem", path]


def test_a_certificate_for_another_name_comes_into_use() -> None:
    """A file more or less in tls_sni is a change."""
    world = _World("tls_cert=/c/a tls_key=/c/b tls_sni=/c", ("/c",))
    world.watch.start()
    world.files.put("/c/b.example.pem", CA.sign("b.example").bundle)
    world.look(2)
    assert [each.file for each in world.server.certificates] == ["/c/a", "/c/a.example.pem", "/c/b.example.pem"]


def test_a_certificate_that_expires_soon() -> None:
    """From tls_warn on the log warns once a day, with the first certificate and how many there are."""
    world = _World("tls_cert=/c/a tls_key=/c/b tls_sni=/c tls_warn=20d", ("/c",))
    world.files.put("/c/a.example.pem", SOON.bundle)
    world.server.prepare(world.server.service)()
    expires = f"{SOON.certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
    with LogCatcher() as log:
        world.watch.start()
        assert not log.named("certificate-expires")
        for _ in range(21):
            for _ in range(12):
                world.clock.advance(7200)
    events = log.named("certificate-expires")
    assert [event["days"] for event in events] == [*range(19, -2, -1)]
    first = events[0]
    assert (first["file"], first["expires"], first["count"]) == ("/c/a.example.pem", expires, 1)


def test_a_service_that_comes_with_an_old_certificate() -> None:
    """Is warned of when it comes."""
    world = _World()
    world.watch.start()
    world.look(3)
    world.files.put("/c/soon", SOON.bundle)
    world.others.append(ServerTls(service_of("upper 8/tcp tls_cert=/c/soon"), world.files, world.wall))
    with LogCatcher() as log:
        world.watch.check_now()
    assert [event["service"] for event in log.named("certificate-expires")] == ["upper/tcp"]


def test_session_tickets_get_new_keys() -> None:
    """Twice a day, so that an old ticket's key opens no more than half a day of TLS 1.2."""
    world = _World()
    world.watch.start()
    contexts = set()
    for _ in range(48):
        world.clock.advance(3600)
        contexts.add(world.server.serverConnectionForTLS(None).get_context())
    assert len(contexts) == 5


def test_without_tls_nobody_is_woken() -> None:
    """The watch begins with the first service that has TLS, after a reload perhaps, and rests after the last."""
    world = _World()
    world.served = False
    world.watch.start()
    assert not world.clock.getDelayedCalls()
    world.served = True
    world.watch.check_now()
    world.watch.check_now()
    assert len(world.clock.getDelayedCalls()) == 1
    world.served = False
    world.look()
    assert not world.clock.getDelayedCalls()
    world.watch.stop()


def test_a_revocation_list_expires_as_certificates_do() -> None:
    """The log warns each day, from tls_warn on or in the last third of its life, and of none that has no end."""
    world = _World("tls_cert=/c/a tls_key=/c/b tls_client_ca=/c/ca tls_crl=/c/crl")
    until = CA.now + timedelta(days=30)
    with LogCatcher() as log:
        world.watch.start()
        for _ in range(32 * 12):
            world.clock.advance(7200)
    events = log.named("certificate-expires")
    # It lives for 31 days.
    assert [event["days"] for event in events] == [*range(10, -3, -1)]
    assert {(event["file"], event["expires"]) for event in events} == {("/c/crl", f"{until:%Y-%m-%dT%H:%M:%SZ}")}
    world = _World("tls_cert=/c/a tls_key=/c/b tls_client_ca=/c/ca tls_crl=/c/crl tls_warn=2d")
    world.clock.advance(27 * 86_400)
    assert world.server.expiring == []
    world.clock.advance(86_401)
    assert [held.file for held in world.server.expiring] == ["/c/crl"]
