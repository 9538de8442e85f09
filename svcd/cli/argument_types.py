"""Numbers on a command line: who writes a wrong one is told what there should be."""

from __future__ import annotations

import argparse
import math
from contextlib import suppress

__all__ = ["count_of", "seconds_of"]


def seconds_of(text: str) -> float:
    """A time, in seconds.

    Raises:
        ArgumentTypeError: it is none, or not above 0.
    """
    with suppress(ValueError):
        if 0 < (found := float(text)) < math.inf:
            return found
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")


def count_of(text: str) -> int:
    """How many.

    Raises:
        ArgumentTypeError: it is none, or below 0.
    """
    with suppress(ValueError):
        if (found := int(text)) >= 0:
            return found
    raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
