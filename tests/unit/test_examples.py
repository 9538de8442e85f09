"""The blocks of README.md and docs/: each is an example that a runner executes, and is well formed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.examples import LANGUAGES, Block, Command, commands, fences, pages, parsed

if TYPE_CHECKING:
    from pathlib import Path

    from sybil.example import Example

NEEDS = {"root": 0, "systemd": 0, "checkout": 0, "program": 1, "internet": 0, "exit": 1, "background": 0, "stop": 0,
         "faults": 0, "name": 1}  # fmt: skip


def _ignore(_: Example) -> None:
    return None


def _problems(path: Path) -> list[str]:
    """Return the problems of the blocks of a page."""
    blocks = [Block.of(each) for each in parsed(path, _ignore)]
    run = {block.line: block for block in blocks}
    problems = [f"{line}: nothing runs {language!r}" for line, language in fences(path).items() if line not in run]
    for block in blocks:
        try:
            found = commands(block.text) if block.language == "console" else []
        except ValueError as error:
            problems.append(f"{block.line}: {error}")
            continue
        if block.language == "console" and not found:
            problems.append(f"{block.line}: no command")
        if block.language == "text" and any(line.startswith("$ ") for line in block.text.splitlines()):
            problems.append(f"{block.line}: a command that nothing runs")
        for need in block.needs:
            word, *values = need.split()
            if NEEDS.get(word) != len(values):
                problems.append(f"{block.line}: no need: {need}")
    return problems


def test_every_block_is_run(project_root: Path) -> None:
    """Each block that a Markdown parser finds is an example, and each need of an example is a known one."""
    wrong = {}
    for path in pages(project_root):
        name = str(path.relative_to(project_root))
        if problems := _problems(path):
            wrong[name] = problems
    assert not wrong


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("```\nplain\n```\n", "1: nothing runs ''"),
        ("```perl\nprint\n```\n", "1: nothing runs 'perl'"),
        ("```{code-block} python\nprint()\n```\n", "1: nothing runs '{code-block} python'"),
        ("text\n\n    $ indented\n", "3: nothing runs 'indented'"),
        ("```text\n$ ls\n```\n", "1: a command that nothing runs"),
        ("```console\nls\n```\n", "1: no command: ls"),
        ("```console\n```\n", "1: no command"),
        ("<!-- run: luck -->\n```console\n$ ls\n```\n", "2: no need: luck"),
        ("<!-- run: exit -->\n\n```console\n$ ls\n```\n", "3: no need: exit"),
    ],
)
def test_a_block_that_nothing_runs_is_found(tmp_path: Path, text: str, problem: str) -> None:
    """An unknown language, an indented block, a command outside a console block and an unknown need are problems."""
    page = tmp_path / "page.md"
    page.write_text(text)
    assert _problems(page) == [problem]


@pytest.mark.parametrize("language", LANGUAGES)
def test_blocks_of_each_language_are_found(tmp_path: Path, language: str) -> None:
    """A block of each language is found inside a list, with its text, line and needs."""
    page = tmp_path / "page.md"
    page.write_text(f"1. First:\n\n   <!-- run: root, exit 3 -->\n   ```{language}\n   $ x\n     y\n   ```\n")
    [block] = [Block.of(each) for each in parsed(page, _ignore)]
    assert block == Block(language, "$ x\n  y\n", 4, ("root", "exit 3"))
    assert fences(page) == {4: language}


def test_commands_have_continuations_and_output() -> None:
    """A command goes on after a backslash, in a here-document and in quotes; the lines after it are its output."""
    text = "$ cat > a <<'EOF'\n> $ one\n> EOF\n$ echo \\\n>   two\ntwo\n> three\n$ true\n"
    assert commands(text) == [
        Command("cat > a <<'EOF'\n$ one\nEOF", ()),
        Command("echo \\\n  two", ("two", "> three")),
        Command("true", ()),
    ]


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("", "", True),
        ("", "a\n", False),
        ("a", "a \n", True),
        ("a", "a\nb\n", False),
        ("a...c", "abc\n", True),
        ("a...c", "a\nc\n", False),
        ("a\n...\nc", "a\nc\n", True),
        ("a\n...\nc", "a\nb\nb\nc\n", True),
        ("...\nc", "a\nb\n", False),
        ("(.)", "(a)\n", False),
    ],
)
def test_an_output_is_compared(shown: str, printed: str, same: bool) -> None:
    """`...` stands for any text in a line, or for any lines."""
    assert Command("x", tuple(shown.splitlines())).matches(printed) is same
