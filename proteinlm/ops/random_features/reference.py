"""FAVOR+ as the papers print it: every feature of every position, every pair, in float64.

x = q / K^(1/4), y = k / K^(1/4), so that x·y = q·k / sqrt(K).
Source: Choromanski et al., ICLR 2021, arXiv:2009.14794.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from proteinlm.ops.random_features.features import FeatureMap
from proteinlm.ops.softmax_attention.reference import visible_pairs


def positive_features(x_BLHK: Tensor, rows_MK: Tensor) -> Tensor:
    """Return phi(x) = exp(-|x|^2 / 2) / sqrt(M) · exp(w_m·x) (Lemma 1, equation 7)."""
    h = torch.exp(-x_BLHK.square().sum(-1, keepdim=True) / 2)
    return h / math.sqrt(len(rows_MK)) * torch.exp(x_BLHK @ rows_MK.T)


def hyperbolic_features(x_BLHK: Tensor, rows_MK: Tensor) -> Tensor:
    """Return phi(x) = exp(-|x|^2 / 2) / sqrt(2 M) · (exp(w_m·x), exp(-w_m·x)) (Lemma 1)."""
    h = torch.exp(-x_BLHK.square().sum(-1, keepdim=True) / 2) / math.sqrt(2)
    u = x_BLHK @ rows_MK.T
    return h / math.sqrt(len(rows_MK)) * torch.cat((torch.exp(u), torch.exp(-u)), dim=-1)


FEATURES = {"positive": positive_features, "hyperbolic": hyperbolic_features}


def favor_map(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    rows_MK: Tensor,
    *,
    feature_map: FeatureMap = "positive",
    key_mask_BL: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Return D^-1 phi(Q) phi(K)^T as map_BHLL (equation 4); a row without a visible key is 0."""
    scale = q_BLHK.shape[-1] ** -0.25
    rows_MK = rows_MK.double()
    phi_q = FEATURES[feature_map](q_BLHK.double() * scale, rows_MK)
    phi_k = FEATURES[feature_map](k_BLHK.double() * scale, rows_MK)
    visible_B1LL = visible_pairs(*q_BLHK.shape[:2], key_mask_BL=key_mask_BL, cu_seqlens=cu_seqlens)
    kernel_BHLL = torch.einsum("bihm,bjhm->bhij", phi_q, phi_k) * visible_B1LL
    normaliser_BHL1 = kernel_BHLL.sum(-1, keepdim=True)
    return kernel_BHLL / normaliser_BHL1.masked_fill(~visible_B1LL.any(-1, keepdim=True), 1.0)


def favor_attention(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHK: Tensor,
    rows_MK: Tensor,
    *,
    feature_map: FeatureMap = "positive",
    key_mask_BL: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Return out_BLHK = D^-1 phi(Q) phi(K)^T V (equation 4)."""
    map_BHLL = favor_map(
        q_BLHK, k_BLHK, rows_MK, feature_map=feature_map, key_mask_BL=key_mask_BL, cu_seqlens=cu_seqlens
    )
    return torch.einsum("bhij,bjhk->bihk", map_BHLL, v_BLHK.double())
