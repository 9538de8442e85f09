"""Whether Python handlers can be imported."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import pytest

from svcd.handlers.reference import resolve
from svcd.handlers.trial import Trial, try_imports
from svcd.model import Runner
from svcd.transport.machine import LocalMachine

if TYPE_CHECKING:
    from pathlib import Path

MODULES = {
    "tried_good": "class Outer:\n    def inner(self): ...\nnumber = 5\nprint('hello')",
    "tried_exits": "raise SystemExit(3)",
    "tried_dies": "import os\nos._exit(7)",
    "tried_is_killed": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "tried_raises": "1 / 0",
    "tried_needs": "import no_such_module_at_all",
    "tried_hangs": "import time\ntime.sleep(60)",
    "tried_wrong": "def f(:",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with all the modules."""
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


def test_each_import_has_its_reason(folder: Path) -> None:
    """Whatever a module does, the others are tried, and the reason says what it did."""
    path = (str(folder),)
    names = [
        "tried_exits:f", "tried_good:Outer", "tried_dies:f", "tried_good:Outer.inner", "tried_is_killed:f",
        "tried_good:number", "tried_raises:f", "tried_good:missing", "tried_needs:f", "tried_nowhere:f",
        "tried_wrong:f",
    ]  # fmt: skip
    assert try_imports([Trial(name, path) for name in names]) == [
        "tried_exits ends the program when it is imported",
        "",
        "the interpreter ends when it imports the module (exit status 7)",
        "",
        "the interpreter ends when it imports the module (killed by SIGKILL)",
        "tried_good:number is neither callable nor a request handler",
        "ZeroDivisionError: division by zero",
        "module 'tried_good' has no attribute 'missing'",
        "ModuleNotFoundError: No module named 'no_such_module_at_all'",
        "ModuleNotFoundError: No module named 'tried_nowhere'",
        "SyntaxError: invalid syntax (tried_wrong.py, line 1)",
    ]


def test_an_import_has_so_much_time(folder: Path) -> None:
    """One that never ends is ended, and keeps nobody else from being tried."""
    began = time.monotonic()
    path = (str(folder),)
    reasons = try_imports([Trial("tried_hangs:f", path), Trial("tried_good:Outer", path)], 0.5)
    assert reasons == ["its import takes longer than 0.5 s", ""]
    assert time.monotonic() - began < 30


def test_nothing_to_try_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No interpreter is started for it."""
    monkeypatch.setattr(sys, "executable", "/nowhere")
    assert try_imports([]) == []


def test_modules_are_found_as_this_process_finds_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a path of their own they come from sys.path."""
    monkeypatch.syspath_prepend(str(folder))
    assert try_imports([Trial("tried_good:Outer")]) == [""]


def test_a_handler_is_imported_as_its_user(folder: Path) -> None:
    """Root becomes the user first: what that one can't read can't be imported."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    folder.chmod(0o700)
    reasons = LocalMachine().cannot_import([
        ("tried_good:Outer", [str(folder)], Runner("nobody")),
        ("tried_good:Outer", [str(folder)], Runner()),
    ])  # fmt: skip
    assert reasons == ["ModuleNotFoundError: No module named 'tried_good'", ""]


def test_a_reference_is_resolved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the object, or an ImportError with the reason; a module that exits ends nothing."""
    monkeypatch.syspath_prepend(str(folder))
    assert resolve("os.path:join") is os.path.join
    assert resolve("os:path.join") is os.path.join
    for name, reason in [
        ("tried_exits:f", "tried_exits ends the program when it is imported"),
        ("os:nothing.at.all", "module 'os' has no attribute 'nothing'"),
    ]:
        with pytest.raises(ImportError) as caught:
            resolve(name)
        assert str(caught.value) == reason


def test_what_can_be_served_as_a_factory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Factory, a class of them, or what may return one; the reason says what is wrong with others."""
    (folder / "tried_factory.py").write_text(
        "from twisted.internet.protocol import Factory, Protocol\n"
        "instance = Factory.forProtocol(Protocol)\nmake = lambda options: instance\nnumber = 5\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    machine = LocalMachine()
    assert machine.cannot_serve("tried_factory:instance") == ""
    assert machine.cannot_serve("tried_factory:Factory") == ""
    assert machine.cannot_serve("tried_factory:make") == ""
    assert machine.cannot_serve("tried_factory:number") == "tried_factory:number is neither a Factory nor callable"
    assert machine.cannot_serve("tried_raises:f") == "ZeroDivisionError: division by zero"
