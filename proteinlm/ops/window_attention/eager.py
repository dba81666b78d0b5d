"""Sliding-window attention, a tile of queries and the keys around it at a time."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Unpack

import torch
from torch import Tensor

from proteinlm.ops.blank_map import BlankMap
from proteinlm.ops.sparse_softmax import READING_ELEMENTS, Reading, fill_sparsely, readings_of_runs, sparse_softmax
from proteinlm.ops.tiles import Tile, cut_segment
from proteinlm.ops.visibility import Seen, check_inputs

# queries of a tile, however wide the window: fewer cost more in calls than they save
LEAST_TILE = 32


def window_attention(q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, window: int, **seen: Unpack[Seen]) -> Tensor:
    """Return softmax attention of q, k, v (B, L, H, K) in which query i sees the keys j with |i - j| <= window.

    Visible keys of its segment, that is. Exactly 0, with zero gradients, where there is none. Time O(L window K),
    memory O(L K) a head, forward and backward; any length. Scores and sums are float32 for any input but float64,
    also under autocast.

    Args:
        window: how many neighbours on each side a query sees, in positions.
        seen: see ``Visibility``; there is no causal form.

    Returns:
        out_BLHK in the dtype of ``v_BLHK``. Differentiable once. A hidden position may hold anything.

    Raises:
        ShapeError: if the arguments do not fit together.
        UnavailableError: if a causal form is asked for.

    Source: Beltagy, Peters and Cohan, arXiv:2004.05150, section 3.1.
    """
    visibility = check_inputs(q_BLHK, k_BLHK, v_BLHK, bidirectional_only="window attention", **seen)
    device = q_BLHK.device

    def plan() -> list[Reading]:
        parts = visibility.tiles(device, _tile_length(q_BLHK, window))
        return list(_readings(parts, window, visibility.mask_T, device))

    readings = visibility.plan(("window", window, q_BLHK.shape[2], device), plan)
    return sparse_softmax(visibility.finite_queries(q_BLHK), k_BLHK, v_BLHK, readings)


def window_map(
    q_BLHK: Tensor, k_BLHK: Tensor, window: int, *, rows: slice = slice(None), **seen: Unpack[Seen]
) -> Tensor:
    """Return the weights of ``window_attention`` for some rows of queries (B, L, H, K), without gradient.

    Args:
        rows: the queries wanted, a slice of L with step 1.
        seen: see ``Visibility``; there is no causal form.

    Returns:
        map_BHRL, float32, or float64 for float64 queries or keys; rows sum to 1 where a key is seen
        and are 0 elsewhere.
    """
    visibility = check_inputs(q_BLHK, k_BLHK, bidirectional_only="window attention", **seen)
    mask_T, tile_length = visibility.mask_T, _tile_length(q_BLHK, window)
    parts = [cut_segment(s, mask_T, tile_length) for s in visibility.segments if s.num_visible]
    readings = _readings(parts, window, mask_T, q_BLHK.device)
    blank = BlankMap(visibility, rows, q_BLHK, k_BLHK)
    return fill_sparsely(blank, visibility.finite_queries(q_BLHK), k_BLHK, readings)


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
