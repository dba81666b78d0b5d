"""Masking: which residues a model must predict, and what it sees in their place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from proteinlm.sequence.alphabet import MASK, STANDARD, TOKENS

# what a target is where nothing is to be predicted
NOT_CHOSEN = -100

# the twenty standard residues and B, U, Z, O; X says nothing that could be predicted
_MASKABLE = numpy.zeros(256, dtype=bool)
_MASKABLE[[*STANDARD, *(TOKENS.index(letter) for letter in "BUZO")]] = True


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskingConfig:
    """Shares of the residues that are chosen, and of the chosen ones that are corrupted how."""

    # share of the residues that are chosen as targets
    # when: each step should have more targets, each of them with less context
    rate: float = 0.15
    # share of the targets that are shown as <mask>
    # when: another kind of corruption is wanted
    mask_share: float = 0.8
    # share of the targets that are shown as a random residue; the rest is shown as it is
    # when: another kind of corruption is wanted
    random_share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"rate is {self.rate}; expected a share between 0 and 1")
        if min(self.mask_share, self.random_share) < 0 or self.mask_share + self.random_share > 1:
            raise ValueError(
                f"mask_share and random_share are {self.mask_share} and {self.random_share}; "
                "expected shares that sum to at most 1"
            )


def maskable(tokens: NDArray[numpy.uint8]) -> NDArray[numpy.bool_]:
    """Return where a residue can be chosen: everywhere but at special tokens, gaps and X."""
    return _MASKABLE[tokens]


def mask_tokens(
    tokens: NDArray[numpy.uint8], config: MaskingConfig, generator: numpy.random.Generator
) -> tuple[NDArray[numpy.uint8], NDArray[numpy.int64]]:
    """Return the corrupted tokens and the targets of a window.

    Every maskable residue is chosen with probability ``rate``.

    Args:
        tokens: uint8 (L,).
        config: the shares.
        generator: the stream of this window.

    Returns:
        Corrupted tokens, uint8 (L,), and targets, int64 (L,), ``NOT_CHOSEN`` where there is none.

    Source: Devlin et al., arXiv:1810.04805, section 3.1.
    """
    chosen = (generator.random(len(tokens)) < config.rate) & maskable(tokens)
    fate = generator.random(len(tokens))
    random_residues = STANDARD[generator.integers(len(STANDARD), size=len(tokens))]
    corrupted = tokens.copy()
    corrupted[chosen & (fate < config.mask_share)] = MASK
    is_random = chosen & (fate >= config.mask_share) & (fate < config.mask_share + config.random_share)
    corrupted[is_random] = random_residues[is_random]
    return corrupted, targets_at(chosen, tokens)


def targets_at(chosen: NDArray[numpy.bool_], tokens: NDArray[numpy.uint8]) -> NDArray[numpy.int64]:
    """Return the tokens where they are chosen and ``NOT_CHOSEN`` elsewhere, int64 (L,)."""
    # widen first: -100 has no place in uint8
    return numpy.where(chosen, tokens.astype(numpy.int64), NOT_CHOSEN)


def evaluation_choice(
    residues: NDArray[numpy.uint8], *, rate: float, generator: numpy.random.Generator
) -> NDArray[numpy.bool_]:
    """Return which residues of a protein are evaluated: ``rate`` of the maskable ones, at least one.

    Args:
        residues: uint8 (L,), without special tokens.
        rate: share in (0, 1).
        generator: the stream of this protein.
    """
    candidates = numpy.flatnonzero(maskable(residues))
    chosen = numpy.zeros(len(residues), dtype=bool)
    if len(candidates):
        count = max(1, round(rate * len(candidates)))
        chosen[generator.choice(candidates, size=count, replace=False)] = True
    return chosen
