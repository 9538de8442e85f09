"""Checks of a whole file and against the machine."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from svcd.config.endpoints import DesiredServices, Endpoint, check
from svcd.config_loader import listing, load_config
from svcd.errors import ConfigError
from svcd.model import Severity
from tests.certificates import Authority
from tests.doubles import FakeFiles, FakeMachine, config_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from svcd.model import RunAs

NAMES = {
    "eth0": ["192.0.2.7", "2001:db8::7"],
    "six": ["2001:db8::6"],
    "link": ["fe80::1%eth0"],
    "same": ["192.0.2.7"],
}


def _addresses(text: str, machine: FakeMachine | None = None) -> list[str]:
    endpoints, problems = check(config_of(text), FakeFiles(), machine or FakeMachine(names=NAMES))
    assert not problems, problems
    return [endpoint.address for endpoint in endpoints]


def _loaded(
    path: str | None, files: FakeFiles, *, port_offset: int = 0, machine: FakeMachine | None = None
) -> list[Endpoint]:
    """Return the endpoints of a file in which no service has a fault."""
    loaded = load_config(path, files, port_offset=port_offset, machine=machine or FakeMachine())
    if loaded.faults:
        raise ConfigError(loaded.faults)
    return loaded.endpoints


def _problems(text: str, machine: FakeMachine | None = None, files: FakeFiles | None = None) -> list[str]:
    found = check(config_of(text), files or FakeFiles(), machine or FakeMachine(names=NAMES))[1]
    return list(map(str, found))


@pytest.mark.parametrize(
    ("line", "addresses"),
    [
        ("echo 7/tcp", ["0.0.0.0:7", "[::]:7"]),
        ("echo 7/udp4", ["0.0.0.0:7"]),
        ("echo 7/tcp6", ["[::]:7"]),
        ("echo 7/tcp6 v6only=no", ["[::]:7"]),
        ("echo /run/e/unix", ["/run/e"]),
        ("echo 7/tcp bind=127.0.0.1", ["127.0.0.1:7"]),
        ("echo 7/tcp bind=127.0.0.1,::1,127.0.0.1", ["127.0.0.1:7", "[::1]:7"]),
        ("echo 7/tcp bind=eth0", ["192.0.2.7:7", "[2001:db8::7]:7"]),
        ("echo 7/udp6 bind=eth0", ["[2001:db8::7]:7"]),
        ("echo 7/tcp bind=link", ["[fe80::1%eth0]:7"]),
        ("echo 7/tcp disable=yes bind=nowhere", []),
    ],
)
def test_endpoints_of_a_service(line: str, addresses: list[str]) -> None:
    """A service has one endpoint for each version of IP, each address of bind=, or the path."""
    assert _addresses(line) == addresses


def test_missing_ip_version_is_left_out() -> None:
    """tcp listens on the versions of IP that the machine has, with and without bind=."""
    assert _addresses("echo 7/tcp\nupper 8/tcp bind=127.0.0.1,::1", FakeMachine(families=frozenset({4}))) == [
        "0.0.0.0:7",
        "127.0.0.1:8",
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("echo 7/tcp6", "s:1:1: this machine has no IPv6; use another protocol than tcp6"),
        ("echo 7/tcp bind=::1", "s:1:17: bind: this machine does not support the IP version of these addresses"),
    ],
)
def test_required_ip_version_is_missing(line: str, problem: str) -> None:
    """A service without any endpoint has a problem."""
    assert _problems(line, FakeMachine(families=frozenset({4}))) == [problem]


def test_a_machine_without_any_ip() -> None:
    """A service with a port requires a version of IP."""
    assert _problems("echo 7/tcp", FakeMachine(families=frozenset())) == [
        "s:1:1: this machine has no IPv4; use another protocol than tcp"
    ]


ROWS = [
    # Names.
    ("e @a/unix echo mode=0600", ["s:1:21: mode: @a has no file and no permissions; remove it"]),
    ("e @a/unixgram echo owner=root", ["s:1:26: owner: @a has no file and no permissions; remove it"]),
    ("e @a/unix echo group=adm", ["s:1:22: group: @a has no file and no permissions; remove it"]),
    ("@defaults mode=0600 owner=root\ne @a/unix server=/bin/cat group=adm", []),
    ("e @a/unix echo\nf @a/unixgram echo", ["s:2:1: @a is taken by e/unix at s:1:1; change one of the two"]),
    ("echo 7/tcp id=a\necho 8/tcp id=b\necho 9/tcp", []),
    ("echo 7/tcp id=upper\nupper 8/tcp",
     ["s:2:1: upper/tcp is already defined at s:1:1; give one of them another id=NAME, or remove it"]),
    ("echo 7/tcp\necho 8/tcp", [("s:2:1: echo/tcp is already defined at s:1:1; give one of them another "
                                 "id=NAME, or remove it")]),
    ("echo 7/tcp\necho 7/udp", []),
    ("echo 7/tcp\necho 8/tcp disable=yes", []),
    # Addresses.
    ("echo 7/tcp4\nupper 7/tcp4", ["s:2:1: 0.0.0.0:7 is taken by echo/tcp4 at s:1:1; change one of the two"]),
    ("echo 7/tcp\nupper 7/tcp4", ["s:2:1: 0.0.0.0:7 is taken by echo/tcp at s:1:1; change one of the two"]),
    ("echo 7/tcp\nupper 7/tcp6", ["s:2:1: [::]:7 is taken by echo/tcp at s:1:1; change one of the two"]),
    ("echo 7/tcp4\nupper 7/tcp6", []),
    ("echo 7/tcp\ndiscard 7/udp", []),
    ("echo 7/tcp bind=127.0.0.1\nupper 7/tcp bind=127.0.0.2", []),
    ("echo 7/tcp bind=127.0.0.1\nupper 7/tcp4",
     ["s:2:1: 0.0.0.0:7 is taken by echo/tcp at s:1:1; change one of the two"]),
    ("echo 7/tcp4\nupper 7/tcp bind=127.0.0.1",
     ["s:2:1: 127.0.0.1:7 is taken by echo/tcp4 at s:1:1; change one of the two"]),
    ("echo 7/tcp bind=::1\nupper 7/tcp bind=::1",
     ["s:2:1: [::1]:7 is taken by echo/tcp at s:1:1; change one of the two"]),
    ("echo 7/tcp4\nupper 7/tcp6 v6only=no", ["s:2:1: [::]:7 is taken by echo/tcp4 at s:1:1; change one of the two"]),
    ("echo 7/tcp6 v6only=no\nupper 7/tcp4 bind=127.0.0.1",
     ["s:2:1: 127.0.0.1:7 is taken by echo/tcp6 at s:1:1; change one of the two"]),
    ("echo 7/tcp6 v6only=no\nupper 8/tcp4", []),
    ("echo /r/e/unix\nupper /r/e/unix", ["s:2:1: /r/e is taken by echo/unix at s:1:1; change one of the two"]),
    ("echo /r/e/unix\ndiscard /r/e/unixgram",
     ["s:2:1: /r/e is taken by echo/unix at s:1:1; change one of the two"]),
    ("echo /r/e/unix\nupper /r/f/unix", []),
    ("echo 0/tcp\nupper 0/tcp\ndiscard 0/tcp4", []),
    ("echo 7/tcp disable=yes\nupper 7/tcp", []),
    # What an interface or a host name gives is a fault of the service with the name, wherever that stands.
    ("a 7/tcp4 echo bind=192.0.2.7\nb 7/tcp4 echo bind=eth0",
     ["s:2:20: bind: 192.0.2.7:7 is taken by a/tcp4 at s:1:1; change one of the two"]),
    ("b 7/tcp4 echo bind=eth0\na 7/tcp4 echo bind=192.0.2.7",
     ["s:1:20: bind: 192.0.2.7:7 is taken by a/tcp4 at s:2:1; change one of the two"]),
    ("a 7/tcp4 echo bind=eth0\nb 7/tcp4 echo bind=same",
     ["s:2:20: bind: 192.0.2.7:7 is taken by a/tcp4 at s:1:1; change one of the two"]),
    # Of the same name, or of a service that has all addresses, it is the text's mistake.
    ("a 7/tcp4 echo bind=eth0\nb 7/tcp4 echo bind=eth0",
     ["s:2:1: 192.0.2.7:7 is taken by a/tcp4 at s:1:1; change one of the two"]),
    ("a 7/tcp4 echo\nb 7/tcp4 echo bind=eth0",
     ["s:2:1: 192.0.2.7:7 is taken by a/tcp4 at s:1:1; change one of the two"]),
    # The machine.
    ("e /r/e/unix echo owner=nobody group=wheel", ["s:1:24: owner: no user 'nobody' on this machine",
                                                   "s:1:37: group: no group 'wheel' on this machine"]),
    ("e /r/e/unix echo owner=root group=adm", []),
    ("e /r/e/unix echo owner=root:wheel", ["s:1:24: owner: no group 'wheel' on this machine"]),
    ("e /r/e/unix echo owner=:adm group=adm",
     ["s:1:35: group: owner= at s:1:24 already sets the file's group; remove one of the two"]),
    ("http 80/tcp root=/srv", ["s:1:18: root: /srv is not a readable directory"]),
    ("http 80/tcp root=/www", []),
    ("qotd 17/tcp quotes=/none", ["s:1:20: quotes: can't read /none: No such file or directory"]),
    ("qotd 17/tcp quotes=/long", ["s:1:20: quotes: /long has no entry shorter than 512 characters"]),
    ("qotd 17/tcp quotes=/good", []),
    ("http 80/tcp root=/www types=/none", ["s:1:29: types: can't read /none: No such file or directory"]),
    ("http 80/tcp root=/www types=/types",
     ["s:1:29: types: /types:2: 'html' is not a media type; write TYPE/SUBTYPE EXTENSION ..."]),
    ("http 80/tcp root=/srv disable=yes", []),
    ("x 7/tcp redirect=127.0.0.1:7", ["s:1:18: redirect: 127.0.0.1:7 is this service itself; use another server"]),
    ("x 7/tcp redirect=localhost:7", ["s:1:18: redirect: localhost:7 is this service itself; use another server"]),
    ("x 7/tcp bind=192.0.2.7 redirect=192.0.2.7:7",
     ["s:1:33: redirect: 192.0.2.7:7 is this service itself; use another server"]),
    ("x 7/tcp bind=192.0.2.7 redirect=127.0.0.1:7", []),
    ("x 7/tcp redirect=127.0.0.1:8\ny 8/tcp redirect=192.0.2.1:8", []),
    ("x /r/x/unix redirect=127.0.0.1:8", []),
    # Where to bind.
    ("echo 7/tcp bind=nowhere,eth0",
     ["s:1:17: bind: 'nowhere' is not an address, interface or known host name: Name or service not known"]),
    ("echo 7/tcp4 bind=six", ["s:1:18: bind: 'six' has no address for tcp4"]),
    ("echo 7/tcp v6only=no", [("s:1:19: v6only: no requires the protocol tcp6 or udp6, which then accepts IPv4 "
                               "clients as well")]),
    ("@defaults bind=nowhere\necho 7/tcp",
     ["s:1:16: bind: 'nowhere' is not an address, interface or known host name: Name or service not known"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "problems"), ROWS)
def test_problems_of_a_check(text: str, problems: list[str]) -> None:
    """Conflicts of addresses have the location of the other service, missing objects that of the value."""
    contents = {"/long": "x" * 600, "/good": "well\n%\n", "/types": "text/html html\nhtml text/html\n"}
    files = FakeFiles(contents, folders=["/www"])
    assert _problems(text, files=files) == problems


def test_three_services_on_one_address() -> None:
    """The second and the third service have a problem each, both with the location of the first."""
    problems = _problems("echo 7/tcp4\nupper 7/tcp4\ndiscard 7/tcp4")
    assert [problem.split(": ")[0] for problem in problems] == ["s:2:1", "s:3:1"]
    assert all("taken by echo/tcp4 at s:1:1" in problem for problem in problems)


def test_load_reports_all_problems() -> None:
    """Problems of the grammar, the offset and the machine are in one error, by file and line."""
    files = FakeFiles({"/s": "http 80/tcp root=/none\necho 65000/tcp\necho 7/tcp nodelay=x\n@include i",
                       "/i": "upper 7/udp"})  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        _loaded("/s", files, port_offset=1000)
    assert [str(problem.location) for problem in caught.value.problems] == ["/s:1:18", "/s:2:1", "/s:3:20", "/i:1:1"]
    assert str(caught.value).count("\n") == 3
    assert caught.value.exit_code == 78


def test_mistake_in_defaults_is_reported_once() -> None:
    """The number of services that have the default does not matter."""
    files = FakeFiles({"/s": "@defaults tls_cert=/none\necho 7/tcp\ndaytime 13/tcp\n"})
    with pytest.raises(ConfigError) as caught:
        _loaded("/s", files)
    assert str(caught.value) == "/s:1:20: tls_cert: can't read /none: No such file or directory"


def test_load_lists_the_endpoints() -> None:
    """A file without mistakes has an endpoint for each socket, listed in columns."""
    files = FakeFiles({"/s": "echo 7/udp4\ndiscard /run/d.sock/unix"})
    lines = listing(_loaded("/s", files, port_offset=10))
    assert list(lines) == ["echo/udp4     0.0.0.0:17   echo", "discard/unix  /run/d.sock  discard"]


def test_tls_is_listed() -> None:
    """Services with TLS are marked, since tls_cert may come from @defaults."""
    both = Authority().sign("a").bundle
    files = FakeFiles({"/s": "@defaults tls_cert=/c\necho 7/tcp4\nupper 8/tcp4 tls_cert=none", "/c": both})
    lines = listing(_loaded("/s", files, machine=FakeMachine(time=None)))
    assert list(lines) == ["echo/tcp4   0.0.0.0:7  echo over TLS", "upper/tcp4  0.0.0.0:8  upper"]


def test_embedded_file_has_no_problems() -> None:
    """Without a services file, services listen on the loopback addresses only."""
    endpoints = _loaded(None, FakeFiles())
    assert {endpoint.host for endpoint in endpoints} == {"127.0.0.1", "::1"}
    assert all(endpoint.service.port >= 1024 for endpoint in endpoints)


def test_an_unreadable_file_of_quotes() -> None:
    """The problem has the reason of the system."""
    files = FakeFiles({"/q": OSError(errno.EACCES, "Permission denied")})
    assert _problems("qotd 1/tcp quotes=/q", files=files) == ["s:1:19: quotes: can't read /q: Permission denied"]


MISSING = "No such file or directory"


@pytest.mark.parametrize(
    ("line", "problems"),
    [
        ("x 7/tcp server=/bin/cat user=root group=adm cwd=/srv chroot=/jail", []),
        ("x 7/tcp server='/bin/none -x'", ["s:1:16: server: can't run /bin/none: No such file or directory"]),
        ("x 7/tcp chroot=/jail server=/bin/sh",
         ["s:1:29: server: can't run /bin/sh inside /jail: No such file or directory"]),
        ("x 7/tcp chroot=/none server=/bin/none cwd=/none",
         ["s:1:16: chroot: can't use /none: No such file or directory"]),
        ("x 7/tcp server=/bin/cat cwd=/none", ["s:1:29: cwd: can't use /none: No such file or directory"]),
        ("x 7/tcp server=/bin/none user=nobody group=wheel",
         ["s:1:44: group: no group 'wheel' on this machine", "s:1:31: user: no user 'nobody' on this machine"]),
        ("x 7/tcp server=/bin/cat user=root.wheel",
         ["s:1:30: user: no user 'root.wheel' on this machine; write user=root group=wheel"]),
        ("x 7/tcp server=/bin/cat user=root:adm",
         ["s:1:30: user: no user 'root:adm' on this machine; write user=root group=adm"]),
        ("x 7/tcp server=/bin/cat user=who.adm", ["s:1:30: user: no user 'who.adm' on this machine"]),
        ("x 7/tcp server=/bin/cat user=77", ["s:1:30: user: no login group is known for user 77; add group="]),
        ("x 7/tcp server=/bin/cat user=77 group=adm", []),
        ("x 7/udp server=/bin/none wait=yes", ["s:1:16: server: can't run /bin/none: No such file or directory"]),
        ("x 7/tcp server=/bin/none disable=yes", []),
        ("x 7/tcp python=ok:f python_path=/none,/ok",
         ["s:1:33: python_path: can't use /none: No such file or directory"]),
        ("x 7/tcp python=bad:f", ["s:1:16: python: can't import bad:f: ModuleNotFoundError: No module named 'bad'"]),
        ("x 7/tcp python=bad:f disable=yes", []),
        ("x 7/tcp factory=bad:f", ["s:1:17: factory: ModuleNotFoundError: No module named 'bad'"]),
        ("x 7/tcp factory=bad:f disable=yes", []),
        ("x 7/tcp factory=ok:f", []),
        ("x 7/tcp redirect=nowhere:7", []),
    ],
)  # fmt: skip
def test_missing_objects_of_handlers(line: str, problems: list[str]) -> None:
    """Programs, users, directories and modules of enabled services are checked, for the user that will use them."""
    places = dict.fromkeys(["/bin/none", "/jail/bin/sh", "/none/", "/none"], MISSING)
    machine = FakeMachine(reasons={**places, "bad:f": "ModuleNotFoundError: No module named 'bad'"})
    assert _problems(line, machine) == problems


def test_python_handlers_are_imported_together() -> None:
    """One call imports all modules, and a module that fails hides no other."""
    machine = FakeMachine(reasons={"b:f": "x", "c:f": "y"})
    problems = _problems(
        "a 1/tcp python=a:f\nb 2/tcp python=b:f\nc 3/tcp python=c:f\nd 4/tcp python=d:f user=no", machine
    )
    assert machine.imported == [["a:f", "b:f", "c:f"]]
    assert [problem.split(": ")[0] for problem in problems] == ["s:4:25", "s:2:16", "s:3:16"]


@pytest.mark.parametrize("option", ["idle_timeout", "first_byte_timeout"])
def test_byte_timeouts_contradict_wait(option: str) -> None:
    """The timeouts are problems on the line of a wait=yes service; those of @defaults do not apply."""
    line = "a 7/tcp server=/bin/cat wait=yes"
    (problem,) = _problems(f"{line} {option}=5s")
    assert problem.startswith(f"s:1:{35 + len(option)}: {option}: with wait=yes ")
    assert not _problems(f"@defaults {option}=5s\n{line} session_timeout=5s")


@pytest.mark.parametrize("option", ["only_from", "no_access"])
def test_domains_in_rules_of_datagram_services(option: str) -> None:
    """Senders may be forged, so host names are resolved beforehand, which is impossible for a domain."""
    for line in ("echo 7/udp {}", "tftp 69/udp4 server=/bin/cat wait=yes {}"):
        (problem,) = _problems(line.format(f"{option}=10.0.0.0/8,.example.org,host.example.org"))
        assert f"{option}: names of clients are not looked up over udp" in problem
        assert "so .example.org matches no client; use host names, addresses or networks" in problem
    (problem,) = _problems(f"@defaults {option}=.example.org\necho 7/udp\necho 7/tcp")
    assert problem.startswith("s:1:")
    assert not _problems(f"echo 7/tcp {option}=.example.org")
    assert not _problems(f"@defaults {option}=localhost,host.example.org\necho 7/udp\necho 7/tcp\necho /s/unixgram")


def _warnings(text: str, machine: FakeMachine) -> list[str]:
    return [each.text for each in check(config_of(text), FakeFiles(), machine)[1] if each.severity is Severity.WARNING]


def test_handlers_that_run_as_the_daemons_user() -> None:
    """The warning lists readable keys; services with user= are left out, and a load without a check has no warning."""
    text = (
        "a 1/tcp server=/bin/cat\nb 2/tcp python=m:f\nc 3/tcp server=/bin/cat user=root\n"
        "echo 4/tcp tls_cert=/c.pem tls_key=/k.pem\nupper 5/tcp tls_cert=/hidden.pem\n"
    )
    machine = FakeMachine(handlers="svcd", reasons={"/hidden.pem": "no"})
    assert _warnings(text, machine) == [
        (
            "user: a/tcp, b/tcp run as the daemon's own user, svcd, with access to the daemon's log and control "
            "socket, /k.pem; add user=NAME"
        )
    ]
    assert _warnings("a 1/tcp server=/bin/cat", FakeMachine(handlers="root")) == [
        "user: a/tcp runs as root, so a bug in a handler compromises the machine; add user=NAME"
    ]
    many = "".join(f"a{number} {number}/tcp server=/bin/cat\n" for number in range(1, 9))
    assert (
        "a1/tcp, a2/tcp, a3/tcp, a4/tcp, a5/tcp and 3 more run as root"
        in _warnings(many, FakeMachine(handlers="root"))[0]
    )
    assert _warnings(text, FakeMachine()) == []
    users = frozenset({"root", "svcd"})
    line = "d 1/tcp server=/bin/cat user={}\n"
    (warning,) = _warnings(line.format("svcd") + line.format("root"), FakeMachine(users, handlers="svcd"))
    assert warning == (
        "user: d/tcp runs as the daemon's own user, svcd, with access to the daemon's log and control socket; "
        "use another user="
    )
    (warning,) = _warnings("a 1/tcp server=/bin/cat\n" + line.format("svcd"), FakeMachine(users, handlers="svcd"))
    assert warning.startswith("user: a/tcp, d/tcp run as ")
    assert warning.endswith("; add user=NAME")
    assert _warnings(line.format("root"), FakeMachine(users, handlers="root")) == []
    assert _warnings(line.format("svcd chroot=/jail"), FakeMachine(users, handlers="svcd")) == []
    assert _warnings("c 3/tcp server=/bin/cat user=root\necho 4/tcp", FakeMachine(handlers="svcd")) == []


def test_a_kernel_without_multipath_tcp() -> None:
    """The problem is a fault of the machine, not a mistake of the file."""
    [problem] = check(config_of("echo 7/tcp mptcp=yes"), FakeFiles(), FakeMachine(mptcp=False))[1]
    assert problem.severity is Severity.FAULT
    assert problem.text == (
        "mptcp: this kernel has no Multipath TCP (CONFIG_MPTCP, net.mptcp.enabled); enable it, or remove mptcp=yes"
    )
    assert check(config_of("echo 7/tcp mptcp=yes"), FakeFiles(), FakeMachine())[1] == []


def test_addresses_of_defaults_are_for_both_versions_of_ip() -> None:
    """A service uses the addresses of its version; on its own line an address of another version is a fault."""
    config = config_of("@defaults bind=127.0.0.1,::1\nupper 7/tcp4")
    endpoints, problems = check(config, FakeFiles(), FakeMachine())
    assert ([each.address for each in endpoints], problems) == (["127.0.0.1:7"], [])
    problems = check(config_of("upper 7/tcp4 bind=127.0.0.1,::1"), FakeFiles(), FakeMachine())[1]
    assert [each.text for each in problems] == ["bind: '::1' has no address for tcp4"]


@pytest.mark.parametrize(
    ("text", "severity"),
    [
        ("a 7/tcp4 echo bind=192.0.2.7\nb 7/tcp4 echo bind=eth0", Severity.FAULT),
        ("b 7/tcp4 echo bind=eth0\na 7/tcp4 echo bind=192.0.2.7", Severity.FAULT),
        ("a 7/tcp4 echo bind=eth0\nb 7/tcp4 echo bind=eth0", Severity.MISTAKE),
        ("a 7/tcp4 echo\nb 7/tcp4 echo bind=eth0", Severity.MISTAKE),
        ("a 7/tcp4 echo bind=192.0.2.7\nb 7/tcp4 echo bind=192.0.2.7", Severity.MISTAKE),
    ],
)
def test_collision_through_a_name_is_a_fault(text: str, severity: Severity) -> None:
    """An interface may get the address of another service at any time: that breaks one service, not the file."""
    (problem,) = check(config_of(text), FakeFiles(), FakeMachine(names=NAMES))[1]
    assert problem.severity is severity
    assert problem.service == ("b/tcp4" if severity is Severity.FAULT else "")


class _CountedEndpoints(list[Endpoint]):
    """Endpoints that count their iterations."""

    passes = 0

    def __iter__(self) -> Iterator[Endpoint]:
        """Count an iteration."""
        self.passes += 1
        return super().__iter__()


def test_faulty_services_are_sorted_in_one_pass() -> None:
    """The number of iterations over the endpoints does not depend on the number of faulty services."""
    passes = []
    for count in (1, 50):
        config = config_of("\n".join(f"e{n} {n + 1}/tcp echo" for n in range(60)))
        found, _ = check(config, FakeFiles(), FakeMachine())
        endpoints = _CountedEndpoints(found)
        faults = [service.fault("", "broken") for service in config.enabled[:count]]
        desired = DesiredServices.checked(config.enabled, endpoints, faults)
        assert [len(each.endpoints) for each in desired.faulty] == [2] * count
        assert len(desired.endpoints) == 2 * (60 - count)
        passes.append(endpoints.passes)
    assert passes[0] == passes[1]


class _SlowMachine(FakeMachine):
    """A machine that records its slow operations."""

    def __init__(self) -> None:
        super().__init__(names=NAMES)
        self.calls: list[str] = []

    def look_up(self, names: Iterable[str]) -> None:
        """Record the names."""
        self.calls.append(f"look up {' '.join(names)}")

    def cannot_import(self, wanted: Sequence[tuple[str, Sequence[str], RunAs, float]]) -> list[str]:
        """Record the import."""
        self.calls.append("import")
        return super().cannot_import(wanted)

    def addresses(self, name: str) -> Sequence[str]:
        """Record the name."""
        self.calls.append(f"wait for {name}")
        return super().addresses(name)


def test_names_are_looked_up_while_handlers_are_imported() -> None:
    """Lookups start before the imports, and their results are read after them."""
    machine = _SlowMachine()
    check(config_of("a 7/tcp4 echo bind=eth0\nb 8/tcp python=m:f"), FakeFiles(), machine)
    assert machine.calls == ["look up eth0", "import", "wait for eth0"]
