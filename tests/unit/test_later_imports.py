"""Modules that a daemon imports once it serves."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import svcd
from svcd.daemon.later_imports import import_rest, module_names

if TYPE_CHECKING:
    import pytest

#: Packages of other programs, or of the start alone.
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


def test_what_functions_import_is_imported_before_it_is_needed() -> None:
    """No module is imported for the first time by a reload, a command or an upgrade."""
    assert _imported_in_functions() >= {"svcd.supervisor.spawned_service", "svcd.protocols.http.server"}
    assert _imported_in_functions() <= set(module_names())


def test_modules_without_their_libraries_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that can't be imported keeps the others from nothing."""
    names = []

    def fail(name: str) -> None:
        names.append(name)
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", fail)
    import_rest()
    assert names == list(module_names())
