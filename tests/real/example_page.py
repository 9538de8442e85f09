"""A page of the documentation whose examples are run."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.examples import Block, Command, commands, pages, parsed
from tests.real.booted import booted
from tests.real.conftest import NOBODY
from tests.real.daemon import environment
from tests.real.example_files import check_file
from tests.real.example_shell import Background, Shell, is_foreground, machine_shell, private_shell

if TYPE_CHECKING:
    from collections.abc import Callable

    from sybil.example import Example

__all__ = ["check_page", "page_paths", "run_page"]

ROOT = Path(__file__).parents[2]


class Page:
    """A page whose examples are run.

    Args:
        open_shell: starts a shell in the page's folder, here or (True) on a booted machine.

    Attributes:
        skipped: why blocks were left out.
    """

    def __init__(self, open_shell: Callable[[bool], Shell]) -> None:
        self.skipped: list[str] = []
        self._open_shell = open_shell
        self._shells: dict[bool, Shell] = {}
        self._shell: Shell
        self._running: list[Background] = []
        self._unserved: dict[tuple[Shell, str], Block] = {}
        self._files: list[tuple[Shell, str, str, str]] = []
        self._modules: list[str] = []
        self._texts: list[str] = []

    def evaluate(self, example: Example) -> str | None:
        """Run an example."""
        block = Block.of(example)
        if reason := self._missing(block):
            self.skipped.append(f"line {block.line}: {reason}")
            return None
        self._shell = self._shell_of(block)
        name = block.need("program")
        if name and self._shell.run(f"command -v {name}")[0]:
            self.skipped.append(f"line {block.line}: needs {name}")
            return None
        if block.need("checkout") is not None:
            self._check_out()
        if block.need("stop") is not None:
            self.stop()
        match block.language:
            case "text":
                return None
            case "console":
                return self._console(block)
            case "services":
                return self._services(block)
            case "python":
                return self._python(block)
            case "log":
                return self._log(block)
        return self._file(block)

    def finish(self) -> str | None:
        """Serve the services files that no command has served, and end all."""
        self.stop()
        for (shell, name), block in self._unserved.items():
            if wrong := self._serve(shell, name, block):
                return wrong
        for each in self._files:
            if wrong := check_file(*each):
                return f"{each[2]}: {wrong}"
        for module in self._modules:
            used = rf"(?:python|factory)={Path(module).stem}[:.]|\b{re.escape(module)}\b|import {Path(module).stem}\b"
            if not any(re.search(used, text) for text in self._texts):
                return f"nothing uses {module}"
        return None

    def stop(self) -> None:
        """End what runs in the background."""
        while self._running:
            self._running.pop().end()

    def _missing(self, block: Block) -> str | None:
        if (block.need("root") is not None or block.need("systemd") is not None) and os.geteuid() != 0:
            return "needs root"
        if block.need("internet") is not None:
            return "needs other machines"
        return None

    def _shell_of(self, block: Block) -> Shell:
        on_machine = block.need("systemd") is not None
        if on_machine not in self._shells:
            self._shells[on_machine] = self._open_shell(on_machine)
        return self._shells[on_machine]

    def _check_out(self) -> None:
        words = ["git", "-C", str(ROOT), "ls-files", "-z"]
        listed = subprocess.run(words, capture_output=True, check=True, text=True).stdout
        for name in filter(None, listed.split("\0")):
            target = self._shell.folder / name
            if (ROOT / name).is_file() and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, target)
        if os.geteuid() == 0:
            owner = self._shell.folder.stat()
            for path in self._shell.folder.rglob("*"):
                os.chown(path, owner.st_uid, owner.st_gid)

    # Files

    def _file(self, block: Block) -> str | None:
        name = block.name
        if name is None:
            return "its first line does not name the file: # NAME"
        self._shell.put(name, block.text)
        self._used(block.text)
        # A file may name a later one: they are checked in the end.
        self._files.append((self._shell, block.language, name, block.text))
        return None

    def _services(self, block: Block) -> str | None:
        name = block.name or "services"
        self._used(block.text)
        key = self._shell, name
        if key in self._unserved:
            shell = self._open_shell(block.need("systemd") is not None)
            if wrong := self._serve(shell, name, self._unserved.pop(key)):
                return wrong
        self._shell.put(name, block.text)
        self._unserved[key] = block
        status, output = self._shell.run(f"svcctl check {name}")
        return output if status not in (0, 1) else None

    def _serve(self, shell: Shell, name: str, block: Block) -> str | None:
        """Serve a file that is in the folder."""
        daemon = Background(shell, f"twistd -n --pidfile= svcd --control '' --services {name}")
        ready = daemon.output.wait(lambda text: " ready services=" in text)
        ended = daemon.end()
        text = daemon.output.text
        if not ready or (" broken " in text and block.need("faults") is None):
            return f"{name} of line {block.line} is not served, exit status {ended}:\n{text}"
        return None

    def _python(self, block: Block) -> str | None:
        if block.name is None:
            status, output = self._shell.run(f"python3 - <<'END OF THE EXAMPLE'\n{block.text}END OF THE EXAMPLE")
            return output if status else None
        self._shell.put(block.name, block.text)
        status, output = self._shell.run(f"python3 -m py_compile {block.name}")
        self._modules.append(block.name)
        return output if status else None

    def _used(self, text: str) -> None:
        """Note a text that uses other files of the page."""
        self._texts.append(text)
        for pattern in re.findall(r"^@include\s+(\S+)", text, re.MULTILINE):
            for key in list(self._unserved):
                if fnmatch.fnmatch(key[1], pattern):
                    del self._unserved[key]

    # Commands

    def _console(self, block: Block) -> str | None:
        found = commands(block.text)
        for number, command in enumerate(found):
            last = number == len(found) - 1
            self._used(command.text)
            reads_again = re.search(r"\b(?:reload|restart|upgrade|start|enable|HUP)\b", command.text)
            if is_foreground(command.text) or reads_again:
                for key in list(self._unserved):
                    if reads_again or key[1] in command.text.split():
                        del self._unserved[key]
            if is_foreground(command.text) or (last and block.need("background") is not None):
                wrong = self._foreground(command)
            else:
                wanted = int(block.need("exit") or 0) if last else 0
                shown = not last and found[number + 1].text == "echo $?"
                status, output = self._shell.run(command.text)
                wrong = None if command.matches(output) else f"other output:\n{output}"
                if status != wanted and not shown and (wanted or not command.shows_output):
                    wrong = f"exit status {status}:\n{output}"
            if wrong:
                return f"$ {command.text}\n{wrong}"
        return None

    def _foreground(self, command: Command) -> str | None:
        lines = list(command.output)
        interrupted = "^C" in lines
        first = Command(command.text, tuple(lines[: lines.index("^C")] if interrupted else lines))
        running = Background(self._shell, command.text)
        self._running.append(running)
        daemon = is_foreground(command.text)
        running.output.wait(lambda text: first.begins(text) and (not daemon or "ready" in text))
        if not first.begins(running.output.text):
            return f"other output:\n{running.output.text}"
        if interrupted:
            self._running.remove(running)
            running.end()
            shown = tuple(line.removeprefix("^C") for line in lines if line != "^C")
            if not Command(command.text, shown).matches(running.output.text):
                return f"other output:\n{running.output.text}"
        elif running.output.ended:
            self._running.remove(running)
            if status := running.wait():
                return f"exit status {status}:\n{running.output.text}"
        return None

    def _log(self, block: Block) -> str | None:
        wanted = Command("", ("...", *block.text.splitlines()))
        if not self._running:
            return "nothing runs that writes a log"
        output = self._running[-1].output
        return None if output.wait(wanted.begins) else f"not in the log:\n{output.text}"


def _readable_by_others() -> bool:
    words = [
        "setpriv",
        f"--reuid={NOBODY}",
        f"--regid={NOBODY}",
        "--clear-groups",
        sys.executable,
        "-c",
        "import svcd.cli",
    ]
    return subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True).returncode == 0


def run_page(path: Path, program: Callable[[str], str]) -> list[str]:
    """Run the examples of a page; the reasons why some were left out.

    Raises:
        SybilFailure: an example does not do what the page shows.
        AssertionError: a file of the page is not used.
    """
    examples = parsed(path, lambda each: page.evaluate(each))  # noqa: PLW0108 - there is no page yet
    if not examples:
        return []
    needs = {need.split()[0] for example in examples for need in Block.of(example).needs}
    user = None if "root" in needs or os.geteuid() != 0 or not _readable_by_others() else NOBODY
    text = path.read_text("utf-8")
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="svcd-examples-")))
        base.chmod(0o755)
        folder = _folder(base, user)
        wheels = _wheels(base / "wheels") if "pip install" in text else None
        names = (f"shell-{number}" for number in count())
        machine = cache(lambda: stack.enter_context(booted(base, program)))

        def open_shell(on_machine: bool) -> Shell:
            if on_machine:
                shell = machine_shell(machine(), text, wheels, next(names))
            else:
                shell = private_shell(folder, user, wheels, next(names))
            stack.callback(shell.end)
            return shell

        page = Page(open_shell)
        for example in examples:
            example.evaluate()
        wrong = page.finish()
        assert wrong is None, wrong
        return page.skipped


def _folder(base: Path, user: int | None) -> Path:
    folder = base / "page"
    folder.mkdir()
    if user is not None:
        os.chown(folder, user, user)
    return folder


def _wheels(folder: Path) -> Path:
    """Make a folder of wheels: svcd's own and those of all that it needs, so that pip needs no network."""
    words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(folder), str(ROOT), "hatchling"]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip gets no wheels here: {done.stderr}")
    return folder


def page_paths(*, how_to: bool) -> list[Path]:
    """Return the pages of the how-to guides, or all others."""
    return [path for path in pages(ROOT) if path.is_file() and (path.parent.name == "how-to") is how_to]


def check_page(path: Path, program: Callable[[str], str]) -> None:
    """Run the examples of a page; skip the test if some were left out."""
    if skipped := run_page(path, program):
        pytest.skip("; ".join(skipped))
