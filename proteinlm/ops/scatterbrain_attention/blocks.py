"""Scatterbrain's sums, block by block: features of all other blocks beside the exact keys of one's own.

With x = q / K^(1/4), y = k / K^(1/4) and the positive features phi of FAVOR+, a query i of block b reads

    out_i = sum_j w_ij v_j / sum_j w_ij,  w_ij = exp(x_i·y_j) for keys j in block b, phi(x_i)·phi(y_j) for all others.

Printed as phi(x_i)·phi(y_j) everywhere plus exp(x_i·y_j) - phi(x_i)·phi(y_j) in the block, it subtracts: where the
features of a block outweigh the rest, nothing but rounding is left, of either sign. Here what lies outside a block is
*added* up from the other blocks. In logarithms it is one softmax, over M features and C keys at once:

    s_br = log sum_{j outside b} phi_r(y_j),  U_br = sum_{j outside b} phi_r(y_j) v_j / exp(s_br),
    out_i = sum_r P_ir U_br + sum_{j in b} P_ij v_j,  P_i = softmax of (log phi_r(x_i) + s_br, x_i·y_j).

All weights are 0 or more and the normaliser is at least 1 once the largest logit is taken off, with no
epsilon and nothing to clamp: a block holds a visible key, so there always is a finite logit.

Letters: U segments × heads of one group, A blocks of queries, B blocks of keys, C positions, M features, V = K + 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from proteinlm.ops.random_features import log_features

# blocks that are added pair by pair: as a product with a small matrix that costs less than two running sums
FAMILY = 16
# where others sum to less, beside 1 for the largest key, gradients would leave the range of float32
FAINT = 1e-15


class Keys(NamedTuple):
    """Scaled keys and values of each block, and what lies outside of it."""

    y_UBCK: Tensor
    v_UBCK: Tensor
    hidden_UBC: Tensor
    logarithms_UBCM: Tensor  # of the features, minus infinity where hidden
    sums_UBM: Tensor  # s, minus infinity where nothing lies outside
    means_UBMK: Tensor  # U


def exclusive_sum(x_UBN: Tensor) -> Tensor:
    """Return the sum over all other blocks, without a difference: others of a family, plus other families."""
    num_blocks = x_UBN.shape[1]
    if num_blocks <= FAMILY:
        others_BB = 1 - torch.eye(num_blocks, dtype=x_UBN.dtype, device=x_UBN.device)
        return others_BB @ x_UBN
    missing = -num_blocks % FAMILY
    x_UFBN = torch.nn.functional.pad(x_UBN, (0, 0, 0, missing))
    x_UFBN = x_UFBN.view(len(x_UBN), -1, FAMILY, x_UBN.shape[-1])
    within_UFBN = exclusive_sum(x_UFBN.flatten(0, 1)).view_as(x_UFBN)
    beyond_UFN = exclusive_sum(x_UFBN.sum(2))
    return (within_UFBN + beyond_UFN[:, :, None]).flatten(1, 2)[:, :num_blocks]


def read_keys(k_UBCK: Tensor, v_UBCK: Tensor, hidden_UBC: Tensor, rows_MK: Tensor) -> Keys:
    """Return keys and what lies outside each block."""
    y_UBCK = k_UBCK * k_UBCK.shape[-1] ** -0.25
    logarithms_UBCM = log_features(y_UBCK, rows_MK).masked_fill(hidden_UBC[..., None], -torch.inf)
    v_UBCV = torch.cat((v_UBCK, v_UBCK.new_ones(*v_UBCK.shape[:-1], 1)), dim=-1)
    outside_UBMV, scales_UBM = _outside(logarithms_UBCM, v_UBCV)
    total_UBM1 = outside_UBMV[..., -1:]
    is_empty_UBM1 = total_UBM1 == 0
    total_UBM1 = total_UBM1.masked_fill(is_empty_UBM1, 1)
    sums_UBM = total_UBM1.log().masked_fill(is_empty_UBM1, -torch.inf)[..., 0] + scales_UBM
    return Keys(y_UBCK, v_UBCK, hidden_UBC, logarithms_UBCM, sums_UBM, outside_UBMV[..., :-1] / total_UBM1)


def _outside(logarithms_UBCM: Tensor, v_UBCV: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of features times v_UBCV over all other blocks, and the logarithms of their scales."""
    maxima_U1M = logarithms_UBCM.detach().amax((1, 2))[:, None]
    own_UBMV = (logarithms_UBCM - maxima_U1M[:, :, None]).exp().mT @ v_UBCV
    outside_UBMV = exclusive_sum(own_UBMV.flatten(2)).view_as(own_UBMV)
    faint_UBM = outside_UBMV[..., -1].detach() < FAINT
    scales_UBM = maxima_U1M.expand(faint_UBM.shape)
    if not faint_UBM.any():
        return outside_UBMV, scales_UBM
    # a faint block holds the largest key, so a feature has one at most: add up its others again, in their own scale
    others_UBCM = logarithms_UBCM.masked_fill(faint_UBM[:, :, None], -torch.inf)
    largest_U1M = others_UBCM.detach().amax((1, 2))[:, None]
    largest_U1M = largest_U1M.masked_fill(largest_U1M == -torch.inf, 0)
    again_U1MV = ((others_UBCM - largest_U1M[:, :, None]).exp().mT @ v_UBCV).sum(1, keepdim=True)
    outside_UBMV = torch.where(faint_UBM[..., None], again_U1MV, outside_UBMV)
    return outside_UBMV, torch.where(faint_UBM, largest_U1M, scales_UBM)


def query_weights(q_UACK: Tensor, keys: Keys, rows_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Return P as weights_UACM of features and weights_UACC of keys; ``keys`` has a block for each of queries."""
    x_UACK = q_UACK * q_UACK.shape[-1] ** -0.25
    of_features_UACM = log_features(x_UACK, rows_MK) + keys.sums_UBM[:, :, None]
    of_keys_UACC = (x_UACK @ keys.y_UBCK.mT).masked_fill(keys.hidden_UBC[:, :, None], -torch.inf)
    weights = torch.cat((of_features_UACM, of_keys_UACC), dim=-1).softmax(-1)
    return weights[..., : len(rows_MK)], weights[..., len(rows_MK) :]


def attend_blocks(q_UACK: Tensor, keys: Keys, rows_MK: Tensor) -> Tensor:
    """Return out_UACK."""
    of_features_UACM, of_keys_UACC = query_weights(q_UACK, keys, rows_MK)
    return of_features_UACM @ keys.means_UBMK + of_keys_UACC @ keys.v_UBCK


def outside_weights(of_features_NM: Tensor, sums_NM: Tensor, logarithms_JM: Tensor) -> Tensor:
    """Return sum_r P_ir phi_r(y_j) / exp(s_ir) as float64 weights_NJ: the map outside the block of i."""
    maxima_M = logarithms_JM.amax(0)
    # in float32 a feature whose largest key is in the block could overflow here
    ratio_NM = (maxima_M - sums_NM).double().exp().masked_fill_(of_features_NM == 0, 0)
    return (of_features_NM * ratio_NM) @ (logarithms_JM - maxima_M).double().exp().T
