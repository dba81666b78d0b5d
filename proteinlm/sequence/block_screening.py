"""Screening of whole blocks: what ``Screen`` says of each record, without Python time for each.

Only what a record is by itself is judged here. Whether it repeats an earlier one shows when all
have been read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from proteinlm.sequence import record_blocks, screening
from proteinlm.sequence.record_blocks import RecordBlock
from proteinlm.sequence.screening import ScreeningConfig, ScreeningReport

if TYPE_CHECKING:
    from numpy.typing import NDArray

# what the codes of ``BlockScreen.judge`` mean; the first reason that holds is the one that counts
REASONS = (
    "",  # kept
    screening.EMPTY,
    screening.ONLY_X,
    screening.TOO_SHORT,
    screening.TOO_LONG,
    screening.TOO_AMBIGUOUS,
    screening.FRAGMENT,
)
_CODES = {reason: code for code, reason in enumerate(REASONS)}


class BlockScreen:
    """Judges the records of blocks, one block after the other, and counts."""

    def __init__(self, config: ScreeningConfig) -> None:
        self.config = config
        self._counts = np.zeros(len(REASONS), dtype=np.int64)
        self._num_nucleotides = 0

    @classmethod
    def resumed(cls, config: ScreeningConfig, state: Mapping[str, Any]) -> BlockScreen:
        """Return a screen that goes on from what ``state()`` of an earlier one gave."""
        screen = cls(config)
        screen._counts[:] = [state["counts"].get(reason, 0) for reason in REASONS]
        screen._num_nucleotides = state["nucleotides"]
        return screen

    def state(self) -> dict[str, Any]:
        """Return the counts so far as JSON can hold them."""
        counts = dict(zip(REASONS, self._counts.tolist(), strict=True))
        return {"counts": counts, "nucleotides": self._num_nucleotides}

    def judge(self, block: RecordBlock) -> NDArray[np.uint8]:
        """Return the number in ``REASONS`` of why each record is dropped, uint8 (N,); 0 if it is kept."""
        codes = np.zeros(len(block), dtype=np.uint8)
        # the first reason that holds is the last that is written
        for code, holds in reversed(self._reasons_that_hold(block)):
            codes[holds] = code
        if codes.any():
            self._counts += np.bincount(codes, minlength=len(REASONS))
        else:
            self._counts[0] += len(codes)
        if (block.marks & record_blocks.NUCLEOTIDES).any():
            self._num_nucleotides += int(np.count_nonzero(nucleotides(block, codes)))
        return codes

    @property
    def num_nucleotides(self) -> int:
        """How many of the kept records look like nucleotides so far."""
        return self._num_nucleotides

    def report(self) -> ScreeningReport:
        """Return the counts so far; none of them is of duplicates."""
        num_kept, *dropped = self._counts.tolist()
        counted = zip(REASONS[1:], dropped, strict=True)
        return ScreeningReport(
            num_read=num_kept + sum(dropped),
            num_kept=num_kept,
            dropped={reason: count for reason, count in sorted(counted) if count},
            noted={screening.NUCLEOTIDES: self._num_nucleotides} if self._num_nucleotides else {},
        )

    def _reasons_that_hold(self, block: RecordBlock) -> list[tuple[int, NDArray[np.bool_]]]:
        """Return where reasons hold, with their numbers in ``REASONS`` and in that order.

        Those are left out that can hold nowhere: most files and settings have none, and this is done
        for every block.
        """
        config = self.config
        lengths = np.diff(block.offsets)
        holds = []
        if not block.num_predictable.all():
            holds += [(_CODES[screening.EMPTY], lengths == 0), (_CODES[screening.ONLY_X], block.num_predictable == 0)]
        if config.min_length > 1:
            holds.append((_CODES[screening.TOO_SHORT], lengths < config.min_length))
        if config.max_length is not None:
            holds.append((_CODES[screening.TOO_LONG], lengths > config.max_length))
        if config.max_ambiguous < 1:
            # a division as in the plain form, so that both round alike
            holds.append(
                (_CODES[screening.TOO_AMBIGUOUS], block.num_ambiguous / np.maximum(lengths, 1) > config.max_ambiguous)
            )
        if config.drop_fragments:
            holds.append((_CODES[screening.FRAGMENT], (block.marks & record_blocks.FRAGMENT) != 0))
        return holds


def nucleotides(block: RecordBlock, codes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return which records are kept and look like nucleotides, bool (N,)."""
    found: NDArray[np.bool_] = (codes == 0) & ((block.marks & record_blocks.NUCLEOTIDES) != 0)
    return found
