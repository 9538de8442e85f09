"""Certificates in a real daemon: selection by name, client certificates, and replacement."""

from __future__ import annotations

import ctypes
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from tests.certificates import Authority, Signed
from tests.real.clients import run
from tests.real.daemon import PATIENCE, environment, exchange, fields

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tests.real.daemon import Daemon

CA, CLIENTS, OTHERS = Authority(), Authority("Clients"), Authority("Others")
SERVER = CA.sign("localhost", "127.0.0.1")
#: Pattern of the answer of daytime.
DATE = re.compile(r"[A-Z][a-z]{2} [A-Z][a-z]{2} [ 0-9]{2} [0-9:]{8} 2[0-9]{3}")


def _put(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files that other users can't read."""
    for name, content in contents.items():
        path = folder / name
        path.touch(0o600)
        path.write_bytes(content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a directory with the certificates of the server and of the authorities."""
    _put(tmp_path, {"ca": CA.pem, "server": SERVER.bundle, "clients": CLIENTS.pem})
    return tmp_path


@pytest.fixture
def ask(program: Callable[[str], str], folder: Path) -> Callable[..., str]:
    """Run openssl s_client, which trusts CA, with a service; return the answer, or the error."""
    openssl, count = program("openssl"), iter(range(100))

    def asker(daemon: Daemon, service: str, *words: str, certificate: Signed | None = None) -> str:
        more = list(words)
        if certificate is not None:
            name = f"client-{next(count)}"
            _put(folder, {name: certificate.bundle})
            more += ["-cert", str(folder / name)]
        address = f"127.0.0.1:{daemon.port(service)}"
        trust = ["-CAfile", str(folder / "ca"), "-verify_return_error", "-quiet"]
        return run(openssl, "s_client", "-connect", address, *trust, *more).decode(errors="replace")

    return asker


def test_versions_of_tls(start: Callable[..., Daemon], ask: Callable[..., str], folder: Path) -> None:
    """openssl s_client gets its answer with TLS 1.2 and 1.3, not with older ones; with tls_min=1.3 only with 1.3."""
    secure = f"tls_cert={folder}/server"
    daemon = start(f"@defaults bind=127.0.0.1\ndaytime 0/tcp {secure}\nnew 0/tcp daytime {secure} tls_min=1.3\n")
    old = ["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"]
    for service, words, answered in [
        ("daytime/tcp", ["-tls1_3"], True),
        ("daytime/tcp", ["-tls1_2"], True),
        ("daytime/tcp", old, False),
        ("new/tcp", ["-tls1_3"], True),
        ("new/tcp", ["-tls1_2"], False),
    ]:
        said = ask(daemon, service, *words)
        assert bool(DATE.search(said)) is answered, said
        assert ("alert protocol version" in said) is not answered, said


def test_names(start: Callable[..., Daemon], ask: Callable[..., str], folder: Path) -> None:
    """A client gets the certificate of the requested name, of a wildcard, the default, or none."""
    sni = folder / "sni"
    sni.mkdir()
    _put(
        sni, {"one.example.pem": CA.sign("one.example").bundle, "_.many.example.pem": CA.sign("*.many.example").bundle}
    )
    names = f"tls_sni={sni}"
    daemon = start(
        f"@defaults bind=127.0.0.1\ndaytime 0/tcp tls_cert={folder}/server {names}\n"
        f"strict 0/tcp daytime {names} tls_unknown_name=refuse\n"
    )
    for asked, shown in {"one.example": "one.example", "a.many.example": "*.many.example", "x": "localhost"}.items():
        said = ask(daemon, "daytime/tcp", "-servername", asked)
        assert DATE.search(said)
        assert re.search(rf"depth=0 CN ?= ?{re.escape(shown)}\n", said)
    assert DATE.search(ask(daemon, "strict/tcp", "-servername", "ONE.example"))
    for words in (["-servername", "two.example"], ["-noservername"]):
        assert "unrecognized name" in ask(daemon, "strict/tcp", *words)


def test_client_certificates(start: Callable[..., Daemon], ask: Callable[..., str], folder: Path) -> None:
    """Clients need a certificate of the right authority and name that is not revoked; optionally none."""
    anna, bob, gone = (CLIENTS.sign(f"{name}.example.org") for name in ("anna", "bob", "gone"))
    CLIENTS.revoke(gone)
    _put(folder, {"crl": CLIENTS.crl()})
    secure = f"tls_cert={folder}/server tls_client_ca={folder}/clients"
    daemon = start(
        f"@defaults bind=127.0.0.1\ndaytime 0/tcp {secure} tls_crl={folder}/crl\n"
        f"named 0/tcp daytime {secure} tls_client_names=anna.example.org\n"
        f"open 0/tcp daytime {secure} tls_client=optional\n"
    )
    for service, certificate, refused in [
        ("daytime/tcp", anna, ""),
        ("daytime/tcp", None, "certificate required"),
        ("daytime/tcp", OTHERS.sign("anna.example.org"), "unknown ca"),
        ("daytime/tcp", gone, "certificate revoked"),
        ("named/tcp", anna, ""),
        ("open/tcp", bob, ""),
        ("open/tcp", None, ""),
        ("open/tcp", OTHERS.sign("eve.example.org"), "unknown ca"),
    ]:
        said = ask(daemon, service, certificate=certificate)
        assert bool(DATE.search(said)) is (refused == ""), said
        assert refused in said, said
    assert not DATE.search(ask(daemon, "named/tcp", certificate=bob))


def _serial(port: int, context: ssl.SSLContext) -> int:
    """Return the serial number of the certificate of a new connection, which is served."""
    with (
        socket.create_connection(("127.0.0.1", port), PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        found = client.getpeercert()
        assert found is not None
        return int(str(found["serialNumber"]), 16)


class _Crowd:
    """Threads of clients that connect repeatedly and record the serial numbers or the errors."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self.serials: list[int] = []
        self.errors: list[OSError] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._come, args=(port, context)) for _ in range(3)]
        for thread in self._threads:
            thread.start()

    def _come(self, port: int, context: ssl.SSLContext) -> None:
        while not self._over.is_set():
            try:
                self.serials.append(_serial(port, context))
            except OSError as error:
                self.errors.append(error)

    def leave(self) -> None:
        """Stop the clients."""
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)


@pytest.mark.load
@pytest.mark.parametrize("reactor", ["uv", "epoll"])
def test_certificates_change_while_clients_come(start: Callable[..., Daemon], folder: Path, reactor: str) -> None:
    """In twenty changes no client fails, and each client after a change gets the new certificate.

    Half of the changes replace files, the others replace links, as certbot does.
    """
    (folder / "live").symlink_to(folder / "server")
    text = f"echo 0/tcp bind=127.0.0.1 tls_cert={folder}/live\n"
    daemon = start(text, twistd_arguments=["--reactor", reactor])
    port = daemon.port("echo/tcp")
    context = ssl.create_default_context(cafile=str(folder / "ca"))
    crowd = _Crowd(port, context)
    used = [SERVER]
    try:
        for number in range(20):
            used.append(CA.sign("localhost"))
            _put(folder, {f"new-{number}": used[-1].bundle})
            if number % 2:
                (folder / "link").symlink_to(folder / f"new-{number}")
                (folder / "link").replace(folder / "live")
            else:
                (folder / f"new-{number}").replace((folder / "live").resolve())
            daemon.process.send_signal(signal.SIGHUP)
            daemon.wait_event("certificate", "echo/tcp", number + 1)
            assert _serial(port, context) == used[-1].certificate.serial_number
    finally:
        crowd.leave()
    assert not crowd.errors
    assert len(set(crowd.serials)) > 10
    assert set(crowd.serials) <= {each.certificate.serial_number for each in used}


def test_bad_certificate_changes_nothing(start: Callable[..., Daemon], folder: Path) -> None:
    """A reload with an unusable certificate has the reason, and the service goes on with the old one."""
    daemon = start(f"echo 0/tcp bind=127.0.0.1 tls_cert={folder}/server\n")
    (folder / "server").write_bytes(CA.sign("localhost").pem)
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for(lambda line: " reload added=0 " in line)
    (line,) = daemon.wait_for(lambda line: " problem " in line)
    assert f"tls_cert: can't use {folder}/server: there is no private key in it" in fields(line)["text"]
    context = ssl.create_default_context(cafile=str(folder / "ca"))
    assert _serial(daemon.port("echo/tcp"), context) == SERVER.certificate.serial_number


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
def test_key_that_only_root_can_read(start: Callable[..., Daemon], open_folder: Path) -> None:
    """It is read before root is given up; the log warns that it can't be read again, and it stays in use."""
    _put(open_folder, {"server": SERVER.pem, "key": SERVER.key_pem})
    (open_folder / "server").chmod(0o644)
    services = open_folder / "services"
    text = f"echo 0/tcp bind=127.0.0.1 tls_cert={open_folder}/server tls_key={open_folder}/key\n"
    services.write_text(text)
    daemon = start(None, "--services", str(services), twistd_arguments=["--uid", "nobody"])
    (line,) = daemon.wait_for(lambda line: " problem " in line)
    assert fields(line)["text"] == (
        f"{open_folder}/key can't be read again (Permission denied): the certificate in use stays until a "
        "restart; make the file readable for the user that svcd runs as, or restart svcd after a renewal"
    )
    newer = CA.sign("localhost")
    _put(open_folder, {"server": newer.pem, "key": newer.key_pem})
    # Other changes are possible nevertheless.
    services.write_text(f"{text}upper 0/tcp bind=127.0.0.1\n")
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for(lambda line: " reload added=1 " in line)
    daemon.wait_for(lambda line: " problem " in line, 2)
    context = ssl.create_default_context(cadata=CA.pem.decode())
    assert _serial(daemon.port("echo/tcp"), context) == SERVER.certificate.serial_number


#: prctl(2) PR_SET_MDWE, and PR_MDWE_REFUSE_EXEC_GAIN.
_SET_MDWE, _REFUSE_EXEC_GAIN = 65, 1


def test_memory_deny_write_execute(start: Callable[..., Daemon], ask: Callable[..., str], folder: Path) -> None:
    """Selection by name, ALPN and client certificates work under MemoryDenyWriteExecute= of the installed unit."""
    prctl = ctypes.CDLL(None).prctl

    def deny() -> None:
        # Kernels before 6.3 do not have it: there the test passes without a check.
        prctl(_SET_MDWE, _REFUSE_EXEC_GAIN, 0, 0, 0)

    sni = folder / "sni"
    sni.mkdir()
    _put(sni, {"one.example.pem": CA.sign("one.example").bundle})
    options = f"tls_cert={folder}/server tls_sni={sni} tls_alpn=x,y tls_client_ca={folder}/clients"
    daemon = start(f"daytime 0/tcp bind=127.0.0.1 {options}\n", preexec_fn=deny)
    words = ["-servername", "one.example", "-alpn", "y"]
    said = ask(daemon, "daytime/tcp", *words, certificate=CLIENTS.sign("anna.example.org"))
    assert DATE.search(said), said
    assert re.search(r"depth=0 CN ?= ?one.example\n", said)


def test_expiring_certificates_are_reported(start: Callable[..., Daemon], folder: Path) -> None:
    """The log, svcctl and the metrics have file and time, also of expired certificates, which are served."""
    soon = CA.sign("localhost", expires=CA.now + timedelta(days=10, hours=1))
    _put(folder, {"soon": soon.bundle, "past": CA.sign("localhost", expires=CA.now - timedelta(hours=1)).bundle})
    control = folder / "control"
    text = f"@defaults bind=127.0.0.1 tls_cert={folder}/soon\necho 0/tcp\nlate 0/tcp echo tls_warn=10d\n"
    text += f"past 0/tcp echo tls_cert={folder}/past\n"
    daemon = start(f"{text}status 0/tcp tls_cert=none\n", "--control", str(control))
    (warning,) = daemon.wait_event("certificate-expires", "echo/tcp")
    assert (warning["file"], warning["days"], warning["count"]) == (f"{folder}/soon", "10", "1")
    (warning,) = daemon.wait_event("certificate-expires", "past/tcp")
    assert warning["days"] == "-1"
    command = [sys.executable, "-m", "svcd", "--control", str(control), "status"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    told = [line for line in done.stdout.splitlines() if "expire" in line]
    assert told == [f"echo/tcp: {folder}/soon expires in 10 days", f"past/tcp: {folder}/past has expired"]
    runs = re.findall(r"^(\w+)/tcp .*?(\w+(?: over TLS)?)$", done.stdout, re.MULTILINE)
    assert dict(runs) == dict.fromkeys(("echo", "late", "past"), "echo over TLS") | {"status": "status"}
    request = b"GET /metrics HTTP/1.0\r\n\r\n"
    metrics = exchange(daemon.connect("status/tcp"), request).decode()
    when = soon.certificate.not_valid_after_utc.timestamp()
    for service in ("echo/tcp", "late/tcp"):
        found = re.search(rf'svcd_tls_certificate_expiry_seconds{{service="{service}"}} (\S+)\n', metrics)
        assert found is not None
        assert float(found[1]) == when
    assert 'expiry_seconds{service="status/tcp"}' not in metrics
    assert "certificate-expires service=late/tcp" not in "\n".join(daemon.lines)


def test_check_reports_unusable_certificates(folder: Path) -> None:
    """`svcctl check` names the file, the place and the remedy, and exits by 1, as for other faults."""
    exposed = folder / "server"
    exposed.chmod(0o644)
    services = folder / "services"
    services.write_text(f"echo 7/tcp tls_cert={exposed}\ntime 37/tcp tls_cert={folder}/none\n")
    words = [sys.executable, "-m", "svcd", "check", str(services)]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    why = f"{exposed} contains a private key, and all users can read or change it; run chmod o= {exposed}"
    assert done.stderr.splitlines()[1:] == [
        f"{services}:1:21: tls_cert: {why}",
        f"{services}:2:22: tls_cert: can't read {folder}/none: No such file or directory",
        "svcctl check: the machine can't serve echo/tcp, time/tcp at the moment",
    ]


def test_mozilla_profile(start: Callable[..., Daemon], program: Callable[[str], str], folder: Path) -> None:
    """sslyze confirms Mozilla's intermediate profile."""
    sslyze = program("sslyze")
    daemon = start(f"echo 0/tcp bind=127.0.0.1 tls_cert={folder}/server\n")
    address = f"localhost:{daemon.port('echo/tcp')}"
    said = run(sslyze, "--mozilla_config=intermediate", f"--certinfo_ca_file={folder}/ca", address).decode()
    assert "OK - Compliant." in said, said
