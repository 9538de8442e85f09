"""Whether Python handlers can be imported."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import pytest

from svcd.config.options import ServiceOptions
from svcd.host.info import Host
from svcd.model import RunAs
from svcd.process.import_check import ImportCheck, check_imports
from svcd.process.imports import import_object

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
    """Whatever a module does, the others are checked, and the reason names what it did."""
    path = (str(folder),)
    names = [
        "tried_exits:f", "tried_good:Outer", "tried_dies:f", "tried_good:Outer.inner", "tried_is_killed:f",
        "tried_good:number", "tried_raises:f", "tried_good:missing", "tried_needs:f", "tried_nowhere:f",
        "tried_wrong:f",
    ]  # fmt: skip
    assert check_imports([ImportCheck(name, path) for name in names]) == [
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
    """An import that never ends is killed, and does not keep others from being checked."""
    began = time.monotonic()
    path = (str(folder),)
    trials = [ImportCheck("tried_hangs:f", path, seconds=0.5), ImportCheck("tried_good:Outer", path)]
    assert check_imports(trials) == ["its import takes longer than start_timeout=0.5s", ""]
    # A daemon waits for none: what is not known by then is told by the launcher.
    assert check_imports([trials[0]._replace(seconds=60.0), ImportCheck("tried_raises:f", path)], 2.0) == [
        "", "ZeroDivisionError: division by zero",
    ]  # fmt: skip
    assert time.monotonic() - began < 30


def test_nothing_to_try_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No interpreter is started for it."""
    monkeypatch.setattr(sys, "executable", "/nowhere")
    assert check_imports([]) == []


def test_modules_are_found_as_this_process_finds_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a path of their own they come from sys.path."""
    monkeypatch.syspath_prepend(str(folder))
    assert check_imports([ImportCheck("tried_good:Outer")]) == [""]


def test_a_handler_is_imported_as_its_user(folder: Path) -> None:
    """Root becomes the user first: what that one can't read can't be imported."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    folder.chmod(0o700)
    reasons = Host().cannot_import([
        ("tried_good:Outer", [str(folder)], RunAs("nobody"), 9.0),
        ("tried_good:Outer", [str(folder)], RunAs(), 9.0),
    ])  # fmt: skip
    assert reasons == ["ModuleNotFoundError: No module named 'tried_good'", ""]


def test_a_reference_is_resolved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the object, or an ImportError with the reason; a module that exits ends nothing."""
    monkeypatch.syspath_prepend(str(folder))
    assert import_object("os.path:join") is os.path.join
    assert import_object("os:path.join") is os.path.join
    for name, reason in [
        ("tried_exits:f", "tried_exits ends the program when it is imported"),
        ("os:nothing.at.all", "module 'os' has no attribute 'nothing'"),
    ]:
        with pytest.raises(ImportError) as caught:
            import_object(name)
        assert str(caught.value) == reason


def test_what_can_be_served_as_a_factory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Factory, a class of factories, or a callable that may return one; others have a reason."""
    (folder / "tried_factory.py").write_text(
        "from twisted.internet.protocol import Factory, Protocol\n"
        "instance = Factory.forProtocol(Protocol)\nmake = lambda options: instance\nnumber = 5\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    machine = Host()
    names = [f"tried_factory:{name}" for name in ("instance", "Factory", "make", "number")]
    assert machine.cannot_serve([(name, ServiceOptions(), 9.0) for name in (*names, "tried_raises:f")]) == [
        "",
        "",
        "",
        "can't serve tried_factory:number: it is neither a Factory nor callable",
        "can't serve tried_raises:f: ZeroDivisionError: division by zero",
    ]


def test_a_check_calls_what_makes_factories(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What returns no Factory, raises, ends the interpreter or is only run later can't be served."""
    (folder / "tried_maker.py").write_text(
        "import os\nfrom twisted.internet.protocol import Factory, Protocol\n"
        "instance = Factory.forProtocol(Protocol)\n"
        "def asked(options):\n    assert options.description == 'mine'\n    return instance\n"
        "def number(): return 5\n"
        "def raises(): 1 / 0\n"
        "def ends(): os._exit(3)\n"
        "async def late(): return instance\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    names = ["instance", "asked", "number", "raises", "ends", "late", "none"]
    options = ServiceOptions(description="mine")
    reasons = Host(thorough=True).cannot_serve([(f"tried_maker:{name}", options, 9.0) for name in names])
    assert reasons == [
        "",
        "",
        "tried_maker:number returns int, not a Factory (IProtocolFactory)",
        f"tried_maker:raises raises ZeroDivisionError: division by zero ({folder}/tried_maker.py:8)",
        "the interpreter ends when it imports the module (exit status 3)",
        "tried_maker:late returns coroutine, not a Factory (IProtocolFactory)",
        "can't serve tried_maker:none: module 'tried_maker' has no attribute 'none'",
    ]


def test_functions_that_no_model_runs(folder: Path) -> None:
    """An async function or a generator does nothing when it is called, nor does a handler with such a method."""
    (folder / "tried_lazy.py").write_text(
        "import functools\nfrom socketserver import BaseRequestHandler\n"
        "async def late(s, a): ...\n"
        "def parts(s, a): yield\n"
        "async def both(s, a): yield\n"
        "partly = functools.partial(late, 1)\n"
        "class Handler(BaseRequestHandler):\n    async def handle(self): ...\n"
        "class Called:\n    async def __call__(self, s, a): ...\n"
        "called = Called()\n"
        "class Good(BaseRequestHandler):\n    def handle(self): ...\n"
        "def good(s, a): ...\n"
    )
    names = ["late", "parts", "both", "partly", "Handler", "called", "Good", "good"]
    reasons = check_imports([ImportCheck(f"tried_lazy:{name}", (str(folder),)) for name in names])
    kinds = ["an async function", "a generator", "an async generator", *["an async function"] * 3]
    assert reasons == [
        *(
            f"tried_lazy:{name} is {kind}, which no model runs; write a plain function"
            for name, kind in zip(names, kinds, strict=False)
        ),
        "",
        "",
    ]


def test_a_check_sees_with_the_eyes_of_who_serves(folder: Path) -> None:
    """Handlers without user= are tried as the user that will run them: what only root can read can't be used."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    (folder / "tried_good.py").chmod(0o600)
    for each in (folder, *folder.parents[:-2]):
        each.chmod(0o711)
    script = folder / "script"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o711)
    machine = Host(thorough=True, user="nobody")
    [reason] = machine.cannot_import([("tried_good:Outer", [str(folder)], RunAs(), 9.0)])
    assert "ModuleNotFoundError" in reason or "PermissionError" in reason
    assert machine.cannot_execute(str(script), RunAs()) == (
        "user nobody may not read it, and it is a script, which its interpreter reads"
    )
    assert machine.cannot_execute(str(script), RunAs("root")) == ""
    assert machine.handlers_user() == "nobody"
    assert not machine.can_read(str(folder / "tried_good.py"))
    script.chmod(0o700)
    assert machine.cannot_execute(str(script), RunAs()) == "user nobody may not execute it"
