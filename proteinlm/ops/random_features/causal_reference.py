"""Causal FAVOR+ as the paper prints it: every feature of every position, every pair, in float64.

Source: Choromanski et al., ICLR 2021, arXiv:2009.14794, equation 2 and appendix B.1 (unidirectional
attention): the map of ``reference`` with the pairs j > i left out of numerator and normaliser.
"""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from proteinlm.ops.random_features.features import FeatureMap
from proteinlm.ops.random_features.reference import FEATURES
from proteinlm.ops.softmax_attention.reference import visible_pairs
from proteinlm.ops.visibility import Seen


def causal_favor_map(
    q_BLHK: Tensor, k_BLHK: Tensor, rows_MK: Tensor, *, feature_map: FeatureMap = "positive", **seen: Unpack[Seen]
) -> Tensor:
    """Return map_BHLL; a row without a visible key is 0."""
    scale = q_BLHK.shape[-1] ** -0.25
    phi_q, phi_k = (FEATURES[feature_map](x.double() * scale, rows_MK.double()) for x in (q_BLHK, k_BLHK))
    visible_B1LL = visible_pairs(q_BLHK, **seen).tril()
    kernel_BHLL = torch.einsum("bihm,bjhm->bhij", phi_q, phi_k) * visible_B1LL
    return kernel_BHLL / kernel_BHLL.sum(-1, keepdim=True).masked_fill(~visible_B1LL.any(-1, keepdim=True), 1.0)


def causal_favor_attention(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHK: Tensor,
    rows_MK: Tensor,
    *,
    feature_map: FeatureMap = "positive",
    **seen: Unpack[Seen],
) -> Tensor:
    """Return out_BLHK, the map times V."""
    map_BHLL = causal_favor_map(q_BLHK, k_BLHK, rows_MK, feature_map=feature_map, **seen)
    return torch.einsum("bhij,bjhk->bihk", map_BHLL, v_BLHK.double())
