"""What the forms of linear attention share: the feature map, the decay and the normalisation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Normalisation = Literal["division", "numerator"]

# added to the mean square of a numerator, far below that of any values of ordinary size
RMS_EPSILON = 1e-6


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


def inverse_rms(sums_NK: Tensor) -> Tensor:
    """Return 1 / sqrt(mean square + epsilon) of each vector, as inverses_N1; finite for a vector of zeros.

    Source: Qin et al., EMNLP 2022, arXiv:2210.10340, there called NormAttention.
    """
    return sums_NK.square().mean(-1, keepdim=True).add_(RMS_EPSILON).rsqrt_()


def inverse_sum(sums_N1: Tensor) -> Tensor:
    """Return 1 / sum, and 0 where the sum of positive terms is 0 because there is none."""
    return (sums_N1 > 0) / sums_N1.clamp_min(torch.finfo(sums_N1.dtype).tiny)


def with_ones(v_NK: Tensor) -> Tensor:
    """Return the values with a column of ones behind them, whose weighted sum is the normaliser."""
    return torch.cat((v_NK, v_NK.new_ones(*v_NK.shape[:-1], 1)), dim=-1)
