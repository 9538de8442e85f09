"""The house: which module may import which, and what every module has."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

import svcd

#: The floor of each package, and of each single module of svcd/. Imports go down.
FLOORS = {
    name: floor
    for floor, names in {
        1: ["wire", "net", "model", "addresses", "defaults"],
        2: ["errors", "interfaces", "access", "reactor"],
        3: ["log", "metrics", "config", "clients"],
        4: ["process"],
        5: ["protocols", "host", "upgrade"],
        6: ["sockets", "tls", "config_loader"],
        7: ["connections"],
        8: ["supervisor"],
        9: ["control", "daemon", "cli"],
        10: ["tap", "__main__"],
    }.items()
    for name in names
}
ROOT = Path(next(iter(svcd.__path__)))
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
HOUSED = sorted(set(MODULES) - {"__init__"})


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text("utf-8"))


@cache
def _imports(module: str) -> frozenset[str]:
    """The full names that a module imports, those for the type checker alone as well."""
    names = set()
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def _own_imports(module: str) -> set[str]:
    """The modules of ours that a module imports, without the package itself (its version)."""
    found = set()
    for name in _imports(module):
        if name == "svcd.__version__" or not name.startswith("svcd."):
            continue
        inner = name.removeprefix("svcd.")
        found.add(inner if inner in MODULES else inner.rpartition(".")[0])
    return found


def _rooms(module: str) -> tuple[str, int]:
    top = module.partition(".")[0]
    return top, FLOORS[top]


def test_every_module_has_a_floor() -> None:
    """No module stands outside the house."""
    assert {module.partition(".")[0] for module in HOUSED} <= set(FLOORS)
    assert len(HOUSED) > 20


@pytest.mark.parametrize("module", HOUSED)
def test_imports_go_down(module: str) -> None:
    """A module imports lower floors, and of its own floor its own package alone, types included."""
    top, floor = _rooms(module)
    for other in _own_imports(module):
        other_top, other_floor = _rooms(other)
        assert other_floor < floor or other_top == top, f"{module} ({floor}) imports {other} ({other_floor})"


def test_the_reactor_stands_alone() -> None:
    """The reactor knows the kernel's facilities of net/, and nothing else of svcd."""
    for module in HOUSED:
        if module.split(".")[0] == "reactor":
            assert {other.split(".")[0] for other in _own_imports(module)} <= {"reactor", "net"}


def test_imports_make_no_circle() -> None:
    """No module imports itself by way of others, not even for types."""
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for other in _own_imports(module) - {module}:
                visit(other, (*path, module))
            done.add(module)

    for module in HOUSED:
        visit(module, ())


@pytest.mark.parametrize("module", HOUSED)
def test_only_the_top_touches_the_global_reactor(module: str) -> None:
    """Importing the reactor installs one, so only tap and log.setup do, inside a function."""
    if "twisted.internet.reactor" not in _imports(module):
        return
    assert module in ("tap", "log.setup")
    top_level = [node for node in _tree(module).body if isinstance(node, ast.ImportFrom)]
    assert "reactor" not in {alias.name for node in top_level for alias in node.names}


@pytest.mark.parametrize("module", [module for module in HOUSED if module.startswith("wire.")])
def test_wire_does_no_io_and_knows_no_clock(module: str) -> None:
    """A module of wire/ turns bytes into values and back, and touches nothing else."""
    tops = {name.split(".")[0] for name in _imports(module)}
    assert not tops & {"twisted", "socket", "os", "pathlib", "io", "select", "subprocess", "asyncio", "threading"}
    used = {
        node.attr
        for node in ast.walk(_tree(module))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time"
    }
    assert not used & {"time", "time_ns", "monotonic", "perf_counter", "sleep"}
    assert not any(name in _imports(module) for name in ("time.time", "time.monotonic", "datetime.datetime"))


@pytest.mark.parametrize("module", [module for module in HOUSED if module.startswith("access")])
def test_access_control_knows_no_socket_and_no_clock(module: str) -> None:
    """What decides who may come in asks nobody: addresses, names and times are arguments."""
    tops = {name.split(".")[0] for name in _imports(module)}
    assert not tops & {"twisted", "socket", "os", "pathlib", "select", "subprocess", "asyncio", "threading", "time"}
    asked = {node.attr for node in ast.walk(_tree(module)) if isinstance(node, ast.Attribute)}
    assert not asked & {"now", "utcnow", "today"}


@pytest.mark.parametrize("module", ["__init__", *HOUSED])
def test_a_module_says_what_it_is(module: str) -> None:
    """Every module has a docstring, and names in __all__ what it offers."""
    tree = _tree(module)
    assert ast.get_docstring(tree)
    only_docstring = len(tree.body) == 1
    assigned = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    assert only_docstring or module == "__main__" or "__all__" in assigned


@pytest.mark.parametrize("module", HOUSED)
def test_module_length(module: str) -> None:
    """A module has at most 500 lines."""
    assert len(MODULES[module].read_text("utf-8").splitlines()) <= 500


@pytest.mark.parametrize("module", HOUSED)
def test_a_function_fits_on_a_page(module: str) -> None:
    """A function has at most 40 lines of code below its docstring."""
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert length <= 40, f"{module}.{node.name} has {length}"
