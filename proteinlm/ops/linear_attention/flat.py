"""Linear attention in which every pair counts alike: two sums over a segment, each read once.

    S = sum_j phi(k_j) c_j^T,  out_i = phi(q_i)·S,  c the values (and 1 for the normaliser).

Backward needs S again, which is small and kept, and T = sum_i phi(q_i) g_i^T, which the pass over the queries
sums up while it fills in their gradients. Letters as in ``eager``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from proteinlm.ops.derivatives import refuse_second_derivative
from proteinlm.ops.linear_attention.features import Normalisation, features_, slopes
from proteinlm.ops.linear_attention.loading import LoadPair, gradients_of_sums, keys_and_values, normalise
from proteinlm.ops.random_features.features import accumulation_dtype
from proteinlm.ops.segments import Tile, blank


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
        load_keys = keys_and_values(k_THK, v_THK, dtype, normalisation)
        totals = []
        with torch.autocast(q_THK.device.type, enabled=False):
            for tiles in plan:
                totals.append(_total(tiles, load_keys))
                for tile in tiles:
                    read_GCV = features_(tile.take(q_THK, dtype)) @ totals[-1]
                    out_GCK, inverse_GC1 = normalise(read_GCV, normalisation)
                    tile.put(inverses_TH1, inverse_GC1)
                    tile.put(out_THK, out_GCK)
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
        load_keys = keys_and_values(k_THK, v_THK, out_THK.dtype, ctx.normalisation)
        load_grads = gradients_of_sums(grad_THK, out_THK, inverses_TH1, ctx.normalisation)
        with torch.autocast(q_THK.device.type, enabled=False):
            for tiles, total_GKV in zip(ctx.plan, totals, strict=True):
                grad_total_GKV = _backward_queries(tiles, q_THK, load_grads, total_GKV, grads[0])
                if grads[1] is not None or grads[2] is not None:
                    _backward_keys(tiles, load_keys, grad_total_GKV, grads[1:])
        return *grads, None, None


def _total(tiles: Sequence[Tile], load: LoadPair) -> Tensor:
    total_GKV: Tensor | None = None
    for tile in tiles:
        phi_GCK, v_GCV = load(tile)
        total_GKV = phi_GCK.mT @ v_GCV if total_GKV is None else total_GKV.baddbmm_(phi_GCK.mT, v_GCV)
    assert total_GKV is not None
    return total_GKV


def _backward_queries(
    tiles: Sequence[Tile],
    q_THK: Tensor,
    load_grads: Callable[[Tile], Tensor],
    total_GKV: Tensor,
    grad_q_THK: Tensor | None,
) -> Tensor:
    """Fill in the gradient of q and return that of S."""
    grad_total_GKV = torch.zeros_like(total_GKV)
    for tile in tiles:
        phi_GCK, grad_GCV = features_(tile.take(q_THK, total_GKV.dtype)), load_grads(tile)
        grad_total_GKV.baddbmm_(phi_GCK.mT, grad_GCV)
        if grad_q_THK is not None:
            tile.put(grad_q_THK, (grad_GCV @ total_GKV.mT).mul_(slopes(phi_GCK)))
    return grad_total_GKV


def _backward_keys(
    tiles: Sequence[Tile], load_keys: LoadPair, grad_total_GKV: Tensor, grads: Sequence[Tensor | None]
) -> None:
    for tile in tiles:
        phi_GCK, v_GCV = load_keys(tile)
        if grads[0] is not None:
            # 0 for a hidden key, whose phi is 0
            tile.put(grads[0], (v_GCV @ grad_total_GKV.mT).mul_(slopes(phi_GCK)))
        if grads[1] is not None:
            tile.put(grads[1], phi_GCK @ grad_total_GKV[..., : grads[1].shape[-1]])
