"""BigBird's attention as it is printed: every pair, most of them hidden, in float64.

Source: Zaheer et al., NeurIPS 2020, arXiv:2007.14062, section 2.
"""

from __future__ import annotations

import itertools
from typing import Unpack

import torch
from torch import Tensor

from proteinlm.ops.block_sparse_attention.pattern import BlockPattern, random_blocks
from proteinlm.ops.softmax_attention.reference import masked_map
from proteinlm.ops.visibility import Seen, visibility_of


def visible_pairs(pattern: BlockPattern, q_BLHK: Tensor, **seen: Unpack[Seen]) -> Tensor:
    """Return visible_B1LL, pair by pair from the definition (see ``pattern``)."""
    visibility = visibility_of((q_BLHK.shape[0], q_BLHK.shape[1]), **seen)
    length, mask_BL = visibility.length, visibility.key_mask_BL
    visible_BLL = torch.zeros(visibility.num_windows, length, length, dtype=torch.bool)
    for start, stop in itertools.pairwise(visibility.ends):
        if start == stop:
            continue
        window, offset = divmod(start, length)
        keys_L = torch.ones(length, dtype=torch.bool) if mask_BL is None else mask_BL[window]
        shown = [j for j in range(stop - start) if keys_L[offset + j]]
        drawn = random_blocks(pattern, max(shown) // pattern.block_length + 1) if shown else ()
        for i in range(stop - start):
            for j in shown:
                visible_BLL[window, offset + i, offset + j] = _sees(i, j, pattern, drawn)
    return visible_BLL[:, None]


def _sees(i: int, j: int, pattern: BlockPattern, drawn: tuple[tuple[int, ...], ...]) -> bool:
    block_i, block_j = i // pattern.block_length, j // pattern.block_length
    is_global = min(i, j) < pattern.num_global_tokens
    is_near = abs(block_i - block_j) <= pattern.num_window_blocks
    return is_global or is_near or (block_i < len(drawn) and block_j in drawn[block_i])


def bigbird_map(q_BLHK: Tensor, k_BLHK: Tensor, pattern: BlockPattern, **seen: Unpack[Seen]) -> Tensor:
    """Return the softmax of Q K^T / sqrt(K) over the visible pairs as map_BHLL; a row without a key is 0."""
    return masked_map(q_BLHK, k_BLHK, visible_pairs(pattern, q_BLHK, **seen))


def bigbird_attention(
    q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, pattern: BlockPattern, **seen: Unpack[Seen]
) -> Tensor:
    """Return out_BLHK, the map times V."""
    return torch.einsum("bhij,bjhk->bihk", bigbird_map(q_BLHK, k_BLHK, pattern, **seen), v_BLHK.double())
