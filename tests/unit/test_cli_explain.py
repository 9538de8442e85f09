"""svcctl explain: what would happen to whom, by the file alone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from svcd.access.rules import AccessRules
from svcd.addresses import address_number
from svcd.cli import main
from svcd.cli.explain import explanation, moment_of, services_named
from svcd.connections.access_rules import rules_of
from svcd.errors import UsageError
from tests.doubles import config_of, service_of

if TYPE_CHECKING:
    from pathlib import Path

_NOON = "2026-01-05T12:00+00:00"


def _nobody(_address: str) -> None:
    """No name server."""


def test_an_open_service() -> None:
    """Nothing is asked, and that is said."""
    assert explanation(service_of("echo 7/tcp access_zone=UTC"), "192.0.2.1", _NOON) == (
        True,
        [
            "a connection to echo/tcp from 192.0.2.1, Mon 2026-01-05 12:00 UTC:",
            "  address  passes  no rule restricts addresses",
            "admitted",
        ],
    )


def test_a_refusal_ends_the_explanation_with_its_rule() -> None:
    """With its place in the file."""
    service = service_of("echo 7/tcp only_from=10.0.0.0/8 access_times=8:00-9:00 access_zone=UTC instances=5")
    admitted, lines = explanation(service, "10.1.2.3", _NOON)
    assert not admitted
    assert lines[1:] == [
        "  address  passes   only_from=10.0.0.0/8 admits it  s:1:22",
        "  time     refuses  the local time is 12:00         access_times=8:00-9:00 (s:1:46)",
        "refused: time, by access_times=8:00-9:00 (s:1:46)",
    ]


def test_what_only_the_moment_decides() -> None:
    """Counts, rates and another day's load are named, and the client counts as admitted."""
    service = service_of("echo 7/tcp max_load=5 rate=1/s per_source=2 server=/bin/cat")
    admitted, lines = explanation(service, "[2001:db8::1]", _NOON)
    assert admitted
    assert lines[-1] == "admitted, depending on: load, instances, per_source, rate"
    assert any(line.endswith(" instances=64 (the default)") for line in lines)


def test_now_the_load_is_known() -> None:
    """And decides."""
    _, lines = explanation(service_of("echo 7/tcp max_load=9999"), "192.0.2.1", None)
    assert any(re.search(r"load +passes +the load average is [0-9.]+ ", line) for line in lines)


@pytest.mark.parametrize(
    ("name", "admitted", "last"),
    [
        ("a.example", True, "admitted"),
        ("bad.example", False, "refused: name, by no_access=bad.example (s:1:41)"),
        (None, False, "refused: name, by only_from=.example (s:1:22)"),
    ],
)
def test_a_name_is_looked_up_where_it_matters(name: str | None, admitted: bool, last: str) -> None:
    """By the system, and confirmed."""
    asked = []

    def host_of(address: str) -> str | None:
        asked.append(address)
        return name

    service = service_of("echo 7/tcp only_from=.example no_access=bad.example")
    found, lines = explanation(service, "::ffff:192.0.2.1", _NOON, host_of)
    assert (found, lines[-1], asked) == (admitted, last, ["192.0.2.1"])
    explanation(service_of("echo 7/tcp only_from=192.0.2.1,.example"), "192.0.2.1", _NOON, host_of)
    assert len(asked) == 1


def test_a_datagram_waits_for_no_name() -> None:
    """As in the daemon; and it must come from somebody."""
    admitted, lines = explanation(service_of("echo 7/udp only_from=.example"), "192.0.2.1", _NOON, _nobody)
    assert (admitted, lines[0][:24]) == (False, "a datagram to echo/udp f")
    asked = []

    def addresses_of(name: str) -> frozenset[int]:
        asked.append(name)
        if name == "gone.example":
            raise OSError
        return frozenset({address_number("192.0.2.1")})

    for line, wanted in (
        ("only_from=a.example", True),
        ("no_access=a.example", False),
        ("only_from=gone.example", False),
    ):
        admitted, lines = explanation(service_of(f"echo 7/udp {line}"), "192.0.2.1", _NOON, _nobody, addresses_of)
        assert (admitted, line in "".join(lines)) == (wanted, "gone" not in line)
    assert asked == ["a.example", "a.example", "gone.example"]
    _, lines = explanation(service_of("echo 7/udp"), "224.0.0.1", _NOON)
    assert lines[-1] == "refused: address, it is not a unicast address"


def test_a_unix_sockets_client() -> None:
    """It has no address, so lists admit it only if there is no only_from."""
    assert explanation(service_of("echo /e/unix no_access=0.0.0.0"), "local", _NOON)[0]
    assert not explanation(service_of("echo /e/unix only_from=0.0.0.0"), "local", _NOON)[0]


def test_a_proxy_and_whom_it_brings() -> None:
    """Of the proxy all depends on its header; the client in that is asked as any other, at a UNIX socket, too."""
    service = service_of("echo 7/tcp proxy_protocol=::1,127.0.0.0/8 only_from=192.0.2.0/24")
    admitted, lines = explanation(service, "127.0.0.3", _NOON)
    assert not admitted
    assert lines[1].startswith("  proxy    depends  on the client in its PROXY header; ")
    assert lines[-1].startswith("if its PROXY header has no client: refused: address")
    assert lines[1].endswith("  proxy_protocol=127.0.0.0/8 (s:1:31)")
    assert len(explanation(service, "192.0.2.1", _NOON)[1]) == 3
    local = service_of("echo /e/unix proxy_protocol=local only_from=192.0.2.0/24")
    assert explanation(local, "192.0.2.1", _NOON)[0]
    anybody = service_of("echo 7/tcp proxy_protocol=::1")
    assert explanation(anybody, "::1", _NOON)[1][-1] == "if its PROXY header has no client: admitted"
    assert not explanation(local, "192.0.3.1", _NOON)[0]
    assert "proxy_protocol=local" in explanation(local, "local", _NOON)[1][1]


@pytest.mark.parametrize(
    ("where", "address"),
    [("7/tcp", "local"), ("7/tcp", "localhost"), ("7/tcp", ""), ("7/tcp", "1.2.3"), ("/e/unix", "192.0.2.1")],
)
def test_what_is_no_address(where: str, address: str) -> None:
    """The error says what one is."""
    with pytest.raises(UsageError, match="address"):
        explanation(service_of(f"echo {where}"), address, None)


@pytest.mark.parametrize("text", ["", "noon", "25:00", "12:60", "2026-13-01", "9999-12-31T23:59-12:00"])
def test_what_is_no_time(text: str) -> None:
    """The error says what one is."""
    with pytest.raises(UsageError, match="--at takes a time such as 18:30"):
        moment_of(text, AccessRules())


def test_a_time_is_read_from_the_services_clock() -> None:
    """Unless it says its zone itself."""
    rules = rules_of(service_of("echo 7/tcp access_zone=Europe/Berlin"))
    assert moment_of("2026-01-05T13:00", rules) == moment_of(_NOON, rules) == 1_767_614_400
    assert moment_of("0:30", rules) % 86_400 in (84_600, 81_000)


def test_services_by_name() -> None:
    """One of them, all of a name that are enabled, or an error that helps."""
    config = config_of("echo 7/tcp\necho 7/udp\nupper 8/tcp disable=yes")
    assert [service.id for service in services_named(config, "echo")] == ["echo/tcp", "echo/udp"]
    assert [service.id for service in services_named(config, "echo/udp")] == ["echo/udp"]
    with pytest.raises(UsageError, match=r"no service 'ecoh' \(did you mean 'echo'\?\)"):
        services_named(config, "ecoh")
    with pytest.raises(UsageError, match=r"upper/tcp is disabled \(s:3:21\)"):
        services_named(config, "upper")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 for who is admitted, 1 for who is refused, 64 and 78 for mistakes."""
    path = tmp_path / "services"
    path.write_text("@defaults bind=127.0.0.1\necho 7/tcp no_access=10.0.0.1\necho 7/udp\n")

    def run(*words: str) -> tuple[int, str, str]:
        status = main(["explain", "--services", str(path), *words])
        said = capsys.readouterr()
        first, _, rest = said.err.partition("\n")
        assert first == f"svcctl explain: {path}"
        return status, said.out, rest

    assert run("echo/tcp", "10.0.0.2")[0] == 0
    status, out, err = run("echo", "10.0.0.1")
    assert (status, err) == (1, "")
    assert len(out.split("\n\n")) == 2
    assert f"refused: address, by no_access=10.0.0.1 ({path}:2:22)" in out
    assert run("nosuch", "10.0.0.1") == (
        64,
        "",
        "svcctl explain: the file has no service 'nosuch'; svcctl names lists the services\n",
    )
    path.write_text("echo 7/tcp no_access=10.0.0.300\n")
    status, out, err = run("echo", "10.0.0.1")
    assert (status, out) == (78, "")
    assert err.startswith(f"{path}:1:22: no_access takes ")


def test_a_certificate_has_the_last_word() -> None:
    """Who is admitted is told of it."""
    service = service_of("echo 7/tcp tls_cert=/c tls_client_ca=/ca tls_client_names=a@example.org no_access=192.0.2.2")
    assert explanation(service, "192.0.2.1", _NOON)[1][-2:] == [
        "admitted",
        "over TLS it needs a client certificate: tls_client_ca=/ca tls_client_names=a@example.org",
    ]
    assert explanation(service, "192.0.2.2", _NOON)[1][-1].startswith("refused")
    service = service_of("echo 7/tcp tls_cert=/c tls_client_ca=/ca tls_client=optional tls_crl=/crl")
    assert explanation(service, "192.0.2.1", _NOON)[1][-1] == (
        "over TLS it may send a client certificate, which must be valid: tls_client_ca=/ca tls_crl=/crl"
    )
