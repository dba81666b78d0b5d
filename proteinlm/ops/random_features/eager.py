"""FAVOR+ attention in tiles: no tensor of positions × features × all heads is ever alive.

Queries read from a segment's keys by what they leave behind for each feature. How, the feature map says:
see ``exponential``, and ``feature_sums`` for features of ``plain``. Letters: G segments × heads of one tile, C its
positions.
"""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor

from proteinlm.errors import ShapeError
from proteinlm.ops.blank_map import BlankMap
from proteinlm.ops.derivatives import refuse_second_derivative
from proteinlm.ops.feature_sums import PlainFeatures, attend_by_sums, fill_by_sums
from proteinlm.ops.precision import accumulation_dtype
from proteinlm.ops.random_features.exponential import ExponentialFeatures, Kept, State
from proteinlm.ops.random_features.features import POSITIVE, Features, check_rows
from proteinlm.ops.random_features.plain import GeneralisedFeatures, TrigonometricFeatures
from proteinlm.ops.tiles import Tile, blank, cut_segment
from proteinlm.ops.visibility import Seen, check_inputs

# features of one tile, all heads: 2 MiB in float32, what the second-level caches of two cores hold
TILE_ELEMENTS = 2**19
# weights that forward may leave to backward, all tiles: 2,048 positions of 8 heads with 256 features in float32.
# They save the projections and exponentials of backward, and cost as much again as four of q, k, v and out.
KEPT_BYTES = 2**25
# positions of a tile, however many its features: shorter ones cost more in calls than they save
LEAST_TILE = 32


def favor_attention(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHK: Tensor,
    rows_MK: Tensor | None,
    *,
    features: Features = POSITIVE,
    **seen: Unpack[Seen],
) -> Tensor:
    """Return attention of q, k, v (B, L, H, K) by a feature map phi: FAVOR+ estimates softmax, others are their own.

    out_i = sum_j phi(x_i)·phi(y_j) v_j / sum_j phi(x_i)·phi(y_j), j over the visible keys of i's
    segment; exactly 0, with zero gradients, where there is none. Time O(L M K), memory O(L K + M K)
    a head, forward and backward. Features and sums are float32 for any input but float64, also under
    autocast.

    Args:
        rows_MK: one row for each feature (``feature_rows``), for each sine and cosine where these are the
            features; None: "generalised" features are of the coordinates. Get no gradient.
        features: the feature map. Its statistics, where it has some, are constants for the gradient.
        seen: see ``Visibility``; ``causal_favor_attention`` is the causal form.

    Weights of queries and keys for the features are kept for backward where all of them take ``KEPT_BYTES`` at most,
    and computed again where they would take more.

    Returns:
        out_BLHK in the dtype of ``v_BLHK``. Differentiable once. A hidden position may hold anything.

    Raises:
        ShapeError: if the arguments do not fit together.
        UnavailableError: if a causal form is asked for.

    Source: Choromanski et al., ICLR 2021, arXiv:2009.14794, equations 4 to 7.
    """
    visibility = check_inputs(
        q_BLHK, k_BLHK, v_BLHK, bidirectional_only="favor_attention, but for causal_favor_attention,", **seen
    )
    flat = [x.flatten(0, 1) for x in (visibility.finite_queries(q_BLHK), k_BLHK, v_BLHK)]
    found = _features_of(features, rows_MK, flat[0], accumulation_dtype(*flat))
    plan = visibility.tiles(q_BLHK.device, _tile_length(q_BLHK.shape[2], found.num_features))
    if isinstance(found, PlainFeatures):
        return attend_by_sums(flat, plan, found).view_as(v_BLHK)
    num_weights = 2 * flat[0].shape[0] * q_BLHK.shape[2] * found.num_features
    is_kept = (
        num_weights * found.dtype.itemsize <= KEPT_BYTES
        and torch.is_grad_enabled()
        and any(x.requires_grad for x in flat)
    )
    out_THK: Tensor = _Favor.apply(*flat, found, plan, is_kept)  # type: ignore[no-untyped-call]
    return out_THK.view_as(v_BLHK)


def _tile_length(num_heads: int, num_features: int) -> int:
    return max(LEAST_TILE, TILE_ELEMENTS // (num_heads * num_features))


def _features_of(
    features: Features, rows_MK: Tensor | None, q_THK: Tensor, dtype: torch.dtype
) -> ExponentialFeatures | PlainFeatures:
    """Return what computes ``features`` on the device of ``q_THK``.

    Raises:
        ShapeError: if there are no rows and the map needs some, or they do not fit the head width.
    """
    head_dim = q_THK.shape[-1]
    if rows_MK is None and features.feature_map != "generalised":
        raise ShapeError(f"there are no projection rows; {features.feature_map} features are of random rows")
    if rows_MK is not None:
        check_rows(rows_MK, head_dim)
        rows_MK = rows_MK.to(q_THK.device, dtype)
    if features.feature_map == "generalised" and features.function != "exp":
        return GeneralisedFeatures(features, rows_MK, dtype, head_dim)
    if rows_MK is None:
        rows_MK = torch.eye(head_dim, dtype=dtype, device=q_THK.device)
    if features.feature_map == "trigonometric":
        return TrigonometricFeatures(features, rows_MK, dtype)
    return ExponentialFeatures(features, rows_MK, dtype)


class _Favor(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_THK: Tensor,
        k_THK: Tensor,
        v_THK: Tensor,
        features: ExponentialFeatures,
        plan: list[list[Tile]],
        is_kept: bool,
    ) -> Tensor:
        out_THK = blank(v_THK, plan)
        saved: list[Tensor] = []
        every_coordinates = []
        with torch.autocast(q_THK.device.type, enabled=False):
            for tiles in plan:
                coordinates = features.coordinates(tiles, q_THK, k_THK)
                kept = Kept([], []) if is_kept else None
                state = features.average_keys(tiles, k_THK, v_THK, coordinates, kept)
                for tile in tiles:
                    weights_GCM = features.query_weights(tile, q_THK, state, coordinates)
                    tile.put(out_THK, weights_GCM @ state.means_GMK)
                    if kept is not None:
                        kept.queries.append(weights_GCM)
                # what a single tile averages is cheaper to compute again than to keep
                saved += state if len(tiles) > 1 or is_kept else []
                saved += (*kept.queries, *kept.keys) if kept is not None else ()
                every_coordinates.append(coordinates)
        ctx.plan, ctx.features, ctx.every_coordinates = plan, features, every_coordinates
        ctx.is_kept = is_kept
        ctx.save_for_backward(q_THK, k_THK, v_THK, *saved)
        return out_THK

    @staticmethod
    def backward(ctx: Any, grad_THK: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("FAVOR+ attention")
        q_THK, k_THK, v_THK, *tensors = ctx.saved_tensors
        grads = [
            blank(x, ctx.plan) if needed else None
            for x, needed in zip((q_THK, k_THK, v_THK), ctx.needs_input_grad, strict=False)
        ]
        saved, features = iter(tensors), ctx.features
        with torch.autocast(q_THK.device.type, enabled=False):
            for tiles, coordinates in zip(ctx.plan, ctx.every_coordinates, strict=True):
                if len(tiles) > 1 or ctx.is_kept:
                    state = State(next(saved), next(saved))
                else:
                    state = features.average_keys(tiles, k_THK, v_THK, coordinates)
                kept = Kept([next(saved) for _ in tiles], [next(saved) for _ in tiles]) if ctx.is_kept else None
                grad_state = features.backward_queries(tiles, (q_THK, grad_THK), state, coordinates, grads[0], kept)
                if grads[1] is not None or grads[2] is not None:
                    features.backward_keys(tiles, (k_THK, v_THK), (state, grad_state), coordinates, grads[1:], kept)
        return *grads, None, None, None


@torch.no_grad()
def favor_map(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    rows_MK: Tensor | None,
    *,
    features: Features = POSITIVE,
    rows: slice = slice(None),
    **seen: Unpack[Seen],
) -> Tensor:
    """Return the attention weights that FAVOR+ implies for some rows of queries (B, L, H, K).

    A_ij = phi(x_i)·phi(y_j) / sum_j phi(x_i)·phi(y_j). Non-negative unless trigonometric; rows sum to 1 where a key is
    visible and are 0 elsewhere. Times the values it is the output of ``favor_attention``. No
    gradient. Besides the result, memory as in ``favor_attention``.

    Args:
        rows: the queries wanted, a slice of L with step 1.
        seen: see ``Visibility``; ``causal_favor_map`` is the causal form.

    Returns:
        map_BHRL, float32, or float64 for float64 queries or keys.
    """
    visibility = check_inputs(
        q_BLHK, k_BLHK, bidirectional_only="favor_attention, but for causal_favor_attention,", **seen
    )
    blank = BlankMap(visibility, rows, q_BLHK, k_BLHK)
    q_THK, k_THK = visibility.finite_queries(q_BLHK).flatten(0, 1), k_BLHK.flatten(0, 1)
    found = _features_of(features, rows_MK, q_THK, blank.map_BHRL.dtype)
    tile_length = _tile_length(q_BLHK.shape[2], found.num_features)
    with torch.autocast(q_BLHK.device.type, enabled=False):
        for part in blank.parts():
            keys = cut_segment(part.segment, visibility.mask_T, tile_length)
            if isinstance(found, PlainFeatures):
                fill_by_sums(part, keys, (q_THK, k_THK), found, tile_length)
                continue
            coordinates = found.coordinates(keys, q_THK, k_THK)
            state = found.average_keys(keys, k_THK, k_THK[..., :0], coordinates)
            for queries in part.queries(tile_length):
                query_HCM = found.query_weights(queries, q_THK, state, coordinates)
                for tile in keys:
                    part.put(queries, tile, query_HCM @ found.key_weights(tile, k_THK, state, coordinates).mT)
    return blank.map_BHRL
