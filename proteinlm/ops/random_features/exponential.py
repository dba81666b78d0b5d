"""Features known by their logarithms: two softmaxes, and no normaliser to divide by.

Notation: x = q / K^(1/4), y = k / K^(1/4), rows w_r, l_jr = w_r·y_j - |y_j|^2 / 2. A factor that a
query or a feature has for all keys cancels between numerator and normaliser, and so

    out_i = sum_r P_ir U_r,  P_i = softmax over r of (w_r·x_i + s_r),
    U_r = sum_j A_jr v_j,    A_r = softmax over visible keys j of l_jr,  s_r = logsumexp over j of l_jr:

each query averages over features what each feature averages over keys. The normaliser is 1 by
construction: no epsilon to add, nothing to overflow, and the gradient needs no constants. Maps that use
statistics put other coordinates in the place of x and y and add to l_jr and s_r what they say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from proteinlm.ops.random_features.coordinates import Coordinates, find_coordinates
from proteinlm.ops.random_features.features import Features, log_features
from proteinlm.ops.tiles import Tile


class State(NamedTuple):
    """What the keys of a segment leave behind: s and U, all that its queries need."""

    log_sums_G1M: Tensor
    means_GMK: Tensor


class StateGradient(NamedTuple):
    """The gradient of s, less what U loses by it (ds_r - dU_r·U_r), and that of U."""

    of_log_sums_G1M: Tensor
    of_means_GMK: Tensor


class Kept(NamedTuple):
    """Weights_GCM of the queries and keys of each tile that forward leaves to backward."""

    queries: list[Tensor]
    keys: list[Tensor]


class ExponentialFeatures:
    """A map whose features are exponentials, with its rows, tile by tile: G segments × heads, C positions, M features.

    out = query weights · means, map = query weights · key weights^T.
    """

    def __init__(self, features: Features, rows_MK: Tensor, dtype: torch.dtype) -> None:
        self.features = features
        self.rows_MK = rows_MK
        self.dtype = dtype
        self.num_features = len(rows_MK)

    def coordinates(self, tiles: Sequence[Tile], q_THK: Tensor, k_THK: Tensor) -> Coordinates | None:
        """Return what the segments of ``tiles`` do to queries and keys first."""
        return find_coordinates(self.features, tiles, q_THK, k_THK, self.rows_MK, self.dtype)

    def values(self, tile: Tile, v_THK: Tensor) -> Tensor:
        """Return v_GCK, 0 where a key is hidden."""
        return tile.hide_keys(tile.take(v_THK, self.dtype), 0)

    def average_keys(
        self,
        tiles: Sequence[Tile],
        k_THK: Tensor,
        v_THK: Tensor,
        coordinates: Coordinates | None,
        kept: Kept | None = None,
    ) -> State:
        """Return s and U; sums are rescaled as their maximum grows. A_GCM of each tile goes to ``kept``."""
        rows_MK = self.rows_MK
        num_matrices = tiles[0].num_runs * k_THK.shape[1]
        # finite, or a tile without a visible key would subtract infinity from itself
        maxima_G1M = rows_MK.new_full((num_matrices, 1, len(rows_MK)), torch.finfo(rows_MK.dtype).min / 4)
        sums_G1M = torch.zeros_like(maxima_G1M)
        means_GMK = rows_MK.new_zeros(num_matrices, len(rows_MK), v_THK.shape[-1])
        maxima_of_tiles: list[Tensor] = []
        for tile in tiles:
            _, key_GCM = self._keys(tile, k_THK, coordinates)
            grown_G1M = torch.maximum(maxima_G1M, key_GCM.amax(1, keepdim=True))
            key_GCM.sub_(grown_G1M).exp_()
            shrink_G1M = maxima_G1M.sub_(grown_G1M).exp_()
            sums_G1M.mul_(shrink_G1M).add_(key_GCM.sum(1, keepdim=True))
            means_GMK.mul_(shrink_G1M.mT).baddbmm_(key_GCM.mT, self.values(tile, v_THK))
            maxima_G1M = grown_G1M
            if kept is not None:
                kept.keys.append(key_GCM)
                maxima_of_tiles.append(grown_G1M.clone())
        means_GMK.div_(sums_G1M.mT)
        state = State(maxima_G1M.add_(sums_G1M.log_()), means_GMK)
        if kept is not None:
            for key_GCM, grown_G1M in zip(kept.keys, maxima_of_tiles, strict=True):
                key_GCM.mul_(grown_G1M.sub_(state.log_sums_G1M).exp_())
        return state

    def query_weights(self, tile: Tile, q_THK: Tensor, state: State, coordinates: Coordinates | None) -> Tensor:
        """Return P_GCM."""
        x_GCK, offset_G1M = self._scaled(tile, q_THK), state.log_sums_G1M
        if coordinates is not None:
            x_GCK = coordinates.queries(x_GCK)
            if coordinates.feature_offset_G1M is not None:
                offset_G1M = offset_G1M + coordinates.feature_offset_G1M
        return torch.baddbmm(offset_G1M, x_GCK, self.rows_MK.T.expand(len(x_GCK), -1, -1)).softmax(-1)

    def key_weights(self, tile: Tile, k_THK: Tensor, state: State, coordinates: Coordinates | None) -> Tensor:
        """Return A_GCM."""
        return self._keys(tile, k_THK, coordinates)[1].sub_(state.log_sums_G1M).exp_()

    def _scaled(self, tile: Tile, x_THK: Tensor) -> Tensor:
        return tile.take(x_THK, self.dtype).mul_(x_THK.shape[-1] ** -0.25)

    def _keys(self, tile: Tile, k_THK: Tensor, coordinates: Coordinates | None) -> tuple[Tensor, Tensor]:
        """Return y_GCK and l_GCM, minus infinity where a key is hidden."""
        y_GCK, seen_GCK, offset_GC1 = self._key_coordinates(tile, k_THK, coordinates)
        return y_GCK, tile.hide_keys(log_features(seen_GCK, self.rows_MK, offset_GC1), -torch.inf)

    def _key_coordinates(
        self, tile: Tile, k_THK: Tensor, coordinates: Coordinates | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        # a hidden key may be anything, and 0 times infinity is not 0
        y_GCK = tile.hide_keys(self._scaled(tile, k_THK), 0)
        return (y_GCK, y_GCK, None) if coordinates is None else coordinates.keys(y_GCK)

    def backward_queries(
        self,
        tiles: Sequence[Tile],
        inputs: tuple[Tensor, Tensor],
        state: State,
        coordinates: Coordinates | None,
        grad_q_THK: Tensor | None,
        kept: Kept | None = None,
    ) -> StateGradient:
        """Fill in the gradient of q, from ``inputs``, q and the gradient of out, and return that of the state.

        With g the gradient of out: dU = P^T g, dP_ir = g_i·U_r, dlogits_ir = P_ir (dP_ir - sum_r P_ir dP_ir),
        ds_r = sum_i dlogits_ir; the softmax of the keys needs ds_r - dU_r·U_r.
        """
        q_THK, grad_THK = inputs
        grad_sums_G1M, grad_means_GMK = torch.zeros_like(state.log_sums_G1M), torch.zeros_like(state.means_GMK)
        for i, tile in enumerate(tiles):
            weights_GCM = kept.queries[i] if kept is not None else self.query_weights(tile, q_THK, state, coordinates)
            grad_GCK = tile.hide_repeats(tile.take(grad_THK, self.dtype))
            grad_means_GMK.baddbmm_(weights_GCM.mT, grad_GCK)
            grad_logits_GCM = (grad_GCK @ state.means_GMK.mT).mul_(weights_GCM)
            # the sum is g_i·out_i, but out was rounded to the dtype of the values
            grad_logits_GCM.addcmul_(weights_GCM, grad_logits_GCM.sum(-1, keepdim=True), value=-1)
            grad_sums_G1M.add_(grad_logits_GCM.sum(1, keepdim=True))
            if grad_q_THK is not None:
                grad_x_GCK = grad_logits_GCM @ self.rows_MK
                if coordinates is not None:
                    grad_x_GCK = coordinates.query_gradient(grad_x_GCK)
                tile.put(grad_q_THK, grad_x_GCK.mul_(q_THK.shape[-1] ** -0.25))
        return StateGradient(grad_sums_G1M.sub_((grad_means_GMK * state.means_GMK).sum(-1)[:, None]), grad_means_GMK)

    def backward_keys(
        self,
        tiles: Sequence[Tile],
        inputs: tuple[Tensor, Tensor],
        states: tuple[State, StateGradient],
        coordinates: Coordinates | None,
        grads: Sequence[Tensor | None],
        kept: Kept | None = None,
    ) -> None:
        """Fill in the gradients of k and v, ``inputs``: dv = A dU, dl_jr = A_jr (v_j·dU_r + ds_r - dU_r·U_r)."""
        (k_THK, v_THK), (state, grad_state) = inputs, states
        for i, tile in enumerate(tiles):
            if kept is None:
                y_GCK, logarithms_GCM = self._keys(tile, k_THK, coordinates)
                weights_GCM = logarithms_GCM.sub_(state.log_sums_G1M).exp_()
            else:
                y_GCK, weights_GCM = self._key_coordinates(tile, k_THK, coordinates)[0], kept.keys[i]
            if grads[1] is not None:
                tile.put(grads[1], weights_GCM @ grad_state.of_means_GMK)
            if grads[0] is not None:
                v_GCK = self.values(tile, v_THK)
                grad_GCM = torch.baddbmm(grad_state.of_log_sums_G1M, v_GCK, grad_state.of_means_GMK.mT).mul_(
                    weights_GCM
                )
                grad_y_GCK, grad_offset_GC1 = grad_GCM @ self.rows_MK, grad_GCM.sum(-1, keepdim=True)
                if coordinates is None:
                    grad_y_GCK.addcmul_(y_GCK, grad_offset_GC1, value=-1)
                else:
                    grad_y_GCK = coordinates.key_gradient(grad_y_GCK, grad_offset_GC1, y_GCK)
                tile.put(grads[0], grad_y_GCK.mul_(k_THK.shape[-1] ** -0.25))
