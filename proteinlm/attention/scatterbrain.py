"""Scatterbrain: FAVOR+ for most pairs, exact weights for those that a hash finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from proteinlm.attention.redrawn import OrderedAttention
from proteinlm.ops import scatterbrain_attention as ops
from proteinlm.ops.precision import accumulation_dtype
from proteinlm.ops.random_features import feature_rows, projection_rows
from proteinlm.ops.visibility import Visibility


@dataclass(frozen=True, kw_only=True, slots=True)
class ScatterbrainConfig:
    """Settings of Scatterbrain.

    Raises:
        ValueError: if a setting is out of its range, or has no meaning beside another.
    """

    # exact attention within blocks of a hash, FAVOR+ outside
    # when: FAVOR+ misses sharp entries
    kind: Literal["scatterbrain"] = "scatterbrain"
    # width M of a feature vector; "hyperbolic" makes two of each row
    # when: what lies outside the blocks is too rough (more)
    num_random_features: int = 256
    # visible tokens of a block, at most
    # when: sharp entries fall outside the blocks (more)
    block_length: int = 64
    # features outside the blocks; no other maps: exact terms need features that estimate the same kernel, without bias
    # when: estimators are compared
    feature_map: Literal["positive", "hyperbolic"] = "positive"
    # how the random rows of a draw depend on each other
    # when: estimators are compared
    projection: Literal["orthogonal", "iid"] = "orthogonal"
    # optimiser steps between two draws of rows and hash; 0 keeps the first draw
    # when: the loss jumps at every redraw (more)
    redraw_interval: int = 1000

    def __post_init__(self) -> None:
        if self.num_random_features < 1:
            raise ValueError(f"num_random_features is {self.num_random_features}; expected 1 or more")
        if self.num_random_features % self.features_per_row:
            found = f"num_random_features is {self.num_random_features}"
            raise ValueError(f"{found}; expected an even number ({self.feature_map})")
        if self.block_length < 1:
            raise ValueError(f"block_length is {self.block_length}; expected 1 or more tokens")
        if self.redraw_interval < 0:
            raise ValueError(f"redraw_interval is {self.redraw_interval}; expected 1 or more, or 0 for never")

    @property
    def features_per_row(self) -> int:
        """How many features a row makes."""
        return 2 if self.feature_map == "hyperbolic" else 1


class ScatterbrainAttention(OrderedAttention):
    """Softmax attention whose pairs are exact where a hash finds them, and estimated by random features elsewhere.

    Sharp weights are caught by the hash, diffuse ones by the features; each alone fails on the other kind. Rows and
    hash are a pure function of (seed, layer, draw), neither parameter nor buffer: no checkpoint holds them and
    ``half()`` leaves them float32.
    """

    def __init__(self, config: ScatterbrainConfig, *, head_dim: int, layer: int, seed: int) -> None:
        super().__init__(head_dim=head_dim, layer=layer, seed=seed, redraw_interval=config.redraw_interval)
        self.config = config

    def rows(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the rows in use as rows_MK, as ``scatterbrain_attention`` takes them."""
        return self.drawn("rows", self._draw_rows, device, dtype)

    def _draw_rows(self) -> Tensor:
        drawn_MK = projection_rows(
            self.config.num_random_features // self.config.features_per_row,
            self.head_dim,
            projection=self.config.projection,
            seed=self.seed,
            layer=self.layer,
            redraw_index=self.draw,
        )
        return feature_rows(drawn_MK, self.config.feature_map)

    def extra_repr(self) -> str:
        """Name the settings that tell one mechanism from another."""
        config = self.config
        features = f"{config.num_random_features} {config.feature_map} {config.projection} features"
        return f"{features}, blocks of {config.block_length}, {self.redrawing}"

    def _attend_in_order(
        self, inputs: tuple[Tensor, Tensor, Tensor], orders_2HT: Tensor, visibility: Visibility
    ) -> Tensor:
        rows_MK = self.rows(inputs[0].device, accumulation_dtype(*inputs))
        return ops.scatterbrain_attention(
            *inputs, rows_MK, orders_2HT, block_length=self.config.block_length, visibility=visibility
        )

    def _map(self, q_BLHK: Tensor, k_BLHK: Tensor, visibility: Visibility, rows: slice, heads: slice) -> Tensor:
        q_BLhK, k_BLhK = q_BLHK[:, :, heads], k_BLHK[:, :, heads]
        return ops.scatterbrain_map(
            q_BLhK,
            k_BLhK,
            self.rows(q_BLHK.device, accumulation_dtype(q_BLHK, k_BLHK)),
            self.hash_orders(q_BLhK, k_BLhK, visibility),
            block_length=self.config.block_length,
            rows=rows,
            visibility=visibility,
        )
