"""FAVOR+ as the papers print it: every feature of every position, every pair, in float64.

x = q / K^(1/4), y = k / K^(1/4), so that x·y = q·k / sqrt(K).
Sources: Choromanski et al., ICLR 2021, arXiv:2009.14794; Likhosherstov et al., arXiv:2205.15317 (oprf) and
arXiv:2302.00787 (sderf, saderf).
"""

from __future__ import annotations

import math
from typing import NamedTuple, Unpack

import torch
from torch import Tensor

from proteinlm.ops.random_features.features import POSITIVE, Features
from proteinlm.ops.softmax_attention.reference import visible_pairs
from proteinlm.ops.visibility import Seen


def positive_features(x_BLHK: Tensor, rows_MK: Tensor) -> Tensor:
    """Return phi(x) = exp(-|x|^2 / 2) / sqrt(M) · exp(w_m·x) (Lemma 1, equation 7)."""
    h = torch.exp(-x_BLHK.square().sum(-1, keepdim=True) / 2)
    return h / math.sqrt(len(rows_MK)) * torch.exp(x_BLHK @ rows_MK.T)


def hyperbolic_features(x_BLHK: Tensor, rows_MK: Tensor) -> Tensor:
    """Return phi(x) = exp(-|x|^2 / 2) / sqrt(2 M) · (exp(w_m·x), exp(-w_m·x)) (Lemma 1)."""
    h = torch.exp(-x_BLHK.square().sum(-1, keepdim=True) / 2) / math.sqrt(2)
    u = x_BLHK @ rows_MK.T
    return h / math.sqrt(len(rows_MK)) * torch.cat((torch.exp(u), torch.exp(-u)), dim=-1)


def trigonometric_features(x_BLHK: Tensor, rows_MK: Tensor) -> Tensor:
    """Return phi(x) = exp(|x|^2 / 2) / sqrt(M) · (sin(w_m·x), cos(w_m·x)) (equation 6)."""
    h = torch.exp(x_BLHK.square().sum(-1, keepdim=True) / 2)
    u = x_BLHK @ rows_MK.T
    return h / math.sqrt(len(rows_MK)) * torch.cat((torch.sin(u), torch.cos(u)), dim=-1)


FEATURES = {
    "positive": positive_features,
    "hyperbolic": hyperbolic_features,
    "trigonometric": trigonometric_features,
}


def optimal_features(x_LK: Tensor, rows_MK: Tensor, mean_square_KK: Tensor) -> Tensor:
    """Return phi(x) = prod_l (1 - 4 A_l)^(1/4) exp(A_l w_l^2 + B_l w_l (U^T x)_l) · exp(-|x|^2 / 2) / sqrt(M).

    ``mean_square_KK`` = U diag(Lambda) U^T is the mean of (x + y)(x + y)^T, with A_l = (1 - 2 Lambda_l - sqrt((2
    Lambda_l + 1)^2 + 8 Lambda_l)) / 16 and B_l = sqrt(1 - 4 A_l) (SDERF); a multiple phi of the identity gives
    A the same in each direction (OPRF). w is U^T w_m: distributed as the row w_m is, and
    what comes out does not depend on which vectors span an eigenspace.
    """
    lambda_K, u_KK = torch.linalg.eigh(mean_square_KK)
    a_K = (1 - 2 * lambda_K - ((2 * lambda_K + 1) ** 2 + 8 * lambda_K).sqrt()) / 16
    b_K = (1 - 4 * a_K).sqrt()
    w_MK = rows_MK @ u_KK
    exponent_LM = (w_MK.square() @ a_K) + (x_LK @ u_KK * b_K) @ w_MK.T - x_LK.square().sum(-1, keepdim=True) / 2
    d: Tensor = (1 - 4 * a_K).prod() ** 0.25
    return d / math.sqrt(len(rows_MK)) * torch.exp(exponent_LM)


def generalised_features(q_BLHK: Tensor, rows_MK: Tensor | None, features: Features) -> Tensor:
    """Return f(w_m·q) + epsilon, or f(q) + epsilon without rows; f = u Phi(u) - min u Phi(u) for "gelu"."""
    u = q_BLHK if rows_MK is None else q_BLHK @ rows_MK.T
    if features.function == "exp":
        return u.exp()
    if features.function == "gelu":
        lowest = torch.tensor(-0.7517915246935645, dtype=torch.float64)
        value = torch.nn.functional.gelu(u) - torch.nn.functional.gelu(lowest)
    else:
        value = {"relu": torch.relu, "abs": torch.abs, "sigmoid": torch.sigmoid}[features.function](u)
    return value + features.epsilon


class Segment(NamedTuple):
    """Scaled queries and keys of one segment and head, and which positions are visible."""

    x_LK: Tensor
    y_LK: Tensor
    visible_L: Tensor


def segment_kernel(segment: Segment, rows_MK: Tensor, features: Features) -> Tensor:
    """Return the estimate of exp(x_i·y_j), up to a factor for each i, as kernel_LL.

    Centring: exp(x·y) = exp((x - a)·(y - b)) exp(a·y) exp((x - a)·b), the last without a part in attention.
    Statistics are constants: means over visible tokens, of all pairs of them where x and y meet.
    """
    x_LK, y_LK, visible_L = segment
    key_factor_L = torch.ones(len(y_LK), dtype=torch.float64)
    if features.centring:
        mean_x_K, mean_y_K = (z[visible_L].detach().mean(0) for z in (x_LK, y_LK))
        key_factor_L = (y_LK @ mean_x_K).exp()
        x_LK, y_LK = x_LK - mean_x_K, y_LK - mean_y_K
    if features.feature_map in FEATURES:
        phi_x, phi_y = (FEATURES[features.feature_map](z, rows_MK) for z in (x_LK, y_LK))
        return phi_x @ phi_y.T * key_factor_L
    if features.feature_map == "saderf":
        squares_x_K, squares_y_K = (z[visible_L].detach().square().mean(0) for z in (x_LK, y_LK))
        floor = 1e-6 * (squares_x_K + squares_y_K).mean()
        if floor > 0:
            psi_K = ((squares_y_K + floor) / (squares_x_K + floor)) ** 0.25
            x_LK, y_LK = x_LK * psi_K, y_LK / psi_K
    sums_NK = (x_LK[visible_L].detach()[:, None] + y_LK[visible_L].detach()).flatten(0, 1)
    mean_square_KK = sums_NK.T @ sums_NK / len(sums_NK)
    if features.feature_map == "oprf":
        mean_square_KK = torch.eye(len(mean_square_KK), dtype=torch.float64) * mean_square_KK.diagonal().mean()
    phi_x, phi_y = (optimal_features(z, rows_MK, mean_square_KK) for z in (x_LK, y_LK))
    return phi_x @ phi_y.T * key_factor_L


def favor_map(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    rows_MK: Tensor | None,
    *,
    features: Features = POSITIVE,
    **seen: Unpack[Seen],
) -> Tensor:
    """Return D^-1 phi(Q) phi(K)^T as map_BHLL (equation 4); a row without a visible key is 0."""
    visible_B1LL = visible_pairs(q_BLHK, **seen)
    rows_MK = None if rows_MK is None else rows_MK.double()
    if features.feature_map == "generalised":
        phi_q, phi_k = (generalised_features(z.double(), rows_MK, features) for z in (q_BLHK, k_BLHK))
        kernel_BHLL = torch.einsum("bihm,bjhm->bhij", phi_q, phi_k)
    else:
        assert rows_MK is not None
        kernel_BHLL = _softmax_kernel(q_BLHK.double(), k_BLHK.double(), rows_MK, features, visible_B1LL)
    kernel_BHLL = kernel_BHLL * visible_B1LL
    normaliser_BHL1 = kernel_BHLL.sum(-1, keepdim=True)
    return kernel_BHLL / normaliser_BHL1.masked_fill(~visible_B1LL.any(-1, keepdim=True), 1.0)


def _softmax_kernel(
    q_BLHK: Tensor, k_BLHK: Tensor, rows_MK: Tensor, features: Features, visible_B1LL: Tensor
) -> Tensor:
    num_windows, length, num_heads, head_dim = q_BLHK.shape
    x_BLHK, y_BLHK = q_BLHK * head_dim**-0.25, k_BLHK * head_dim**-0.25
    kernel_BHLL = torch.zeros(num_windows, num_heads, length, length, dtype=torch.float64)
    # queries that see the same keys form a segment; two segments never do, unless neither sees a key
    for window in range(num_windows):
        for pattern_L in torch.unique(visible_B1LL[window, 0], dim=0):
            if not pattern_L.any():
                continue
            rows_L = (visible_B1LL[window, 0] == pattern_L).all(-1)
            for head in range(num_heads):
                segment = Segment(x_BLHK[window, :, head], y_BLHK[window, :, head], pattern_L)
                estimate_LL = segment_kernel(segment, rows_MK, features)
                kernel_BHLL[window, head] = torch.where(rows_L[:, None], estimate_LL, kernel_BHLL[window, head])
    return kernel_BHLL


def favor_attention(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHK: Tensor,
    rows_MK: Tensor | None,
    *,
    features: Features = POSITIVE,
    **seen: Unpack[Seen],
) -> Tensor:
    """Return out_BLHK = D^-1 phi(Q) phi(K)^T V (equation 4)."""
    map_BHLL = favor_map(q_BLHK, k_BLHK, rows_MK, features=features, **seen)
    return torch.einsum("bhij,bjhk->bihk", map_BHLL, v_BLHK.double())
