"""The reference and the manual pages have all that the code has."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING, cast

import pytest
from markdown_it import MarkdownIt

from svcd.cli import _parser
from svcd.cli.parser_model import commands_of
from svcd.config.options import TABLE
from svcd.daemon.options import Options
from svcd.protocols.catalog import BUILTINS
from tests.generated_texts import SPHINX, build, manual_pages
from tests.reference_pages import PARTS, with_parts

if TYPE_CHECKING:
    from pathlib import Path

PAGES = ("svcctl.1", "svcd-services.5", "svcd.8")
needs_sphinx = pytest.mark.skipif(not SPHINX, reason="Sphinx is not installed: pip install '.[docs]'")


def _rendered(text: str) -> str:
    """Return a manual page as words; releases of docutils break lines in other places."""
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("groff is not installed")
    words = [groff, "-man", "-t", "-ww", "-Tutf8", "-P-c", "-rLL=1000n", "-rHY=0"]
    done = subprocess.run(words, input=text, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return " ".join(done.stdout.split())


@pytest.fixture
def pages(project_root: Path) -> dict[str, str]:
    """The manual pages of etc/man, by name."""
    return {name: (project_root / "etc/man" / name).read_text("utf-8") for name in PAGES}


@needs_sphinx
def test_the_manual_pages_are_up_to_date(project_root: Path, pages: dict[str, str]) -> None:
    """etc/man has the text that Sphinx makes of docs/man."""
    built = {path.name: text for path, text in manual_pages(project_root).items()}
    assert built.keys() == pages.keys()
    for name, text in pages.items():
        assert _rendered(text) == _rendered(built[name]), f"{name} is out of date: python -m tests.generated_texts"


@needs_sphinx
def test_the_documentation_builds_without_a_warning(project_root: Path, tmp_path: Path) -> None:
    """All pages are in the contents, and links between pages and to headings have a target."""
    assert build(project_root, "html", tmp_path) == ""
    for name in TABLE:
        assert f'<section id="{name.replace("_", "-")}">' in (tmp_path / "reference/options.html").read_text("utf-8")


@needs_sphinx
def test_a_broken_link_is_a_warning(project_root: Path, tmp_path: Path) -> None:
    """A link to a heading that does not exist fails the build."""
    shutil.copytree(project_root / "docs", tmp_path / "docs")
    shutil.copy(project_root / "CONTRIBUTING.md", tmp_path)
    settings = (project_root / "docs/conf.py").read_text("utf-8")
    settings = settings.replace("Path(__file__).parents[1]", f"Path({str(project_root)!r})")
    (tmp_path / "docs/conf.py").write_text(settings)
    with (tmp_path / "docs/how-to/tls.md").open("a") as page:
        page.write("\nSee [an option](../reference/options.md#no_such_option).\n")
    assert "no_such_option" in build(tmp_path, "html", tmp_path / "html")


@pytest.mark.parametrize("name", PAGES)
def test_a_manual_page_is_whole(pages: dict[str, str], name: str) -> None:
    """It has the usual sections, and examples."""
    sections = re.findall(r"^\.SH (.*)$", pages[name], re.MULTILINE)
    assert sections[0] == "NAME"
    assert {"SYNOPSIS", "DESCRIPTION", "OPTIONS", "FILES", "EXIT STATUS", "EXAMPLES", "SEE ALSO"} <= set(sections)
    assert sections[-1] == "SEE ALSO"
    examples = pages[name].partition(".SH EXAMPLES")[2].partition(".SH SEE ALSO")[0]
    assert ".EX" in examples


@pytest.mark.parametrize("name", PAGES)
def test_a_manual_page_has_no_mistakes(project_root: Path, name: str) -> None:
    """Neither groff nor mandoc warns of it, except of the missing date: the page has a version instead."""
    path = str(project_root / "etc/man" / name)
    checks = [["groff", "-man", "-t", "-ww", "-z", "-Tutf8", path], ["mandoc", "-T", "lint", "-W", "warning", path]]
    found = [words for words in checks if shutil.which(words[0])]
    if not found:
        pytest.skip("neither groff nor mandoc is installed")
    for words in found:
        done = subprocess.run(words, capture_output=True, text=True)
        lines = [line for line in (done.stdout + done.stderr).splitlines() if "missing date" not in line]
        assert lines == []


def test_the_manual_of_svcctl_has_all_commands(pages: dict[str, str]) -> None:
    """Every command is there, with its options and arguments."""
    page = pages["svcctl.1"].replace("\\-", "-").replace("\\&", "").replace("\\_", "_")
    for command in commands_of(_parser())[1:]:
        [section] = [each for each in page.split(".SS ") if each.startswith(f"{command.name}\n")]
        for argument in command.arguments:
            assert "--help" in argument.names or all(name in section for name in argument.names or (argument.label,))


def test_the_other_manuals_have_all_options(pages: dict[str, str]) -> None:
    """The options of the daemon, the options of services, and the built-ins."""
    daemon, services = (pages[name].replace("\\-", "-").replace("\\&", "") for name in ("svcd.8", "svcd-services.5"))
    for name, *_ in cast("list[list[str]]", [*Options.optParameters, *Options.optFlags]):
        assert f"--{name}" in daemon
    for name in (*TABLE, *BUILTINS):
        assert f"\\fB{name}\\fP" in services


def test_each_part_is_in_a_page(project_root: Path) -> None:
    """No part is made for nothing, and no page asks for a part that there is not."""
    texts = [path.read_text("utf-8") for path in sorted((project_root / "docs").glob("**/*.md"))]
    for name in PARTS:
        assert any(f"<!-- generated: {name} -->" in text for text in texts), name
    for text in texts:
        assert "<!-- generated" not in with_parts(text)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_of_the_front_pages_have_a_target(project_root: Path, name: str) -> None:
    """Files exist; an anchor is a heading of the page. Sphinx checks the links of docs/."""
    found = _links(project_root / name)
    assert found
    for link in found:
        path, _, anchor = link.partition("#")
        target = project_root / (path or name)
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


def _links(path: Path) -> list[str]:
    tokens = [child for token in MarkdownIt().parse(path.read_text("utf-8")) for child in token.children or ()]
    links = [str(token.attrGet("href") or token.attrGet("src") or "") for token in tokens]
    return [link for link in links if link and "://" not in link]


def _anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
