"""How far one attention map is from another, read in blocks of rows.

A map is anything that returns its rows ``slice`` as a tensor HRL, so that no L x L map of all heads
is ever alive: the figures of every head are gathered block by block. The equations stand in
docs/comparing.md under the names used here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from proteinlm.errors import ShapeError

MapRows = Callable[[slice], Tensor]
"""Returns rows of a map as map_HRL; each row sums to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MapLayout:
    """Which part of a map is residues, which of its entries count for the overlap, how it is cut.

    Args:
        num_positions: L, rows and columns of the map, special tokens included.
        first_residue, last_residue: the residues are the positions ``first_residue:last_residue``.
        separation: entries (i, j) with |i - j| below it do not count for the overlap, in residues; at
            least 1, which leaves out the diagonal.
        block_rows: rows read at a time.
    """

    num_positions: int
    first_residue: int
    last_residue: int
    separation: int
    block_rows: int

    @property
    def num_residues(self) -> int:
        """Residues in the map."""
        return self.last_residue - self.first_residue

    @property
    def num_eligible(self) -> int:
        """Entries (i, j) of two residues at least ``separation`` apart; both orders count."""
        span = max(0, self.num_residues - self.separation)
        return span * (span + 1)

    @property
    def num_top(self) -> int:
        """Entries in the overlap: as many as there are residues, or all eligible ones if fewer."""
        return min(self.num_residues, self.num_eligible)

    @property
    def chance_overlap(self) -> float:
        """Overlap expected of a map without order, whose ties are broken at random."""
        return self.num_top / self.num_eligible if self.num_eligible else math.nan

    def blocks(self) -> Iterator[slice]:
        """Yield the blocks of rows from top to bottom."""
        for start in range(0, self.num_positions, self.block_rows):
            yield slice(start, min(start + self.block_rows, self.num_positions))


@dataclass(frozen=True, slots=True)
class Agreement:
    """The figures of one map against the exact one, float64, one per head.

    total_variation_H: mean over rows of 1/2 sum_j |A_ij - B_ij|, from 0 to 1.
    output_error_H: |B V - A V|_F / |A V|_F.
    top_overlap_H: share of the largest eligible exact entries that are among the largest of the
        other map, from 0 to 1; NaN where no entry is eligible.
    """

    total_variation_H: Tensor
    output_error_H: Tensor
    top_overlap_H: Tensor


@dataclass(frozen=True, slots=True)
class MapAgreement:
    """The agreement of several maps with an exact one, and what the exact one is like.

    approximations: one ``Agreement`` per approximate map, in order.
    uniform: that of attention which sees every position alike; its overlap is that of chance.
    identity_output_error_H: output error of attention which returns the value of its own position.
    entropy_H: mean over rows of -sum_j A_ij ln A_ij, in nats.
    """

    approximations: tuple[Agreement, ...]
    uniform: Agreement
    identity_output_error_H: Tensor
    entropy_H: Tensor


def row_total_variation(first_HRL: Tensor, second_HRL: Tensor) -> Tensor:
    """Return 1/2 sum_j |a_ij - b_ij| of every row as HR, in float64."""
    variation_HR: Tensor = (first_HRL - second_HRL).abs_().sum(-1, dtype=torch.float64) / 2
    return variation_HR


def row_entropy(map_HRL: Tensor) -> Tensor:
    """Return -sum_j a_ij ln a_ij of every row as HR, in nats and float64; 0 ln 0 = 0."""
    entropy_HR: Tensor = torch.special.entr(map_HRL).sum(-1, dtype=torch.float64)
    return entropy_HR


class TopEntries:
    """Keeps the largest eligible entries of a map that arrives in blocks of rows."""

    def __init__(self, layout: MapLayout) -> None:
        self._layout = layout
        self._values_HC: Tensor | None = None
        self._indices_HC: Tensor | None = None

    def add(self, map_HRL: Tensor, rows: slice) -> None:
        """Take in the rows ``rows`` of the map."""
        layout = self._layout
        rows_R = torch.arange(rows.start, rows.stop, device=map_HRL.device)
        residues_J = torch.arange(layout.first_residue, layout.last_residue, device=map_HRL.device)
        is_residue_R = (rows_R >= layout.first_residue) & (rows_R < layout.last_residue)
        is_eligible_RJ = is_residue_R[:, None] & ((rows_R[:, None] - residues_J).abs() >= layout.separation)
        inside_HRJ = map_HRL[..., layout.first_residue : layout.last_residue]
        # entries that do not count fall behind all others, of which there are enough in the end
        values_HE = inside_HRJ.masked_fill(~is_eligible_RJ, -math.inf).flatten(1)
        top = values_HE.topk(min(layout.num_top, values_HE.shape[1]), dim=1, sorted=False)
        row_HC, column_HC = top.indices // len(residues_J), top.indices % len(residues_J)
        indices_HC = (rows.start + row_HC) * layout.num_positions + layout.first_residue + column_HC
        self._merge(top.values, indices_HC)

    def _merge(self, values_HC: Tensor, indices_HC: Tensor) -> None:
        if self._values_HC is not None and self._indices_HC is not None:
            values_HC = torch.cat([self._values_HC, values_HC], dim=1)
            indices_HC = torch.cat([self._indices_HC, indices_HC], dim=1)
        top = values_HC.topk(min(self._layout.num_top, values_HC.shape[1]), dim=1, sorted=False)
        self._values_HC, self._indices_HC = top.values, indices_HC.gather(1, top.indices)

    def indices(self) -> Tensor:
        """Return the flat indices i * L + j of the kept entries as HC, in no order."""
        assert self._indices_HC is not None, "no block of rows was added"
        return self._indices_HC


def shared_share(first_HC: Tensor, second_HC: Tensor) -> Tensor:
    """Return for each head the share of ``first_HC``'s indices that ``second_HC`` holds; NaN of none."""
    pairs = zip(first_HC, second_HC, strict=True)
    return torch.stack([torch.isin(first, second).double().mean() for first, second in pairs])


class _Gatherer:
    """Sums the figures of one map over blocks of rows."""

    def __init__(self, num_heads: int, layout: MapLayout, device: torch.device, *, has_order: bool = True) -> None:
        self.total_variation_H = torch.zeros(num_heads, dtype=torch.float64, device=device)
        self.squared_error_H = torch.zeros_like(self.total_variation_H)
        self.top = TopEntries(layout) if has_order else None
        self._layout = layout

    def add(self, exact_HRL: Tensor, other_HRL: Tensor, rows: slice, exact_HRK: Tensor, values_HLK: Tensor) -> None:
        self.total_variation_H += row_total_variation(exact_HRL, other_HRL).sum(-1)
        self.squared_error_H += _squares(other_HRL @ values_HLK - exact_HRK)
        if self.top is not None:
            self.top.add(other_HRL, rows)

    def agreement(self, squares_H: Tensor, exact_top_HC: Tensor) -> Agreement:
        if self.top is not None:
            overlap_H = shared_share(exact_top_HC, self.top.indices())
        else:
            overlap_H = torch.full_like(squares_H, self._layout.chance_overlap)
        return Agreement(
            self.total_variation_H / self._layout.num_positions,
            relative_norm(self.squared_error_H, squares_H),
            overlap_H,
        )


def _squares(tensor_HRK: Tensor) -> Tensor:
    return tensor_HRK.double().square().sum((-2, -1))


def relative_norm(squared_error: Tensor, squares: Tensor) -> Tensor:
    """Return sqrt(squared_error / squares); 0 where both are 0, infinity where only ``squares`` is."""
    ratio = (squared_error / squares).sqrt()
    return torch.where(squared_error == 0, torch.zeros_like(ratio), ratio)


def compare_maps(
    exact: MapRows, approximations: Sequence[MapRows], values_HLK: Tensor, layout: MapLayout
) -> MapAgreement:
    """Measure approximate maps, uniform and identity attention against an exact map.

    Args:
        exact, approximations: the maps, each H x L x L in blocks of rows.
        values_HLK: the values that the maps weigh.
        layout: what the positions are.

    Raises:
        ShapeError: if ``values_HLK`` has another number of positions than the layout.
    """
    num_heads, num_positions, _ = values_HLK.shape
    if num_positions != layout.num_positions:
        raise ShapeError(f"the values have {num_positions} positions but the layout says {layout.num_positions}")
    device = values_HLK.device
    gatherers = [_Gatherer(num_heads, layout, device) for _ in approximations]
    uniform = _Gatherer(num_heads, layout, device, has_order=False)
    exact_top = TopEntries(layout)
    squares_H, identity_H, entropy_H = torch.zeros(3, num_heads, dtype=torch.float64, device=device)
    for rows in layout.blocks():
        exact_HRL = exact(rows)
        exact_HRK = exact_HRL @ values_HLK
        exact_top.add(exact_HRL, rows)
        squares_H += _squares(exact_HRK)
        identity_H += _squares(values_HLK[:, rows] - exact_HRK)
        entropy_H += row_entropy(exact_HRL).sum(-1)
        uniform_HRL = torch.full_like(exact_HRL, 1 / num_positions)
        uniform.add(exact_HRL, uniform_HRL, rows, exact_HRK, values_HLK)
        for gatherer, approximate in zip(gatherers, approximations, strict=True):
            gatherer.add(exact_HRL, approximate(rows), rows, exact_HRK, values_HLK)
    top_HC = exact_top.indices()
    return MapAgreement(
        tuple(gatherer.agreement(squares_H, top_HC) for gatherer in gatherers),
        uniform.agreement(squares_H, top_HC),
        relative_norm(identity_H, squares_H),
        entropy_H / num_positions,
    )


def block_rows(num_heads: int, num_positions: int, *, max_entries: int = 1 << 22) -> int:
    """Return how many rows of all heads hold at most ``max_entries`` entries; at least 1."""
    return max(1, min(num_positions, max_entries // (num_heads * num_positions)))


@dataclass(frozen=True, slots=True)
class NormStatistics:
    """What explains the error of random features, float64, one per head.

    With x = q / K ** 0.25, y = k / K ** 0.25 and z = x + y over all pairs of positions:
    query_norm_H, key_norm_H, sum_norm_H: means of |x|^2, |y|^2, |z|^2.
    kernel_deviation_H: mean over pairs of the standard deviation of one kernel value, relative to
        the value, that one random feature would have; divide by sqrt(m) for m features.
    """

    query_norm_H: Tensor
    key_norm_H: Tensor
    sum_norm_H: Tensor
    kernel_deviation_H: Tensor


def kernel_deviation(sum_norm: Tensor, feature_map: str) -> Tensor:
    """Return sqrt(m) times the relative standard deviation of a kernel value estimated by m features.

    sqrt(exp(|z|^2) - 1) for positive features of independent rows, and sqrt(1 - exp(-|z|^2)) times
    that for hyperbolic ones, of which each row makes two. Orthogonal rows do better.

    Args:
        sum_norm: |z|^2 of any shape.
        feature_map: "positive" or "hyperbolic".

    Source: Choromanski et al., ICLR 2021, arXiv:2009.14794, Lemma 2 and Theorem 2.
    """
    positive = sum_norm.expm1().clamp_min(0).sqrt()
    return positive * (-(-sum_norm).expm1()).clamp_min(0).sqrt() if feature_map == "hyperbolic" else positive


def norm_statistics(
    queries_HLK: Tensor, keys_HLK: Tensor, *, feature_map: str = "positive", block_rows: int
) -> NormStatistics:
    """Return the squared norms of scaled queries, keys and their sums, read in blocks of rows."""
    scale = queries_HLK.shape[-1] ** -0.25
    x_HLK, y_HLK = queries_HLK.double() * scale, keys_HLK.double() * scale
    x_norm_HL, y_norm_HL = x_HLK.square().sum(-1), y_HLK.square().sum(-1)
    sum_norm_H, deviation_H = torch.zeros(2, len(x_HLK), dtype=torch.float64, device=x_HLK.device)
    num_positions = x_HLK.shape[1]
    for start in range(0, num_positions, block_rows):
        rows = slice(start, start + block_rows)
        products_HRL = x_HLK[:, rows] @ y_HLK.transpose(-2, -1)
        z_norm_HRL = x_norm_HL[:, rows, None] + y_norm_HL[:, None, :] + 2 * products_HRL
        sum_norm_H += z_norm_HRL.sum((-2, -1))
        deviation_H += kernel_deviation(z_norm_HRL, feature_map).sum((-2, -1))
    num_pairs = num_positions**2
    return NormStatistics(x_norm_HL.mean(-1), y_norm_HL.mean(-1), sum_norm_H / num_pairs, deviation_H / num_pairs)


def fitted_slope(num_features: Sequence[int], errors: Sequence[float]) -> float:
    """Return b of the least-squares line ln(error) = a + b ln(m); NaN with fewer than two points."""
    points = [(m, e) for m, e in zip(num_features, errors, strict=True) if e > 0 and math.isfinite(e)]
    if len({m for m, _ in points}) < 2:
        return math.nan
    counts, values = np.log(np.asarray(points, dtype=np.float64)).T
    return float(np.polyfit(counts, values, 1)[0])
