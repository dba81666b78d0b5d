"""The weights of LSH attention, as the few pairs that have one or as rows of a whole map."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from proteinlm.errors import ShapeError
from proteinlm.ops.blank_map import BlankMap, row_bounds
from proteinlm.ops.lsh_attention.chunks import Chunking
from proteinlm.ops.lsh_attention.eager import attend, groups, places_of, visible
from proteinlm.ops.lsh_attention.rounds import Rounds
from proteinlm.ops.precision import accumulation_dtype
from proteinlm.ops.visibility import Seen, Visibility, check_inputs


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
    q_BLHK: Tensor, buckets_BLHR: Tensor, chunking: Chunking, *, rows: slice = slice(None), **seen: Unpack[Seen]
) -> Tensor:
    """Return the weights of ``lsh_attention`` for some rows of queries (B, L, H, K), without gradient.

    Args:
        rows: the queries wanted, a slice of L with step 1.
        seen: see ``Visibility``.

    Returns:
        map_BHRL, float32, or float64 for float64 queries; rows of visible positions sum to 1, others are 0.
    """
    visibility = check_inputs(q_BLHK, **seen)
    blank = BlankMap(visibility, rows, q_BLHK)
    for pairs_4P, weights_P in _pairs(visibility, (blank.first, blank.behind), q_BLHK, buckets_BLHR, chunking):
        window_P, head_P, query_P, key_P = pairs_4P
        blank.map_BHRL[window_P, head_P, query_P - blank.first, key_P] = weights_P
    return blank.map_BHRL


@torch.no_grad()
def lsh_sparse_map(
    q_BLHK: Tensor, buckets_BLHR: Tensor, chunking: Chunking, *, rows: slice = slice(None), **seen: Unpack[Seen]
) -> SparseRows:
    """Return rows of the map of one head in one window (1, L, 1, K), with memory for its few pairs only.

    Args:
        rows: the queries wanted, a slice of L with step 1.
        seen: see ``Visibility``.

    Returns:
        Weights that are float32, or float64 for float64 queries.

    Raises:
        ShapeError: if there is more than one head or window.
    """
    visibility, length = check_inputs(q_BLHK, **seen), q_BLHK.shape[1]
    if q_BLHK.shape[0] != 1 or q_BLHK.shape[2] != 1:
        raise ShapeError(f"queries are {tuple(q_BLHK.shape)}; expected one window and one head, (1, L, 1, K)")
    first, behind = row_bounds(rows, length)
    pairs_2P = [torch.zeros(2, 0, dtype=torch.int64, device=q_BLHK.device)]
    weights_P = [torch.zeros(0, dtype=accumulation_dtype(q_BLHK), device=q_BLHK.device)]
    for found_4P, weights in _pairs(visibility, (first, behind), q_BLHK, buckets_BLHR, chunking):
        pairs_2P.append(found_4P[2:])
        weights_P.append(weights)
    query_P, key_P = torch.cat(pairs_2P, 1)
    order_P = (query_P * length + key_P).argsort()
    counts_R = (query_P - first).bincount(minlength=behind - first)
    starts_R = torch.nn.functional.pad(counts_R.cumsum(0), (1, 0))
    return SparseRows(starts_R, key_P[order_P], torch.cat(weights_P)[order_P], length)


def _pairs(
    visibility: Visibility, wanted: tuple[int, int], q_BLHK: Tensor, buckets_BLHR: Tensor, chunking: Chunking
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (window, head, query, key)_4P and the weights of pairs, each pair once, whose query is wanted."""
    dtype, length = accumulation_dtype(q_BLHK), visibility.length
    places = places_of(visibility, q_BLHK, buckets_BLHR, chunking)
    if places is None or wanted[0] == wanted[1]:
        return
    q_THK, buckets_THR = q_BLHK.flatten(0, 1), buckets_BLHR.flatten(0, 1)
    with torch.autocast(q_THK.device.type, enabled=False):
        for heads, rounds in groups(q_THK, buckets_THR, places, is_causal=visibility.is_causal, dtype=dtype):
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
