"""The random rows onto which queries and keys are projected."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from proteinlm.randomness import stream_key

Projection = Literal["orthogonal", "iid", "regularised", "none"]


def projection_rows(
    num_rows: int, head_dim: int, *, projection: Projection, seed: int, layer: int, redraw_index: int
) -> Tensor:
    """Return rows w_1 … w_M as float64 on the CPU.

    A pure function of its arguments. "orthogonal" rows come in blocks of ``head_dim`` that are
    mutually orthogonal, with independent chi(head_dim) lengths; the last block is truncated. Rows
    of different blocks, and all "iid" rows, are independent. Each is distributed as N(0, I). "regularised"
    rows are orthogonal ones of length sqrt(head_dim) exactly: estimates vary less and are low by
    ``regularised_ratio``.

    Args:
        projection: any but "none", which has no rows.

    Returns:
        rows_MK with M = ``num_rows`` and K = ``head_dim``.

    Source: Choromanski et al., ICLR 2021, arXiv:2009.14794, section 2.4 and, for "regularised", Theorem 1.
    """
    generator = torch.Generator().manual_seed(
        stream_key(seed, "projection", projection, num_rows, head_dim, layer, redraw_index)
    )
    if projection == "iid":
        return torch.randn(num_rows, head_dim, generator=generator, dtype=torch.float64)
    num_blocks = -(-num_rows // head_dim)
    gaussian_SKK = torch.randn(num_blocks, head_dim, head_dim, generator=generator, dtype=torch.float64)
    unit_MK: Tensor = haar(gaussian_SKK).flatten(0, 1)[:num_rows]
    if projection == "regularised":
        return unit_MK.mul(math.sqrt(head_dim))
    lengths_M = torch.randn(num_rows, head_dim, generator=generator, dtype=torch.float64).norm(dim=1)
    return unit_MK.mul(lengths_M[:, None])


def regularised_ratio(squared_norms: Tensor, head_dim: int) -> Tensor:
    """Return what "regularised" rows estimate, over the softmax kernel, where |x + y|^2 is ``squared_norms``.

    e^-w sum_k w^k / k! · K^k / (K (K + 2) … (K + 2 k - 2)) with w = |x + y|^2 / 2: the mean of the second
    factor over a Poisson number k. It is 1 at 0 and falls as |x + y| grows.

    Returns:
        float64, in the shape of ``squared_norms``.

    Source: Choromanski et al., ICLR 2021, arXiv:2009.14794, Theorem 1 and its proof.
    """
    w = squared_norms.double()[..., None] / 2
    most = float(w.max()) if w.numel() else 0.0
    # terms rise until k = w; ten standard deviations of a Poisson number further on they are below 1e-16
    k = torch.arange(math.ceil(most + 10 * math.sqrt(most) + 40), dtype=torch.float64, device=w.device)
    log_poisson = torch.special.xlogy(k, w) - w - torch.lgamma(k + 1)
    half = torch.tensor(head_dim / 2, dtype=torch.float64, device=w.device)
    log_factor = k * half.log() + torch.lgamma(half) - torch.lgamma(half + k)
    ratio: Tensor = (log_poisson + log_factor).exp().sum(-1)
    return ratio


def haar(gaussian_SKK: Tensor) -> Tensor:
    """Return one Haar-distributed orthogonal matrix for each square Gaussian matrix.

    Source: Mezzadri, Notices of the AMS 54 (2007), arXiv:math-ph/0609050, section 5.
    """
    q_SKK, r_SKK = torch.linalg.qr(gaussian_SKK)
    # QR fixes the sign of R's diagonal and so skews Q towards -1 in its corner: put the sign back
    signs_SK: Tensor = r_SKK.diagonal(dim1=-2, dim2=-1).sign()
    return torch.mul(q_SKK, signs_SK[:, None, :])
