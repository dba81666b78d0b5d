"""Linear attention as the papers print it: every pair, in float64.

Sources: Katharopoulos et al., ICML 2020, arXiv:2006.16236, equations 4, 7 and 9 (features, division,
causal form); Qin et al., EMNLP 2022, arXiv:2210.10340 (norm of the numerator); Afzal et al.
2025, arXiv:2502.16249, and Sun et al. 2023, arXiv:2307.08621 (decay by distance).
"""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor
from torch.nn.functional import elu

from proteinlm.ops.feature_sums import RMS_EPSILON, Normalisation
from proteinlm.ops.softmax_attention.reference import visible_pairs
from proteinlm.ops.visibility import Seen


def linear_weights(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    *,
    decay_H: Tensor | None = None,
    **seen: Unpack[Seen],
) -> Tensor:
    """Return (elu(q_i) + 1)·(elu(k_j) + 1) gamma^|i - j| as weights_BHLL, 0 for pairs that do not see each other.

    Args:
        decay_H: log gamma of each head.
    """
    length = q_BLHK.shape[1]
    weights_BHLL = torch.einsum("bihk,bjhk->bhij", elu(q_BLHK.double()) + 1, elu(k_BLHK.double()) + 1)
    if decay_H is not None:
        distance_LL = (torch.arange(length)[:, None] - torch.arange(length)).abs()
        weights_BHLL = weights_BHLL * torch.exp(decay_H.double()[:, None, None] * distance_LL)
    visible_B1LL = visible_pairs(q_BLHK, **seen)
    return weights_BHLL * visible_B1LL


def linear_map(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    *,
    decay_H: Tensor | None = None,
    **seen: Unpack[Seen],
) -> Tensor:
    """Return the weights divided by the sum of their row, as map_BHLL; a row without a visible key is 0."""
    weights_BHLL = linear_weights(q_BLHK, k_BLHK, decay_H=decay_H, **seen)
    sums_BHL1 = weights_BHLL.sum(-1, keepdim=True)
    return weights_BHLL / sums_BHL1.masked_fill(sums_BHL1 == 0, 1.0)


def linear_attention(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHK: Tensor,
    *,
    normalisation: Normalisation = "division",
    decay_H: Tensor | None = None,
    **seen: Unpack[Seen],
) -> Tensor:
    """Return out_BLHK: the map times V, or the weights times V divided by the root of its mean square."""
    weighting = linear_map if normalisation == "division" else linear_weights
    weights_BHLL = weighting(q_BLHK, k_BLHK, decay_H=decay_H, **seen)
    sums_BLHK = torch.einsum("bhij,bjhk->bihk", weights_BHLL, v_BLHK.double())
    if normalisation == "division":
        return sums_BLHK
    return sums_BLHK / torch.sqrt(sums_BLHK.square().mean(-1, keepdim=True) + RMS_EPSILON)
