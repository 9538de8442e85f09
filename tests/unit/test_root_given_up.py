"""Messages when root was dropped and is needed: the option or address, its value, and the restart."""

from __future__ import annotations

import errno

import pytest

from svcd.errors import ListenError
from svcd.process.launch_options import LIMITS, excess
from svcd.supervisor.daemon_account import FOLLOWS_USER, DaemonAccount, account_of
from svcd.supervisor.launch_rights import needs_root, roots_refusals
from svcd.supervisor.launch_spec import launch_spec
from svcd.supervisor.root_given_up import RESTART, with_restart
from tests.doubles import service_of
from tests.unit.test_broken_services import desired

ACCOUNT = DaemonAccount((1024, 4096), 54_321, 54_321, ())
FIRST = "cat 7/tcp server=/bin/cat user=1 umask=027 nice=2 rlimit_cpu=5s env=A=b no_new_privs=yes"


@pytest.fixture
def dropped_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process look like a daemon that has dropped root."""
    monkeypatch.setattr("os.geteuid", lambda: 54_321)


def _refusals(line: str) -> list[str]:
    service, row = service_of(line), launch_spec(service_of(FIRST), ACCOUNT)
    options = excess(row, launch_spec(service, ACCOUNT), dict.fromkeys(LIMITS.values(), (-1, -1)))
    return list(map(str, roots_refusals(service, ACCOUNT, row, options)))


@pytest.mark.parametrize(
    ("before", "after", "position", "remedy"),
    [
        ("user=1", "user=root", "s:1:32: user: root", "undo the change"),
        ("umask=027", "umask=022", "s:1:40: umask: 0022", "use a umask that has the bits of 0027, as at the start"),
        ("nice=2", "nice=1", "s:1:49: nice: 1", "use at least 2, as at the start"),
        ("rlimit_cpu=5s", "rlimit_cpu=6s", "s:1:62: rlimit_cpu: 6s", "use at most 5, as at the start"),
        ("env=A=b", "env=A=c", "s:1:69: env: A=c", "undo the change"),
        ("env=A=b", "", "s:1:1: env: the removal of A", "undo the change"),
        ("nice=2", "", "s:1:1: nice: the removal of nice", "use at least 2, as at the start"),
        ("no_new_privs=yes", "", "s:1:1: no_new_privs: the removal of no_new_privs", "undo the change"),
        ("server=/bin/cat", "server='/bin/cat -n'", "s:1:18: server: /bin/cat -n", "undo the change"),
    ],
)
def test_a_refusal_names_the_option(before: str, after: str, position: str, remedy: str) -> None:
    """A refusal has the option's position and value, and the remedy: a restart, or a change that needs none."""
    text = f"{position} gives handlers rights that they did not have at the start; {RESTART}, or {remedy}"
    assert _refusals(FIRST.replace(before, after)) == [text]


def test_several_refusals() -> None:
    """Each option has a refusal of its own, except those that follow from user=."""
    found = _refusals(FIRST.replace("user=1", "user=root group=0").replace("umask=027", "umask=000"))
    assert [each.split(": ")[1] for each in found] == ["user", "umask"]
    assert _refusals(FIRST) == []


@pytest.mark.usefixtures("dropped_root")
def test_a_service_that_the_zygote_does_not_have() -> None:
    """A service that the zygote does not have is refused the options that need root."""
    (found,) = roots_refusals(service_of(FIRST), ACCOUNT, None, [""])
    assert str(found) == f"s:1:32: user: this requires root; {RESTART}, or remove the option"


@pytest.mark.usefixtures("dropped_root")
@pytest.mark.parametrize(("own", "needed"), [((10, 99), True), ((10, 100), False), ((-1, -1), False)])
def test_a_limit_above_the_daemons(monkeypatch: pytest.MonkeyPatch, own: tuple[int, int], needed: bool) -> None:
    """Without root a limit can't be raised, even for a service without user=."""
    monkeypatch.setattr("resource.getrlimit", lambda _which: own)
    found = list(needs_root(service_of("cat 7/tcp server=/bin/cat rlimit_nproc=100"), ACCOUNT))
    assert [each.text.partition(":")[0] for each in found] == ["rlimit_nproc"] * needed
    assert list(needs_root(service_of("cat 7/tcp server=/bin/cat rlimit_nproc=100"), DaemonAccount((1, 2)))) == []


@pytest.mark.usefixtures("dropped_root")
@pytest.mark.parametrize(
    ("line", "remedy"),
    [("echo 7/tcp4", f"{RESTART}; or choose another port"), ("echo /run/x/unix", f"{RESTART}; or let it write there")],
)
@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_an_address_that_only_root_can_open(line: str, remedy: str, number: int) -> None:
    """An address that only root can open has a restart as remedy; an address in use keeps its own."""
    (endpoint,) = desired(line).endpoints
    error = ListenError(endpoint.service.id, endpoint.address, "no", "let it write there", number)
    found = with_restart(error, endpoint)
    assert (found.remedy, found.cause, found.number) == (remedy, "no", number)
    other = ListenError(endpoint.service.id, endpoint.address, "no", "stop nc", errno.EADDRINUSE)
    assert with_restart(other, endpoint) is other


def test_root_keeps_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the daemon runs as root the remedy stays as it is."""
    monkeypatch.setattr("os.geteuid", lambda: 0)
    (endpoint,) = desired("echo 7/tcp4").endpoints
    error = ListenError("echo/tcp4", endpoint.address, "no", "no", errno.EACCES)
    assert with_restart(error, endpoint) is error


def test_the_new_daemon_of_an_upgrade() -> None:
    """gave_up_root is true in the new daemon of an upgrade, although its --uid has no effect any more."""
    assert account_of({FOLLOWS_USER: True}).gave_up_root
    assert account_of({"uid": 54_321}).gave_up_root
    assert not account_of({FOLLOWS_USER: False}).gave_up_root
    assert not account_of({}).gave_up_root
