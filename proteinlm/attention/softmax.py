"""Exact softmax attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from proteinlm.attention.choices import Choices
from proteinlm.attention.interface import Attention
from proteinlm.attention.unread import keep_in_graph
from proteinlm.ops import softmax_attention as ops
from proteinlm.ops.softmax_attention import Implementation
from proteinlm.ops.visibility import Visibility


@dataclass(frozen=True, kw_only=True, slots=True)
class SoftmaxConfig:
    """Settings of exact softmax attention.

    Raises:
        ValueError: if a setting has no meaning beside another.
    """

    # exact attention
    # when: an exact reference is wanted, or proteins are short
    kind: Literal["softmax"] = "softmax"
    # "eager" calls torch for each segment, "varlen" once for all, in half precision on a GPU; "auto" chooses
    # when: the choice should be yours, or fail
    implementation: Implementation = "auto"
    # a position's key is its query, of length 1, as in LSH attention
    # when: it is compared with, or runs weights of, LSH attention with shared queries and keys
    shared_query_key: bool = False

    def __post_init__(self) -> None:
        if self.shared_query_key and self.implementation == "varlen":
            raise ValueError(
                "implementation is varlen; shared queries and keys run by readings of tiles, expected auto"
            )


class SoftmaxAttention(Attention):
    """softmax(Q K^T / sqrt(K)) V, in time quadratic in the length of a segment.

    With ``shared_query_key`` k_j = q_j / |q_j|, and a position sees itself only where it sees nothing else: the
    yardstick of LSH attention with the same weights. What is handed over as keys is read by nobody.
    """

    is_exact = True
    has_causal_form = True

    def __init__(self, config: SoftmaxConfig, *, head_dim: int, layer: int, seed: int) -> None:
        super().__init__(head_dim)
        self.config = config
        self.shares_query_key = config.shared_query_key

    def _attend(
        self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, visibility: Visibility, choices: Choices | None
    ) -> Tensor:
        if not self.shares_query_key:
            return ops.softmax_attention(
                q_BLHK, k_BLHK, v_BLHK, implementation=self._implementation(visibility), visibility=visibility
            )
        out_BLHK = ops.shared_query_key_attention(q_BLHK, v_BLHK, visibility=visibility)
        return out_BLHK if k_BLHK is q_BLHK else keep_in_graph(out_BLHK, k_BLHK)

    def _implementation(self, visibility: Visibility) -> Implementation:
        return "auto" if visibility.is_causal else self.config.implementation

    def _map(self, q_BLHK: Tensor, k_BLHK: Tensor, visibility: Visibility, rows: slice, heads: slice) -> Tensor:
        q_BLhK, k_BLhK = q_BLHK[:, :, heads], k_BLHK[:, :, heads]
        if self.shares_query_key:
            return ops.shared_query_key_map(q_BLhK, rows=rows, visibility=visibility)
        return ops.softmax_map(q_BLhK, k_BLhK, rows=rows, visibility=visibility)
