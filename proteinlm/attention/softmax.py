"""Exact softmax attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from proteinlm.attention.interface import Attention
from proteinlm.ops import softmax_attention as ops
from proteinlm.ops.softmax_attention import Implementation


@dataclass(frozen=True, kw_only=True, slots=True)
class SoftmaxConfig:
    """Settings of exact softmax attention; none changes what it computes."""

    kind: Literal["softmax"] = "softmax"
    implementation: Implementation = "auto"  # "varlen": all segments in one call, half precision on a GPU


class SoftmaxAttention(Attention):
    """softmax(Q K^T / sqrt(K)) V, in time quadratic in the length of a segment."""

    is_exact = True

    def __init__(self, config: SoftmaxConfig, *, head_dim: int, layer: int, seed: int) -> None:
        super().__init__(head_dim)
        self.config = config

    def _attend(
        self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, key_mask_BL: Tensor | None, cu_seqlens: Tensor | None
    ) -> Tensor:
        return ops.softmax_attention(
            q_BLHK,
            k_BLHK,
            v_BLHK,
            key_mask_BL=key_mask_BL,
            cu_seqlens=cu_seqlens,
            implementation=self.config.implementation,
        )

    def _map(
        self, q_BLHK: Tensor, k_BLHK: Tensor, key_mask_BL: Tensor | None, cu_seqlens: Tensor | None, rows: slice
    ) -> Tensor:
        return ops.softmax_map(q_BLHK, k_BLHK, key_mask_BL=key_mask_BL, cu_seqlens=cu_seqlens, rows=rows)

    def _attend_causal(
        self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, key_mask_BL: Tensor | None, cu_seqlens: Tensor | None
    ) -> Tensor:
        return ops.softmax_attention(
            q_BLHK, k_BLHK, v_BLHK, is_causal=True, key_mask_BL=key_mask_BL, cu_seqlens=cu_seqlens
        )

    def _map_causal(
        self, q_BLHK: Tensor, k_BLHK: Tensor, key_mask_BL: Tensor | None, cu_seqlens: Tensor | None, rows: slice
    ) -> Tensor:
        return ops.softmax_map(
            q_BLHK, k_BLHK, is_causal=True, key_mask_BL=key_mask_BL, cu_seqlens=cu_seqlens, rows=rows
        )
