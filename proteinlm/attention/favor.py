"""FAVOR+: softmax attention estimated by positive random features, linear in the length."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from proteinlm.attention.adaptive import attend_by_length
from proteinlm.attention.interface import Attention, check_state
from proteinlm.errors import ConfigError, UnavailableError
from proteinlm.ops import random_features
from proteinlm.ops.random_features import FavorState, FeatureMap, Features, KernelFunction, Projection
from proteinlm.ops.softmax_attention import softmax_attention


@dataclass(frozen=True, kw_only=True, slots=True)
class FavorConfig:
    """Settings of FAVOR+.

    Raises:
        ValueError: if a setting is out of its range, or has no meaning beside another.
    """

    kind: Literal["favor"] = "favor"
    num_random_features: int = 256  # width M of a feature vector; "hyperbolic" makes two of each row
    feature_map: FeatureMap = "positive"
    projection: Projection = "orthogonal"
    redraw_interval: int = 1000  # optimiser steps; 0 keeps the first draw
    centring: bool = False  # softmax kernels only
    kernel_function: KernelFunction = "relu"  # of "generalised" features
    epsilon: float = 1e-3  # added to "generalised" features, but not to "exp"
    exact_below: int = 0  # visible tokens; segments of fewer are computed exactly, by forward only

    def __post_init__(self) -> None:
        if self.num_random_features < 1:
            raise ValueError(f"num_random_features is {self.num_random_features}; expected 1 or more")
        if self.num_random_features % self.features_per_row:
            found = f"num_random_features is {self.num_random_features}"
            raise ValueError(f"{found}; expected an even number ({self.feature_map})")
        if self.redraw_interval < 0:
            raise ValueError(f"redraw_interval is {self.redraw_interval}; expected 1 or more, or 0 for never")
        if self.exact_below < 0:
            raise ValueError(f"exact_below is {self.exact_below}; expected 1 or more, or 0 for off")
        if self.feature_map == "generalised":
            self._check_generalised()
        else:
            self._check_softmax_kernel()

    def _check_generalised(self) -> None:
        if self.centring:
            raise ValueError("centring is true; generalised kernels depend on where queries and keys are centred")
        if self.exact_below:
            raise ValueError(f"exact_below is {self.exact_below}; generalised features do not estimate exact attention")
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon is {self.epsilon}; expected more than 0, or a normaliser can vanish")
        if self.kernel_function == "exp" and self.epsilon != _default("epsilon"):
            raise ValueError(f"epsilon is {self.epsilon}; the function exp is positive and takes none")

    def _check_softmax_kernel(self) -> None:
        for name in ("kernel_function", "epsilon"):
            if getattr(self, name) != _default(name):
                raise ValueError(f"{name} is {getattr(self, name)}; {self.feature_map} features have none")
        if self.projection == "none":
            raise ValueError(f"projection is none; {self.feature_map} features are of random rows")
        if self.projection == "regularised" and self.feature_map not in {"positive", "hyperbolic"}:
            biased = f"rows of one length bias {self.feature_map} features"
            raise ValueError(f'projection is regularised; {biased}, expected "orthogonal" or "iid"')

    @property
    def features_per_row(self) -> int:
        """How many features a row makes."""
        return 2 if self.feature_map in {"hyperbolic", "trigonometric"} else 1

    @property
    def num_rows(self) -> int:
        """How many rows are drawn."""
        return 0 if self.projection == "none" else self.num_random_features // self.features_per_row

    @property
    def features(self) -> Features:
        """What the feature map computes of the rows."""
        return Features(
            feature_map=self.feature_map,
            centring=self.centring,
            function=self.kernel_function,
            epsilon=self.epsilon,
        )


def _default(name: str) -> object:
    return next(field.default for field in dataclasses.fields(FavorConfig) if field.name == name)


class FavorAttention(Attention):
    """D^-1 phi(Q) (phi(K)^T V), where phi(x)·phi(y) is an estimate of exp(q·k / sqrt(K)).

    Unbiased, but low by ``regularised_ratio`` with "regularised" rows; "generalised" features have a kernel
    of their own. Statistics of a segment that some maps use are constants for the gradient.

    ``attention_map`` is always that of the features: with ``exact_below`` it is not what ``forward``
    did to short segments. Trigonometric weights can be negative and, where their normaliser comes near
    0, of any size: such attention is for comparison, and training with it is refused.

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
        if config.projection == "none" and config.num_random_features != head_dim:
            found = f"num_random_features is {config.num_random_features}"
            raise ConfigError(f"{found}; without projection there are as many as the head is wide, {head_dim}")

    def set_step(self, step: int) -> None:
        """Use the draw of optimiser step ``step``: number step // redraw_interval."""
        self.redraw_index = step // self.config.redraw_interval if self.config.redraw_interval else 0

    def draw_number(self) -> int:
        """Return the number of the draw in use."""
        return self.redraw_index

    def rows(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor | None:
        """Return the rows in use as rows_MK, as ``favor_attention`` takes them; None without projection."""
        if self.config.projection == "none":
            return None
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
        config = self.config
        name = config.kernel_function if config.feature_map == "generalised" else config.feature_map
        adaptive = f", exact below {config.exact_below}" if config.exact_below else ""
        centred = "centred " if config.centring else ""
        return f"{config.num_random_features} {centred}{name} {config.projection} features{adaptive}"

    def _attend(
        self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, key_mask_BL: Tensor | None, cu_seqlens: Tensor | None
    ) -> Tensor:
        if self.config.feature_map == "trigonometric" and self.training and torch.is_grad_enabled():
            raise ConfigError("trigonometric features cannot be trained with; expected another feature_map, or eval()")
        rows_MK = self.rows(q_BLHK.device, random_features.accumulation_dtype(q_BLHK, k_BLHK, v_BLHK))
        by_features = functools.partial(random_features.favor_attention, rows_MK=rows_MK, features=self.config.features)
        inputs = (q_BLHK, k_BLHK, v_BLHK)
        if self.config.exact_below == 0:
            return by_features(*inputs, key_mask_BL=key_mask_BL, cu_seqlens=cu_seqlens)
        return attend_by_length(
            inputs,
            softmax_attention,
            by_features,
            self.config.exact_below,
            key_mask_BL=key_mask_BL,
            cu_seqlens=cu_seqlens,
        )

    def _map(
        self, q_BLHK: Tensor, k_BLHK: Tensor, key_mask_BL: Tensor | None, cu_seqlens: Tensor | None, rows: slice
    ) -> Tensor:
        rows_MK = self.rows(q_BLHK.device, random_features.accumulation_dtype(q_BLHK, k_BLHK))
        return random_features.favor_map(
            q_BLHK,
            k_BLHK,
            rows_MK,
            features=self.config.features,
            key_mask_BL=key_mask_BL,
            cu_seqlens=cu_seqlens,
            rows=rows,
        )

    def _causal_rows(self, *inputs: Tensor) -> Tensor:
        rows_MK = self.rows(inputs[0].device, random_features.accumulation_dtype(*inputs))
        name = "centred" if self.config.centring else self.config.feature_map
        if name not in {"positive", "hyperbolic"} or rows_MK is None:
            raise UnavailableError(
                f"{name} features have no causal form here; "
                'expected feature_map = "positive" or "hyperbolic", without centring'
            )
        if self.config.exact_below:
            raise UnavailableError("exact_below has no causal form; set it to 0")
        return rows_MK

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
