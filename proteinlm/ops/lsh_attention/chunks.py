"""Sorted chunks: which positions stand together once each segment is sorted by bucket.

All segments lie in one grid of chunks, the last chunk of each filled up with empty slots, so that many short
segments cost no more calls than one long one. Ranks 0 … T - 1 count the visible positions of all segments.
Letters: N chunks of C slots, J slots that a chunk's queries look at, R rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proteinlm.ops.tiles import Segment


@dataclass(frozen=True, slots=True)
class Chunking:
    """How sorted positions are cut, and how many neighbours a chunk's queries look at.

    Attributes:
        chunk_length: positions of a chunk.
        num_before: chunks of lower buckets that a query looks at besides its own.
        num_after: chunks of higher buckets.
    """

    chunk_length: int
    num_before: int = 1
    num_after: int = 1

    @property
    def num_seen(self) -> int:
        """How many chunks a query looks at."""
        return self.num_before + 1 + self.num_after

    def shortened(self, longest: int) -> Chunking:
        """Return what does the same to segments of at most ``longest`` positions, without useless neighbours."""
        length = max(1, min(self.chunk_length, longest))
        most = -(-longest // length) - 1
        return Chunking(length, min(self.num_before, most), min(self.num_after, most))


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """The chunks of some segments, those of one segment side by side.

    Attributes:
        ranks_NC: which rank stands in a slot; T in an empty one.
        unseen_NJ: True where a slot around a chunk is empty or of another segment.
        bordering: chunks that have such a slot, in order.
    """

    ranks_NC: Tensor
    unseen_NJ: Tensor
    bordering: list[int]


def build_grid(lengths_S: Tensor, chunking: Chunking, *, shortest: int = 1) -> Grid:
    """Return the grid of the segments of at least ``shortest`` chunks.

    Args:
        lengths_S: visible positions of each segment, int64.
    """
    device, length = lengths_S.device, chunking.chunk_length
    chunks_S = -(-lengths_S // length)
    chunks_S = torch.where(chunks_S >= shortest, chunks_S, 0)
    segment_N = torch.arange(len(lengths_S), device=device).repeat_interleave(chunks_S)
    number_N = torch.arange(len(segment_N), device=device) - (chunks_S.cumsum(0) - chunks_S)[segment_N]
    places_NC = number_N[:, None] * length + torch.arange(length, device=device)
    empty_NC = places_NC >= lengths_S[segment_N][:, None]
    firsts_S = lengths_S.cumsum(0) - lengths_S
    ranks_NC = (places_NC + firsts_S[segment_N][:, None]).masked_fill_(empty_NC, int(lengths_S.sum()))
    shifts_W = torch.arange(-chunking.num_before, chunking.num_after + 1, device=device)
    numbers_NW = number_N[:, None] + shifts_W
    outside_NW = (numbers_NW < 0) | (numbers_NW >= chunks_S[segment_N][:, None])
    around_NW = (torch.arange(len(segment_N), device=device)[:, None] + shifts_W).masked_fill_(outside_NW, 0)
    unseen_NJ = (empty_NC[around_NW] | outside_NW[..., None]).flatten(1)
    return Grid(ranks_NC, unseen_NJ, unseen_NJ.any(1).nonzero()[:, 0].tolist())


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Where visible positions lie, in the windows and in the grids.

    Attributes:
        chunking: as the segments need it.
        positions_T: of rank t, in the flattened windows; None: rank and position are the same.
        segment_T: which segment a rank is of.
        chunk_T: the number of a rank's chunk, counted from the start of its segment.
        grid: of all segments, for the first round.
        long_grid: of the segments that have pairs which one round leaves out; None: there is none.
        num_chunks: of the longest segment.
    """

    chunking: Chunking
    positions_T: Tensor | None
    segment_T: Tensor
    chunk_T: Tensor
    grid: Grid
    long_grid: Grid | None
    num_chunks: int


def find_places(segments: Sequence[Segment], mask_T: Tensor | None, chunking: Chunking, device: torch.device) -> Places:
    """Return where the visible positions of the segments lie, at least one of them visible."""
    lengths = [segment.num_visible for segment in segments]
    chunking = chunking.shortened(max(lengths))
    lengths_S = torch.tensor(lengths, device=device)
    segment_T = torch.arange(len(lengths), device=device).repeat_interleave(lengths_S)
    places_T = torch.arange(len(segment_T), device=device) - (lengths_S.cumsum(0) - lengths_S)[segment_T]
    # in a segment of so few chunks every pair is one of the first round
    reach = min(chunking.num_before, chunking.num_after) + 1
    num_chunks = -(-max(lengths) // chunking.chunk_length)
    return Places(
        chunking=chunking,
        positions_T=None if mask_T is None or len(segment_T) == len(mask_T) else mask_T.nonzero()[:, 0],
        segment_T=segment_T,
        chunk_T=places_T // chunking.chunk_length,
        grid=build_grid(lengths_S, chunking),
        long_grid=build_grid(lengths_S, chunking, shortest=reach + 1) if num_chunks > reach else None,
        num_chunks=num_chunks,
    )


def sort_ranks(buckets_THR: Tensor, segment_T: Tensor) -> Tensor:
    """Return order_HRT: ranks sorted by segment, then bucket, then rank, for every head and round."""
    # int64: segments x buckets x positions outgrow int32
    keys_HRT = buckets_THR.permute(1, 2, 0).long() + segment_T * (int(buckets_THR.max()) + 1)
    num_ranks = len(segment_T)
    keys_HRT.mul_(num_ranks).add_(torch.arange(num_ranks, device=keys_HRT.device))
    return keys_HRT.sort(-1).indices
