"""Softmax attention as it is printed: every pair, in float64.

Source: Vaswani et al., NeurIPS 2017, arXiv:1706.03762, equation 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def visible_pairs(
    num_windows: int,
    length: int,
    *,
    is_causal: bool = False,
    key_mask_BL: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Return visible_B1LL: True where query i may see key j, visible, of its segment and, if causal, no later."""
    segment_BL = torch.zeros(num_windows, length, dtype=torch.int64)
    if cu_seqlens is not None:
        positions = torch.arange(num_windows * length)
        segment_BL = torch.searchsorted(cu_seqlens.long(), positions, right=True).view(num_windows, length)
    visible_BLL = segment_BL[:, :, None] == segment_BL[:, None, :]
    if key_mask_BL is not None:
        visible_BLL = visible_BLL & key_mask_BL[:, None, :]
    if is_causal:
        visible_BLL = visible_BLL.tril()
    return visible_BLL[:, None]


def softmax_map(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    *,
    is_causal: bool = False,
    key_mask_BL: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Return softmax(Q K^T / sqrt(K)) as map_BHLL; a row without a visible key is 0."""
    visible_B1LL = visible_pairs(*q_BLHK.shape[:2], is_causal=is_causal, key_mask_BL=key_mask_BL, cu_seqlens=cu_seqlens)
    return masked_map(q_BLHK, k_BLHK, visible_B1LL)


def masked_map(q_BLHK: Tensor, k_BLHK: Tensor, visible_B1LL: Tensor) -> Tensor:
    """Return map_BHLL: the softmax of Q K^T / sqrt(K) over the visible pairs; a row without one is 0."""
    scores_BHLL = torch.einsum("bihk,bjhk->bhij", q_BLHK.double(), k_BLHK.double()) / math.sqrt(q_BLHK.shape[-1])
    sees_B1L1 = visible_B1LL.any(-1, keepdim=True)
    # a row of minus infinities has no softmax: leave it as it is and blank it afterwards
    return scores_BHLL.masked_fill(~visible_B1LL & sees_B1L1, -torch.inf).softmax(-1) * sees_B1L1


def softmax_attention(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHK: Tensor,
    *,
    is_causal: bool = False,
    key_mask_BL: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Return out_BLHK = softmax(Q K^T / sqrt(K)) V."""
    map_BHLL = softmax_map(q_BLHK, k_BLHK, is_causal=is_causal, key_mask_BL=key_mask_BL, cu_seqlens=cu_seqlens)
    return torch.einsum("bhij,bjhk->bihk", map_BHLL, v_BLHK.double())
