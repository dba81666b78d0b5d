"""How much of the windows is filled when the sequences of a split are packed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from proteinlm.batches.packing import PackingConfig, plan_windows
from proteinlm.randomness import stream

# more change the share in no figure that is shown
MOST_SEQUENCES = 1_000_000
_SEED = 0


@dataclass(frozen=True, slots=True)
class PackingEfficiency:
    """Windows of ``num_sequences`` drawn from ``num_all``; ``fill`` is the share of positions that hold a token.

    ``num_cut`` of the sequences are longer than a window, so that they stand in several.
    """

    window_length: int
    num_all: int
    num_sequences: int
    num_windows: int
    num_cut: int
    fill: float


def packing_efficiency(lengths: NDArray[numpy.int64], config: PackingConfig) -> PackingEfficiency:
    """Return how full the windows get in a random order, as training has one.

    Of more than a million sequences a million are drawn, always the same of as many.

    Args:
        lengths: int64 (N,), residues of each sequence.
        config: window length and context.
    """
    generator = stream(_SEED, "packing efficiency", len(lengths))
    order = generator.choice(len(lengths), min(len(lengths), MOST_SEQUENCES), replace=False)
    plan = plan_windows(lengths, config, order=order)
    return PackingEfficiency(
        window_length=config.window_length,
        num_all=len(lengths),
        num_sequences=len(order),
        num_windows=plan.num_windows,
        num_cut=int((numpy.bincount(plan.sequence, minlength=1) > 1).sum()),
        fill=plan.fill,
    )
