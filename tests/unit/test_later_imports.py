"""Modules that a daemon imports after its start."""

from __future__ import annotations

import ast
import importlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import svcd
from svcd.daemon import later_imports
from svcd.daemon.later_imports import import_rest, module_names

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

#: Packages of other programs, and those used at the start only.
_OTHERS = {"cli", "clients", "daemon", "reactor", "tap"}


def _imported_in_functions() -> set[str]:
    """Return the modules of svcd that functions import."""
    root = Path(next(iter(svcd.__path__)))
    found = set()
    for path in root.rglob("*.py"):
        if path.relative_to(root).parts[0].removesuffix(".py") in _OTHERS - {"tap"}:
            continue
        for function in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(function, ast.FunctionDef):
                found |= {
                    node.module or ""
                    for node in ast.walk(function)
                    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("svcd.")
                }
    return {name for name in found if name.split(".")[1] not in _OTHERS}


def test_modules_that_functions_import_are_imported_in_advance() -> None:
    """No module is imported for the first time by a reload, a command or an upgrade."""
    assert _imported_in_functions() >= {"svcd.supervisor.spawned_service", "svcd.protocols.http.server"}
    assert _imported_in_functions() <= set(module_names())


#: Codecs that the interpreter has in C.
_BUILTIN_CODECS = {"utf-8", "latin-1"}


def _named_codecs(path: Path) -> Iterator[str]:
    """Yield the codecs that calls of a module name."""
    for call in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(call, ast.Call):
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        values = [word.value for word in call.keywords if word.arg == "encoding"]
        values += call.args[:1] if name in ("encode", "decode") else []
        yield from (each.value for each in values if isinstance(each, ast.Constant) and isinstance(each.value, str))


def test_codecs_are_imported_in_advance() -> None:
    """Python imports a codec at its first use, which may be after root was given up."""
    root = Path(next(iter(svcd.__path__)))
    paths = [path for path in root.rglob("*.py") if path.relative_to(root).parts[0] not in ("cli", "clients")]
    # getaddrinfo(3) gets names by idna.
    named = {"idna", *(codec for path in paths for codec in _named_codecs(path))} - _BUILTIN_CODECS
    assert named >= {"ascii", "utf-8-sig"}
    assert {f"encodings.{codec.replace('-', '_')}" for codec in named} <= set(module_names())


def test_modules_that_can_not_be_imported_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that can't be imported does not keep the others from being imported."""
    names = []

    def fail(name: str) -> None:
        names.append(name)
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", fail)
    import_rest()
    assert names == list(module_names())


def test_imports_end_with_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the exit no further module is imported, and the import that runs is awaited."""
    imported: list[str] = []
    begun, go_on, exits = threading.Event(), threading.Event(), threading.Event()

    def slow(name: str) -> None:
        imported.append(name)
        begun.set()
        assert go_on.wait(20)

    monkeypatch.setattr(later_imports, "_exits", exits)
    monkeypatch.setattr("atexit.register", lambda _call: None)
    monkeypatch.setattr(importlib, "import_module", slow)
    thread = threading.Thread(target=import_rest)
    thread.start()
    assert begun.wait(20)
    ending = threading.Thread(target=later_imports.end_imports)
    ending.start()
    assert exits.wait(20)
    go_on.set()
    for each in (thread, ending):
        each.join(20)
    assert imported == [next(module_names())]
