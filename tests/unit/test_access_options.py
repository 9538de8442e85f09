"""Access options: their problems, and the rules made from them."""

from __future__ import annotations

from zoneinfo import ZoneInfo

import pytest

from svcd.access.types import PrefixLengths, Rate, TimeRange
from svcd.config.endpoints import check
from svcd.connections.access_rules import rules_of
from svcd.host.info import Host
from svcd.model import SourceLocation
from tests.doubles import FakeFiles, FakeMachine, config_of, problems_of, service_of


def _problems(text: str, files: FakeFiles | None = None) -> list[str]:
    return [str(problem) for problem in check(config_of(text), files or FakeFiles(), FakeMachine())[1]]


def test_admission_without_options_is_open() -> None:
    """A built-in without options restricts no connection."""
    rules = rules_of(service_of("echo 7/tcp"))
    assert not rules.has_address_lists
    assert (rules.access_times, rules.zone, rules.max_load) == ((), None, None)
    assert (rules.instances, rules.per_source, rules.rate, rules.per_source_rate) == (None, None, None, None)


@pytest.mark.parametrize(
    ("line", "instances", "source_rate"),
    [
        ("x 7/tcp server=/bin/cat", 64, None),
        ("x 7/tcp python=a:b", 64, None),
        ("x 7/tcp server=/bin/cat instances=none", None, None),
        ("x 7/tcp server=/bin/cat instances=3", 3, None),
        ("x 7/udp server=/bin/cat wait=yes", 64, None),
        ("echo 7/tcp per_source_rate=5/m", None, Rate(5, 60)),
        ("echo 7/udp", None, Rate(1000, 1)),
        ("echo 7/udp per_source_rate=none", None, None),
        ("echo 7/udp per_source_rate=5/m", None, Rate(5, 60)),
        ("echo /e/unixgram", None, None),
    ],
)
def test_protective_defaults(line: str, instances: int | None, source_rate: Rate | None) -> None:
    """A spawned service has 64 processes, a service over UDP 1000 answers per second and source; none lifts both."""
    rules = rules_of(service_of(line))
    assert (rules.instances, rules.per_source_rate) == (instances, source_rate)


def test_every_option_is_a_rule() -> None:
    """Each rule has the value and the location of its option."""
    rules = rules_of(
        service_of(
            "echo 7/tcp only_from=10.0.0.0/8 no_access=10.0.0.1 access_times=8:00-18:00 access_zone=UTC max_load=2.5 "
            "instances=9 per_source=3 per_source_prefix=/24,/48 rate=10/s per_source_rate=2/s rate_burst=4"
        )
    )
    assert [str(source) for source in rules.only_from or ()] == ["10.0.0.0/8"]
    assert [str(source) for source in rules.no_access] == ["10.0.0.1"]
    assert (rules.access_times, rules.zone) == ((TimeRange(480, 1080),), ZoneInfo("UTC"))
    assert (rules.max_load, rules.instances, rules.per_source) == (2.5, 9, 3)
    assert (rules.per_source_prefix, rules.rate, rules.per_source_rate) == (
        PrefixLengths(24, 48),
        Rate(10, 1),
        Rate(2, 1),
    )
    assert rules.rate_burst == 4
    assert rules.locations["only_from"] == SourceLocation("s", 1, 22)


def test_rule_from_defaults_has_its_location() -> None:
    """The rule of a value in @defaults has the location in @defaults."""
    config = config_of("@defaults only_from=10.0.0.0/8,.example\necho 7/tcp")
    (_, (_, name)) = rules_of(config.services[0]).entries("only_from")
    assert name.location == SourceLocation("s", 1, 32)


def test_invalid_value_is_reported_with_what_is_accepted() -> None:
    """The problem has the location of the value and the accepted values."""
    (problem,) = problems_of("echo 7/tcp rate=10")
    assert problem == "s:1:17: rate takes a number per second, minute or hour: 10/s, 100/m, 1000/h; or none, not '10'"


def test_a_time_zone_must_be_known() -> None:
    """The check looks the zone up on the machine."""
    assert _problems("echo 7/tcp access_zone=Europe/Berlin") == []
    (problem,) = _problems("echo 7/tcp access_zone=Mars/Olympus")
    assert problem.startswith("s:1:24: access_zone: no time zone 'Mars/Olympus' on this machine; ")


@pytest.mark.parametrize(
    ("name", "known"), [("UTC", True), ("America", False), ("No/Where", False), ("x" * 300, False)]
)
def test_the_machines_time_zones(name: str, known: bool) -> None:
    """Directories and invalid names of the time zone database are no zones."""
    assert Host().has_zone(name) is known


@pytest.mark.parametrize("option", ["banner", "banner_success", "banner_fail"])
def test_banner_must_exist_and_be_short(option: str) -> None:
    """A banner has at most 64 KiB, and 16 KiB if it must fit in the buffer of a new socket."""
    files = FakeFiles({"/16": b"x" * 16_384, "/17": b"x" * 16_385, "/64": b"x" * 65_536, "/65": b"x" * 65_537})
    column = len(f"echo 7/tcp {option}=") + 1
    assert _problems(f"echo 7/tcp {option}=/64", files) == []
    assert _problems(f"echo 7/tcp {option}=/65", files) == [
        f"s:1:{column}: {option}: /65 has 65537 bytes; a banner of echo/tcp has at most 65536"
    ]
    assert _problems(f"echo 7/tcp {option}=/no", files) == [
        f"s:1:{column}: {option}: can't read /no: No such file or directory"
    ]
    assert _problems(f"echo 7/tcp server=/bin/cat {option}=/16", files) == []
    for line in ("echo 7/tcp server=/bin/cat", "tcpmux 1/tcp"):
        (problem,) = _problems(f"{line} {option}=/17", files)
        assert problem.endswith("/tcp has at most 16384")


@pytest.mark.parametrize(
    "word", ["only_from=10.0.0.1", "no_access=10.0.0.1", "per_source=3", "per_source_rate=1/s", "proxy_protocol=::1"]
)
def test_access_options_contradict_wait(word: str) -> None:
    """With wait=yes svcd can't check clients, so access options on the line are mistakes."""
    line = f"x 7/tcp server=/bin/cat wait=yes {word}"
    (problem,) = _problems(line)
    assert problem.endswith(
        "with wait=yes the process accepts the connections, and svcd can't check its clients; remove one of the two"
    )


def test_defaults_of_access_options_with_wait() -> None:
    """Defaults that a line with wait=yes can't have give warnings, unless the line unsets them."""
    defaults = "@defaults proxy_protocol=10.0.0.1 per_source=3\n"
    found = problems_of(f"{defaults}x 7/tcp server=/bin/cat wait=yes")
    assert [problem.split(": ")[1] for problem in found] == ["warning", "warning"]
    assert _problems(f"{defaults}x 7/tcp server=/bin/cat wait=yes proxy_protocol=none per_source=none") == []


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("echo 7/tcp proxy_protocol=local", "local is for UNIX sockets; use the addresses of the proxies"),
        ("echo /run/e/unix proxy_protocol=::1", "clients of a UNIX socket have no address; use local"),
    ],
)
def test_proxies_that_can_not_connect(line: str, text: str) -> None:
    """A line with proxies that can't connect is a mistake; proxies in @defaults are for several services."""
    (problem,) = _problems(line)
    assert problem.endswith(f": proxy_protocol: {text}")
    assert _problems(line + ",local,10.0.0.0/8") == []
    where, option = line.rsplit(" ", 1)
    assert _problems(f"@defaults {option}\n{where}") == []


def test_wait_over_udp_can_have_access_options() -> None:
    """A datagram has its sender, so access options apply with wait=yes."""
    assert _problems("x 7/udp server=/bin/cat wait=yes only_from=10.0.0.1 rate=1/s") == []
