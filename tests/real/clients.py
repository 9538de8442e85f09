"""Running the clients that people have."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from tests.real.daemon import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["run"]


def run(*words: str, data: bytes = b"", cwd: Path | None = None, env: Mapping[str, str] | None = None) -> bytes:
    """The output of a client that is given its input and then its end, both of its outputs together.

    Args:
        words: its command line.
        data: its input.
        cwd: where it runs.
        env: its whole environment; None for the test's.
    """
    done = subprocess.run(
        words, input=data, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE, cwd=cwd, env=env
    )
    return done.stdout
