"""Softmax attention as it is printed: every pair, in float64.

Source: Vaswani et al., NeurIPS 2017, arXiv:1706.03762, equation 1.
"""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import Tensor

from proteinlm.ops.visibility import Seen, visibility_of


def visible_pairs(q_BLHK: Tensor, **seen: Unpack[Seen]) -> Tensor:
    """Return visible_B1LL: True where query i may see key j, visible, of its segment and, if causal, no later."""
    visibility = visibility_of((q_BLHK.shape[0], q_BLHK.shape[1]), **seen)
    segment_BL = torch.zeros(visibility.num_windows, visibility.length, dtype=torch.int64)
    if visibility.cu_seqlens is not None:
        positions = torch.arange(segment_BL.numel())
        segment_BL = torch.searchsorted(visibility.cu_seqlens.long(), positions, right=True).view_as(segment_BL)
    visible_BLL = segment_BL[:, :, None] == segment_BL[:, None, :]
    if visibility.key_mask_BL is not None:
        visible_BLL = visible_BLL & visibility.key_mask_BL[:, None, :]
    if visibility.is_causal:
        visible_BLL = visible_BLL.tril()
    return visible_BLL[:, None]


def softmax_map(q_BLHK: Tensor, k_BLHK: Tensor, **seen: Unpack[Seen]) -> Tensor:
    """Return softmax(Q K^T / sqrt(K)) as map_BHLL; a row without a visible key is 0."""
    return masked_map(q_BLHK, k_BLHK, visible_pairs(q_BLHK, **seen))


def masked_map(q_BLHK: Tensor, k_BLHK: Tensor, visible_B1LL: Tensor) -> Tensor:
    """Return map_BHLL: the softmax of Q K^T / sqrt(K) over the visible pairs; a row without one is 0."""
    scores_BHLL = torch.einsum("bihk,bjhk->bhij", q_BLHK.double(), k_BLHK.double()) / math.sqrt(q_BLHK.shape[-1])
    sees_B1L1 = visible_B1LL.any(-1, keepdim=True)
    # a row of minus infinities has no softmax: leave it as it is and blank it afterwards
    return scores_BHLL.masked_fill(~visible_B1LL & sees_B1L1, -torch.inf).softmax(-1) * sees_B1L1


def softmax_attention(q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, **seen: Unpack[Seen]) -> Tensor:
    """Return out_BLHK = softmax(Q K^T / sqrt(K)) V."""
    return torch.einsum("bhij,bjhk->bihk", softmax_map(q_BLHK, k_BLHK, **seen), v_BLHK.double())
