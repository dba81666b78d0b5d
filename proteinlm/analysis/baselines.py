"""Attention that reads neither queries nor keys, to measure approximations against."""

from __future__ import annotations

from torch import Tensor

from proteinlm.attention import Attention
from proteinlm.attention.choices import Choices
from proteinlm.model.masked_lm import MaskedLM
from proteinlm.ops.visibility import Visibility


class UniformAttention(Attention):
    """Every visible position of the segment has the same weight."""

    is_exact = False

    def _attend(
        self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, visibility: Visibility, choices: Choices | None
    ) -> Tensor:
        segments_P = visibility.segment_numbers(v_BLHK.device).flatten()
        weights_P = _weights(v_BLHK, visibility).flatten()
        values_PHK = v_BLHK.flatten(0, 1)
        sums_SHK = values_PHK.new_zeros(len(values_PHK), *values_PHK.shape[1:])
        sums_SHK = sums_SHK.index_add(0, segments_P, values_PHK * weights_P[:, None, None])
        counts_S = values_PHK.new_zeros(len(values_PHK)).index_add(0, segments_P, weights_P).clamp_min(1)
        return (sums_SHK / counts_S[:, None, None])[segments_P].view_as(v_BLHK)

    def _map(self, q_BLHK: Tensor, k_BLHK: Tensor, visibility: Visibility, rows: slice, heads: slice) -> Tensor:
        segments_BL, weights_BL = visibility.segment_numbers(k_BLHK.device), _weights(k_BLHK, visibility)
        seen_BRL = (segments_BL[:, rows, None] == segments_BL[:, None, :]) * weights_BL[:, None, :]
        map_BRL = seen_BRL / seen_BRL.sum(-1, keepdim=True).clamp_min(1)
        return map_BRL[:, None].expand(-1, k_BLHK[:, :, heads].shape[2], -1, -1)


def _weights(x_BLHK: Tensor, visibility: Visibility) -> Tensor:
    mask_BL = visibility.key_mask_BL
    return x_BLHK.new_ones(x_BLHK.shape[:2]) if mask_BL is None else mask_BL.to(x_BLHK.dtype)


def with_uniform_attention(model: MaskedLM) -> MaskedLM:
    """Return a model of the same weights, shared in memory, whose layers attend uniformly."""
    other = model.with_attention(model.config.attention)
    for block in other.encoder.blocks:
        block.attention = UniformAttention(model.config.head_dim)
    return other
