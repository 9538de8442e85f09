"""Texts of the repository that are made from the option table and the catalog of built-ins.

`python -m tests.generated_texts` writes them; tests/unit/test_docs.py and tests/unit/test_reference.py compare them.
The manual pages need Sphinx (extra `docs`).
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

from svcd.protocols.catalog import BUILTINS
from svcd.protocols.sample_files import sample_lines

__all__ = ["SPHINX", "build", "generated_files", "manual_pages"]

#: Whether Sphinx is installed.
SPHINX = importlib.util.find_spec("sphinx") is not None and importlib.util.find_spec("myst_parser") is not None
_LISTING = "# The name or the first alias that is a built-in says what runs: "


def _replaced(text: str, begin: str, end: str, content: str) -> str:
    """Return a text with the part between two marks replaced; the same text if it has no such part."""
    if begin not in text:
        return text
    start = text.index(begin) + len(begin)
    return text[:start] + content + text[text.index(end, start) :]


def _services(text: str) -> str:
    text = _replaced(text, _LISTING, "\n", f"{' '.join(BUILTINS)}.")
    content = "\n".join(["", *sample_lines(), "", ""])
    return _replaced(text, "# Built-ins, with their usual ports.\n", "# More examples.", content)


def generated_files(root: Path) -> dict[Path, str]:
    """Return the files that hold generated texts, without the manual pages, each with the content it has to have.

    Args:
        root: the folder of the project.
    """
    services = root / "etc/svcd/services"
    return {services: _services(services.read_text("utf-8"))}


def build(root: Path, builder: str, target: Path) -> str:
    """Build the documentation with Sphinx; a warning is an error.

    Args:
        root: the folder of the project.
        builder: html or man.
        target: the folder to write to.

    Returns:
        what Sphinx prints: nothing without a warning.
    """
    words = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-E", "-d", str(target / ".cache")]
    words += ["-b", builder, str(root / "docs"), str(target)]
    done = subprocess.run(words, capture_output=True, text=True)
    return done.stdout + done.stderr + (f"exit status {done.returncode}" if done.returncode else "")


def manual_pages(root: Path) -> dict[Path, str]:
    """Return the manual pages, each with the content it has to have.

    Args:
        root: the folder of the project.

    Raises:
        RuntimeError: Sphinx warns of something.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if problems := build(root, "man", folder):
            raise RuntimeError(problems)
        return {root / "etc/man" / path.name: path.read_text("utf-8") for path in folder.glob("*.[158]")}


def _write(root: Path) -> None:
    texts = generated_files(root)
    if SPHINX:
        texts |= manual_pages(root)
    else:
        print("etc/man is left as it is: pip install -e '.[docs]'", file=sys.stderr)
    for path, text in texts.items():
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    _write(Path(__file__).parents[1])
