"""Linear attention in which every pair counts alike: two sums over a segment, each read once.

    S = sum_j phi(k_j) v_j^T,  z = sum_j phi(k_j),  out_i = phi(q_i)·S / phi(q_i)·z.

Backward needs S and z again, which are small and kept, and their gradients, which the pass over the queries
sums up while it fills in theirs. Queries, keys, values and gradients are read where they lie, and no column of
ones stands behind the values: products of an odd width, and the copies that make it, cost more than a sum.
Letters as in ``eager``; S and z lie side by side in a total_GKV.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from proteinlm.ops.derivatives import refuse_second_derivative
from proteinlm.ops.linear_attention.features import Normalisation, features, slopes
from proteinlm.ops.linear_attention.loading import gradients_of_sums, inverse
from proteinlm.ops.precision import accumulation_dtype
from proteinlm.ops.tiles import Tile, blank


def flat_linear(
    q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, plan: list[list[Tile]], normalisation: Normalisation
) -> Tensor:
    """Return out_THK, see ``linear_attention``; 0 where no tile of ``plan`` is."""
    out_THK: Tensor = _FlatLinear.apply(q_THK, k_THK, v_THK, plan, normalisation)  # type: ignore[no-untyped-call]
    return out_THK


class _FlatLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, plan: list[list[Tile]], normalisation: Normalisation
    ) -> Tensor:
        dtype = accumulation_dtype(q_THK, k_THK, v_THK)
        # unrounded for backward: what half precision takes from out is lost to the gradients otherwise
        out_THK = blank(v_THK, plan, dtype)
        inverses_TH1 = blank(v_THK[..., :1], plan, dtype)
        totals = []
        with torch.autocast(q_THK.device.type, enabled=False):
            for tiles in plan:
                totals.append(_total(tiles, k_THK, v_THK, dtype, normalisation))
                for tile in tiles:
                    read_GCV = features(tile.look(q_THK, dtype)) @ totals[-1]
                    sums_GCK, inverse_GC1 = inverse(read_GCV, normalisation)
                    tile.put(inverses_TH1, inverse_GC1)
                    tile.put_product(out_THK, sums_GCK, inverse_GC1)
        ctx.plan, ctx.normalisation = plan, normalisation
        ctx.save_for_backward(q_THK, k_THK, v_THK, out_THK, inverses_TH1, *totals)
        return out_THK.to(v_THK.dtype)

    @staticmethod
    def backward(ctx: Any, grad_THK: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("linear attention")
        q_THK, k_THK, v_THK, out_THK, inverses_TH1, *totals = ctx.saved_tensors
        grads = [
            blank(x, ctx.plan) if needed else None
            for x, needed in zip((q_THK, k_THK, v_THK), ctx.needs_input_grad, strict=False)
        ]
        load_grads = gradients_of_sums(grad_THK, out_THK, inverses_TH1, ctx.normalisation)
        with torch.autocast(q_THK.device.type, enabled=False):
            for tiles, total_GKV in zip(ctx.plan, totals, strict=True):
                grad_totals = _backward_queries(tiles, q_THK, load_grads, total_GKV, v_THK.shape[-1], grads[0])
                if grads[1] is not None or grads[2] is not None:
                    _backward_keys(tiles, (k_THK, v_THK), grad_totals, grads[1:])
        return *grads, None, None


def _total(
    tiles: Sequence[Tile], k_THK: Tensor, v_THK: Tensor, dtype: torch.dtype, normalisation: Normalisation
) -> Tensor:
    """Return S, and z behind it where the output is divided by a sum."""
    num_matrices = tiles[0].num_runs * k_THK.shape[1]
    products_GKK = torch.zeros(num_matrices, k_THK.shape[-1], v_THK.shape[-1], dtype=dtype, device=k_THK.device)
    sums_GK1 = products_GKK.new_zeros(*products_GKK.shape[:2], 1)
    for tile in tiles:
        phi_GCK = _key_features(tile, k_THK, dtype)
        products_GKK.baddbmm_(phi_GCK.mT, _values(tile, v_THK, dtype))
        if normalisation == "division":
            sums_GK1.add_(phi_GCK.sum(1)[..., None])
    return torch.cat((products_GKK, sums_GK1), dim=-1) if normalisation == "division" else products_GKK


def _key_features(tile: Tile, k_THK: Tensor, dtype: torch.dtype) -> Tensor:
    # a hidden key may be anything, and 0 times infinity is not 0
    return tile.hide_keys(features(tile.look(k_THK, dtype)), 0)


def _values(tile: Tile, v_THK: Tensor, dtype: torch.dtype) -> Tensor:
    return tile.look(v_THK, dtype) if tile.hidden_SC is None else tile.hide_keys(tile.take(v_THK, dtype), 0)


def _backward_queries(
    tiles: Sequence[Tile],
    q_THK: Tensor,
    load_grads: Callable[[Tile], tuple[Tensor, Tensor | None]],
    total_GKV: Tensor,
    width: int,
    grad_q_THK: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Fill in the gradient of q and return those of S and z; S is ``width`` wide.

    dS = sum_i phi(q_i) dn_i^T, dz = sum_i dz_i phi(q_i), dphi(q_i) = S dn_i + dz_i z for the gradients of i's sums.
    """
    products_GKK, sums_GKN = total_GKV.split_with_sizes((width, total_GKV.shape[-1] - width), dim=-1)
    # each contiguous: products of a batch are not taken at once into a part of a tensor
    grad_products_GKK, grad_sums_GKN = (torch.zeros_like(x) for x in (products_GKK.contiguous(), sums_GKN.contiguous()))
    for tile in tiles:
        phi_GCK, (grad_GCK, grad_sum_GC1) = features(tile.look(q_THK, total_GKV.dtype)), load_grads(tile)
        grad_products_GKK.baddbmm_(phi_GCK.mT, grad_GCK)
        if grad_sum_GC1 is not None:
            grad_sums_GKN.baddbmm_(phi_GCK.mT, grad_sum_GC1)
        if grad_q_THK is not None:
            grad_phi_GCK = grad_GCK @ products_GKK.mT
            if grad_sum_GC1 is not None:
                grad_phi_GCK.addcmul_(grad_sum_GC1, sums_GKN.mT)
            tile.put_product(grad_q_THK, grad_phi_GCK, slopes(phi_GCK))
    return grad_products_GKK, grad_sums_GKN


def _backward_keys(
    tiles: Sequence[Tile],
    inputs: tuple[Tensor, Tensor],
    grad_totals: tuple[Tensor, Tensor],
    grads: Sequence[Tensor | None],
) -> None:
    """Fill in the gradients of k and v: dphi(k_j) = dS v_j + dz, dv_j = dS^T phi(k_j)."""
    k_THK, v_THK = inputs
    grad_products_GKK, grad_sums_GKN = grad_totals
    for tile in tiles:
        phi_GCK = _key_features(tile, k_THK, grad_products_GKK.dtype)
        if grads[0] is not None:
            grad_phi_GCK = _values(tile, v_THK, grad_products_GKK.dtype) @ grad_products_GKK.mT
            if grad_sums_GKN.shape[-1]:
                grad_phi_GCK.add_(grad_sums_GKN.mT)
            # 0 for a hidden key, whose phi is 0
            tile.put_product(grads[0], grad_phi_GCK, slopes(phi_GCK))
        if grads[1] is not None:
            tile.put(grads[1], phi_GCK @ grad_products_GKK)
