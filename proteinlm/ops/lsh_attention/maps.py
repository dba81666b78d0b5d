"""The weights of LSH attention, as the few pairs that have one or as rows of a whole map."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from proteinlm.ops.lsh_attention.chunks import Chunking, Places
from proteinlm.ops.lsh_attention.eager import attend, groups, places_of, visible
from proteinlm.ops.lsh_attention.rounds import Rounds
from proteinlm.ops.random_features import accumulation_dtype
from proteinlm.ops.segments import row_bounds


@dataclass(frozen=True, slots=True, eq=False)
class SparseRows:
    """R rows of a map of L keys in compressed form: row i has the pairs from ``starts[i]`` to ``starts[i + 1]``.

    Attributes:
        starts: int64 (R + 1,).
        keys_P: the key of each pair, rising within a row.
        weights_P: the weight of each pair, more than 0.
        length: L.
    """

    starts: Tensor
    keys_P: Tensor
    weights_P: Tensor
    length: int

    def to_dense(self) -> Tensor:
        """Return map_RL."""
        map_RL = self.weights_P.new_zeros(len(self.starts) - 1, self.length)
        rows_R = torch.arange(len(map_RL), device=map_RL.device)
        map_RL[rows_R.repeat_interleave(self.starts.diff()), self.keys_P] = self.weights_P
        return map_RL


@torch.no_grad()
def lsh_map(
    q_BLHK: Tensor,
    buckets_BLHR: Tensor,
    chunking: Chunking,
    *,
    is_causal: bool = False,
    key_mask_BL: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    rows: slice = slice(None),
) -> Tensor:
    """Return the weights of ``lsh_attention`` for some rows of queries, without gradient.

    Args:
        rows: the queries wanted, a slice of L with step 1.

    Returns:
        map_BHRL, float32, or float64 for float64 queries; rows of visible positions sum to 1, others are 0.
    """
    windows, length, num_heads, _ = q_BLHK.shape
    first, behind = row_bounds(rows, length)
    dtype = accumulation_dtype(q_BLHK)
    map_BHRL = torch.zeros(windows, num_heads, behind - first, length, dtype=dtype, device=q_BLHK.device)
    places = places_of(q_BLHK, buckets_BLHR, chunking, key_mask_BL=key_mask_BL, cu_seqlens=cu_seqlens)
    if places is not None and behind > first:
        flat = q_BLHK.flatten(0, 1), buckets_BLHR.flatten(0, 1)
        for pairs_4P, weights_P in _pairs(*flat, places, length, (first, behind), is_causal):
            window_P, head_P, query_P, key_P = pairs_4P
            map_BHRL[window_P, head_P, query_P - first, key_P] = weights_P
    return map_BHRL


@torch.no_grad()
def lsh_sparse_map(
    q_LK: Tensor,
    buckets_LR: Tensor,
    chunking: Chunking,
    *,
    is_causal: bool = False,
    key_mask_L: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    rows: slice = slice(None),
) -> SparseRows:
    """Return rows of the map of one head in one window, with memory for the pairs that have a weight only.

    Args:
        cu_seqlens: where segments start in the window, and L.
        rows: the queries wanted, a slice of L with step 1.

    Returns:
        Weights that are float32, or float64 for float64 queries.
    """
    length = len(q_LK)
    first, behind = row_bounds(rows, length)
    dtype = accumulation_dtype(q_LK)
    key_mask_BL = None if key_mask_L is None else key_mask_L[None]
    q_BLHK, buckets_BLHR = q_LK[None, :, None], buckets_LR[None, :, None]
    places = places_of(q_BLHK, buckets_BLHR, chunking, key_mask_BL=key_mask_BL, cu_seqlens=cu_seqlens)
    pairs_2P = [torch.zeros(2, 0, dtype=torch.int64, device=q_LK.device)]
    weights_P = [torch.zeros(0, dtype=dtype, device=q_LK.device)]
    if places is not None and behind > first:
        for found_4P, weights in _pairs(q_LK[:, None], buckets_LR[:, None], places, length, (first, behind), is_causal):
            pairs_2P.append(found_4P[2:])
            weights_P.append(weights)
    query_P, key_P = torch.cat(pairs_2P, 1)
    order_P = (query_P * length + key_P).argsort()
    counts_R = (query_P - first).bincount(minlength=behind - first)
    starts_R = torch.nn.functional.pad(counts_R.cumsum(0), (1, 0))
    values_P = torch.cat(weights_P)[order_P]
    return SparseRows(starts_R, key_P[order_P], values_P, length)


def _pairs(
    q_THK: Tensor, buckets_THR: Tensor, places: Places, length: int, wanted: tuple[int, int], is_causal: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (window, head, query, key)_4P and the weights of pairs, each pair once, whose query is wanted."""
    dtype = accumulation_dtype(q_THK)
    with torch.autocast(q_THK.device.type, enabled=False):
        for heads, rounds in groups(q_THK, buckets_THR, places, is_causal=is_causal, dtype=dtype):
            position_X, head_X = _whereabouts(rounds, heads.start)
            window_X, place_X = position_X // length, position_X % length
            wanted_X = rounds.is_rank() & (place_X >= wanted[0]) & (place_X < wanted[1])
            _, logarithm_X = attend(rounds, rounds.q_XK)
            for query_P, key_P, weights_P in _weighed(rounds, logarithm_X, wanted_X):
                where = (window_X[query_P], head_X[query_P], place_X[query_P], place_X[key_P])
                yield torch.stack(where), weights_P


def _whereabouts(rounds: Rounds, first_head: int) -> tuple[Tensor, Tensor]:
    """Return the position in the flattened windows and the head of each row."""
    places = rounds.places
    num_positions = rounds.num_ranks if places.positions_T is None else int(places.positions_T[-1]) + 1
    positions_T = visible(torch.arange(num_positions, device=rounds.q_XK.device), places)
    position_X = torch.nn.functional.pad(positions_T, (0, 1)).repeat(rounds.num_heads)
    heads_H = torch.arange(first_head, first_head + rounds.num_heads, device=position_X.device)
    return position_X, heads_H.repeat_interleave(rounds.num_ranks + 1)


def _weighed(rounds: Rounds, logarithm_X: Tensor, wanted_X: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield rows of queries, rows of keys and weights of all pairs of wanted queries that have a weight."""
    for tile in rounds.tiles():
        wanted_GC = wanted_X[tile.queries_GC]
        if wanted_GC.any():
            weights_GCJ = rounds.weights(tile, rounds.queries(tile, rounds.q_XK), rounds.keys(tile), logarithm_X)
            chunk_P, query_P, key_P = (weights_GCJ * wanted_GC[..., None]).nonzero(as_tuple=True)
            keys_P = rounds.around(tile.around)[chunk_P, key_P]
            yield tile.queries_GC[chunk_P, query_P], keys_P, weights_GCJ[chunk_P, query_P, key_P]
    alone_P = (logarithm_X.isinf() & wanted_X).nonzero()[:, 0]
    yield alone_P, alone_P, logarithm_X.new_ones(len(alone_P))
