"""FAVOR+ attention in tiles: no tensor of positions × features × all heads is ever alive.

Notation: x = q / K^(1/4), y = k / K^(1/4), rows w_r, l_jr = w_r·y_j - |y_j|^2 / 2. A factor that a
query or a feature has for all keys cancels between numerator and normaliser, and so

    out_i = sum_r P_ir U_r,  P_i = softmax over r of (w_r·x_i + s_r),
    U_r = sum_j A_jr v_j,    A_r = softmax over visible keys j of l_jr,  s_r = logsumexp over j of l_jr:

each query averages over features what each feature averages over keys. The normaliser is 1 by
construction: no epsilon to add, nothing to overflow, and the gradient needs no constants.

Letters: G segments × heads of one tile, C its positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from proteinlm.ops.random_features.features import accumulation_dtype, log_features
from proteinlm.ops.segments import Segment, Tile, cut_segment, find_segments, plan_tiles, row_bounds

# features of one tile, all heads: 2 MiB in float32, what the second-level caches of two cores hold
TILE_ELEMENTS = 2**19
# positions of a tile, however many its features: shorter ones cost more in calls than they save
LEAST_TILE = 32


def favor_attention(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHK: Tensor,
    rows_MK: Tensor,
    *,
    key_mask_BL: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Return the FAVOR+ estimate of softmax attention.

    out_i = sum_j phi(x_i)·phi(y_j) v_j / sum_j phi(x_i)·phi(y_j), j over the visible keys of i's
    segment; exactly 0, with zero gradients, where there is none. Time O(L M K), memory O(L K + M K)
    a head, forward and backward. Features and sums are float32 for any input but float64, also under
    autocast.

    Args:
        rows_MK: one row for each feature (``feature_rows``); gets no gradient.
        key_mask_BL: True where a key is visible.
        cu_seqlens: where segments start in the flattened B·L positions, and B·L.

    Returns:
        out_BLHK in the dtype of ``v_BLHK``. Differentiable once. A key that is hidden may hold anything.

    Source: Choromanski et al., ICLR 2021, arXiv:2009.14794, equations 4 to 7.
    """
    segments = find_segments(*q_BLHK.shape[:2], key_mask_BL=key_mask_BL, cu_seqlens=cu_seqlens)
    mask_T = None if key_mask_BL is None else key_mask_BL.flatten()
    plan = plan_tiles(segments, mask_T, q_BLHK.device, _tile_length(q_BLHK.shape[2], len(rows_MK)))
    flat = (x.flatten(0, 1) for x in (q_BLHK, k_BLHK, v_BLHK))
    out_THK: Tensor = _Favor.apply(*flat, rows_MK, plan)  # type: ignore[no-untyped-call]
    return out_THK.view_as(v_BLHK)


def _tile_length(num_heads: int, num_features: int) -> int:
    return max(LEAST_TILE, TILE_ELEMENTS // (num_heads * num_features))


class _Favor(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, rows_MK: Tensor, plan: list[list[Tile]]
    ) -> Tensor:
        dtype = accumulation_dtype(q_THK, k_THK, v_THK)
        rows_MK = rows_MK.to(q_THK.device, dtype)
        out_THK = torch.zeros_like(v_THK, memory_format=torch.contiguous_format)
        states = []
        with torch.autocast(q_THK.device.type, enabled=False):
            for tiles in plan:
                log_sums_G1M, means_GMK = _average_keys(tiles, k_THK, v_THK, rows_MK)
                for tile in tiles:
                    tile.put(out_THK, _query_weights(tile, q_THK, rows_MK, log_sums_G1M) @ means_GMK)
                # what a single tile averages is cheaper to compute again than to keep
                states += [log_sums_G1M, means_GMK] if len(tiles) > 1 else []
        ctx.plan = plan
        ctx.save_for_backward(q_THK, k_THK, v_THK, rows_MK, out_THK, *states)
        return out_THK

    @staticmethod
    def backward(ctx: Any, grad_THK: Tensor) -> tuple[Tensor | None, ...]:
        # torch's once_differentiable lets a constant gradient through, and a penalty on it would be lost
        if torch.is_grad_enabled():
            raise RuntimeError("FAVOR+ attention is differentiable once; create_graph=True is not possible")
        q_THK, k_THK, v_THK, rows_MK, out_THK, *states = ctx.saved_tensors
        grads = [
            torch.zeros_like(x, memory_format=torch.contiguous_format) if needed else None
            for x, needed in zip((q_THK, k_THK, v_THK), ctx.needs_input_grad, strict=False)
        ]
        saved = iter(states)
        with torch.autocast(q_THK.device.type, enabled=False):
            for tiles in ctx.plan:
                state = (next(saved), next(saved)) if len(tiles) > 1 else _average_keys(tiles, k_THK, v_THK, rows_MK)
                grad_state = _backward_queries(tiles, (q_THK, out_THK, grad_THK, rows_MK), state, grads[0])
                if grads[1] is not None or grads[2] is not None:
                    _backward_keys(tiles, (k_THK, v_THK, rows_MK), state[0], grad_state, grads[1:])
        return *grads, None, None


def _scaled(tile: Tile, x_THK: Tensor, dtype: torch.dtype) -> Tensor:
    return tile.take(x_THK, dtype).mul_(x_THK.shape[-1] ** -0.25)


def _query_weights(tile: Tile, q_THK: Tensor, rows_MK: Tensor, log_sums_G1M: Tensor) -> Tensor:
    """Return P_GCM."""
    x_GCK = _scaled(tile, q_THK, rows_MK.dtype)
    return torch.baddbmm(log_sums_G1M, x_GCK, rows_MK.T.expand(len(x_GCK), -1, -1)).softmax(-1)


def _keys(tile: Tile, k_THK: Tensor, rows_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Return y_GCK and l_GCM, minus infinity where a key is hidden."""
    # a hidden key may be anything, and 0 times infinity is not 0
    y_GCK = tile.hide_keys(_scaled(tile, k_THK, rows_MK.dtype), 0)
    return y_GCK, tile.hide_keys(log_features(y_GCK, rows_MK), -torch.inf)


def _values(tile: Tile, v_THK: Tensor, dtype: torch.dtype) -> Tensor:
    return tile.hide_keys(tile.take(v_THK, dtype), 0)


def _average_keys(tiles: Sequence[Tile], k_THK: Tensor, v_THK: Tensor, rows_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Return s_G1M and U_GMK, in one pass over the tiles with sums rescaled as their maximum grows."""
    num_matrices = tiles[0].num_runs * k_THK.shape[1]
    # finite, or a tile without a visible key would subtract infinity from itself
    maxima_G1M = rows_MK.new_full((num_matrices, 1, len(rows_MK)), torch.finfo(rows_MK.dtype).min / 4)
    sums_G1M = torch.zeros_like(maxima_G1M)
    means_GMK = rows_MK.new_zeros(num_matrices, len(rows_MK), v_THK.shape[-1])
    for tile in tiles:
        _, key_GCM = _keys(tile, k_THK, rows_MK)
        grown_G1M = torch.maximum(maxima_G1M, key_GCM.amax(1, keepdim=True))
        key_GCM.sub_(grown_G1M).exp_()
        shrink_G1M = maxima_G1M.sub_(grown_G1M).exp_()
        sums_G1M.mul_(shrink_G1M).add_(key_GCM.sum(1, keepdim=True))
        means_GMK.mul_(shrink_G1M.mT).baddbmm_(key_GCM.mT, _values(tile, v_THK, rows_MK.dtype))
        maxima_G1M = grown_G1M
    means_GMK.div_(sums_G1M.mT)
    return maxima_G1M.add_(sums_G1M.log_()), means_GMK


def _backward_queries(
    tiles: Sequence[Tile], inputs: tuple[Tensor, ...], state: tuple[Tensor, Tensor], grad_q_THK: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Fill in the gradient of q and return those of s, less what U loses by it, and of U.

    With g the gradient of out: dU = P^T g, dlogits_ir = P_ir (g_i·U_r - g_i·out_i), ds_r = sum_i
    dlogits_ir; the softmax of the keys needs ds_r - dU_r·U_r.
    """
    q_THK, out_THK, grad_THK, rows_MK = inputs
    log_sums_G1M, means_GMK = state
    grad_sums_G1M, grad_means_GMK = torch.zeros_like(log_sums_G1M), torch.zeros_like(means_GMK)
    for tile in tiles:
        weights_GCM = _query_weights(tile, q_THK, rows_MK, log_sums_G1M)
        grad_GCK = tile.hide_repeats(tile.take(grad_THK, rows_MK.dtype))
        grad_means_GMK.baddbmm_(weights_GCM.mT, grad_GCK)
        offset_GC1 = (grad_GCK * tile.take(out_THK, rows_MK.dtype)).sum(-1, keepdim=True)
        grad_logits_GCM = torch.baddbmm(offset_GC1, grad_GCK, means_GMK.mT, beta=-1).mul_(weights_GCM)
        grad_sums_G1M.add_(grad_logits_GCM.sum(1, keepdim=True))
        if grad_q_THK is not None:
            tile.put(grad_q_THK, (grad_logits_GCM @ rows_MK).mul_(q_THK.shape[-1] ** -0.25))
    return grad_sums_G1M.sub_((grad_means_GMK * means_GMK).sum(-1)[:, None]), grad_means_GMK


def _backward_keys(
    tiles: Sequence[Tile],
    inputs: tuple[Tensor, Tensor, Tensor],
    log_sums_G1M: Tensor,
    grad_state: tuple[Tensor, Tensor],
    grads: Sequence[Tensor | None],
) -> None:
    """Fill in the gradients of k and v: dv = A dU, dl_jr = A_jr (v_j·dU_r + ds_r - dU_r·U_r)."""
    k_THK, v_THK, rows_MK = inputs
    grad_sums_G1M, grad_means_GMK = grad_state
    for tile in tiles:
        y_GCK, logarithms_GCM = _keys(tile, k_THK, rows_MK)
        weights_GCM = logarithms_GCM.sub_(log_sums_G1M).exp_()
        if grads[1] is not None:
            tile.put(grads[1], weights_GCM @ grad_means_GMK)
        if grads[0] is not None:
            v_GCK = _values(tile, v_THK, rows_MK.dtype)
            grad_GCM = torch.baddbmm(grad_sums_G1M, v_GCK, grad_means_GMK.mT).mul_(weights_GCM)
            grad_y_GCK = (grad_GCM @ rows_MK).addcmul_(y_GCK, grad_GCM.sum(-1, keepdim=True), value=-1)
            tile.put(grads[0], grad_y_GCK.mul_(k_THK.shape[-1] ** -0.25))


@torch.no_grad()
def favor_map(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    rows_MK: Tensor,
    *,
    key_mask_BL: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    rows: slice = slice(None),
) -> Tensor:
    """Return the attention weights that FAVOR+ implies for some rows of queries.

    A_ij = phi(x_i)·phi(y_j) / sum_j phi(x_i)·phi(y_j). Non-negative; rows sum to 1 where a key is
    visible and are 0 elsewhere. Times the values it is the output of ``favor_attention``. No
    gradient. Besides the result, memory as in ``favor_attention``.

    Args:
        rows: the queries wanted, a slice of L with step 1.

    Returns:
        map_BHRL, float32, or float64 for float64 queries or keys.
    """
    dtype = accumulation_dtype(q_BLHK, k_BLHK)
    num_windows, length, num_heads, _ = q_BLHK.shape
    first, behind = row_bounds(rows, length)
    map_BHRL = torch.zeros(num_windows, num_heads, behind - first, length, dtype=dtype, device=q_BLHK.device)
    q_THK, k_THK, rows_MK = q_BLHK.flatten(0, 1), k_BLHK.flatten(0, 1), rows_MK.to(q_BLHK.device, dtype)
    mask_T = None if key_mask_BL is None else key_mask_BL.flatten()
    tile_length = _tile_length(num_heads, len(rows_MK))
    with torch.autocast(q_BLHK.device.type, enabled=False):
        for segment in find_segments(num_windows, length, key_mask_BL=key_mask_BL, cu_seqlens=cu_seqlens):
            origin = segment.start // length * length
            start, stop = max(origin + first, segment.start), min(origin + behind, segment.stop)
            if start < stop and segment.num_visible:
                keys = cut_segment(segment, mask_T, tile_length)
                queries = cut_segment(Segment(start, stop, stop - start), None, tile_length)
                window_HRL = map_BHRL[origin // length]
                _map_segment(window_HRL, (origin + first, origin), queries, keys, (q_THK, k_THK, rows_MK))
    return map_BHRL


def _map_segment(
    map_HRL: Tensor,
    origins: tuple[int, int],
    queries: Sequence[Tile],
    keys: Sequence[Tile],
    inputs: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Fill in the part of the map that belongs to one segment; ``origins`` is the position of its corner."""
    q_THK, k_THK, rows_MK = inputs
    log_sums_G1M, _ = _average_keys(keys, k_THK, k_THK[..., :0], rows_MK)
    for query_tile in queries:
        query_GCM = _query_weights(query_tile, q_THK, rows_MK, log_sums_G1M)
        for tile in keys:
            _, key_GCM = _keys(tile, k_THK, rows_MK)
            weights_GCC = query_GCM @ key_GCM.sub_(log_sums_G1M).exp_().mT
            map_HRL[:, _moved(query_tile, origins[0]), _moved(tile, origins[1])] = weights_GCC


def _moved(tile: Tile, origin: int) -> slice:
    assert isinstance(tile.positions, slice)
    return slice(tile.positions.start - origin, tile.positions.stop - origin)
