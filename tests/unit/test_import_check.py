"""Check of whether Python handlers and factories can be imported."""

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
_REMEDY = "; name its directory by PYTHONPATH, or by python_path= with python="


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a directory with all the modules."""
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


def test_each_import_has_its_reason(folder: Path) -> None:
    """Each import has its own reason for failure; no module keeps the others from being checked."""
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
        f"ModuleNotFoundError: No module named 'tried_nowhere'{_REMEDY}",
        "SyntaxError: invalid syntax (tried_wrong.py, line 1)",
    ]


def test_an_import_has_a_timeout(folder: Path) -> None:
    """An import that exceeds its time is killed and reported; the others are checked."""
    began = time.monotonic()
    path = (str(folder),)
    checks = [ImportCheck("tried_hangs:f", path, seconds=0.5), ImportCheck("tried_good:Outer", path)]
    assert check_imports(checks) == ["its import takes longer than start_timeout=0.5s", ""]
    # With a limit for all imports, one that is not finished by then is left to the launcher.
    assert check_imports([checks[0]._replace(seconds=60.0), ImportCheck("tried_raises:f", path)], 2.0) == [
        "", "ZeroDivisionError: division by zero",
    ]  # fmt: skip
    assert time.monotonic() - began < 30


def test_without_imports_no_interpreter_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without imports no interpreter is started."""
    monkeypatch.setattr(sys, "executable", "/nowhere")
    assert check_imports([]) == []


def test_modules_are_found_in_sys_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a path of their own modules are found in sys.path."""
    monkeypatch.syspath_prepend(str(folder))
    assert check_imports([ImportCheck("tried_good:Outer")]) == [""]


def test_a_handler_is_imported_as_its_user(folder: Path) -> None:
    """Root tries an import as the handler's user: what that user can't read can't be imported."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    folder.chmod(0o700)
    reasons = Host().cannot_import([
        ("tried_good:Outer", [str(folder)], RunAs("nobody"), 9.0),
        ("tried_good:Outer", [str(folder)], RunAs(), 9.0),
    ])  # fmt: skip
    assert reasons == [f"ModuleNotFoundError: No module named 'tried_good'{_REMEDY}", ""]


def test_import_object(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """import_object() returns the object or raises an ImportError with the reason, also for a module that exits."""
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


def test_factories(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """cannot_serve() accepts a Factory, a class of factories, or a callable."""
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


def test_a_thorough_check_calls_the_factory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thorough check calls the callable: it must return a Factory, not raise, exit or be async."""
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


def test_async_functions_and_generators(folder: Path) -> None:
    """Async functions and generators, and handlers with such methods, can't be handlers."""
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
            f"tried_lazy:{name} is {kind}, which no model can run; write a plain function"
            for name, kind in zip(names, kinds, strict=False)
        ),
        "",
        "",
    ]


def test_a_check_for_another_user(folder: Path, public_path: Path) -> None:
    """With a user, handlers without user= are checked as that user: files that only root can read can't be used."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    (folder / "tried_good.py").chmod(0o600)
    assert folder == public_path
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
