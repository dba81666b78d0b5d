"""Residues that were replaced in the records of a block, told without a dictionary for each record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from proteinlm.sequence.alphabet import LOWER_CASE

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Substitutions(Mapping[int, Mapping[str, int]]):
    """For the records that had some, by number: residues replaced, by kind.

    In a soft-masked file nearly every record has some, and they are nothing but lower case; so these
    are held as numbers, and become what ``encode`` says of a record when they are asked for.
    """

    def __init__(self, num_lower: NDArray[np.int64], others: Mapping[int, Mapping[str, int]]) -> None:
        """Take what was replaced.

        Args:
            num_lower: int64 (N,), residues in lower case of the records that had no other kind; 0 for the others.
            others: all kinds, of the other records.
        """
        self._num_lower = num_lower
        self._others = others

    def __getitem__(self, number: int) -> Mapping[str, int]:
        if number in self._others:
            return self._others[number]
        if 0 <= number < len(self._num_lower) and self._num_lower[number]:
            return {LOWER_CASE: int(self._num_lower[number])}
        raise KeyError(number)

    def __iter__(self) -> Iterator[int]:
        return iter(sorted([*np.flatnonzero(self._num_lower).tolist(), *self._others]))

    def __len__(self) -> int:
        return int(np.count_nonzero(self._num_lower)) + len(self._others)

    def total(self, wanted: NDArray[np.bool_]) -> Counter[str]:
        """Return how many residues were replaced in the wanted records, bool (N,), by kind."""
        found = total_of(self._others, wanted)
        if num_lower := int(self._num_lower[wanted].sum()):
            found[LOWER_CASE] += num_lower
        return found


def total_of(substitutions: Mapping[int, Mapping[str, int]], wanted: NDArray[np.bool_]) -> Counter[str]:
    """Return how many residues of a block were replaced in its wanted records, bool (N,), by kind."""
    if isinstance(substitutions, Substitutions):
        return substitutions.total(wanted)
    found = Counter[str]()
    for number, kinds in substitutions.items():
        if wanted[number]:
            found.update(kinds)
    return found
