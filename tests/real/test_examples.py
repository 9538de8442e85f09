"""Every example of README.md and docs/ does what the page shows, in the order of the page.

tests/examples.py describes the form of examples.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sybil.example import SybilFailure

from tests.examples import NOT_CONVERTED, Block, Command, commands, pages, parsed
from tests.real.booted import booted
from tests.real.conftest import NOBODY
from tests.real.daemon import environment
from tests.real.example_files import check_file
from tests.real.example_shell import Background, Shell, is_foreground, machine_shell, private_shell

if TYPE_CHECKING:
    from collections.abc import Callable

    from sybil.example import Example

ROOT = Path(__file__).parents[2]
PAGES = [path for path in pages(ROOT) if path.is_file() and str(path.relative_to(ROOT)) not in NOT_CONVERTED]


class _Page:
    """A page whose examples are run.

    Args:
        open_shell: starts a shell in the page's folder.
    """

    def __init__(self, open_shell: Callable[[], Shell]) -> None:
        self._open_shell = open_shell
        self.shell = open_shell()
        self.skipped: list[str] = []
        self._running: list[Background] = []
        self._unserved: dict[str, Block] = {}
        self._modules: list[str] = []
        self._texts: list[str] = []

    def evaluate(self, example: Example) -> str | None:
        """Run an example."""
        block = Block.of(example)
        if reason := self._missing(block):
            self.skipped.append(f"line {block.line}: {reason}")
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
        for name, block in self._unserved.items():
            if wrong := self._serve(self.shell, name, block):
                return wrong
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
        name = block.need("program")
        if name and self.shell.run(f"command -v {name}")[0]:
            return f"needs {name}"
        return None

    def _check_out(self) -> None:
        words = ["git", "-C", str(ROOT), "ls-files", "-z"]
        listed = subprocess.run(words, capture_output=True, check=True, text=True).stdout
        for name in filter(None, listed.split("\0")):
            target = self.shell.folder / name
            if (ROOT / name).is_file() and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, target)
        if not hasattr(os, "geteuid") or os.geteuid() == 0:
            owner = self.shell.folder.stat()
            for path in self.shell.folder.rglob("*"):
                os.chown(path, owner.st_uid, owner.st_gid)

    # Files

    def _file(self, block: Block) -> str | None:
        name = block.name
        if name is None:
            return "its first line does not name the file: # NAME"
        self.shell.put(name, block.text)
        self._used(block.text)
        return check_file(self.shell, block.language, name, block.text)

    def _services(self, block: Block) -> str | None:
        name = block.name or "services"
        self._used(block.text)
        if name in self._unserved and (wrong := self._serve(self._open_shell(), name, self._unserved.pop(name))):
            return wrong
        self.shell.put(name, block.text)
        self._unserved[name] = block
        status, output = self.shell.run(f"svcctl check {name}")
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
            status, output = self.shell.run(f"python3 - <<'END OF THE EXAMPLE'\n{block.text}END OF THE EXAMPLE")
            return output if status else None
        self.shell.put(block.name, block.text)
        status, output = self.shell.run(f"python3 -m py_compile {block.name}")
        self._modules.append(block.name)
        return output if status else None

    def _used(self, text: str) -> None:
        """Note a text that uses other files of the page."""
        self._texts.append(text)
        for pattern in re.findall(r"^@include\s+(\S+)", text, re.MULTILINE):
            for name in fnmatch.filter(self._unserved, pattern):
                del self._unserved[name]

    # Commands

    def _console(self, block: Block) -> str | None:
        found = commands(block.text)
        for number, command in enumerate(found):
            last = number == len(found) - 1
            self._used(command.text)
            reads_again = re.search(r"\b(?:reload|restart|upgrade|start|enable|HUP)\b", command.text)
            if is_foreground(command.text) or reads_again:
                for name in list(self._unserved):
                    if reads_again or name in command.text.split():
                        del self._unserved[name]
            if is_foreground(command.text) or (last and block.need("background") is not None):
                wrong = self._foreground(command)
            else:
                wanted = int(block.need("exit") or 0) if last else 0
                shown = not last and found[number + 1].text == "echo $?"
                status, output = self.shell.run(command.text)
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
        running = Background(self.shell, command.text)
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


def _run(path: Path, program: Callable[[str], str]) -> list[str]:
    """Run the examples of a page; the reasons why some were left out.

    Raises:
        SybilFailure: an example does not do what the page shows.
        AssertionError: a file of the page is not used.
    """
    examples = parsed(path, lambda each: page.evaluate(each))  # noqa: PLW0108 - there is no page yet
    if not examples:
        return []
    needs = {need.split()[0] for example in examples for need in Block.of(example).needs}
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="svcd-examples-")))
        base.chmod(0o755)
        text = path.read_text("utf-8")
        wheels = _wheels(base / "wheels") if "pip install" in text else None
        if "systemd" in needs and os.geteuid() == 0:
            machine = stack.enter_context(booted(base, program))
            opener = partial(machine_shell, machine, text, wheels)
        else:
            user = None if "root" in needs or os.geteuid() != 0 or not _readable_by_others() else NOBODY
            opener = partial(private_shell, _folder(base, user), user, wheels)
        names = (f"shell-{number}" for number in count())

        def open_shell() -> Shell:
            shell = opener(next(names))
            stack.callback(shell.end)
            return shell

        page = _Page(open_shell)
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


@pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_the_examples_of_a_page_are_true(path: Path, program: Callable[[str], str]) -> None:
    """All blocks run, in one fresh folder, and print what the page shows."""
    if skipped := _run(path, program):
        pytest.skip("; ".join(skipped))


GOOD = """
# A page

```services
# services
@defaults bind=127.0.0.1
echo 10007/tcp
mine 10008/tcp python=mine:answer
```

```python
# mine.py
def answer(connection, address):
    connection.sendall(b"mine\\n")
```

```console
$ PYTHONPATH=. twistd -n svcd --services services
...
... ready services=2 ...
```

```console
$ svcctl echo 127.0.0.1 10007 \\
>     < services
...
$ svcctl check nothing
...
$ echo $?
78
```
"""


def _page(folder: Path, text: str) -> Path:
    path = folder / "page.md"
    path.write_text(text)
    return path


def test_a_page_whose_examples_are_true(tmp_path: Path, program: Callable[[str], str]) -> None:
    """Files are saved, the daemon serves them, commands print what the page shows."""
    assert _run(_page(tmp_path, GOOD), program) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("$ svcctl echo", "$ date\nnever\n$ svcctl echo"),
        ("78\n", "1\n"),
        ("echo 10007/tcp", "echo 10007/tpc"),
        ("$ echo $?\n", "$ true\n"),
        ("# A page\n", "```python\n# other.py\n```\n"),
        ("# A page\n", "```services\n# other\necho 10007/tcp only_from=127.0.0.1 tls_cert=/none\n```\n"),
    ],
)
def test_a_page_with_a_wrong_example_fails(tmp_path: Path, program: Callable[[str], str], old: str, new: str) -> None:
    """Other output, another exit status, a file with a mistake, a file that nothing uses."""
    assert old in GOOD
    with pytest.raises((SybilFailure, AssertionError)):
        _run(_page(tmp_path, GOOD.replace(old, new)), program)
