"""Linear attention: the features elu(x) + 1 in place of softmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from proteinlm.attention.choices import Choices
from proteinlm.attention.interface import Attention, check_state
from proteinlm.ops import linear_attention as ops
from proteinlm.ops.linear_attention import LinearState, Normalisation
from proteinlm.ops.visibility import Visibility


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearConfig:
    """Settings of linear attention.

    Raises:
        ValueError: if a setting is none of its choices.
    """

    # linear attention of elu(x) + 1 features, without random numbers
    # when: a fast baseline that estimates no softmax is wanted
    kind: Literal["linear"] = "linear"
    # "division" is by the sum of the weights; "numerator" divides by the root of its mean square instead
    # when: sums of features come close to 0
    normalisation: Normalisation = "division"
    # "distance": gamma_h^|i - j|, gamma_h = 1 - 2^(-5 - h) for head h
    # when: near residues should count more
    decay: Literal["none", "distance"] = "none"

    def __post_init__(self) -> None:
        if self.normalisation not in ("division", "numerator"):
            raise ValueError(f"normalisation is {self.normalisation!r}; expected 'division' or 'numerator'")
        if self.decay not in ("none", "distance"):
            raise ValueError(f"decay is {self.decay!r}; expected 'none' or 'distance'")


class LinearAttention(Attention):
    """phi(Q) (phi(K)^T V), normalised, phi(x) = elu(x) + 1: a kernel of its own, no estimate of softmax.

    The map of ``normalisation = "numerator"`` is that of "division": the output is the map times the values
    divided by the root of its mean square over the head's width.
    """

    is_exact = False
    has_causal_form = True

    def __init__(self, config: LinearConfig, *, head_dim: int, layer: int, seed: int) -> None:
        super().__init__(head_dim)
        self.config = config

    def extra_repr(self) -> str:
        """Name the settings that tell one mechanism from another."""
        return f"normalisation={self.config.normalisation} decay={self.config.decay}"

    def _decay(self, num_heads: int) -> Tensor | None:
        return ops.decay_logarithms(num_heads) if self.config.decay == "distance" else None

    def _attend(
        self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, visibility: Visibility, choices: Choices | None
    ) -> Tensor:
        return ops.linear_attention(
            q_BLHK,
            k_BLHK,
            v_BLHK,
            normalisation=self.config.normalisation,
            decay_H=self._decay(q_BLHK.shape[2]),
            visibility=visibility,
        )

    def _map(self, q_BLHK: Tensor, k_BLHK: Tensor, visibility: Visibility, rows: slice, heads: slice) -> Tensor:
        decay_H, q_BLhK, k_BLhK = self._decay(q_BLHK.shape[2]), q_BLHK[:, :, heads], k_BLHK[:, :, heads]
        decay_h = None if decay_H is None else decay_H[heads]
        return ops.linear_map(q_BLhK, k_BLhK, decay_H=decay_h, rows=rows, visibility=visibility)

    def _prefill(
        self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, visibility: Visibility
    ) -> tuple[Tensor, LinearState]:
        state = ops.linear_state(
            k_BLHK,
            v_BLHK,
            normalisation=self.config.normalisation,
            decay_H=self._decay(q_BLHK.shape[2]),
            key_mask_BL=visibility.key_mask_BL,
        )
        return self._attend(q_BLHK, k_BLHK, v_BLHK, visibility, None), state

    def _step(self, q_BHK: Tensor, k_BHK: Tensor, v_BHK: Tensor, state: object) -> tuple[Tensor, LinearState]:
        sizes = (*q_BHK.shape, self.head_dim + (self.config.normalisation == "division"))
        return ops.linear_step(
            q_BHK,
            k_BHK,
            v_BHK,
            check_state(state, LinearState, "sums_BHKV", sizes),
            normalisation=self.config.normalisation,
            decay_H=self._decay(q_BHK.shape[1]),
        )
