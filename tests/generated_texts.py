"""Texts of the repository that are made from the option table and the catalog of built-ins.

`python -m tests.generated_texts` writes them; tests/unit/test_docs.py compares them.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from svcd.cli.option_tables import FORMATS
from svcd.protocols.catalog import BUILTINS
from svcd.protocols.sample_files import default_ports, sample_lines

__all__ = ["generated_files"]

_LISTING = "# The service name or an alias selects the built-in: "


def _replaced(text: str, begin: str, end: str, content: str) -> str:
    """Return a text with the part between two marks replaced.

    Raises:
        ValueError: a mark is missing.
    """
    start = text.index(begin) + len(begin)
    return text[:start] + content + text[text.index(end, start) :]


def _readme(text: str) -> str:
    ports = textwrap.fill(f"{default_ports()}.", 118)
    text = _replaced(text, "<!-- default ports -->\n", "<!-- /default ports -->", f"{ports}\n")
    return _replaced(text, "<!-- options -->\n", "<!-- /options -->", FORMATS["markdown"]())


def _services(text: str) -> str:
    text = _replaced(text, _LISTING, "\n", f"{' '.join(BUILTINS)}.")
    content = "\n".join(["", *sample_lines(), "", ""])
    return _replaced(text, "# Built-ins, with their usual ports.\n", "# More examples.", content)


def generated_files(root: Path) -> dict[Path, str]:
    """Return the files that hold generated texts, each with the content it has to have.

    Args:
        root: the folder of the project.
    """
    readme, services, page = root / "README.md", root / "etc/svcd/services", root / "etc/man/svcd-services.5"
    return {
        readme: _readme(readme.read_text("utf-8")),
        services: _services(services.read_text("utf-8")),
        page: FORMATS["man"](),
    }


if __name__ == "__main__":
    for path, text in generated_files(Path(__file__).parents[1]).items():
        path.write_text(text, "utf-8")
