"""Every example of the how-to guides does what the page shows, in the order of the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.real.example_page import check_page, page_paths

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize("path", page_paths(how_to=True), ids=lambda path: path.name)
def test_the_examples_of_a_guide_are_true(path: Path, program: Callable[[str], str]) -> None:
    """All blocks run, in one fresh folder, and print what the page shows."""
    check_page(path, program)
