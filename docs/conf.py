"""Settings of Sphinx: `nox -s docs` builds the documentation and the manual pages."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pygments.lexers.configs import NginxConfLexer
from pygments.lexers.shell import BashLexer
from pygments.lexers.special import TextLexer

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from svcd import __version__  # noqa: E402 - of this folder
from tests.reference_pages import with_parts  # noqa: E402 - as above

project = "svcd"
version = release = __version__
extensions = ["myst_parser"]
myst_enable_extensions = ["deflist", "fieldlist"]
# The anchors of GitHub, for all headings that pages link to.
myst_heading_anchors = 4
# Options and quotations are shown as they are written.
smartquotes = False
nitpicky = True

html_theme = "furo"
html_title = f"svcd {version}"
html_copy_source = False
html_show_sphinx = False

man_pages = [
    ("man/svcd.8", "svcd", "super-server on Twisted", [], 8),
    ("man/svcctl.1", "svcctl", "control svcd, check its services file, talk to servers", [], 1),
    ("man/svcd-services.5", "svcd-services", "services file of svcd", [], 5),
]
# Manual pages have no date: they change with the version.
today = ""


def _read(_app: Sphinx, _page: str, source: list[str]) -> None:
    # docs/contributing.md includes the file of the project's folder.
    source[0] = with_parts(source[0]).replace("](../CONTRIBUTING.md", "](contributing.md")


def _tidy(app: Sphinx, failure: Exception | None) -> None:
    """Remove from manual pages what mandoc(1) warns of, and the comments about the tools."""
    if failure is not None or app.builder.name != "man":
        return
    for name, section in {(page[1], page[4]) for page in man_pages}:
        path = Path(app.outdir) / f"{name}.{section}"
        text = path.read_text("utf-8")
        text = re.sub(r'^(\.TH "\S+" "\d") .*$', rf'\1 "" "svcd {version}"', text, flags=re.MULTILINE)
        text = re.sub(r"^(\.S[HS] .*\n)\.sp\n", r"\1", text, flags=re.MULTILINE)
        text = re.sub(r'^\.\\" (?:Man page generated|by the Docutils).*\n', "", text, flags=re.MULTILINE)
        path.write_text(text, "utf-8")


def setup(app: Sphinx) -> None:
    """Register the parts made from the code, and the languages that Pygments lacks."""
    app.connect("source-read", _read)
    app.connect("build-finished", _tidy)
    app.add_lexer("services", BashLexer)
    app.add_lexer("haproxy", NginxConfLexer)
    app.add_lexer("promql", TextLexer)
    app.add_lexer("log", TextLexer)
