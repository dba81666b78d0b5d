"""Sliding-window attention, a tile of queries and the keys around it at a time."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from proteinlm.ops.segments import Tile, cut_segment, find_segments, finite_queries, plan_tiles
from proteinlm.ops.sparse_softmax import READING_ELEMENTS, Reading, readings_of_runs, sparse_map, sparse_softmax

# queries of a tile, however wide the window: fewer cost more in calls than they save
LEAST_TILE = 32


def window_attention(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHK: Tensor,
    window: int,
    *,
    key_mask_BL: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Return softmax attention in which query i sees the visible keys j of its segment with |i - j| <= window.

    Exactly 0, with zero gradients, where there is none. Time O(L window K), memory O(L K) a head,
    forward and backward; any length. Scores and sums are float32 for any input but float64, also
    under autocast.

    Args:
        window: how many neighbours on each side a query sees, in positions.
        key_mask_BL: True where a key is visible.
        cu_seqlens: where segments start in the flattened B·L positions, and B·L.

    Returns:
        out_BLHK in the dtype of ``v_BLHK``. Differentiable once. A hidden position may hold anything.

    Source: Beltagy, Peters and Cohan, arXiv:2004.05150, section 3.1.
    """
    segments = find_segments(*q_BLHK.shape[:2], key_mask_BL=key_mask_BL, cu_seqlens=cu_seqlens)
    mask_T = None if key_mask_BL is None else key_mask_BL.flatten()
    parts = plan_tiles(segments, mask_T, q_BLHK.device, _tile_length(q_BLHK, window))
    q_BLHK = finite_queries(q_BLHK, key_mask_BL)
    return sparse_softmax(q_BLHK, k_BLHK, v_BLHK, list(_readings(parts, window, mask_T, q_BLHK.device)))


def window_map(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    window: int,
    *,
    key_mask_BL: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    rows: slice = slice(None),
) -> Tensor:
    """Return the weights of ``window_attention`` for some rows of queries, without gradient.

    Args:
        rows: the queries wanted, a slice of L with step 1.

    Returns:
        map_BHRL, float32, or float64 for float64 queries or keys; rows sum to 1 where a key is seen
        and are 0 elsewhere.
    """
    segments = find_segments(*q_BLHK.shape[:2], key_mask_BL=key_mask_BL, cu_seqlens=cu_seqlens)
    mask_T = None if key_mask_BL is None else key_mask_BL.flatten()
    parts = [cut_segment(s, mask_T, _tile_length(q_BLHK, window)) for s in segments if s.num_visible]
    q_BLHK = finite_queries(q_BLHK, key_mask_BL)
    return sparse_map(q_BLHK, k_BLHK, list(_readings(parts, window, mask_T, q_BLHK.device)), rows)


def _tile_length(q_BLHK: Tensor, window: int) -> int:
    """Return the number C of queries for which a reading has about H · C · (C + 2 window) weights."""
    window = min(window, q_BLHK.shape[1])
    return max(LEAST_TILE, int(math.sqrt(window**2 + READING_ELEMENTS / q_BLHK.shape[2])) - window)


def _readings(
    parts: Iterable[Sequence[Tile]], window: int, mask_T: Tensor | None, device: torch.device
) -> Iterator[Reading]:
    """Return what the queries of each tile see; tiles of one inner sequence share their segments."""

    def seen(queries: slice, segment: slice) -> slice:
        return slice(max(segment.start, queries.start - window), min(segment.stop, queries.stop + window))

    def unseen(num_queries: int, num_keys: int, shift: int) -> Tensor | None:
        return _far_pairs(num_queries, num_keys, shift, window, device)

    return readings_of_runs(parts, mask_T, seen, unseen)


@functools.lru_cache(maxsize=16)
def _far_pairs(num_queries: int, num_keys: int, shift: int, window: int, device: torch.device) -> Tensor | None:
    """Return far_CJ, True where query i, ``shift`` positions behind the first key, is too far from key j."""
    if max(num_queries - 1 + shift, num_keys - 1 - shift) <= window:
        return None
    queries_C1 = torch.arange(num_queries, device=device)[:, None] + shift
    return (queries_C1 - torch.arange(num_keys, device=device)).abs() > window
