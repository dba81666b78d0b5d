"""Which keys a query sees in BigBird's attention.

A segment falls into blocks of ``block_length`` positions, the last one shorter. A query sees the keys of
its own block and of the ``num_window_blocks`` before and behind it, the first ``num_global_tokens``
positions, and ``num_random_blocks`` blocks drawn for its block outside that window. The first
``num_global_tokens`` positions see all. Sets overlap, and a key in two of them counts once.

Source: Zaheer et al., NeurIPS 2020, arXiv:2007.14062, section 2.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proteinlm.ops.tiles import Segment
from proteinlm.randomness import stream


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockPattern:
    """Sizes of the sets; ``seed`` and ``layer`` name the random blocks."""

    block_length: int
    num_window_blocks: int
    num_global_tokens: int
    num_random_blocks: int
    seed: int
    layer: int


@functools.lru_cache(maxsize=512)
def random_blocks(pattern: BlockPattern, num_blocks: int) -> tuple[tuple[int, ...], ...]:
    """Return the blocks drawn for each block of a segment, a pure function of the arguments.

    They differ from each other and from the window's; all others are taken where fewer remain.
    """
    generator = stream(pattern.seed, "random blocks", pattern.layer, num_blocks)
    drawn = []
    for block in range(num_blocks):
        first = max(block - pattern.num_window_blocks, 0)
        behind = min(block + pattern.num_window_blocks + 1, num_blocks)
        num_others = num_blocks - (behind - first)
        picked = generator.choice(num_others, min(pattern.num_random_blocks, num_others), replace=False).tolist()
        drawn.append(tuple(sorted(i if i < first else i + behind - first for i in picked)))
    return tuple(drawn)


def reaches(segments: Sequence[Segment], mask_T: Tensor | None) -> list[int]:
    """Return the length of each segment up to its last visible key: pads behind it must not move the draw."""
    if mask_T is None:
        return [len(segment) for segment in segments]
    positions_T = torch.arange(1, len(mask_T) + 1, device=mask_T.device)
    last_T = torch.where(mask_T, positions_T, 0).cummax(0).values
    stops = torch.tensor([segment.stop for segment in segments], device=mask_T.device)
    ends: list[int] = last_T[stops - 1].tolist() if segments else []
    return [max(end - segment.start, 0) for end, segment in zip(ends, segments, strict=True)]
