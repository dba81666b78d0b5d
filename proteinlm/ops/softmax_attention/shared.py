"""Exact softmax attention in which a position's key is its query: what LSH attention approximates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Unpack

import torch
from torch import Tensor

from proteinlm.ops.blank_map import BlankMap
from proteinlm.ops.sparse_softmax import READING_ELEMENTS, Reading, fill_sparsely, readings_of_runs, sparse_softmax
from proteinlm.ops.tiles import Tile, cut_segment
from proteinlm.ops.visibility import Seen, Visibility, check_inputs

# queries of a tile, however long the segment: fewer cost more in calls than they save
LEAST_TILE = 32


def shared_query_key_attention(q_BLHK: Tensor, v_BLHK: Tensor, **seen: Unpack[Seen]) -> Tensor:
    """Return softmax(q_i·k_j / sqrt(K)) v_j, k_j = q_j / |q_j|, of q, v (B, L, H, K) over the keys that a query sees.

    A position sees itself only if it has no other target. Exactly 0, with zero gradients, where it sees nothing.
    Time O(L^2 K) a segment, memory O(L K), forward and backward.

    Args:
        seen: see ``Visibility``.

    Returns:
        out_BLHK in the dtype of ``v_BLHK``. Differentiable once. A hidden position may hold anything.

    Raises:
        ShapeError: if the arguments do not fit together.

    Source: Kitaev et al., ICLR 2020, arXiv:2001.04451, section 2 and appendix A.
    """
    visibility, device = check_inputs(q_BLHK, None, v_BLHK, **seen), q_BLHK.device
    # a tile of few long segments must be square to be shared
    longest = max((len(segment) for segment in visibility.segments), default=1)
    parts = visibility.tiles(device, _tile_length(q_BLHK.shape[2], longest))
    q_BLHK = visibility.finite_queries(q_BLHK)
    plan = list(_readings(parts, visibility, device))
    out_BLHK = sparse_softmax(q_BLHK, unit_keys(q_BLHK), v_BLHK, plan)
    alone_BL = visibility.plan(("alone", device), lambda: _alone(visibility, device))
    return torch.where(alone_BL[..., None, None], v_BLHK, out_BLHK)


def shared_query_key_map(q_BLHK: Tensor, *, rows: slice = slice(None), **seen: Unpack[Seen]) -> Tensor:
    """Return the weights of ``shared_query_key_attention`` for some rows of queries (B, L, H, K), without gradient.

    Args:
        rows: the queries wanted, a slice of L with step 1.
        seen: see ``Visibility``.

    Returns:
        map_BHRL, float32, or float64 for float64 queries; rows sum to 1 where a key is seen and are 0 elsewhere.
    """
    visibility, device = check_inputs(q_BLHK, **seen), q_BLHK.device
    segments = [segment for segment in visibility.segments if segment.num_visible]
    parts = [cut_segment(s, visibility.mask_T, _tile_length(q_BLHK.shape[2], len(s))) for s in segments]
    q_BLHK = visibility.finite_queries(q_BLHK.detach())
    blank = BlankMap(visibility, rows, q_BLHK)
    fill_sparsely(blank, q_BLHK, unit_keys(q_BLHK), _readings(parts, visibility, device))
    alone_BR = _alone(visibility, device)[:, blank.first : blank.behind]
    itself_RL = torch.eye(visibility.length, dtype=blank.map_BHRL.dtype, device=device)[blank.first : blank.behind]
    return torch.where(alone_BR[:, None, :, None], itself_RL, blank.map_BHRL)


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


def _readings(parts: Sequence[Sequence[Tile]], visibility: Visibility, device: torch.device) -> Iterator[Reading]:
    """Return what the queries of each tile see; tiles of one inner sequence share their segments."""
    is_causal = visibility.is_causal

    def seen(queries: slice, segment: slice) -> slice:
        return slice(segment.start, queries.stop if is_causal else segment.stop)

    def unseen(num_queries: int, num_keys: int, shift: int) -> Tensor:
        return _unseen(num_queries, num_keys, shift, is_causal, device)

    return readings_of_runs(parts, visibility.mask_T, seen, unseen)


def _unseen(num_queries: int, num_keys: int, shift: int, is_causal: bool, device: torch.device) -> Tensor:
    """Return unseen_CJ for queries ``shift`` positions behind the first key: themselves and, if causal, later ones."""
    queries_C1 = torch.arange(num_queries, device=device)[:, None] + shift
    keys_J = torch.arange(num_keys, device=device)
    return keys_J >= queries_C1 if is_causal else keys_J == queries_C1


def _alone(visibility: Visibility, device: torch.device) -> Tensor:
    """Return alone_BL, True where a visible position has no other target than itself."""
    mask_T, segments = visibility.mask_T, visibility.segments
    sizes = [(segment.start, segment.num_visible) for segment in segments]
    starts_S, visible_S = torch.tensor(sizes, dtype=torch.int64, device=device).view(-1, 2).T
    if mask_T is not None:
        # the first visible position of a segment is number "visible positions of all before it" in order
        places_T = mask_T.nonzero()[:, 0]
        before_S = visible_S.cumsum(0) - visible_S
        starts_S = places_T[before_S[visible_S > 0]]
        visible_S = visible_S[visible_S > 0]
    is_first_BL = torch.zeros(visibility.num_windows, visibility.length, dtype=torch.bool, device=device)
    is_first_BL.view(-1)[starts_S if visibility.is_causal else starts_S[visible_S == 1]] = True
    return is_first_BL
