"""Positive random features of the softmax kernel, as logarithms."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

FeatureMap = Literal["positive", "hyperbolic"]


def feature_rows(rows_MK: Tensor, feature_map: FeatureMap) -> Tensor:
    """Return one row for each feature: the rows themselves, or for "hyperbolic" w and -w of each.

    The hyperbolic map exp(-|x|^2 / 2) / sqrt(2 m) · (exp(w·x), exp(-w·x)) is the positive map on
    these 2 m rows.
    """
    return torch.cat((rows_MK, -rows_MK)) if feature_map == "hyperbolic" else rows_MK


def log_features(x_NK: Tensor, rows_MK: Tensor) -> Tensor:
    """Map queries or keys to the logarithms of positive random features.

    log phi(x)_m = w_m·x - |x|^2 / 2 - log(M) / 2. The inner product of phi(x) and phi(y) is an
    unbiased estimate of exp(x·y). Computed in float32, or in float64 where an argument is, also
    under autocast: bfloat16 steps by 2 at 256, a factor of e^2 in a feature.

    Args:
        x_NK: queries or keys already divided by K ** 0.25; any leading dimensions.
        rows_MK: one row for each feature (see ``feature_rows``), each distributed as N(0, I).

    Source: Choromanski et al., ICLR 2021, arXiv:2009.14794, Lemma 1.
    """
    dtype = accumulation_dtype(x_NK, rows_MK)
    with torch.autocast(x_NK.device.type, enabled=False):
        x_NK, rows_MK = x_NK.to(dtype), rows_MK.to(dtype)
        offset_N1 = x_NK.square().sum(-1, keepdim=True).mul(-0.5).sub(0.5 * math.log(len(rows_MK)))
        flat = torch.addmm(offset_N1.reshape(-1, 1), x_NK.reshape(-1, x_NK.shape[-1]), rows_MK.T)
        return flat.view(*x_NK.shape[:-1], len(rows_MK))


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """Return float64 where any tensor is float64, float32 otherwise."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
