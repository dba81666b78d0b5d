"""FAVOR+ attention in tiles: no tensor of positions × features × all heads is ever alive.

Notation: x = q / K^(1/4), y = k / K^(1/4), rows w_r, a constant c_r for each feature.
k'_jr = exp(w_r·y_j - |y_j|^2 / 2 - c_r) and q'_ir = softmax over r of (w_r·x_i + c_r). Whatever c_r
is, it cancels between q' and k', and what the softmax divides by cancels between numerator and
normaliser. With c_r the maximum over the visible keys, every k' is at most 1, every column of k'
reaches 1, and the normaliser, a weighted mean of column sums, is at least 1: nothing to add, nothing
to overflow. Constants are constants in the gradient too.

Letters: G segments × heads of one tile, C its positions, E = K + 1: values with a column of ones, so
that one product gives numerator and normaliser.
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
        out_BLHK in the dtype of ``v_BLHK``. Differentiable once.

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
        normaliser_TH1 = out_THK.new_ones(*out_THK.shape[:2], 1, dtype=dtype)
        states = []
        with torch.autocast(q_THK.device.type, enabled=False):
            for tiles in plan:
                constants_G1M, state_GME = _sum_keys(tiles, k_THK, v_THK, rows_MK)
                for tile in tiles:
                    query_GCM = _query_features(_scaled(tile, q_THK, dtype), rows_MK, constants_G1M)
                    sums_GCE = query_GCM @ state_GME
                    tile.put(out_THK, sums_GCE[..., :-1] / sums_GCE[..., -1:])
                    tile.put(normaliser_TH1, sums_GCE[..., -1:])
                states += [constants_G1M, state_GME] if len(tiles) > 1 else []
        ctx.plan = plan
        ctx.save_for_backward(q_THK, k_THK, v_THK, rows_MK, out_THK, normaliser_TH1, *states)
        return out_THK

    @staticmethod
    def backward(ctx: Any, grad_THK: Tensor) -> tuple[Tensor | None, ...]:
        # torch's once_differentiable lets a constant gradient through, and a penalty on it would be lost
        if torch.is_grad_enabled():
            raise RuntimeError("FAVOR+ attention is differentiable once; create_graph=True is not possible")
        q_THK, k_THK, v_THK, rows_MK, out_THK, normaliser_TH1, *states = ctx.saved_tensors
        gradients = [
            torch.zeros_like(x, memory_format=torch.contiguous_format) if needed else None
            for x, needed in zip((q_THK, k_THK, v_THK), ctx.needs_input_grad, strict=False)
        ]
        saved = iter(states)
        with torch.autocast(q_THK.device.type, enabled=False):
            for tiles in ctx.plan:
                # the state of a single tile is cheaper to sum again than to keep
                summed = (next(saved), next(saved)) if len(tiles) > 1 else _sum_keys(tiles, k_THK, v_THK, rows_MK)
                inputs = (q_THK, k_THK, v_THK, rows_MK, out_THK, normaliser_TH1, grad_THK)
                _backward_tiles(tiles, inputs, summed, gradients)
        return *gradients, None, None


def _scaled(tile: Tile, x_THK: Tensor, dtype: torch.dtype) -> Tensor:
    return tile.take(x_THK, dtype).mul_(x_THK.shape[-1] ** -0.25)


def _scaled_keys(tile: Tile, k_THK: Tensor, dtype: torch.dtype) -> Tensor:
    # a hidden key may be anything, and 0 times infinity is not 0
    return tile.hide_keys(_scaled(tile, k_THK, dtype), 0)


def _query_features(x_GCK: Tensor, rows_MK: Tensor, constants_G1M: Tensor) -> Tensor:
    rows_GKM = rows_MK.T.expand(len(x_GCK), -1, -1)
    return torch.baddbmm(constants_G1M, x_GCK, rows_GKM).softmax(-1)


def _key_logarithms(tile: Tile, y_GCK: Tensor, rows_MK: Tensor) -> Tensor:
    return tile.hide_keys(log_features(y_GCK, rows_MK), -torch.inf)


def _values(tile: Tile, v_THK: Tensor, dtype: torch.dtype) -> Tensor:
    v_GCE = tile.take(v_THK, dtype, width=v_THK.shape[-1] + 1)
    v_GCE[..., -1] = 1
    return tile.hide_keys(v_GCE, 0)


def _sum_keys(tiles: Sequence[Tile], k_THK: Tensor, v_THK: Tensor, rows_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Return c_r, the running maximum over tiles, and S_re = sum_j k'_jr v_je, rescaled as it grows."""
    constants_G1M = state_GME = None
    for tile in tiles:
        key_GCM = _key_logarithms(tile, _scaled_keys(tile, k_THK, rows_MK.dtype), rows_MK)
        # finite even where all keys of a tile are hidden, or infinity minus infinity
        maxima_G1M = key_GCM.amax(1, keepdim=True).clamp_min_(torch.finfo(rows_MK.dtype).min / 4)
        grown_G1M = maxima_G1M if constants_G1M is None else torch.maximum(constants_G1M, maxima_G1M)
        key_GCM.sub_(grown_G1M).exp_()
        v_GCE = _values(tile, v_THK, rows_MK.dtype)
        if state_GME is None or constants_G1M is None:
            state_GME = key_GCM.mT @ v_GCE
        else:
            state_GME.mul_((constants_G1M - grown_G1M).exp_().mT).baddbmm_(key_GCM.mT, v_GCE)
        constants_G1M = grown_G1M
    assert constants_G1M is not None
    assert state_GME is not None
    return constants_G1M, state_GME


def _backward_tiles(
    tiles: Sequence[Tile],
    inputs: tuple[Tensor, ...],
    summed: tuple[Tensor, Tensor],
    gradients: Sequence[Tensor | None],
) -> None:
    q_THK, k_THK, v_THK, rows_MK, out_THK, normaliser_TH1, grad_THK = inputs
    constants_G1M, state_GME = summed
    grad_state_GME = torch.zeros_like(state_GME)
    for tile in tiles:
        query_GCM = _query_features(_scaled(tile, q_THK, rows_MK.dtype), rows_MK, constants_G1M)
        grad_sums_GCE = _gradient_of_sums(tile, out_THK, normaliser_TH1, grad_THK, rows_MK.dtype)
        grad_state_GME.baddbmm_(query_GCM.mT, grad_sums_GCE)
        if gradients[0] is not None:
            grad_logarithm_GCM = (grad_sums_GCE @ state_GME.mT).mul_(query_GCM)
            tile.put(gradients[0], (grad_logarithm_GCM @ rows_MK).mul_(q_THK.shape[-1] ** -0.25))
    if gradients[1] is None and gradients[2] is None:
        return
    for tile in tiles:
        y_GCK = _scaled_keys(tile, k_THK, rows_MK.dtype)
        key_GCM = _key_logarithms(tile, y_GCK, rows_MK).sub_(constants_G1M).exp_()
        v_GCE = _values(tile, v_THK, rows_MK.dtype)
        grad_v_GCE = key_GCM @ grad_state_GME
        if gradients[2] is not None:
            tile.put(gradients[2], grad_v_GCE[..., :-1])
        if gradients[1] is not None:
            grad_logarithm_GCM = (v_GCE @ grad_state_GME.mT).mul_(key_GCM)
            # the sum over features of the logarithms' gradients, taken where it is narrow
            sum_GC1 = (grad_v_GCE * v_GCE).sum(-1, keepdim=True)
            grad_y_GCK = (grad_logarithm_GCM @ rows_MK).addcmul_(y_GCK, sum_GC1, value=-1)
            tile.put(gradients[1], grad_y_GCK.mul_(k_THK.shape[-1] ** -0.25))


def _gradient_of_sums(
    tile: Tile, out_THK: Tensor, normaliser_TH1: Tensor, grad_THK: Tensor, dtype: torch.dtype
) -> Tensor:
    """Return the gradient with respect to numerator (first K) and normaliser (last) of each query."""
    grad_GCK = tile.take(grad_THK, dtype)
    width = grad_GCK.shape[-1] + 1
    sums_GCE = tile.take(grad_THK, dtype, width=width)
    sums_GCE[..., -1] = -(grad_GCK * tile.take(out_THK, dtype)).sum(-1)
    if tile.real is not None:
        # a repeated query is no query
        real_SC = tile.real.view(tile.num_runs, -1)
        sums_GCE.view(tile.num_runs, -1, *sums_GCE.shape[1:]).masked_fill_(~real_SC[:, None, :, None], 0)
    return sums_GCE.div_(tile.take(normaliser_TH1, dtype))


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
    constants_G1M, normaliser_GM1 = _sum_keys(keys, k_THK, k_THK[..., :0], rows_MK)
    for query_tile in queries:
        query_GCM = _query_features(_scaled(query_tile, q_THK, rows_MK.dtype), rows_MK, constants_G1M)
        query_GCM = query_GCM / (query_GCM @ normaliser_GM1)
        for tile in keys:
            key_GCM = _key_logarithms(tile, _scaled_keys(tile, k_THK, rows_MK.dtype), rows_MK)
            weights_GCC = query_GCM @ key_GCM.sub_(constants_G1M).exp_().mT
            part = (_moved(query_tile, origins[0]), _moved(tile, origins[1]))
            map_HRL[:, part[0], part[1]] = weights_GCC


def _moved(tile: Tile, origin: int) -> slice:
    assert isinstance(tile.positions, slice)
    return slice(tile.positions.start - origin, tile.positions.stop - origin)
