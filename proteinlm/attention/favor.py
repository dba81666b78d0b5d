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
from proteinlm.attention.choices import Choices
from proteinlm.attention.interface import check_state
from proteinlm.attention.redrawn import RedrawnAttention
from proteinlm.errors import ConfigError, UnavailableError
from proteinlm.ops import random_features
from proteinlm.ops.precision import accumulation_dtype
from proteinlm.ops.random_features import FavorState, FeatureMap, Features, KernelFunction, Projection
from proteinlm.ops.softmax_attention import softmax_attention
from proteinlm.ops.visibility import Visibility


@dataclass(frozen=True, kw_only=True, slots=True)
class FavorConfig:
    """Settings of FAVOR+.

    Raises:
        ValueError: if a setting is out of its range, or has no meaning beside another.
    """

    # FAVOR+: random features, time and memory in proportion to the length
    # when: proteins are long
    kind: Literal["favor"] = "favor"
    # width M of a feature vector; "hyperbolic" makes two of each row
    # when: proteinlm compare shows too large an error (more), or time is short (fewer)
    num_random_features: int = 256
    # what is computed of each projected query and key
    # when: queries and keys are short (hyperbolic), or long with a direction in common (sderf); docs/attention.md
    # measures all
    feature_map: FeatureMap = "positive"
    # how the random rows of a draw depend on each other
    # when: a little bias may buy less variance ("regularised"); "none" is for "generalised" only
    projection: Projection = "orthogonal"
    # optimiser steps between two draws of the rows; 0 keeps the first draw
    # when: the loss jumps at every redraw (more)
    redraw_interval: int = 1000
    # subtract the mean of queries and of keys first; softmax kernels only
    # when: queries or keys have a large common part, so that estimates vary much
    centring: bool = False
    # function of "generalised" features
    # when: kernels are compared, with feature_map = "generalised"
    kernel_function: KernelFunction = "relu"
    # added to "generalised" features, but not to "exp"
    # when: a normaliser comes close to 0
    epsilon: float = 1e-3
    # segments of fewer visible tokens are computed exactly, by forward only; 0: none
    # when: many proteins are short: both time and error gain, see docs/attention.md
    exact_below: int = 0

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


class FavorAttention(RedrawnAttention):
    """D^-1 phi(Q) (phi(K)^T V), where phi(x)·phi(y) is an estimate of exp(q·k / sqrt(K)).

    Unbiased, but low by ``regularised_ratio`` with "regularised" rows; "generalised" features have a kernel
    of their own. Statistics of a segment that some maps use are constants for the gradient.

    ``attention_map`` is always that of the features: with ``exact_below`` it is not what ``forward``
    did to short segments. Trigonometric weights can be negative and, where their normaliser comes near
    0, of any size: such attention is for comparison, and training with it is refused.
    """

    has_causal_form = True

    def __init__(self, config: FavorConfig, *, head_dim: int, layer: int, seed: int) -> None:
        super().__init__(head_dim=head_dim, layer=layer, seed=seed, redraw_interval=config.redraw_interval)
        self.config = config
        if config.projection == "none" and config.num_random_features != head_dim:
            found = f"num_random_features is {config.num_random_features}"
            raise ConfigError(f"{found}; without projection there are as many as the head is wide, {head_dim}")

    def rows(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor | None:
        """Return the rows in use as rows_MK, as ``favor_attention`` takes them; None without projection."""
        if self.config.projection == "none":
            return None
        return self.drawn("rows", self._draw_rows, device, dtype)

    def _draw_rows(self) -> Tensor:
        drawn_MK = random_features.projection_rows(
            self.config.num_rows,
            self.head_dim,
            projection=self.config.projection,
            seed=self.seed,
            layer=self.layer,
            redraw_index=self.draw,
        )
        return random_features.feature_rows(drawn_MK, self.config.feature_map)

    def extra_repr(self) -> str:
        """Name the settings that tell one mechanism from another."""
        config = self.config
        name = config.kernel_function if config.feature_map == "generalised" else config.feature_map
        adaptive = f", exact below {config.exact_below}" if config.exact_below else ""
        centred = "centred " if config.centring else ""
        return f"{config.num_random_features} {centred}{name} {config.projection} features{adaptive}, {self.redrawing}"

    def _attend(
        self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, visibility: Visibility, choices: Choices | None
    ) -> Tensor:
        rows_MK = self.rows(q_BLHK.device, accumulation_dtype(q_BLHK, k_BLHK, v_BLHK))
        if visibility.is_causal:
            return random_features.causal_favor_attention(
                q_BLHK, k_BLHK, v_BLHK, self._causal(rows_MK), visibility=visibility
            )
        if self.config.feature_map == "trigonometric" and self.training and torch.is_grad_enabled():
            raise ConfigError("trigonometric features cannot be trained with; expected another feature_map, or eval()")
        by_features = functools.partial(random_features.favor_attention, rows_MK=rows_MK, features=self.config.features)
        if self.config.exact_below == 0:
            return by_features(q_BLHK, k_BLHK, v_BLHK, visibility=visibility)
        return attend_by_length(
            (q_BLHK, k_BLHK, v_BLHK), softmax_attention, by_features, self.config.exact_below, visibility
        )

    def _map(self, q_BLHK: Tensor, k_BLHK: Tensor, visibility: Visibility, rows: slice, heads: slice) -> Tensor:
        rows_MK = self.rows(q_BLHK.device, accumulation_dtype(q_BLHK, k_BLHK))
        q_BLhK, k_BLhK = q_BLHK[:, :, heads], k_BLHK[:, :, heads]
        if visibility.is_causal:
            return random_features.causal_favor_map(
                q_BLhK, k_BLhK, self._causal(rows_MK), rows=rows, visibility=visibility
            )
        return random_features.favor_map(
            q_BLhK, k_BLhK, rows_MK, features=self.config.features, rows=rows, visibility=visibility
        )

    def _causal(self, rows_MK: Tensor | None) -> Tensor:
        name = "centred" if self.config.centring else self.config.feature_map
        if name not in {"positive", "hyperbolic"} or rows_MK is None:
            raise UnavailableError(
                f"{name} features have no causal form here; "
                'expected feature_map = "positive" or "hyperbolic", without centring'
            )
        if self.config.exact_below:
            raise UnavailableError("exact_below has no causal form; set it to 0")
        return rows_MK

    def _prefill(
        self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, visibility: Visibility
    ) -> tuple[Tensor, FavorState]:
        out_BLHK = self._attend(q_BLHK, k_BLHK, v_BLHK, visibility, None)
        rows_MK = self._causal(self.rows(q_BLHK.device, accumulation_dtype(q_BLHK, k_BLHK, v_BLHK)))
        return out_BLHK, random_features.favor_state(k_BLHK, v_BLHK, rows_MK, key_mask_BL=visibility.key_mask_BL)

    def _step(self, q_BHK: Tensor, k_BHK: Tensor, v_BHK: Tensor, state: object) -> tuple[Tensor, FavorState]:
        sizes = (*q_BHK.shape[:2], self.config.num_random_features, self.head_dim + 1)
        return random_features.favor_step(q_BHK, k_BHK, v_BHK, check_state(state, FavorState, "sums_BHMV", sizes))
