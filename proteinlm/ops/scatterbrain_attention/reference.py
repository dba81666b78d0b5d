"""Scatterbrain with every pair, in float64: features everywhere, corrected where the hash found a pair.

Source: Chen et al., NeurIPS 2021, arXiv:2110.15343, equation 5, with features of FAVOR+.
"""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import Tensor

from proteinlm.ops.random_features.reference import positive_features
from proteinlm.ops.sampled_attention.blocks import BlockSampling
from proteinlm.ops.sampled_attention.reference import pair_weights
from proteinlm.ops.softmax_attention.reference import visible_pairs
from proteinlm.ops.visibility import Seen, visibility_of


def kernel(
    q_BLHK: Tensor, k_BLHK: Tensor, rows_MK: Tensor, orders_2HT: Tensor, *, block_length: int, **seen: Unpack[Seen]
) -> Tensor:
    """Return phi(x_i)·phi(y_j), plus exp(x_i·y_j) - phi(x_i)·phi(y_j) in the blocks, as kernel_BHLL; 0 where hidden."""
    x_BLHK, y_BLHK = (z.double() / math.sqrt(math.sqrt(z.shape[-1])) for z in (q_BLHK, k_BLHK))
    phi_x, phi_y = (positive_features(z, rows_MK.double()) for z in (x_BLHK, y_BLHK))
    features_BHLL = torch.einsum("bihm,bjhm->bhij", phi_x, phi_y)
    exact_BHLL = torch.einsum("bihk,bjhk->bhij", x_BLHK, y_BLHK).exp()
    blocks_only = BlockSampling(block_length=block_length, num_sampled_keys=0, seed=0, layer=0, draw=0)
    visibility = visibility_of((q_BLHK.shape[0], q_BLHK.shape[1]), **seen)
    found_BHLL = pair_weights(orders_2HT, blocks_only, visibility)
    visible_B1LL = visible_pairs(q_BLHK, visibility=visibility)
    return (features_BHLL + found_BHLL * (exact_BHLL - features_BHLL)) * visible_B1LL


def scatterbrain_map(
    q_BLHK: Tensor, k_BLHK: Tensor, rows_MK: Tensor, orders_2HT: Tensor, *, block_length: int, **seen: Unpack[Seen]
) -> Tensor:
    """Return map_BHLL, the kernel over its sum; a row without a visible key is 0."""
    kernel_BHLL = kernel(q_BLHK, k_BLHK, rows_MK, orders_2HT, block_length=block_length, **seen)
    normaliser_BHL1 = kernel_BHLL.sum(-1, keepdim=True)
    return kernel_BHLL / normaliser_BHL1.masked_fill(normaliser_BHL1 == 0, 1)


def scatterbrain_attention(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHK: Tensor,
    rows_MK: Tensor,
    orders_2HT: Tensor,
    *,
    block_length: int,
    **seen: Unpack[Seen],
) -> Tensor:
    """Return out_BLHK, the map times V."""
    map_BHLL = scatterbrain_map(q_BLHK, k_BLHK, rows_MK, orders_2HT, block_length=block_length, **seen)
    return torch.einsum("bhij,bjhk->bihk", map_BHLL, v_BLHK.double())
