"""The walk over the rows of a map, segment by segment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from proteinlm.errors import ShapeError
from proteinlm.ops.precision import accumulation_dtype
from proteinlm.ops.tiles import Segment, Tile, cut_segment
from proteinlm.ops.visibility import Visibility


def row_bounds(rows: slice, length: int) -> tuple[int, int]:
    """Return the first row and the row behind the last of a slice of ``length`` rows.

    Raises:
        ShapeError: if the slice does not go up by 1.
    """
    start, stop, step = rows.indices(length)
    if step != 1:
        raise ShapeError(f"rows go by steps of {step}; expected a slice with step 1")
    return start, max(start, stop)


class MapPart(NamedTuple):
    """What one segment has in the wanted rows: queries from ``start`` to ``stop``, against all of its keys."""

    segment: Segment
    start: int
    stop: int
    weights_HCJ: Tensor  # a view of the map, C queries and J keys, to be written to

    def queries(self, tile_length: int) -> list[Tile]:
        """Return the queries in tiles of at most ``tile_length`` positions."""
        return cut_segment(Segment(self.start, self.stop, self.stop - self.start), None, tile_length)

    def rows(self, queries: Tile) -> Tensor:
        """Return the rows of a tile of queries, a view of the map."""
        return self.weights_HCJ[:, _moved(queries, self.start)]

    def put(self, queries: Tile, keys: Tile, weights_HCJ: Tensor) -> None:
        """Write the weights of a tile of queries for a tile of keys."""
        self.rows(queries)[..., _moved(keys, self.segment.start)] = weights_HCJ

    def steps(self, queries: Tile, keys: Tile) -> Tensor:
        """Return how many positions each query is behind each key, as steps_CJ."""
        queries_C, keys_J = (torch.arange(*_run(tile), device=self.weights_HCJ.device) for tile in (queries, keys))
        return queries_C[:, None] - keys_J


class BlankMap:
    """Some rows of a map, all 0 to begin with.

    Attributes:
        first: the first row wanted; ``behind`` is the one after the last.
        map_BHRL: float32, or float64 where an input is.

    Args:
        rows: the queries wanted, a slice of L with step 1.
        inputs: queries, and keys if there are any, x_BLHK.

    Raises:
        ShapeError: if the slice does not go up by 1.
    """

    def __init__(self, visibility: Visibility, rows: slice, *inputs: Tensor) -> None:
        self.visibility = visibility
        self.first, self.behind = row_bounds(rows, visibility.length)
        sizes = (visibility.num_windows, inputs[0].shape[2], self.behind - self.first, visibility.length)
        self.map_BHRL = torch.zeros(sizes, dtype=accumulation_dtype(*inputs), device=inputs[0].device)

    def parts(self) -> Iterator[MapPart]:
        """Yield the parts of all segments that have a visible key and a row that is wanted."""
        for segment in self.visibility.segments:
            window = segment.start // self.visibility.length
            origin = window * self.visibility.length
            start, stop = max(origin + self.first, segment.start), min(origin + self.behind, segment.stop)
            if start < stop and segment.num_visible:
                rows = slice(start - origin - self.first, stop - origin - self.first)
                keys = slice(segment.start - origin, segment.stop - origin)
                yield MapPart(segment, start, stop, self.map_BHRL[window, :, rows, keys])


def _run(tile: Tile) -> tuple[int, int]:
    assert isinstance(tile.positions, slice)
    return tile.positions.start, tile.positions.stop


def _moved(tile: Tile, origin: int) -> slice:
    start, stop = _run(tile)
    return slice(start - origin, stop - origin)
