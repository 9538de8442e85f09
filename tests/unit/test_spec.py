"""What a launcher is told: what of it needs rights, and what it may be told later."""

from __future__ import annotations

import resource

import pytest

from svcd.handlers.spec import Identity, Limit, Spec, adapt, launcher_options, rights
from svcd.transport.specs import Account, spec_of
from tests.doubles import service_of

ACCOUNT = Account((1024, 4096))
LINE = "cat 7/tcp server=/bin/cat user=root rlimit_core=0 rlimit_cpu=5 "
#: Options that the launcher itself follows.
HARMLESS = [
    "",
    "stderr=log",
    "stderr=log stderr_rate=5/s,1K/s",
    "log_on_success=HOST,TRAFFIC",
    "launcher_idle=5m",
    "instances=3 description=x only_from=10.0.0.0/8",
]
#: Options that another user, or root, has to give.
OTHERS = [
    "server=/bin/dog",
    "env=A=b",
    "group=1",
    "user=1",
    "umask=000",
    "nice=-5",
    "cwd=/tmp",
    "rlimit_cpu=6",
    "rlimit_nofile=2000",
]


def _spec(options: str) -> Spec:
    return spec_of(service_of(f"{LINE} {options}" if "=" in options else LINE), ACCOUNT)


@pytest.mark.parametrize("options", HARMLESS)
def test_a_launcher_may_be_told_otherwise(options: str) -> None:
    """What it does itself needs no right: the two have these in common, and the one becomes the other, both ways."""
    plain, other = _spec(""), _spec(options)
    assert rights(plain) == rights(other)
    assert adapt(plain, launcher_options(other)) == other
    assert adapt(other, launcher_options(plain)) == plain


@pytest.mark.parametrize("options", OTHERS)
def test_what_needs_rights_is_another_service(options: str) -> None:
    """Who it is, what it runs, and with which limits stays as it was given."""
    text = LINE
    for word in options.split():
        name = word.partition("=")[0]
        text = " ".join(each for each in text.split() if not each.startswith(f"{name}=")) + f" {word}"
    other = spec_of(service_of(text), ACCOUNT)
    assert rights(_spec("")) != rights(other)


@pytest.mark.parametrize("options", [b"x", b"", launcher_options(_spec(""))[:-1], launcher_options(_spec("")) + b"x"])
def test_what_are_no_launcher_options(options: bytes) -> None:
    """Are refused: whoever sends them may be anybody."""
    with pytest.raises(ValueError, match="no launcher options"):
        adapt(_spec(""), options)


def test_a_limit_of_files_that_is_too_low_for_a_launcher() -> None:
    """Is its handlers' alone, whatever else it does."""
    spec = Spec("x", Identity(handler_limits=(Limit(resource.RLIMIT_NOFILE, 10, 10),)), {})
    other = spec._replace(log_stderr=True)
    assert adapt(spec, launcher_options(other)) == other
    assert adapt(spec, launcher_options(spec)) == spec
