"""Running client programs."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from tests.real.daemon import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["run"]


def run(*words: str, data: bytes = b"", cwd: Path | None = None, env: Mapping[str, str] | None = None) -> bytes:
    """Run a client with an input that ends; return its standard output and standard error together.

    Args:
        words: its command line.
        data: its input.
        cwd: its working directory.
        env: its whole environment; None for the test's.
    """
    done = subprocess.run(
        words, input=data, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE, cwd=cwd, env=env
    )
    return done.stdout
