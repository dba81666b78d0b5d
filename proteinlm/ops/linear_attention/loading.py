"""What linear attention reads of a tile: features with values, and the gradients of its sums."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from proteinlm.ops.linear_attention.features import Normalisation, features, inverse_rms, inverse_sum, with_ones
from proteinlm.ops.tiles import Tile

LoadPair = Callable[[Tile], tuple[Tensor, Tensor]]


def keys_and_values(k_THK: Tensor, v_THK: Tensor, dtype: torch.dtype, normalisation: Normalisation) -> LoadPair:
    """Return what loads phi(k) and the values of a tile, with a column of ones for the normaliser."""

    def load(tile: Tile) -> tuple[Tensor, Tensor]:
        # a hidden key may be anything, and 0 times infinity is not 0
        phi_GCK = tile.hide_keys(features(tile.look(k_THK, dtype)), 0)
        v_GCK = tile.hide_keys(tile.take(v_THK, dtype), 0)
        return phi_GCK, with_ones(v_GCK) if normalisation == "division" else v_GCK

    return load


def gradients_of_sums(
    grad_THK: Tensor, out_THK: Tensor, inverses_TH1: Tensor, normalisation: Normalisation
) -> Callable[[Tile], tuple[Tensor, Tensor | None]]:
    """Return what loads the gradients of a tile's sums n, and z where there is one.

    With g the gradient of out: g / z and -g·out / z for out = n / z, and (g - out g·out / K) / rms for
    out = n / rms.
    """
    dtype = inverses_TH1.dtype

    def load(tile: Tile) -> tuple[Tensor, Tensor | None]:
        grad_GCK = tile.hide_repeats(tile.look(grad_THK, dtype) * tile.look(inverses_TH1, dtype))
        out_GCK = tile.look(out_THK, dtype)
        offset_GC1 = (grad_GCK * out_GCK).sum(-1, keepdim=True).neg_()
        if normalisation == "division":
            return grad_GCK, offset_GC1
        return grad_GCK.addcmul_(out_GCK, offset_GC1, value=1 / out_GCK.shape[-1]), None

    return load


def side_by_side(load: Callable[[Tile], tuple[Tensor, Tensor | None]]) -> Callable[[Tile], Tensor]:
    """Return what loads the gradients of ``gradients_of_sums`` as one tensor."""

    def load_both(tile: Tile) -> Tensor:
        return torch.cat([x for x in load(tile) if x is not None], dim=-1)

    return load_both


def inverse(read_GCV: Tensor, normalisation: Normalisation) -> tuple[Tensor, Tensor]:
    """Return sums_GCK of what queries read, and the inverses_GC1 that they are to be multiplied by."""
    if normalisation == "division":
        return read_GCV[..., :-1], inverse_sum(read_GCV[..., -1:])
    return read_GCV, inverse_rms(read_GCV)


def normalise(read_GCV: Tensor, normalisation: Normalisation) -> tuple[Tensor, Tensor]:
    """Return out_GCK of what queries read, and the inverses_GC1 that their sums were multiplied by."""
    sums_GCK, inverse_GC1 = inverse(read_GCV, normalisation)
    return sums_GCK * inverse_GC1, inverse_GC1
