"""Discrete choices of a forward pass, kept for the pass that computes it again."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


class Choices:
    """Remembers, in order, what was chosen; ``repeat`` hands the same out again.

    A reversible trunk computes each block twice, the second time from inputs that rounding has changed a
    little: a hash that fell into another bucket would make backward that of another function.
    One object belongs to one forward pass, so that any number of passes may wait for their backward.
    """

    def __init__(self) -> None:
        self._kept: list[Tensor] = []
        self._next: int | None = None

    def make(self, choose: Callable[[], Tensor]) -> Tensor:
        """Return what ``choose`` returns, or what it returned at the same place of the first pass."""
        if self._next is None:
            self._kept.append(choose())
            return self._kept[-1]
        self._next += 1
        return self._kept[self._next - 1]

    def repeat(self) -> Choices:
        """Return an object that hands out the kept choices from the first on; this one stays as it is."""
        again = Choices()
        again._kept, again._next = self._kept, 0
        return again
