"""Sliding-window attention as it is printed: every pair, most of them hidden, in float64.

Source: Beltagy, Peters and Cohan, arXiv:2004.05150, section 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from proteinlm.ops.softmax_attention.reference import masked_map, visible_pairs


def window_map(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    window: int,
    *,
    key_mask_BL: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Return the softmax of Q K^T / sqrt(K) over |i - j| <= window as map_BHLL; a row without a key is 0."""
    visible_B1LL = visible_pairs(*q_BLHK.shape[:2], key_mask_BL=key_mask_BL, cu_seqlens=cu_seqlens)
    positions_L = torch.arange(q_BLHK.shape[1])
    near_LL = (positions_L[:, None] - positions_L).abs() <= window
    return masked_map(q_BLHK, k_BLHK, visible_B1LL & near_LL)


def window_attention(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHK: Tensor,
    window: int,
    *,
    key_mask_BL: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Return out_BLHK, the map times V."""
    map_BHLL = window_map(q_BLHK, k_BLHK, window, key_mask_BL=key_mask_BL, cu_seqlens=cu_seqlens)
    return torch.einsum("bhij,bjhk->bihk", map_BHLL, v_BLHK.double())
