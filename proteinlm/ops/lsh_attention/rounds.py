"""One group of heads through all hash rounds, a tile of chunks at a time.

Rows x of a group are its heads' ranks one head after the other, each followed by one row of zeros, where
empty slots point to. Letters: X rows, G chunks of a tile, C its queries in a chunk, J slots they look at.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from proteinlm.ops.lsh_attention.chunks import Grid, Places, sort_ranks

# weights of a tile: 1 MiB in float32, which caches hold
TILE_ELEMENTS = 2**18
# scores below this in size need no maximum: exp and its sums stay in float32's range
SAFE_SCORE = 30.0
# no score can pass its query's log-sum-exp by more than rounding, except of pairs that count nothing
MOST_EXPONENT = 60.0


@dataclass(frozen=True, slots=True, eq=False)
class RoundTile:
    """Some queries of neighbouring chunks, in one round.

    Attributes:
        around: row of each slot, from ``num_before`` chunks before the tile to ``num_after`` behind it.
        queries_GC: rows of the queries.
        first: which slot of its chunk the first query is.
        bordering: which chunks of the tile look at slots of no or another segment, and at which (unseen_BJ).
        earlier_keys: numbers of the chunks around in each earlier round; ``earlier_queries_RGC`` of the queries.
    """

    around: Tensor
    queries_GC: Tensor
    first: int
    bordering: tuple[Tensor, Tensor] | None
    earlier_keys: Tensor
    earlier_queries_RGC: Tensor


class Rounds:
    """Queries of a group of heads, with what is needed to weigh them round by round.

    Args:
        q_THK: queries of the visible positions of the group's heads, in the dtype of sums.
        buckets_THR: their buckets.
    """

    def __init__(self, q_THK: Tensor, buckets_THR: Tensor, places: Places, *, is_causal: bool) -> None:
        self.places, self.is_causal = places, is_causal
        self.num_ranks, self.num_heads, self.head_dim = q_THK.shape
        self.q_XK = self.rows_of(q_THK)
        norms_X1 = self.q_XK.norm(dim=-1, keepdim=True)
        self.scale = self.head_dim**-0.5
        # a query of length 0 is a key of 0, and no gradient flows into that key
        inverse_X1 = torch.where(norms_X1 > 0, norms_X1.reciprocal(), 0)
        self.inverse_X1, self.bound = inverse_X1, float(norms_X1.max()) * self.scale
        # one round shows all pairs of short segments
        num_rounds = buckets_THR.shape[-1] if places.long_grid is not None else 1
        self.order_HRT = sort_ranks(buckets_THR[..., :num_rounds], places.segment_T)
        self.key_numbers_RX, self.query_numbers_RX = self._chunk_numbers()

    def rows_of(self, x_THK: Tensor) -> Tensor:
        """Return x_XK, contiguous, with a row of zeros behind each head."""
        rows_HTK = x_THK.new_zeros(self.num_heads, self.num_ranks + 1, x_THK.shape[-1])
        rows_HTK[:, :-1].copy_(x_THK.transpose(0, 1))
        return rows_HTK.flatten(0, 1)

    def without_zeros(self, x_XK: Tensor) -> Tensor:
        """Return x_THK of rows x_XK, a view."""
        return x_XK.view(self.num_heads, -1, x_XK.shape[-1])[:, :-1].transpose(0, 1)

    def is_rank(self) -> Tensor:
        """Return which rows are no row of zeros, as is_rank_X."""
        rows_X = torch.arange(len(self.q_XK), device=self.q_XK.device)
        return rows_X % (self.num_ranks + 1) < self.num_ranks

    def _chunk_numbers(self) -> tuple[Tensor, Tensor]:
        """Return numbers whose difference, key less query, says whether a round shows the key to the query.

        Each round but the last gets a row. In uint8, which wraps around, the key is seen where the difference is
        at most ``num_seen`` - 1; otherwise where its size is.
        """
        chunking, num_chunks = self.places.chunking, self.places.num_chunks
        rounds_HRT = self.order_HRT[:, :-1]
        numbers = self.places.chunk_T
        width = chunking.num_seen - 1
        if num_chunks + width <= 255:
            dtype, shift = torch.uint8, chunking.num_before
        else:
            dtype = torch.int16 if 2 * num_chunks + width < 2**15 else torch.int32
            numbers, shift = 2 * numbers, chunking.num_before - chunking.num_after
        by_rank_HRT = numbers.to(dtype).expand_as(rounds_HRT)
        by_row_HRT = torch.zeros(*rounds_HRT.shape[:2], self.num_ranks + 1, dtype=dtype, device=numbers.device)
        by_row_HRT.scatter_(-1, rounds_HRT, by_rank_HRT)
        queries_RX = by_row_HRT.transpose(0, 1).flatten(1)
        return queries_RX + shift, queries_RX

    def tiles(self) -> Iterator[RoundTile]:
        """Yield all queries of each round, in tiles; the first round has every segment."""
        for r in range(self.order_HRT.shape[1]):
            grid = self.places.long_grid if r else self.places.grid
            assert grid is not None
            yield from self._tiles_of(r, grid)

    def _tiles_of(self, r: int, grid: Grid) -> Iterator[RoundTile]:
        chunking = self.places.chunking
        length, num_seen, device = chunking.chunk_length, chunking.num_seen, self.q_XK.device
        order_HT = torch.nn.functional.pad(self.order_HRT[:, r], (0, 1), value=self.num_ranks)
        order_HT += torch.arange(self.num_heads, device=device)[:, None] * (self.num_ranks + 1)
        rows_N = order_HT[:, grid.ranks_NC].flatten()
        halo = (chunking.num_before * length, chunking.num_after * length)
        rows_N = torch.nn.functional.pad(rows_N, halo, value=self.num_ranks)
        keys_RN = self.key_numbers_RX[:r].index_select(1, rows_N)
        queries_RN = self.query_numbers_RX[:r].index_select(1, rows_N)
        per_head = len(grid.ranks_NC)
        bordering = [head * per_head + n for head in range(self.num_heads) for n in grid.bordering]
        step = max(1, TILE_ELEMENTS // (length**2 * num_seen))
        part_length = max(1, min(length, TILE_ELEMENTS // (length * num_seen)))
        for start in range(0, self.num_heads * per_head, step):
            stop = min(start + step, self.num_heads * per_head)
            around = slice(start * length, (stop + num_seen - 1) * length)
            own = slice(start * length + halo[0], stop * length + halo[0])
            chunks = bordering[bisect.bisect_left(bordering, start) : bisect.bisect_left(bordering, stop)]
            unseen = None
            if chunks:
                chunks_B = torch.tensor(chunks, device=device)
                unseen = (chunks_B - start, grid.unseen_NJ[chunks_B % per_head])
            for first in range(0, length, part_length):
                part = slice(first, first + part_length)
                yield RoundTile(
                    around=rows_N[around],
                    queries_GC=rows_N[own].view(-1, length)[:, part],
                    first=first,
                    bordering=unseen,
                    earlier_keys=keys_RN[:, around],
                    earlier_queries_RGC=queries_RN[:, own].view(r, stop - start, length)[..., part],
                )

    def around(self, x_NK: Tensor) -> Tensor:
        """Return x_GKJ, what each chunk of a tile looks at, as a view of what is around the tile."""
        chunking = self.places.chunking
        return x_NK.unfold(0, chunking.num_seen * chunking.chunk_length, chunking.chunk_length)

    def queries(self, tile: RoundTile, x_XK: Tensor) -> Tensor:
        """Return x_GCK of the tile's queries."""
        return x_XK.index_select(0, tile.queries_GC.flatten()).view(*tile.queries_GC.shape, -1)

    def keys(self, tile: RoundTile) -> Tensor:
        """Return k_NK of the slots around, of length 1 / sqrt(K)."""
        inverse_N1 = self.inverse_X1.index_select(0, tile.around)
        return self.q_XK.index_select(0, tile.around).mul_(inverse_N1.mul_(self.scale))

    def weights(self, tile: RoundTile, q_GCK: Tensor, k_NK: Tensor, shift_X: Tensor | None) -> Tensor:
        """Return exp(score - shift of the query), 0 for pairs that do not count in this round."""
        scores_GCJ = torch.bmm(q_GCK, self.around(k_NK))
        if shift_X is not None:
            scores_GCJ.sub_(shift_X[tile.queries_GC][..., None]).clamp_(max=MOST_EXPONENT)
        weights_GCJ = self._hide(tile, scores_GCJ.exp_(), 0)
        counts_GCJ = self._counts(tile, weights_GCJ.dtype)
        return weights_GCJ if counts_GCJ is None else weights_GCJ.mul_(counts_GCJ)

    def shift(self) -> Tensor | None:
        """Return each query's largest score, or None where no score is so large that exp needs it."""
        if self.bound <= SAFE_SCORE:
            return None
        lowest = torch.finfo(self.q_XK.dtype).min
        largest_X = torch.full((len(self.q_XK),), lowest, dtype=self.q_XK.dtype, device=self.q_XK.device)
        for tile in self.tiles():
            scores_GCJ = torch.bmm(self.queries(tile, self.q_XK), self.around(self.keys(tile)))
            if self.is_causal:
                scores_GCJ.masked_fill_(self._places_behind(tile) < 0, lowest)
            found_GC = self._hide(tile, scores_GCJ, lowest).amax(-1)
            largest_X.index_copy_(
                0, tile.queries_GC.flatten(), torch.maximum(found_GC, largest_X[tile.queries_GC]).flatten()
            )
        return largest_X.masked_fill_(largest_X == lowest, 0)

    def _hide(self, tile: RoundTile, x_GCJ: Tensor, value: float) -> Tensor:
        """Overwrite the pairs of a position with itself and with slots of no or another segment."""
        chunking = self.places.chunking
        own = slice(chunking.num_before * chunking.chunk_length + tile.first, None)
        x_GCJ[..., own].diagonal(dim1=1, dim2=2).fill_(value)
        if tile.bordering is not None:
            chunks_B, unseen_BJ = tile.bordering
            x_GCJ[chunks_B] = x_GCJ[chunks_B].masked_fill_(unseen_BJ[:, None], value)
        return x_GCJ

    def _counts(self, tile: RoundTile, dtype: torch.dtype) -> Tensor | None:
        """Return 1 for pairs that no earlier round has shown and, if causal, whose key is no later one; else 0.

        None where that is every pair. Made of few vectorised operations on narrow integers: comparisons cost
        ten times as much.
        """
        nearest = None
        for keys_N, queries_GC in zip(tile.earlier_keys, tile.earlier_queries_RGC, strict=True):
            difference_GCJ = self.around(keys_N)[:, None] - queries_GC[..., None]
            if difference_GCJ.dtype != torch.uint8:
                difference_GCJ.abs_()
            nearest = difference_GCJ if nearest is None else torch.minimum(nearest, difference_GCJ, out=nearest)
        counts_GCJ = None
        if nearest is not None:
            width = self.places.chunking.num_seen - 1
            counts_GCJ = nearest.clamp_(width, width + 1).sub_(width).to(dtype)
        if self.is_causal:
            past_GCJ = self._places_behind(tile).clamp_(-1, 0).add_(1).to(dtype)
            counts_GCJ = past_GCJ if counts_GCJ is None else counts_GCJ.mul_(past_GCJ)
        return counts_GCJ

    def _places_behind(self, tile: RoundTile) -> Tensor:
        """Return how many rows each query is behind each key, int32: ranks of a segment are in order."""
        return tile.queries_GC.int()[..., None] - self.around(tile.around.int())[:, None]
