"""Tiles of positions that fit a cache: how operations visit segments.

Positions are those of the flattened windows, 0 … B·L - 1. A segment is a run of positions that
see each other's visible keys and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Segment:
    """Positions ``start`` to ``stop`` (half-open), of which ``num_visible`` are visible as keys."""

    start: int
    stop: int
    num_visible: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """Equally long runs of positions of ``num_runs`` segments, shorter ones repeated at their end.

    ``real`` are the places of the tile that are no repetition (None: all), ``hidden_SC`` the places
    that count as no key (None: none). G below is ``num_runs`` times the number of heads.
    """

    positions: slice | Tensor
    num_runs: int
    real: Tensor | None
    hidden_SC: Tensor | None

    def take(self, x_THK: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a fresh x_GCK in ``dtype``, heads first."""
        picked = x_THK[self.positions] if isinstance(self.positions, slice) else x_THK.index_select(0, self.positions)
        picked = picked.view(self.num_runs, len(picked) // self.num_runs, *picked.shape[1:]).transpose(1, 2)
        if not isinstance(self.positions, slice) and picked.dtype == dtype and picked.is_contiguous():
            # of one head, and a copy already
            return picked.flatten(0, 1)
        taken = torch.empty(picked.shape, dtype=dtype, device=x_THK.device)
        return taken.copy_(picked).flatten(0, 1)

    def look(self, x_THK: Tensor, dtype: torch.dtype) -> Tensor:
        """Return what ``take`` does, to be read only: the positions themselves where they lie as wanted."""
        if isinstance(self.positions, slice) and x_THK.dtype == dtype:
            return x_THK[self.positions].transpose(0, 1)
        return self.take(x_THK, dtype)

    def put(self, target_THK: Tensor, x_GCK: Tensor) -> None:
        """Write x_GCK where ``take`` would read it."""
        x_NHK = x_GCK.view(self.num_runs, -1, *x_GCK.shape[1:]).transpose(1, 2).flatten(0, 1)
        if isinstance(self.positions, slice):
            target_THK[self.positions].copy_(x_NHK)
        elif self.real is None:
            target_THK.index_copy_(0, self.positions, x_NHK.to(target_THK.dtype))
        else:
            target_THK.index_copy_(0, self.positions[self.real], x_NHK[self.real].to(target_THK.dtype))

    def put_product(self, target_THK: Tensor, a_GCK: Tensor, b_GCN: Tensor) -> None:
        """Write a_GCK times b_GCN where ``take`` would read it, in one pass where the places lie side by side."""
        if isinstance(self.positions, slice) and a_GCK.dtype == target_THK.dtype:
            torch.mul(a_GCK, b_GCN, out=target_THK[self.positions].transpose(0, 1))
        else:
            self.put(target_THK, a_GCK * b_GCN)

    def hide_keys(self, x_GCM: Tensor, value: float) -> Tensor:
        """Overwrite x_GCM by ``value`` in place where a position counts as no key."""
        return x_GCM if self.hidden_SC is None else self._fill(x_GCM, self.hidden_SC, value)

    def hide_repeats(self, x_GCM: Tensor) -> Tensor:
        """Overwrite x_GCM by 0 in place where a position is there again."""
        return x_GCM if self.real is None else self._fill(x_GCM, ~self.real.view(self.num_runs, -1), 0)

    def _fill(self, x_GCM: Tensor, where_SC: Tensor, value: float) -> Tensor:
        x_SHCM = x_GCM.view(self.num_runs, len(x_GCM) // self.num_runs, *x_GCM.shape[1:])
        x_SHCM.masked_fill_(where_SC[:, None, :, None], value)
        return x_GCM


def plan_tiles(
    segments: Sequence[Segment], mask_T: Tensor | None, device: torch.device, tile_length: int
) -> list[list[Tile]]:
    """Cover all segments that have a visible key by tiles of at most ``tile_length`` positions.

    Tiles of one inner list share their segments: several tiles cut one long segment, one tile
    holds several short segments of about equal length.
    """
    seen = [segment for segment in segments if segment.num_visible]
    long = [segment for segment in seen if 4 * len(segment) > tile_length]
    short = sorted((segment for segment in seen if 4 * len(segment) <= tile_length), key=len, reverse=True)
    cut = [cut_segment(segment, mask_T, tile_length) for segment in long]
    return cut + [[_gather(group, mask_T, device)] for group in _group(short, tile_length)]


def cut_segment(segment: Segment, mask_T: Tensor | None, tile_length: int) -> list[Tile]:
    """Cover one segment by tiles of about equal length, at most ``tile_length`` positions each."""
    num_tiles = -(-len(segment) // tile_length)
    step = -(-len(segment) // num_tiles)
    cuts = [slice(a, min(a + step, segment.stop)) for a in range(segment.start, segment.stop, step)]
    if mask_T is None or segment.num_visible == len(segment):
        return [Tile(cut, 1, None, None) for cut in cuts]
    return [Tile(cut, 1, None, ~mask_T[None, cut]) for cut in cuts]


def _group(segments: Sequence[Segment], tile_length: int) -> Iterator[list[Segment]]:
    group: list[Segment] = []
    for segment in segments:
        # at most a quarter of a tile is repetition
        if group and ((len(group) + 1) * len(group[0]) > tile_length or 4 * len(segment) < 3 * len(group[0])):
            yield group
            group = []
        group.append(segment)
    if group:
        yield group


def _gather(group: Sequence[Segment], mask_T: Tensor | None, device: torch.device) -> Tile:
    starts, lengths = torch.tensor([[s.start for s in group], [len(s) for s in group]], device=device)[..., None]
    steps = torch.arange(len(group[0]), device=device)
    positions_SC = starts + torch.minimum(steps, lengths - 1)
    real_SC = steps < lengths if len(group[0]) > len(group[-1]) else None
    hidden_SC = None if real_SC is None else ~real_SC
    if mask_T is not None and any(s.num_visible < len(s) for s in group):
        masked_SC = ~mask_T[positions_SC]
        hidden_SC = masked_SC if hidden_SC is None else masked_SC | hidden_SC
    return Tile(positions_SC.flatten(), len(group), None if real_SC is None else real_SC.flatten(), hidden_SC)


def blank(like_THK: Tensor, plan: Sequence[Sequence[Tile]], dtype: torch.dtype | None = None) -> Tensor:
    """Return a tensor for the tiles of ``plan`` to fill in: 0 where none does, undefined elsewhere."""
    is_covered = sum(_num_positions(tile) for tiles in plan for tile in tiles) == len(like_THK)
    make = torch.empty if is_covered else torch.zeros
    return make(like_THK.shape, dtype=dtype or like_THK.dtype, device=like_THK.device)


def _num_positions(tile: Tile) -> int:
    if isinstance(tile.positions, slice):
        return int(tile.positions.stop - tile.positions.start)
    return len(tile.positions) if tile.real is None else int(tile.real.sum())
