"""What linear attention reads of a tile: features with values, and the gradients of its sums."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from proteinlm.ops.linear_attention.features import Normalisation, features_, inverse_rms, inverse_sum, with_ones
from proteinlm.ops.segments import Tile

LoadPair = Callable[[Tile], tuple[Tensor, Tensor]]


def keys_and_values(k_THK: Tensor, v_THK: Tensor, dtype: torch.dtype, normalisation: Normalisation) -> LoadPair:
    """Return what loads phi(k) and the values of a tile, with a column of ones for the normaliser."""

    def load(tile: Tile) -> tuple[Tensor, Tensor]:
        # a hidden key may be anything, and 0 times infinity is not 0
        phi_GCK = tile.hide_keys(features_(tile.take(k_THK, dtype)), 0)
        v_GCK = tile.hide_keys(tile.take(v_THK, dtype), 0)
        return phi_GCK, with_ones(v_GCK) if normalisation == "division" else v_GCK

    return load


def gradients_of_sums(
    grad_THK: Tensor, out_THK: Tensor, inverses_TH1: Tensor, normalisation: Normalisation
) -> Callable[[Tile], Tensor]:
    """Return what loads the gradients of a tile's sums n and z.

    With g the gradient of out: g / z and -g·out / z for out = n / z, and (g - out g·out / K) / rms for
    out = n / rms.
    """

    def load(tile: Tile) -> Tensor:
        grad_GCK = tile.hide_repeats(tile.take(grad_THK, inverses_TH1.dtype))
        out_GCK = tile.take(out_THK, inverses_TH1.dtype)
        offset_GC1 = (grad_GCK * out_GCK).sum(-1, keepdim=True).neg_()
        if normalisation == "division":
            grad_GCV = torch.cat((grad_GCK, offset_GC1), dim=-1)
        else:
            grad_GCV = grad_GCK.addcmul_(out_GCK, offset_GC1, value=1 / out_GCK.shape[-1])
        return grad_GCV.mul_(tile.take(inverses_TH1, inverses_TH1.dtype))

    return load


def normalise(read_GCV: Tensor, normalisation: Normalisation) -> tuple[Tensor, Tensor]:
    """Return out_GCK of what queries read, and the inverses_GC1 that their sums were multiplied by."""
    if normalisation == "division":
        sums_GCK, inverse_GC1 = read_GCV[..., :-1], inverse_sum(read_GCV[..., -1:])
    else:
        sums_GCK, inverse_GC1 = read_GCV, inverse_rms(read_GCV)
    return sums_GCK * inverse_GC1, inverse_GC1
