"""FAVOR+: softmax attention estimated by positive random features, linear in the length."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from proteinlm.attention.interface import Attention, check_state
from proteinlm.ops import random_features
from proteinlm.ops.random_features import FavorState, FeatureMap, Projection

logger = logging.getLogger(__name__)

Implementation = Literal["auto", "eager"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FavorConfig:
    """Settings of FAVOR+.

    Raises:
        ValueError: if a setting is out of its range.
    """

    kind: Literal["favor"] = "favor"
    num_random_features: int = 256  # width M of a feature vector; "hyperbolic" makes two of each row
    feature_map: FeatureMap = "positive"
    projection: Projection = "orthogonal"
    redraw_interval: int = 1000  # optimiser steps; 0 keeps the first draw
    implementation: Implementation = "auto"

    def __post_init__(self) -> None:
        if self.num_random_features < 1:
            raise ValueError(f"num_random_features is {self.num_random_features}; expected 1 or more")
        if self.feature_map == "hyperbolic" and self.num_random_features % 2:
            raise ValueError(f"num_random_features is {self.num_random_features}; expected an even number (hyperbolic)")
        if self.redraw_interval < 0:
            raise ValueError(f"redraw_interval is {self.redraw_interval}; expected 1 or more, or 0 for never")

    @property
    def num_rows(self) -> int:
        """How many rows are drawn."""
        return self.num_random_features // (2 if self.feature_map == "hyperbolic" else 1)


class FavorAttention(Attention):
    """D^-1 phi(Q) (phi(K)^T V), where phi(x)·phi(y) is an unbiased estimate of exp(q·k / sqrt(K)).

    The rows are a pure function of (seed, layer, redraw index), neither parameter nor buffer: no
    checkpoint holds them and ``half()`` leaves them float32.

    Attributes:
        redraw_index: which draw of the rows is in use; ``set_step`` sets it and so may you.
    """

    is_exact = False

    def __init__(self, config: FavorConfig, *, head_dim: int, layer: int, seed: int) -> None:
        super().__init__(head_dim)
        self.config = config
        self.layer = layer
        self.seed = seed
        self.redraw_index = 0
        self._drawn: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}
        choose_implementation(config.implementation)

    def set_step(self, step: int) -> None:
        """Use the draw of optimiser step ``step``: number step // redraw_interval."""
        self.redraw_index = step // self.config.redraw_interval if self.config.redraw_interval else 0

    def rows(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the rows in use, one for each feature, as rows_MK."""
        key = (self.redraw_index, torch.device(device), dtype)
        if key not in self._drawn:
            self._drawn = {k: rows for k, rows in self._drawn.items() if k[0] == self.redraw_index}
            # rows first drawn in inference mode could not be used in training afterwards
            with torch.inference_mode(False):
                self._drawn[key] = self._draw().to(device, dtype)
        return self._drawn[key]

    def _draw(self) -> Tensor:
        drawn_MK = random_features.projection_rows(
            self.config.num_rows,
            self.head_dim,
            projection=self.config.projection,
            seed=self.seed,
            layer=self.layer,
            redraw_index=self.redraw_index,
        )
        return random_features.feature_rows(drawn_MK, self.config.feature_map)

    def extra_repr(self) -> str:
        """Name the settings that tell one mechanism from another."""
        return f"{self.config.num_random_features} {self.config.feature_map} {self.config.projection} features"

    def _attend(
        self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, key_mask_BL: Tensor | None, cu_seqlens: Tensor | None
    ) -> Tensor:
        rows_MK = self.rows(q_BLHK.device, random_features.accumulation_dtype(q_BLHK, k_BLHK, v_BLHK))
        return random_features.favor_attention(
            q_BLHK, k_BLHK, v_BLHK, rows_MK, key_mask_BL=key_mask_BL, cu_seqlens=cu_seqlens
        )

    def _map(
        self, q_BLHK: Tensor, k_BLHK: Tensor, key_mask_BL: Tensor | None, cu_seqlens: Tensor | None, rows: slice
    ) -> Tensor:
        rows_MK = self.rows(q_BLHK.device, random_features.accumulation_dtype(q_BLHK, k_BLHK))
        return random_features.favor_map(
            q_BLHK, k_BLHK, rows_MK, key_mask_BL=key_mask_BL, cu_seqlens=cu_seqlens, rows=rows
        )

    def _causal_rows(self, *inputs: Tensor) -> Tensor:
        return self.rows(inputs[0].device, random_features.accumulation_dtype(*inputs))

    def _attend_causal(
        self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, key_mask_BL: Tensor | None, cu_seqlens: Tensor | None
    ) -> Tensor:
        rows_MK = self._causal_rows(q_BLHK, k_BLHK, v_BLHK)
        return random_features.causal_favor_attention(
            q_BLHK, k_BLHK, v_BLHK, rows_MK, key_mask_BL=key_mask_BL, cu_seqlens=cu_seqlens
        )

    def _map_causal(
        self, q_BLHK: Tensor, k_BLHK: Tensor, key_mask_BL: Tensor | None, cu_seqlens: Tensor | None, rows: slice
    ) -> Tensor:
        rows_MK = self._causal_rows(q_BLHK, k_BLHK)
        return random_features.causal_favor_map(
            q_BLHK, k_BLHK, rows_MK, key_mask_BL=key_mask_BL, cu_seqlens=cu_seqlens, rows=rows
        )

    def _prefill(
        self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, key_mask_BL: Tensor | None
    ) -> tuple[Tensor, FavorState]:
        out_BLHK = self._attend_causal(q_BLHK, k_BLHK, v_BLHK, key_mask_BL, None)
        rows_MK = self._causal_rows(q_BLHK, k_BLHK, v_BLHK)
        return out_BLHK, random_features.favor_state(k_BLHK, v_BLHK, rows_MK, key_mask_BL=key_mask_BL)

    def _step(self, q_BHK: Tensor, k_BHK: Tensor, v_BHK: Tensor, state: object) -> tuple[Tensor, FavorState]:
        sizes = (*q_BHK.shape[:2], self.config.num_random_features, self.head_dim + 1)
        return random_features.favor_step(q_BHK, k_BHK, v_BHK, check_state(state, FavorState, "sums_BHMV", sizes))


@functools.cache
def choose_implementation(implementation: Implementation) -> Implementation:
    """Return which implementation runs; for "auto" say so in the log, once in a process."""
    if implementation == "auto":
        logger.info("FAVOR+ runs eager, its only implementation")
    return "eager"
