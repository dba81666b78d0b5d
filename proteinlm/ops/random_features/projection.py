"""The random rows onto which queries and keys are projected."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from proteinlm.randomness import stream_key

Projection = Literal["orthogonal", "iid"]


def projection_rows(
    num_rows: int, head_dim: int, *, projection: Projection, seed: int, layer: int, redraw_index: int
) -> Tensor:
    """Return rows w_1 … w_M, each distributed as N(0, I), as float64 on the CPU.

    A pure function of its arguments. "orthogonal" rows come in blocks of ``head_dim`` that are
    mutually orthogonal, with independent chi(head_dim) lengths; the last block is truncated. Rows
    of different blocks, and all "iid" rows, are independent.

    Returns:
        rows_MK with M = ``num_rows`` and K = ``head_dim``.

    Source: Choromanski et al., ICLR 2021, arXiv:2009.14794, section 2.4.
    """
    generator = torch.Generator().manual_seed(
        stream_key(seed, "projection", projection, num_rows, head_dim, layer, redraw_index)
    )
    if projection == "iid":
        return torch.randn(num_rows, head_dim, generator=generator, dtype=torch.float64)
    num_blocks = -(-num_rows // head_dim)
    gaussian_SKK = torch.randn(num_blocks, head_dim, head_dim, generator=generator, dtype=torch.float64)
    lengths_M = torch.randn(num_rows, head_dim, generator=generator, dtype=torch.float64).norm(dim=1)
    rows_MK: Tensor = haar(gaussian_SKK).flatten(0, 1)[:num_rows] * lengths_M[:, None]
    return rows_MK


def haar(gaussian_SKK: Tensor) -> Tensor:
    """Return one Haar-distributed orthogonal matrix for each square Gaussian matrix.

    Source: Mezzadri, Notices of the AMS 54 (2007), arXiv:math-ph/0609050, section 5.
    """
    q_SKK, r_SKK = torch.linalg.qr(gaussian_SKK)
    # QR fixes the sign of R's diagonal and so skews Q towards -1 in its corner: put the sign back
    signs_SK: Tensor = r_SKK.diagonal(dim1=-2, dim2=-1).sign()
    return torch.mul(q_SKK, signs_SK[:, None, :])
