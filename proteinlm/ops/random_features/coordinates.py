"""Where a segment's queries and keys are seen from before rows are applied.

Some maps move, stretch and turn queries and keys by statistics of the visible tokens of a segment,
one set for each head:

    x' = (x - a) psi,  y' = (y - b) / psi,  log feature of y = w·T y' + c |y'|^2 + a·y + 2 w·(A w)

with c = -1/2 for positive and +1/2 for trigonometric features. Each is unbiased for any values of a, b,
psi and A (T = sqrt(1 - 4 A)), so they are constants for the gradient. What queries share cancels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from proteinlm.ops.random_features.features import Features, optimal_exponents
from proteinlm.ops.tiles import Tile


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Coordinates:
    """Coordinates of G = segments × heads matrices; None where nothing is to be done.

    ``turn`` is symmetric, or a number for each matrix; ``peak`` is the largest offset of a key.
    """

    query_shift_G1K: Tensor | None = None
    key_shift_G1K: Tensor | None = None
    stretch_G1K: Tensor | None = None
    turn_GKK: Tensor | None = None
    feature_offset_G1M: Tensor | None = None
    norm_factor: float = -0.5
    peak_G11: Tensor | None = None

    def queries(self, x_GCK: Tensor) -> Tensor:
        """Return T x', overwriting x."""
        if self.query_shift_G1K is not None:
            x_GCK.sub_(self.query_shift_G1K)
        if self.stretch_G1K is not None:
            x_GCK.mul_(self.stretch_G1K)
        return self._turned(x_GCK)

    def query_gradient(self, grad_GCK: Tensor) -> Tensor:
        """Return the gradient of x for that of T x', which is overwritten."""
        grad_GCK = self._turned(grad_GCK)
        return grad_GCK if self.stretch_G1K is None else grad_GCK.mul_(self.stretch_G1K)

    def keys(self, y_GCK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return y', T y' and the offset of each key's log-features, overwriting y."""
        offset_GC1 = None if self.query_shift_G1K is None else y_GCK @ self.query_shift_G1K.mT
        if self.key_shift_G1K is not None:
            y_GCK.sub_(self.key_shift_G1K)
        if self.stretch_G1K is not None:
            y_GCK.div_(self.stretch_G1K)
        norm_GC1 = y_GCK.square().sum(-1, keepdim=True).mul_(self.norm_factor)
        offset_GC1 = norm_GC1 if offset_GC1 is None else norm_GC1.add_(offset_GC1)
        if self.peak_G11 is not None:
            offset_GC1.sub_(self.peak_G11)
        return y_GCK, self._turned(y_GCK), offset_GC1

    def key_gradient(self, grad_GCK: Tensor, grad_offset_GC1: Tensor, y_GCK: Tensor) -> Tensor:
        """Return the gradient of y for those of T y' and the offset; ``y_GCK`` is y'."""
        grad_GCK = self._turned(grad_GCK).addcmul(y_GCK, grad_offset_GC1, value=2 * self.norm_factor)
        if self.stretch_G1K is not None:
            grad_GCK.div_(self.stretch_G1K)
        if self.query_shift_G1K is not None:
            grad_GCK.addcmul_(grad_offset_GC1, self.query_shift_G1K)
        return grad_GCK

    def _turned(self, x_GCK: Tensor) -> Tensor:
        if self.turn_GKK is None:
            return x_GCK
        return x_GCK @ self.turn_GKK if self.turn_GKK.shape[-1] > 1 else x_GCK * self.turn_GKK


def find_coordinates(
    features: Features, tiles: Sequence[Tile], q_THK: Tensor, k_THK: Tensor, rows_MK: Tensor | None, dtype: torch.dtype
) -> Coordinates | None:
    """Return the coordinates of the segments that ``tiles`` cover, None where q and k stay as they are.

    Statistics are taken over positions that are visible as keys, of queries too: pads change nothing.
    """
    head_dim = q_THK.shape[-1]
    if features.feature_map == "generalised":
        # exp(w·k) is a positive feature without its norm, and without the K^(-1/4) that tiles bring along
        back = torch.full((1, 1, 1), head_dim**0.25, dtype=dtype, device=q_THK.device)
        return Coordinates(turn_GKK=back, norm_factor=0.0)
    coordinates = Coordinates(norm_factor=0.5 if features.feature_map == "trigonometric" else -0.5)
    if features.uses_statistics:
        moments = _Moments.of(features, tiles, q_THK, k_THK, dtype)
        if features.centring:
            coordinates = replace(
                coordinates, query_shift_G1K=moments.query_mean_G1K, key_shift_G1K=moments.key_mean_G1K
            )
            moments = moments.centred()
        if features.feature_map not in {"positive", "hyperbolic", "trigonometric"}:
            assert rows_MK is not None
            coordinates = _optimise(features, coordinates, moments, rows_MK)
    if features.feature_map == "trigonometric":
        return replace(coordinates, peak_G11=_largest_offset(coordinates, tiles, k_THK, dtype))
    return coordinates if features.uses_statistics else None


def _visible(tile: Tile, x_THK: Tensor, dtype: torch.dtype) -> Tensor:
    return tile.hide_keys(tile.take(x_THK, dtype).mul_(x_THK.shape[-1] ** -0.25), 0)


def _largest_offset(coordinates: Coordinates, tiles: Sequence[Tile], k_THK: Tensor, dtype: torch.dtype) -> Tensor:
    peaks = []
    for tile in tiles:
        _, _, offset_GC1 = coordinates.keys(_visible(tile, k_THK, dtype))
        peaks.append(tile.hide_keys(offset_GC1, -torch.inf).amax(1, keepdim=True))
    return torch.stack(peaks).amax(0)


@dataclass(frozen=True, slots=True, eq=False)
class _Moments:
    """Means, and second moments: matrices, or their diagonals as G1K, or empty where not needed."""

    query_mean_G1K: Tensor
    key_mean_G1K: Tensor
    query_moment_GKK: Tensor
    key_moment_GKK: Tensor

    @classmethod
    def of(
        cls, features: Features, tiles: Sequence[Tile], q_THK: Tensor, k_THK: Tensor, dtype: torch.dtype
    ) -> _Moments:
        def second(x_GCK: Tensor) -> Tensor:
            if features.feature_map == "oprf":
                return x_GCK.square().sum(1, keepdim=True)
            return x_GCK.mT @ x_GCK if features.feature_map in {"sderf", "saderf"} else x_GCK[:, :0]

        sums: list[Tensor] = []
        count_G11: Tensor | float = 0.0
        for tile in tiles:
            x_GCK, y_GCK = (_visible(tile, z, dtype) for z in (q_THK, k_THK))
            parts = [x_GCK.sum(1, keepdim=True), y_GCK.sum(1, keepdim=True), second(x_GCK), second(y_GCK)]
            sums = [a.add_(b) for a, b in zip(sums, parts, strict=True)] if sums else parts
            count_G11 = count_G11 + _num_visible(tile, x_GCK)
        return cls(*(total / count_G11 for total in sums))

    def centred(self) -> _Moments:
        def around(moment_GKK: Tensor, mean_G1K: Tensor) -> Tensor:
            is_matrix = moment_GKK.shape[1] == moment_GKK.shape[2]
            return moment_GKK - (mean_G1K.mT @ mean_G1K if is_matrix else mean_G1K.square())

        zero_G1K = torch.zeros_like(self.query_mean_G1K)
        if self.query_moment_GKK.shape[1] == 0:
            return self
        return _Moments(
            zero_G1K,
            zero_G1K,
            around(self.query_moment_GKK, self.query_mean_G1K),
            around(self.key_moment_GKK, self.key_mean_G1K),
        )

    def stretched(self, stretch_G1K: Tensor) -> _Moments:
        square_GKK = stretch_G1K.mT @ stretch_G1K
        return _Moments(
            self.query_mean_G1K * stretch_G1K,
            self.key_mean_G1K / stretch_G1K,
            self.query_moment_GKK * square_GKK,
            self.key_moment_GKK / square_GKK,
        )


def _num_visible(tile: Tile, x_GCK: Tensor) -> Tensor | float:
    if tile.hidden_SC is None:
        return float(x_GCK.shape[1])
    visible_S = (~tile.hidden_SC).sum(1).to(x_GCK.dtype)
    return visible_S.repeat_interleave(len(x_GCK) // tile.num_runs)[:, None, None]


def _optimise(features: Features, coordinates: Coordinates, moments: _Moments, rows_MK: Tensor) -> Coordinates:
    if features.feature_map == "oprf":
        cross_G11 = 2 * (moments.query_mean_G1K * moments.key_mean_G1K).sum(-1, keepdim=True)
        squares_G11 = (moments.query_moment_GKK + moments.key_moment_GKK).sum(-1, keepdim=True)
        # centred moments are differences and may round to less than 0
        a_G11, b_G11 = optimal_exponents(((squares_G11 + cross_G11) / rows_MK.shape[1]).clamp_(min=0))
        offset_G1M = 2 * a_G11 * rows_MK.square().sum(1)
        return replace(coordinates, turn_GKK=b_G11, feature_offset_G1M=offset_G1M)
    if features.feature_map == "saderf":
        stretch_G1K = _stretch(
            *(m.diagonal(dim1=1, dim2=2)[:, None] for m in (moments.query_moment_GKK, moments.key_moment_GKK))
        )
        coordinates, moments = replace(coordinates, stretch_G1K=stretch_G1K), moments.stretched(stretch_G1K)
    cross_GKK = moments.query_mean_G1K.mT @ moments.key_mean_G1K
    values_GK, vectors_GKK = torch.linalg.eigh(
        moments.query_moment_GKK + moments.key_moment_GKK + cross_GKK + cross_GKK.mT
    )
    a_GK, b_GK = optimal_exponents(values_GK.clamp_(min=0))
    # turned back by U: equal in distribution, and free of which vectors span an eigenspace
    turn_GKK, a_GKK = ((vectors_GKK * c[:, None]) @ vectors_GKK.mT for c in (b_GK, a_GK))
    # matrix by matrix: all products of rows and vectors together could be large
    offsets = [((rows_MK @ a_KK) * rows_MK).sum(1) for a_KK in a_GKK]
    return replace(coordinates, turn_GKK=turn_GKK, feature_offset_G1M=2 * torch.stack(offsets)[:, None])


def _stretch(query_squares_G1K: Tensor, key_squares_G1K: Tensor) -> Tensor:
    """Return psi = (mean y^2 / mean x^2)^(1/4) of each coordinate."""
    # a millionth of all squares keeps the ratio of two rounding errors from setting the scale
    floor_G11 = 1e-6 * (query_squares_G1K + key_squares_G1K).mean(-1, keepdim=True)
    ratio_G1K = (key_squares_G1K.clamp(min=0) + floor_G11) / (query_squares_G1K.clamp(min=0) + floor_G11)
    return torch.where(floor_G11 > 0, ratio_G1K, 1.0) ** 0.25
