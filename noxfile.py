"""Commands of development: `nox -s unit` runs one of these sessions, `nox -l` lists them.

The sessions run in the environment of the checkout, .venv, and build none; `wheel` alone makes an environment, which it
removes. `.ci/run` runs the same sessions. Arguments after -- go to the command: `nox -s unit -- -k rate`.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv/bin/python"
#: The interpreter of the checkout's environment, or the one that runs nox.
PYTHON = str(VENV) if VENV.exists() else sys.executable
#: The tests that run from an installed wheel: those in memory, and of the others those that can tell a wheel from the
#: sources, because they find something by import or as a file, or start it as a process.
WHEEL_TESTS = (
    "tests/unit",
    "tests/reactor",
    "tests/test_wheel.py",
    *(f"tests/real/test_{name}.py" for name in ("activation", "builtins", "control", "systemd", "twistd")),
)

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "unit"]


def _pytest(session: nox.Session, *arguments: str) -> None:
    session.run(PYTHON, "-m", "pytest", "-q", *arguments, *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting (ruff)."""
    session.run(PYTHON, "-m", "ruff", "check", *session.posargs, ".")
    session.run(PYTHON, "-m", "ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types (mypy --strict)."""
    session.run(PYTHON, "-m", "mypy", "--strict", *session.posargs)


@nox.session
def layers(session: nox.Session) -> None:
    """Check the rules that hold for every module: floors, names, lengths."""
    _pytest(session, "tests/unit/test_layers.py")


@nox.session
def unit(session: nox.Session) -> None:
    """Run the tests in memory and those of the reactor."""
    _pytest(session, "tests/unit", "tests/reactor")


@nox.session
def real(session: nox.Session) -> None:
    """Run the tests with real daemons, programs and clients."""
    _pytest(session, *([] if any(each.startswith("tests/") for each in session.posargs) else ["tests/real"]))


@nox.session(name="all")
def all_tests(session: nox.Session) -> None:
    """Run the whole suite with branch coverage, of the daemons too."""
    session.run(PYTHON, "-m", "pytest", "--cov", *session.posargs)


@nox.session
def suites(session: nox.Session) -> None:
    """Run the suites of Twisted, and of treq and klein where -- --peers PYTHON has them, on the uv reactor."""
    session.run(PYTHON, "-m", "tests.reactor.run_suites", *session.posargs)


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the wheel, and test it in an environment and a folder without the sources."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        scratch.chmod(0o755)  # daemons that give root up read it
        session.run(PYTHON, "-m", "build", "--wheel", "--outdir", str(scratch / "dist"), ".", silent=True)
        [built] = (scratch / "dist").glob("*.whl")
        session.log(f"{built.name}: {built.stat().st_size:,} bytes")
        session.run(sys.executable, "-m", "venv", str(scratch / "venv"))
        python = str(scratch / "venv/bin/python")
        session.run(python, "-m", "pip", "install", "--quiet", f"{built}[test]")
        away = scratch / "away"
        shutil.copytree(ROOT / "tests", away / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", away)
        with session.chdir(away):
            options = ["-q", "-p", "no:cacheprovider", "-m", "not load"]
            session.run(python, "-m", "pytest", *options, *WHEEL_TESTS, *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Write the texts that are made from the code (not with -- --check), build the documentation, and test both."""
    if "--check" not in session.posargs:
        session.run(PYTHON, "-m", "tests.generated_texts")
    for builder in ("html", "man"):
        session.run(PYTHON, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", builder, "docs", f"build/docs/{builder}")
    tests = ("docs", "reference", "examples")
    session.run(PYTHON, "-m", "pytest", "-q", *(f"tests/unit/test_{name}.py" for name in tests))


@nox.session
def trace(session: nox.Session) -> None:
    """Write the modules that a connection runs through into docs/architecture.md."""
    session.run(PYTHON, "-m", "tests.trace", *(session.posargs or ["docs/architecture.md"]))


@nox.session
def bench(session: nox.Session) -> None:
    """Measure throughput, start and memory beside other servers (needs a C compiler)."""
    session.run(PYTHON, "-m", "tests.bench", *session.posargs)
