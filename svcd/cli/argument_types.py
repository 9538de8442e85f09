"""Types of numbers on a command line, whose errors describe the valid values."""

from __future__ import annotations

import argparse
import math
from contextlib import suppress

__all__ = ["count_of", "seconds_of"]


def seconds_of(text: str) -> float:
    """Read a time in seconds.

    Raises:
        ArgumentTypeError: it is not a number above 0.
    """
    with suppress(ValueError):
        if 0 < (found := float(text)) < math.inf:
            return found
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")


def count_of(text: str) -> int:
    """Read a count.

    Raises:
        ArgumentTypeError: it is not a number from 0 on.
    """
    with suppress(ValueError):
        if (found := int(text)) >= 0:
            return found
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
