"""Mutations of valid and invalid samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

__all__ = ["Mutator"]

#: The largest input, in bytes.
_MOST = 4096
#: The numbers of mutations of a sample, as often as they are here: with many mutations few requests are valid.
_MUTATIONS = (1, 1, 1, 2, 3)
#: The longest piece that is removed or repeated, in bytes.
_PIECE = 40


class Mutator:
    """Mutated samples, the same for the same random numbers.

    Args:
        samples: the inputs to mutate.
        tokens: pieces that have a meaning for the parser.
        random: the source of random numbers.
    """

    def __init__(self, samples: Sequence[bytes], tokens: Sequence[bytes], random: Random) -> None:
        self._samples = samples
        self._tokens = tokens
        self._random = random
        self._mutations = (self._flip, self._set, self._insert, self._replace, self._remove, self._repeat, self._splice)

    def next(self) -> bytes:
        """Return the next input, of at most _MOST bytes."""
        random = self._random
        data = random.choice(self._samples)
        for _ in range(random.choice(_MUTATIONS)):
            data = random.choice(self._mutations)(data)
        return data[:_MOST]

    def cuts(self, length: int) -> list[int]:
        """Return some positions at which an input is cut, most often none."""
        random = self._random
        return random.choices(range(length), k=random.choice((0, 0, 1, 3))) if length else []

    def _place(self, data: bytes) -> int:
        return self._random.randint(0, len(data))

    def _flip(self, data: bytes) -> bytes:
        place = self._place(data)
        return data[:place] + bytes(byte ^ 1 << self._random.randrange(8) for byte in data[place : place + 1]) + data[
            place + 1 :
        ]  # fmt: skip

    def _set(self, data: bytes) -> bytes:
        place = self._place(data)
        return data[:place] + bytes([self._random.randrange(256)]) + data[place + 1 :]

    def _insert(self, data: bytes) -> bytes:
        place = self._place(data)
        return data[:place] + self._random.choice(self._tokens) + data[place:]

    def _replace(self, data: bytes) -> bytes:
        """Replace a token by another one; insert one if the token does not occur."""
        old, new = self._random.choices(self._tokens, k=2)
        place = data.find(old, self._place(data))
        return self._insert(data) if place < 0 else data[:place] + new + data[place + len(old) :]

    def _remove(self, data: bytes) -> bytes:
        place = self._place(data)
        return data[:place] + data[place + self._random.randint(1, _PIECE) :]

    def _repeat(self, data: bytes) -> bytes:
        place = self._place(data)
        end = place + self._random.randint(1, _PIECE)
        return data[:end] + data[place:]

    def _splice(self, data: bytes) -> bytes:
        other = self._random.choice(self._samples)
        return data[: self._place(data)] + other[self._place(other) :]
