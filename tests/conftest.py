"""The order of the test files, and bytecode for the processes that the tests start."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Without cached bytecode each of the hundreds of daemons that the tests start compiles its modules anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
_REAL = Path(__file__).with_name("real")
#: The file that takes longest: at the end a single worker would run it.
_LONGEST = _REAL / "test_examples.py"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files with real processes first: the short ones at the end keep all workers busy until the last test."""
    items.sort(key=lambda item: (item.path != _LONGEST, _REAL not in item.path.parents))
