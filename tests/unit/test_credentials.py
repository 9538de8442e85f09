"""Credentials of launchers: calls of setgroups(2), which only root may make."""

from __future__ import annotations

import os

import pytest

from svcd.process.credentials import apply_credentials
from svcd.process.spec import ProcessCredentials

CASES = {
    # The current user, group and groups; the requested groups and group; the groups that are set, None for no call.
    "nothing to drop": (0, 0, [0], (), None, None),
    "nothing at all": (0, 0, [], (), 0, None),
    "one to drop": (0, 0, [0, 5], (), None, ()),
    "one to add": (0, 0, [0], (5,), None, (5,)),
    "root's own goes with its group": (0, 0, [0], (), 7, ()),
    "an ordinary user's are as they are": (7, 7, [7, 8], (8,), None, None),
    "an ordinary user tries to add one": (7, 7, [7], (8,), None, (8,)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_supplementary_groups(case: tuple[object, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """setgroups(2) is called only if the groups change: root of a user namespace may not be allowed to call it."""
    user, own, before, groups, group, wanted = case
    called: list[object] = []
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(os, "getegid", lambda: own)
    monkeypatch.setattr(os, "getgroups", lambda: before)
    monkeypatch.setattr(os, "setgroups", called.append)
    monkeypatch.setattr(os, "setresgid", lambda *_ids: None)
    monkeypatch.setattr(os, "chdir", lambda _path: None)
    apply_credentials(ProcessCredentials(groups=groups, group=group, folder=str(tmp_path)))  # type: ignore[arg-type]
    assert called == ([] if wanted is None else [wanted])
