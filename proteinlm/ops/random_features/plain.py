"""Features that are computed themselves: numerators and normalisers, and a division.

    S_r = sum_j phi_r(y_j) v_j,  z_r = sum_j phi_r(y_j),  out_i = phi(x_i)·S / phi(x_i)·z.

Generalised features are positive, and so is the normaliser: at least epsilon^2 for each key and feature.
Trigonometric features have both signs. Nothing is added to their normaliser, which can be negative or
near 0: weights then sum to 1 and are of any size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from proteinlm.ops.random_features.coordinates import Coordinates
from proteinlm.ops.random_features.features import FUNCTIONS, Features
from proteinlm.ops.random_features.tiled import Kept, State, TiledFeatures
from proteinlm.ops.tiles import Tile


class PlainFeatures(TiledFeatures):
    """Generalised and trigonometric features; states hold z and S. Without rows a feature is a coordinate."""

    def __init__(self, features: Features, rows_MK: Tensor | None, dtype: torch.dtype, head_dim: int) -> None:
        super().__init__(features, rows_MK, dtype)
        self._is_trigonometric = features.feature_map == "trigonometric"
        num_projections = head_dim if rows_MK is None else len(rows_MK)
        self.num_features = num_projections * (2 if self._is_trigonometric else 1)

    def average_keys(
        self,
        tiles: Sequence[Tile],
        k_THK: Tensor,
        v_THK: Tensor,
        coordinates: Coordinates | None,
        kept: Kept | None = None,
    ) -> State:
        """Return z and S."""
        num_matrices = tiles[0].num_runs * k_THK.shape[1]
        sums_G1M = torch.zeros(num_matrices, 1, self.num_features, dtype=self.dtype, device=k_THK.device)
        numerators_GMK = sums_G1M.new_zeros(num_matrices, self.num_features, v_THK.shape[-1])
        for tile in tiles:
            key_GCM = self._keys(tile, k_THK, coordinates)[-1]
            sums_G1M.add_(key_GCM.sum(1, keepdim=True))
            numerators_GMK.baddbmm_(key_GCM.mT, self.values(tile, v_THK))
        return State(sums_G1M, numerators_GMK)

    def query_weights(self, tile: Tile, q_THK: Tensor, state: State, coordinates: Coordinates | None) -> Tensor:
        """Return phi(x_i) over the normaliser of i."""
        return self._queries(tile, q_THK, state, coordinates)[1]

    def key_weights(self, tile: Tile, k_THK: Tensor, state: State, coordinates: Coordinates | None) -> Tensor:
        """Return phi(y_j)."""
        return self._keys(tile, k_THK, coordinates)[-1]

    def _scaled(self, tile: Tile, x_THK: Tensor) -> Tensor:
        return tile.take(x_THK, self.dtype).mul_(self.features.scale(x_THK.shape[-1]))

    def _project(self, x_GCK: Tensor) -> Tensor:
        return x_GCK if self.rows_MK is None else x_GCK @ self.rows_MK.T

    def _unproject(self, grad_GCM: Tensor) -> Tensor:
        return grad_GCM if self.rows_MK is None else grad_GCM @ self.rows_MK

    def _evaluate(self, u_GCM: Tensor) -> Tensor:
        if self._is_trigonometric:
            return torch.cat((u_GCM.sin(), u_GCM.cos()), -1)
        return FUNCTIONS[self.features.function][0](u_GCM) + self.features.epsilon

    def _slope(self, u_GCM: Tensor, grad_GCM: Tensor) -> Tensor:
        """Return the gradient of u for that of its features."""
        if self._is_trigonometric:
            of_sine_GCM, of_cosine_GCM = grad_GCM.chunk(2, -1)
            return of_sine_GCM * u_GCM.cos() - of_cosine_GCM * u_GCM.sin()
        return FUNCTIONS[self.features.function][1](u_GCM).mul_(grad_GCM)

    def _queries(
        self, tile: Tile, q_THK: Tensor, state: State, coordinates: Coordinates | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what functions are taken of, phi over the normaliser, and the normaliser."""
        x_GCK = self._scaled(tile, q_THK)
        u_GCM = self._project(x_GCK if coordinates is None else coordinates.queries(x_GCK))
        query_GCM = self._evaluate(u_GCM)
        normaliser_GC1 = query_GCM @ state.sums_G1M.mT
        return u_GCM, query_GCM.div_(normaliser_GC1), normaliser_GC1

    def _keys(
        self, tile: Tile, k_THK: Tensor, coordinates: Coordinates | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Return y, what functions are taken of, the factor of each key, and phi with it, 0 where hidden."""
        y_GCK = tile.hide_keys(self._scaled(tile, k_THK), 0)
        if coordinates is None:
            u_GCM = self._project(y_GCK)
            return y_GCK, u_GCM, None, tile.hide_keys(self._evaluate(u_GCM), 0)
        y_GCK, seen_GCK, offset_GC1 = coordinates.keys(y_GCK)
        factor_GC1 = tile.hide_keys(offset_GC1, -torch.inf).exp()
        u_GCM = self._project(seen_GCK)
        return y_GCK, u_GCM, factor_GC1, self._evaluate(u_GCM).mul_(factor_GC1)

    def backward_queries(
        self,
        tiles: Sequence[Tile],
        inputs: tuple[Tensor, Tensor],
        state: State,
        coordinates: Coordinates | None,
        grad_q_THK: Tensor | None,
        kept: Kept | None = None,
    ) -> State:
        """Fill in the gradient of q and return those of z and S.

        With g the gradient of out and n the normaliser: dS = (phi / n)^T g, dz_r = - sum_i (phi_ir / n_i)
        (g_i·out_i), dphi_ir = (g_i·S_r - (g_i·out_i) z_r) / n_i, where g_i·out_i = sum_r (phi_ir / n_i) (g_i·S_r).
        """
        q_THK, grad_THK = inputs
        grad_sums_G1M, grad_numerators_GMK = torch.zeros_like(state.sums_G1M), torch.zeros_like(state.means_GMK)
        for tile in tiles:
            u_GCM, weights_GCM, normaliser_GC1 = self._queries(tile, q_THK, state, coordinates)
            grad_GCK = tile.hide_repeats(tile.take(grad_THK, self.dtype))
            grad_GCM = grad_GCK @ state.means_GMK.mT
            # out itself was rounded to the dtype of the values
            offset_GC1 = (grad_GCM * weights_GCM).sum(-1, keepdim=True)
            grad_numerators_GMK.baddbmm_(weights_GCM.mT, grad_GCK)
            grad_sums_G1M.baddbmm_(offset_GC1.mT, weights_GCM, alpha=-1)
            if grad_q_THK is not None:
                grad_GCM.baddbmm_(offset_GC1, state.sums_G1M, alpha=-1)
                grad_x_GCK = self._unproject(self._slope(u_GCM, grad_GCM.div_(normaliser_GC1)))
                if coordinates is not None:
                    grad_x_GCK = coordinates.query_gradient(grad_x_GCK)
                tile.put(grad_q_THK, grad_x_GCK.mul_(self.features.scale(q_THK.shape[-1])))
        return State(grad_sums_G1M, grad_numerators_GMK)

    def backward_keys(
        self,
        tiles: Sequence[Tile],
        inputs: tuple[Tensor, Tensor],
        states: tuple[State, State],
        coordinates: Coordinates | None,
        grads: Sequence[Tensor | None],
        kept: Kept | None = None,
    ) -> None:
        """Fill in the gradients of k and v: dv = phi dS, dphi_jr = v_j·dS_r + dz_r."""
        (k_THK, v_THK), (_, grad_state) = inputs, states
        for tile in tiles:
            y_GCK, u_GCM, factor_GC1, key_GCM = self._keys(tile, k_THK, coordinates)
            if grads[1] is not None:
                tile.put(grads[1], key_GCM @ grad_state.means_GMK)
            if grads[0] is not None:
                grad_GCM = torch.baddbmm(grad_state.sums_G1M, self.values(tile, v_THK), grad_state.means_GMK.mT)
                tile.hide_keys(grad_GCM, 0)
                if coordinates is None:
                    grad_y_GCK = self._unproject(self._slope(u_GCM, grad_GCM))
                else:
                    assert factor_GC1 is not None
                    grad_offset_GC1 = (grad_GCM * key_GCM).sum(-1, keepdim=True)
                    grad_y_GCK = self._unproject(self._slope(u_GCM, grad_GCM.mul_(factor_GC1)))
                    grad_y_GCK = coordinates.key_gradient(grad_y_GCK, grad_offset_GC1, y_GCK)
                tile.put(grads[0], grad_y_GCK.mul_(self.features.scale(k_THK.shape[-1])))
