"""Launcher options, and the rights that a zygote gives after the daemon has given up root."""

from __future__ import annotations

import resource

import pytest

from svcd.process.launch_options import LIMITS, apply_options, changed_variables, excess, launcher_options
from svcd.process.spec import LaunchSpec, ProcessCredentials, ResourceLimit
from svcd.supervisor.daemon_account import DaemonAccount
from svcd.supervisor.launch_spec import launch_spec
from tests.doubles import service_of

ACCOUNT = DaemonAccount((1024, 4096))
LINE = "cat 7/tcp server=/bin/cat user=root umask=022 nice=2 rlimit_core=0 rlimit_cpu=5 "
#: Limits of the zygote.
INHERITED = dict.fromkeys(LIMITS.values(), (50, 100))
#: Options of the launcher itself, and options that take rights away from handlers.
HARMLESS = [
    "",
    "stderr=log",
    "stderr=log stderr_rate=5/s,1K/s",
    "log_on_success=HOST,TRAFFIC",
    "launcher_idle=5m",
    "instances=3 description=x only_from=10.0.0.0/8",
    "umask=027",
    "umask=777",
    "nice=3",
    "nice=19",
    "no_new_privs=yes",
    "rlimit_cpu=4",
    "rlimit_cpu=1",
    "rlimit_as=50",
    "rlimit_nproc=7 rlimit_data=3 rlimit_stack=4",
    "rlimit_nofile=1024",
    "rlimit_nofile=10",
    "stderr=log rlimit_nofile=200 umask=077 nice=5 no_new_privs=yes",
]
#: Options that need a right that handlers did not have at the start, and the option that is reported.
OTHERS = [
    ("server=/bin/dog", ["server"]),
    ("server='/bin/cat -n'", ["server"]),
    ("argv0=dog", ["argv0"]),
    ("env=A=b", ["env"]),
    ("env=LD_PRELOAD=/tmp/x.so", ["env"]),
    ("listen_fds=yes", ["listen_fds", "env"]),
    ("group=1", ["group"]),
    ("groups=yes", ["groups"]),
    # HOME and other variables change with the user.
    ("user=1", ["env", "user", "group"]),
    ("umask=000", ["umask"]),
    ("umask=770", ["umask"]),
    ("nice=1", ["nice"]),
    ("nice=-5", ["nice"]),
    ("cwd=/tmp", ["cwd"]),
    ("chroot=/srv", ["chroot"]),
    ("rlimit_cpu=6", ["rlimit_cpu"]),
    ("rlimit_cpu=none", ["rlimit_cpu"]),
    ("rlimit_core=1", ["rlimit_core"]),
    ("rlimit_nofile=1025", ["rlimit_nofile"]),
    # The soft limit was 50; without a limit of the stack the memory has another layout (setrlimit(2)).
    ("rlimit_stack=51", ["rlimit_stack"]),
    ("rlimit_as=none", ["rlimit_as"]),
]


def _spec(options: str) -> LaunchSpec:
    names = {word.partition("=")[0] for word in options.split() if "=" in word}
    line = " ".join(word for word in LINE.split() if word.partition("=")[0] not in names)
    return launch_spec(service_of(f"{line} {options}"), ACCOUNT)


def _excess(row: LaunchSpec, wanted: LaunchSpec) -> list[str]:
    return excess(row, wanted, INHERITED)


@pytest.mark.parametrize("options", HARMLESS)
def test_allowed_options(options: str) -> None:
    """Options of the launcher, and those that take rights away, are allowed; they are transferred and can be undone."""
    plain, other = _spec(""), _spec(options)
    assert _excess(plain, other) == []
    assert apply_options(plain, launcher_options(other)) == other
    assert apply_options(other, launcher_options(plain)) == plain
    assert _excess(plain, apply_options(other, launcher_options(plain))) == []


@pytest.mark.parametrize(("options", "named"), OTHERS)
def test_options_with_more_rights_are_refused(options: str, named: list[str]) -> None:
    """Credentials, program and arguments must be as in the table; limits, priority and permissions must not rise."""
    assert _excess(_spec(""), _spec(options)) == named


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("env=A=b", "", ["env"]),
        ("env='A=b C=d'", "env=A=b", ["env"]),
        ("no_new_privs=yes", "no_new_privs=no", ["no_new_privs"]),
        ("rlimit_as=10", "", ["rlimit_as"]),
        # The limit of the zygote itself is lower.
        ("rlimit_as=1000", "", []),
        ("server='/bin/cat -n'", "server=/bin/cat", ["server"]),
    ],
)
def test_removed_options(before: str, after: str, named: list[str]) -> None:
    """The removal of an option, such as a restriction or an argument, can also give more rights."""
    assert _excess(_spec(before), _spec(after)) == named


def test_changed_variables() -> None:
    """changed_variables() returns the names of added, changed and removed variables."""
    before, after = _spec("env='A=b C=d E=f'"), _spec("env='A=b C=x G=h'")
    assert changed_variables(before, after) == ["C", "E", "G"]


@pytest.mark.parametrize("options", [b"x", b"", launcher_options(_spec(""))[:-1], launcher_options(_spec("")) + b"x"])
def test_invalid_launcher_options(options: bytes) -> None:
    """Invalid launcher options raise ValueError."""
    with pytest.raises(ValueError, match="no launcher options"):
        apply_options(_spec(""), options)


@pytest.mark.parametrize("limit", [-3, -5, -(2**63)])
@pytest.mark.parametrize("soft", [True, False])
def test_negative_limit_is_refused(limit: int, soft: bool) -> None:
    """A negative limit that is not RLIM_INFINITY is refused: for the system it would be a very large one."""
    which = resource.RLIMIT_CPU
    wanted = ResourceLimit(which, limit, 5) if soft else ResourceLimit(which, 5, limit)
    spec = _spec("")._replace(identity=ProcessCredentials(handler_limits=(wanted,)))
    with pytest.raises(ValueError, match="no limit"):
        apply_options(_spec(""), launcher_options(spec))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"nice": 2**31 - 1}, ["nice"]),
        ({"nice": 20}, ["nice"]),
        ({"umask": 0o1022}, ["umask"]),
        ({"umask": 2**31 - 1}, ["umask"]),
        ({"umask": None}, ["umask"]),
        ({"umask": -5}, ["umask"]),
        ({"own_limits": (), "handler_limits": ()}, ["rlimit_core", "rlimit_cpu", "rlimit_nofile"]),
    ],
)
def test_invalid_numbers_from_the_daemon(change: dict[str, object], named: list[str]) -> None:
    """Numbers that overflow in the system, and missing limits, are refused: a compromised daemon may send them."""
    row = _spec("rlimit_nofile=20")
    wanted = row._replace(identity=row.identity._replace(**change))  # type: ignore[arg-type]
    assert _excess(row, apply_options(row, launcher_options(wanted))) == named


def test_low_limit_of_open_files_applies_to_handlers_only() -> None:
    """A limit of open files that is too low for a launcher is a limit of its handlers only."""
    spec = LaunchSpec("x", ProcessCredentials(handler_limits=(ResourceLimit(resource.RLIMIT_NOFILE, 10, 10),)), {})
    other = spec._replace(log_stderr=True)
    assert apply_options(spec, launcher_options(other)) == other
    assert apply_options(spec, launcher_options(spec)) == spec
