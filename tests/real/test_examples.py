"""Every example of README.md and docs/ does what the page shows, in the order of the page.

tests/examples.py describes the form of examples. The how-to guides are in a module of their own, so that two processes
share the work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sybil.example import SybilFailure

from tests.real.example_page import check_page, page_paths, run_page

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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
    assert run_page(_page(tmp_path, GOOD), program) == []


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
        run_page(_page(tmp_path, GOOD.replace(old, new)), program)


@pytest.mark.parametrize("path", page_paths(how_to=False), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_examples_of_a_page_are_true(path: Path, program: Callable[[str], str]) -> None:
    """All blocks run, in one fresh folder, and print what the page shows."""
    check_page(path, program)
