"""What the forms of linear attention share: the feature map, the decay and the normalisation."""

from __future__ import annotations

import torch
from torch import Tensor

from proteinlm.ops.feature_sums import Evaluated, PlainFeatures
from proteinlm.ops.tiles import Tile


def features(x_NK: Tensor) -> Tensor:
    """Return phi(x) = elu(x) + 1 of queries or keys, which is x + 1 above 0 and exp(x) below.

    Source: Katharopoulos et al., ICML 2020, arXiv:2006.16236, equation 7.
    """
    # elu(x) + 1 itself is 0 in float32 below -17, where exp(x) still tells keys apart
    return x_NK.clamp_max(0).exp_().add_(x_NK.clamp_min(0))


def slopes(features_NK: Tensor) -> Tensor:
    """Return phi'(x) from phi(x): 1 above 0, where phi is above 1, and phi itself below."""
    return features_NK.clamp_max(1)


def decay_logarithms(num_heads: int) -> Tensor:
    """Return the logarithm of each head's decay, float64.

    gamma_h = 1 - 2^(-5 - h) for heads h = 0, 1, …; a head reaches about 32 · 2^h positions.

    Source: the rates are those of RetNet, Sun et al. 2023, arXiv:2307.08621, equation 8.
    """
    return torch.log1p(-(2.0 ** (-5 - torch.arange(num_heads, dtype=torch.float64))))


def with_ones(v_NK: Tensor) -> Tensor:
    """Return the values with a column of ones behind them, whose weighted sum is the normaliser."""
    return torch.cat((v_NK, v_NK.new_ones(*v_NK.shape[:-1], 1)), dim=-1)


class EluFeatures(PlainFeatures):
    """elu(x) + 1 of each coordinate; queries, keys and gradients are read and written where they lie."""

    def __init__(self, dtype: torch.dtype, head_dim: int) -> None:
        super().__init__(dtype)
        self.num_features = head_dim

    def queries(self, tile: Tile, q_THK: Tensor, prepared: None) -> Evaluated:
        """Return phi(q)."""
        return Evaluated(features(tile.look(q_THK, self.dtype)))

    def keys(self, tile: Tile, k_THK: Tensor, prepared: None) -> Evaluated:
        """Return phi(k), 0 where a key is hidden."""
        return Evaluated(tile.hide_keys(features(tile.look(k_THK, self.dtype)), 0))

    def put_query_gradient(
        self, target_THK: Tensor, tile: Tile, found: Evaluated, grad_GCM: Tensor, prepared: None
    ) -> None:
        """Fill in the gradient of queries, or of keys: 0 where one is hidden, whose phi is 0."""
        tile.put_product(target_THK, grad_GCM, slopes(found.phi_GCM))

    put_key_gradient = put_query_gradient
