"""Sliding-window attention as it is printed: every pair, most of them hidden, in float64.

Source: Beltagy, Peters and Cohan, arXiv:2004.05150, section 3.1.
"""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from proteinlm.ops.softmax_attention.reference import masked_map, visible_pairs
from proteinlm.ops.visibility import Seen


def window_map(q_BLHK: Tensor, k_BLHK: Tensor, window: int, **seen: Unpack[Seen]) -> Tensor:
    """Return the softmax of Q K^T / sqrt(K) over |i - j| <= window as map_BHLL; a row without a key is 0."""
    positions_L = torch.arange(q_BLHK.shape[1])
    near_LL = (positions_L[:, None] - positions_L).abs() <= window
    return masked_map(q_BLHK, k_BLHK, visible_pairs(q_BLHK, **seen) & near_LL)


def window_attention(q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, window: int, **seen: Unpack[Seen]) -> Tensor:
    """Return out_BLHK, the map times V."""
    return torch.einsum("bhij,bjhk->bihk", window_map(q_BLHK, k_BLHK, window, **seen), v_BLHK.double())
