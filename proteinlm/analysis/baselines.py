"""Attention that reads neither queries nor keys, to measure approximations against."""

from __future__ import annotations

import torch
from torch import Tensor

from proteinlm.attention import Attention
from proteinlm.model.masked_lm import MaskedLM


class UniformAttention(Attention):
    """Every visible position of the segment has the same weight."""

    is_exact = False

    def _attend(
        self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, key_mask_BL: Tensor | None, cu_seqlens: Tensor | None
    ) -> Tensor:
        segments_P = _segments(v_BLHK, cu_seqlens).flatten()
        weights_P = _weights(v_BLHK, key_mask_BL).flatten()
        values_PHK = v_BLHK.flatten(0, 1)
        sums_SHK = values_PHK.new_zeros(len(values_PHK), *values_PHK.shape[1:])
        sums_SHK = sums_SHK.index_add(0, segments_P, values_PHK * weights_P[:, None, None])
        counts_S = values_PHK.new_zeros(len(values_PHK)).index_add(0, segments_P, weights_P).clamp_min(1)
        return (sums_SHK / counts_S[:, None, None])[segments_P].view_as(v_BLHK)

    def _map(
        self, q_BLHK: Tensor, k_BLHK: Tensor, key_mask_BL: Tensor | None, cu_seqlens: Tensor | None, rows: slice
    ) -> Tensor:
        segments_BL, weights_BL = _segments(k_BLHK, cu_seqlens), _weights(k_BLHK, key_mask_BL)
        seen_BRL = (segments_BL[:, rows, None] == segments_BL[:, None, :]) * weights_BL[:, None, :]
        map_BRL = seen_BRL / seen_BRL.sum(-1, keepdim=True).clamp_min(1)
        return map_BRL[:, None].expand(-1, k_BLHK.shape[2], -1, -1)


def _segments(x_BLHK: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Return the number of the segment that each position lies in, int64 (B, L)."""
    windows, length = x_BLHK.shape[:2]
    if cu_seqlens is None:
        return torch.arange(windows, device=x_BLHK.device)[:, None].expand(-1, length)
    lengths_S = cu_seqlens.diff().long()
    return torch.arange(len(lengths_S), device=x_BLHK.device).repeat_interleave(lengths_S).view(windows, length)


def _weights(x_BLHK: Tensor, key_mask_BL: Tensor | None) -> Tensor:
    return x_BLHK.new_ones(x_BLHK.shape[:2]) if key_mask_BL is None else key_mask_BL.to(x_BLHK.dtype)


def with_uniform_attention(model: MaskedLM) -> MaskedLM:
    """Return a model of the same weights, shared in memory, whose layers attend uniformly."""
    other = model.with_attention(model.config.attention)
    for block in other.encoder.blocks:
        block.attention = UniformAttention(model.config.head_dim)
    return other
