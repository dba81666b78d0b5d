"""Exact softmax attention in which a position's key is its query: what LSH attention approximates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from proteinlm.ops.segments import Segment, Tile, cut_segment, find_segments, finite_queries, plan_tiles, row_bounds
from proteinlm.ops.sparse_softmax import READING_ELEMENTS, Reading, readings_of_runs, sparse_map, sparse_softmax

# queries of a tile, however long the segment: fewer cost more in calls than they save
LEAST_TILE = 32


def shared_query_key_attention(
    q_BLHK: Tensor,
    v_BLHK: Tensor,
    *,
    is_causal: bool = False,
    key_mask_BL: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Return softmax(q_i·k_j / sqrt(K)) v_j, k_j = q_j / |q_j|, over the visible keys of a query's segment.

    A position sees itself only if it has no other target, and if causal no later one. Exactly 0, with zero
    gradients, where it sees nothing. Time O(L^2 K) a segment, memory O(L K), forward and backward.

    Args:
        key_mask_BL: True where a key is visible.
        cu_seqlens: where segments start in the flattened B·L positions, and B·L.

    Returns:
        out_BLHK in the dtype of ``v_BLHK``. Differentiable once. A hidden position may hold anything.

    Source: Kitaev et al., ICLR 2020, arXiv:2001.04451, section 2 and appendix A.
    """
    windows, length, num_heads, _ = q_BLHK.shape
    segments = find_segments(windows, length, key_mask_BL=key_mask_BL, cu_seqlens=cu_seqlens)
    mask_T = None if key_mask_BL is None else key_mask_BL.flatten()
    # a tile of few long segments must be square to be shared
    longest = max((len(segment) for segment in segments), default=1)
    parts = plan_tiles(segments, mask_T, q_BLHK.device, _tile_length(num_heads, longest))
    q_BLHK = finite_queries(q_BLHK, key_mask_BL)
    plan = list(_readings(parts, mask_T, is_causal, q_BLHK.device))
    out_BLHK = sparse_softmax(q_BLHK, unit_keys(q_BLHK), v_BLHK, plan)
    alone_T = _alone(segments, mask_T, is_causal, q_BLHK.device)
    return torch.where(alone_T.view(windows, length, 1, 1), v_BLHK, out_BLHK)


def shared_query_key_map(
    q_BLHK: Tensor,
    *,
    is_causal: bool = False,
    key_mask_BL: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    rows: slice = slice(None),
) -> Tensor:
    """Return the weights of ``shared_query_key_attention`` for some rows of queries, without gradient.

    Args:
        rows: the queries wanted, a slice of L with step 1.

    Returns:
        map_BHRL, float32, or float64 for float64 queries; rows sum to 1 where a key is seen and are 0 elsewhere.
    """
    windows, length, num_heads, _ = q_BLHK.shape
    first, behind = row_bounds(rows, length)
    segments = find_segments(windows, length, key_mask_BL=key_mask_BL, cu_seqlens=cu_seqlens)
    mask_T = None if key_mask_BL is None else key_mask_BL.flatten()
    parts = [cut_segment(s, mask_T, _tile_length(num_heads, len(s))) for s in segments if s.num_visible]
    q_BLHK = finite_queries(q_BLHK.detach(), key_mask_BL)
    plan = _readings(parts, mask_T, is_causal, q_BLHK.device)
    map_BHRL = sparse_map(q_BLHK, unit_keys(q_BLHK), plan, rows)
    alone_BL = _alone(segments, mask_T, is_causal, q_BLHK.device).view(windows, length)
    itself_RL = torch.eye(length, dtype=map_BHRL.dtype, device=map_BHRL.device)[first:behind]
    return torch.where(alone_BL[:, None, first:behind, None], itself_RL, map_BHRL)


def unit_keys(q_BLHK: Tensor) -> Tensor:
    """Return queries brought to length 1, those of length 0 as they are and without gradient."""
    # float16 squares overflow above 255: take the length in float32
    exact = q_BLHK if q_BLHK.dtype == torch.float64 else q_BLHK.float()
    norms_BLH1 = exact.norm(dim=-1, keepdim=True)
    is_zero_BLH1 = norms_BLH1 == 0
    unit_BLHK: Tensor = (exact / norms_BLH1.masked_fill(is_zero_BLH1, 1)).masked_fill(is_zero_BLH1, 0)
    return unit_BLHK


def _tile_length(num_heads: int, longest: int) -> int:
    return max(LEAST_TILE, READING_ELEMENTS // (num_heads * max(longest, 1)))


def _readings(
    parts: Sequence[Sequence[Tile]], mask_T: Tensor | None, is_causal: bool, device: torch.device
) -> Iterator[Reading]:
    """Return what the queries of each tile see; tiles of one inner sequence share their segments."""

    def seen(queries: slice, segment: slice) -> slice:
        return slice(segment.start, queries.stop if is_causal else segment.stop)

    def unseen(num_queries: int, num_keys: int, shift: int) -> Tensor:
        return _unseen(num_queries, num_keys, shift, is_causal, device)

    return readings_of_runs(parts, mask_T, seen, unseen)


def _unseen(num_queries: int, num_keys: int, shift: int, is_causal: bool, device: torch.device) -> Tensor:
    """Return unseen_CJ for queries ``shift`` positions behind the first key: themselves and, if causal, later ones."""
    queries_C1 = torch.arange(num_queries, device=device)[:, None] + shift
    keys_J = torch.arange(num_keys, device=device)
    return keys_J >= queries_C1 if is_causal else keys_J == queries_C1


def _alone(segments: Sequence[Segment], mask_T: Tensor | None, is_causal: bool, device: torch.device) -> Tensor:
    """Return alone_T, True where a visible position has no other target than itself."""
    lengths_S, visible_S = (
        torch.tensor([[len(s), s.num_visible] for s in segments], dtype=torch.int64, device=device).view(-1, 2).T
    )
    is_first_T = torch.zeros(int(lengths_S.sum()), dtype=torch.bool, device=device)
    starts_S = lengths_S.cumsum(0) - lengths_S
    if mask_T is not None:
        # the first visible position of a segment is number "visible positions of all before it" in order
        places_T = mask_T.nonzero()[:, 0]
        before_S = visible_S.cumsum(0) - visible_S
        starts_S = places_T[before_S[visible_S > 0]]
        visible_S = visible_S[visible_S > 0]
    is_first_T[starts_S if is_causal else starts_S[visible_S == 1]] = True
    return is_first_T
