"""Features that are computed themselves: of other kernels than softmax, and sines and cosines.

Generalised features are positive, and so is the normaliser: at least epsilon^2 for each key and feature.
Trigonometric features have both signs. Nothing is added to their normaliser, which can be negative or
near 0: weights then sum to 1 and are of any size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from proteinlm.ops.feature_sums import Evaluated, PlainFeatures
from proteinlm.ops.random_features.coordinates import Coordinates, find_coordinates
from proteinlm.ops.random_features.features import FUNCTIONS, Features
from proteinlm.ops.tiles import Tile


class GeneralisedFeatures(PlainFeatures):
    """f(w·q) + epsilon; without rows a feature is of a coordinate."""

    def __init__(self, features: Features, rows_MK: Tensor | None, dtype: torch.dtype, head_dim: int) -> None:
        super().__init__(dtype)
        self._function, self._slope = FUNCTIONS[features.function]
        self._epsilon, self._rows_MK = features.epsilon, rows_MK
        self.num_features = head_dim if rows_MK is None else len(rows_MK)

    def queries(self, tile: Tile, q_THK: Tensor, prepared: None) -> Evaluated:
        """Return features and what functions are taken of."""
        return self._evaluate(tile.look(q_THK, self.dtype))

    def keys(self, tile: Tile, k_THK: Tensor, prepared: None) -> Evaluated:
        """Return features, 0 where a key is hidden, and what functions are taken of."""
        # a hidden key may be anything, and 0 times infinity is not 0
        found = self._evaluate(tile.hide_keys(tile.take(k_THK, self.dtype), 0))
        return found._replace(phi_GCM=tile.hide_keys(found.phi_GCM, 0))

    def _evaluate(self, x_GCK: Tensor) -> Evaluated:
        u_GCM = x_GCK if self._rows_MK is None else x_GCK @ self._rows_MK.T
        return Evaluated(self._function(u_GCM) + self._epsilon, (u_GCM,))

    def put_query_gradient(
        self, target_THK: Tensor, tile: Tile, found: Evaluated, grad_GCM: Tensor, prepared: None
    ) -> None:
        """Fill in the gradient of queries."""
        grad_GCM.mul_(self._slope(found.needed[0]))
        tile.put(target_THK, grad_GCM if self._rows_MK is None else grad_GCM @ self._rows_MK)

    def put_key_gradient(
        self, target_THK: Tensor, tile: Tile, found: Evaluated, grad_GCM: Tensor, prepared: None
    ) -> None:
        """Fill in the gradient of keys, 0 where one is hidden."""
        self.put_query_gradient(target_THK, tile, found, tile.hide_keys(grad_GCM, 0), prepared)


class TrigonometricFeatures(PlainFeatures):
    """Sines and cosines of w·x, times exp(|x|^2 / 2) for keys; that of a query cancels."""

    def __init__(self, features: Features, rows_MK: Tensor, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self._features, self._rows_MK = features, rows_MK
        self.num_features = 2 * len(rows_MK)

    def prepare(self, tiles: Sequence[Tile], q_THK: Tensor, k_THK: Tensor) -> Coordinates | None:
        """Return what the segments do to queries and keys first."""
        return find_coordinates(self._features, tiles, q_THK, k_THK, self._rows_MK, self.dtype)

    def queries(self, tile: Tile, q_THK: Tensor, prepared: Coordinates) -> Evaluated:
        """Return features and what sines are taken of."""
        u_GCM = prepared.queries(self._scaled(tile, q_THK)) @ self._rows_MK.T
        return Evaluated(torch.cat((u_GCM.sin(), u_GCM.cos()), -1), (u_GCM,))

    def keys(self, tile: Tile, k_THK: Tensor, prepared: Coordinates) -> Evaluated:
        """Return features, 0 where a key is hidden, what sines are taken of, the factor of each key, and y."""
        y_GCK, seen_GCK, offset_GC1 = prepared.keys(tile.hide_keys(self._scaled(tile, k_THK), 0))
        factor_GC1 = tile.hide_keys(offset_GC1, -torch.inf).exp()
        u_GCM = seen_GCK @ self._rows_MK.T
        return Evaluated(torch.cat((u_GCM.sin(), u_GCM.cos()), -1).mul_(factor_GC1), (u_GCM, factor_GC1, y_GCK))

    def _scaled(self, tile: Tile, x_THK: Tensor) -> Tensor:
        return tile.take(x_THK, self.dtype).mul_(x_THK.shape[-1] ** -0.25)

    def _back(self, u_GCM: Tensor, grad_GCM: Tensor) -> Tensor:
        """Return the gradient of what rows are applied to."""
        of_sine_GCM, of_cosine_GCM = grad_GCM.chunk(2, -1)
        return (of_sine_GCM * u_GCM.cos() - of_cosine_GCM * u_GCM.sin()) @ self._rows_MK

    def put_query_gradient(
        self, target_THK: Tensor, tile: Tile, found: Evaluated, grad_GCM: Tensor, prepared: Coordinates
    ) -> None:
        """Fill in the gradient of queries."""
        grad_x_GCK = prepared.query_gradient(self._back(found.needed[0], grad_GCM))
        tile.put(target_THK, grad_x_GCK.mul_(target_THK.shape[-1] ** -0.25))

    def put_key_gradient(
        self, target_THK: Tensor, tile: Tile, found: Evaluated, grad_GCM: Tensor, prepared: Coordinates
    ) -> None:
        """Fill in the gradient of keys, 0 where one is hidden."""
        u_GCM, factor_GC1, y_GCK = found.needed
        grad_offset_GC1 = (grad_GCM * found.phi_GCM).sum(-1, keepdim=True)
        grad_y_GCK = self._back(u_GCM, grad_GCM.mul_(factor_GC1))
        grad_y_GCK = prepared.key_gradient(grad_y_GCK, grad_offset_GC1, y_GCK)
        tile.put(target_THK, grad_y_GCK.mul_(target_THK.shape[-1] ** -0.25))
