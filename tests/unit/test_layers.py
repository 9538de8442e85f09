"""Rules of the layout: floors of modules, contents of every module, and retired names."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

import svcd

#: The floor of each package, and of each single module of svcd/. Imports go to lower floors.
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
        9: ["control", "cli"],
        10: ["daemon"],
        11: ["tap", "__main__"],
    }.items()
    for name in names
}
ROOT = Path(next(iter(svcd.__path__)))
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
CHECKED = sorted(set(MODULES) - {"__init__"})


def _set_of(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Words of former names of classes and modules: they must not be a word of an identifier or a file name, nor occur in
#: the documentation.
RETIRED_WORDS = _set_of("""
    artefacts entrance farewell farewells gatekeeper handoff heir keeper keepers ledger ledgers lobby nurse nurses
    nursery nurseries predecessor sayings securing succession successor surroundings tallies tally telling
    unannounced usher visitor visitors
""")
#: Former names of classes and functions whose words have other uses.
RETIRED_NAMES = _set_of("""
    About Alarm Also Answerer Answering BLIND ClientSide Console DaemonFigures DatagramAnswerer Deadlines Door
    Ends FilePlace FirstSide Flow Forks Form Forward Gate HalfCloseableGate Hall HandOffPort HandlerSide Hours
    Inherited Journal JournalObserver JournaldForm JournaldPlace JsonForm LEFTOVER LineReader Lingerer Link
    LocalMachine LogOutput Meter NamelessClient OpenSocket Orders PriorityForm Pulse Pump Reception ReverseNames
    SAID Said ServiceFigures SourceBuckets StatusSite Stock Telling TextForm Ticket TlsGate TlsServer Trial Trust
    UNGIVEN Visit adopt_orphans around calling_off end_unseen flush_by hides_clients not_shaken orphan_ended
    outlast_signals spec_of stand_aside take_limits tell_end through_twisted to_syslog try_imports unqueue
""")
#: Former names of modules whose words have other uses.
RETIRED_MODULES = _set_of("""
    access_check access_kinds answers asking choosing clocks connecting describing driving ending ends exposition
    fetch figures forms gate grammar handler_kinds hello inherited journal kinds link machine mux names notify
    opening orders pem placing places plan producing pump race reading relayed reloading rows sides site sockdiag
    specs stock tables tcpinfo terms timeofday tls_kinds trial upgrading view writing
""")


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text("utf-8"))


@cache
def _imports(module: str) -> frozenset[str]:
    """Return the full names that a module imports, with those for the type checker."""
    names = set()
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def _own_imports(module: str) -> set[str]:
    """Return the modules of svcd that a module imports, without the package itself (its version)."""
    found = set()
    for name in _imports(module):
        if name == "svcd.__version__" or not name.startswith("svcd."):
            continue
        inner = name.removeprefix("svcd.")
        found.add(inner if inner in MODULES else inner.rpartition(".")[0])
    return found


def _package_and_floor(module: str) -> tuple[str, int]:
    top = module.partition(".")[0]
    return top, FLOORS[top]


def test_every_module_has_a_floor() -> None:
    """Every module of svcd/ has a floor."""
    assert {module.partition(".")[0] for module in CHECKED} <= set(FLOORS)
    assert len(CHECKED) > 20


@pytest.mark.parametrize("module", CHECKED)
def test_imports_go_down(module: str) -> None:
    """A module imports from lower floors and from its own package only, types included."""
    top, floor = _package_and_floor(module)
    for other in _own_imports(module):
        other_top, other_floor = _package_and_floor(other)
        assert other_floor < floor or other_top == top, f"{module} ({floor}) imports {other} ({other_floor})"


def test_the_reactor_imports_net_only() -> None:
    """The reactor imports net/ and nothing else of svcd."""
    for module in CHECKED:
        if module.split(".")[0] == "reactor":
            assert {other.split(".")[0] for other in _own_imports(module)} <= {"reactor", "net"}


def test_there_is_no_import_cycle() -> None:
    """There is no import cycle, even for types."""
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for other in _own_imports(module) - {module}:
                visit(other, (*path, module))
            done.add(module)

    for module in CHECKED:
        visit(module, ())


@pytest.mark.parametrize("module", CHECKED)
def test_the_global_reactor_is_imported_at_the_top_only(module: str) -> None:
    """Only tap and log.setup import the global reactor, which installs one, and inside a function."""
    if "twisted.internet.reactor" not in _imports(module):
        return
    assert module in ("tap", "log.setup")
    top_level = [node for node in _tree(module).body if isinstance(node, ast.ImportFrom)]
    assert "reactor" not in {alias.name for node in top_level for alias in node.names}


@pytest.mark.parametrize("module", [module for module in CHECKED if module.startswith("wire.")])
def test_wire_uses_no_io_and_no_clock(module: str) -> None:
    """A module of wire/ converts between bytes and values, and uses neither I/O nor clocks."""
    tops = {name.split(".")[0] for name in _imports(module)}
    assert not tops & {"twisted", "socket", "os", "pathlib", "io", "select", "subprocess", "asyncio", "threading"}
    used = {
        node.attr
        for node in ast.walk(_tree(module))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time"
    }
    assert not used & {"time", "time_ns", "monotonic", "perf_counter", "sleep"}
    assert not any(name in _imports(module) for name in ("time.time", "time.monotonic", "datetime.datetime"))


@pytest.mark.parametrize("module", [module for module in CHECKED if module.startswith("access")])
def test_access_control_uses_no_socket_and_no_clock(module: str) -> None:
    """Access control uses neither sockets nor clocks: addresses, names and times are arguments."""
    tops = {name.split(".")[0] for name in _imports(module)}
    assert not tops & {"twisted", "socket", "os", "pathlib", "select", "subprocess", "asyncio", "threading", "time"}
    attributes = {node.attr for node in ast.walk(_tree(module)) if isinstance(node, ast.Attribute)}
    assert not attributes & {"now", "utcnow", "today"}


@pytest.mark.parametrize("module", ["__init__", *CHECKED])
def test_a_module_has_a_docstring_and_all(module: str) -> None:
    """Every module has a docstring and __all__."""
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


@pytest.mark.parametrize("module", CHECKED)
def test_module_length(module: str) -> None:
    """A module has at most 500 lines."""
    assert len(MODULES[module].read_text("utf-8").splitlines()) <= 500


@pytest.mark.parametrize("module", CHECKED)
def test_a_function_fits_on_a_page(module: str) -> None:
    """A function has at most 40 lines of code below its docstring."""
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert length <= 40, f"{module}.{node.name} has {length}"


def test_a_class_name_occurs_once() -> None:
    """No public class has the name of another."""
    classes = [node.name for module in CHECKED for node in ast.walk(_tree(module)) if isinstance(node, ast.ClassDef)]
    twice = {name for name, count in Counter(classes).items() if count > 1 and not name.startswith("_")}
    assert not twice


@pytest.mark.parametrize("module", CHECKED)
def test_a_constructor_takes_few_arguments(module: str) -> None:
    """A constructor takes at most 6 arguments."""
    for owner in ast.walk(_tree(module)):
        if isinstance(owner, ast.ClassDef):
            for node in owner.body:
                if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                    count = len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs) - 1
                    assert count <= 6, f"{module}.{owner.name} takes {count}"


def _words(name: str) -> set[str]:
    """Return the words of an identifier: log and writer of LogWriter, log_writer and _LOG_WRITER."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def _identifiers(path: Path) -> set[str]:
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text("utf-8")).readline)
    return {token.string for token in tokens if token.type == tokenize.NAME}


def test_retired_names_are_gone(project_root: Path) -> None:
    """No file and no identifier has a retired name, and no document a retired word."""
    sources = [path for folder in ("svcd", "tests", "twisted") for path in (project_root / folder).rglob("*.py")]
    assert len(sources) > len(CHECKED)
    found = {str(path) for path in sources if path.stem.removeprefix("test_") in RETIRED_MODULES}
    for path in sources:
        names = _identifiers(path) | {path.stem}
        found |= {f"{path}: {name}" for name in names if name in RETIRED_NAMES or _words(name) & RETIRED_WORDS}
    for pattern in ("README.md", "CONTRIBUTING.md", "docs/**/*", "etc/**/*"):
        for path in project_root.glob(pattern):
            if path.is_file():
                found |= {
                    f"{path}: {word}"
                    for word in RETIRED_WORDS & set(re.findall(r"\w+", path.read_text("utf-8").lower()))
                }
    assert not found, "\n".join(sorted(found))
