"""The examples of README.md and docs/: their blocks, and what each needs to be run.

An example is a fenced block of plain Markdown. Its language says what is done with it:

- `console`: a line that begins with `$ ` is a command, with `> ` it goes on. The lines after a command are its output;
  `...` stands for anything within a line, or as a line of its own for any lines. No line means no output. A command
  whose output is not shown, or as `...` alone, has to succeed, unless `$ echo $?` comes next or the block says
  `exit N`. `twistd -n` and `svcd` run to the end of the page: the next command begins when they are ready and have
  printed the lines after them. The line `^C` interrupts them.
- `services`: a services file, saved under the name in its first line, `# NAME`, else as `services`. It is checked, and
  a daemon serves it: one of the page's commands, else one of the test's own.
- `python` with the first line `# NAME.py` is saved under that name, and has to be used by the page; any other is run.
- `log`: lines that the page's daemon writes, in this order.
- `sh`, `ini`, `toml`, `yaml`, `json`, `haproxy`, `nginx`, `dockerfile`, `promql`: a file, named by its first line
  (`# NAME`; JSON has no comments, and takes the name from the comment before the block). The program that reads such
  files checks it where the machine has it.
- `text`: an illustration. It holds no command.

A comment before a block says what it needs: `<!-- run: root -->`. Needs are separated by commas:

- `root`: the page's commands run as root, else as an ordinary user.
- `systemd`: the block runs as root on a booted machine of the page, with svcd in /opt/svcd, unless the page makes that.
  Other blocks see nothing of it.
- `checkout`: the page's directory holds the files of the project from there on.
- `program NAME`: a program that the machine may lack.
- `internet`: other machines.
- `exit N`: the exit status of the block's last command.
- `background`: the block's last command runs to the end of the page.
- `stop`: ends what runs in the background before the block.
- `faults`: services of this file may be broken, since the machine lacks something.
- `name NAME`: the file's name.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markdown_it import MarkdownIt
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from sybil.example import Example

__all__ = ["LANGUAGES", "Block", "Command", "commands", "fences", "pages", "parsed"]

#: The languages that something runs or checks.
LANGUAGES = ("console", "services", "python", "log", "sh", "ini", "toml", "yaml", "json", "haproxy", "nginx",
             "dockerfile", "promql", "text")  # fmt: skip
_COMMENT = re.compile(r"<!--\s*run:\s*((?:(?!-->).)*?)\s*-->\s*\Z", re.DOTALL)
_NAME = re.compile(r"# (\S+)\n")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: the word behind its fence.
        text: what it holds.
        line: its place in the page, from 1.
        needs: what the comment before it says.
    """

    language: str
    text: str
    line: int
    needs: tuple[str, ...] = ()

    @classmethod
    def of(cls, example: Example) -> Block:
        """Return the block of an example that was parsed."""
        found = _COMMENT.search(example.document.text[: example.region.start].rstrip())
        needs = tuple(each.strip() for each in found[1].split(",")) if found else ()
        region = example.region
        return cls(region.lexemes["arguments"], str(region.lexemes["source"]), example.line, needs)

    def need(self, word: str) -> str | None:
        """Return the value of a need such as `exit 78`, an empty text if it has none, None without that need."""
        for each in self.needs:
            name, _, value = each.partition(" ")
            if name == word:
                return value
        return None

    @property
    def name(self) -> str | None:
        """The name of its file."""
        found = _NAME.match(self.text)
        return self.need("name") or (found[1] if found else None)


@dataclass(frozen=True)
class Command:
    """A command of a console block.

    Attributes:
        text: its lines, without the prompts.
        output: the lines after it.
    """

    text: str
    output: tuple[str, ...]

    def matches(self, output: str) -> bool:
        """Return whether an output is the one that the page shows."""
        return re.fullmatch(self.pattern, _tidy(output)) is not None

    def begins(self, output: str) -> bool:
        """Return whether an output begins with the one that the page shows."""
        return re.match(self.pattern, _tidy(output)) is not None

    @property
    def shows_output(self) -> bool:
        """Whether the page shows a line of the output."""
        return any(line.strip() not in ("", "...") for line in self.output)

    @property
    def pattern(self) -> str:
        """The output as a regular expression."""
        lines = []
        for line in self.output:
            words = ".*?".join(re.escape(part) for part in line.rstrip().split("..."))
            lines.append(r"(?:.*\n)*?" if line.strip() == "..." else f"{words}\n")
        return "".join(lines)


def _tidy(text: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def commands(text: str) -> list[Command]:
    """Return the commands of a console block.

    Raises:
        ValueError: it begins with something else.
    """
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif not found:
            raise ValueError(f"no command: {line}")
        else:
            command, output = found[-1]
            if not output and not _complete(command):
                found[-1] = (f"{command}\n{line.removeprefix('> ')}", output)
            else:
                output.append(line)
    return [Command(command, tuple(output)) for command, output in found]


def _complete(command: str) -> bool:
    """Return whether a shell would not ask for another line."""
    if command.endswith("\\"):
        return False
    done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, env={"LC_ALL": "C"})
    return not done.stderr


def pages(root: Path) -> Iterator[Path]:
    """Return the pages with examples.

    Args:
        root: the folder of the project.
    """
    yield root / "README.md"
    yield from sorted(root.glob("docs/**/*.md"))


def parsed(path: Path, evaluate: Callable[[Example], str | None]) -> list[Example]:
    """Return the examples of a page, in their order.

    Args:
        path: the page.
        evaluate: runs an example; returns what is wrong with it.
    """
    sybil = Sybil([CodeBlockParser(language, evaluate) for language in LANGUAGES], path=str(path.parent))
    return list(sybil.parse(path).examples())


def fences(path: Path) -> Mapping[int, str]:
    """Return the language of each block of a page as a Markdown parser finds them, by line.

    An indented block is one of the language `indented`. A directive of MyST, as `{toctree}`, is none: Sphinx runs it.
    """
    tokens = MarkdownIt().parse(path.read_text("utf-8"))
    return {
        (token.map or [0])[0] + 1: "indented" if token.type == "code_block" else token.info.strip()
        for token in tokens
        if token.type in ("fence", "code_block") and not re.match(r"\{(?!code)", token.info)
    }
