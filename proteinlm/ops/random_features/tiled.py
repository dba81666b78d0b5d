"""What attention in tiles asks of a feature map."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from proteinlm.ops.random_features.coordinates import Coordinates, find_coordinates
from proteinlm.ops.random_features.features import Features
from proteinlm.ops.tiles import Tile


class State(NamedTuple):
    """What the keys of a segment leave behind: all that its queries need.

    A query's weights times ``means_GMK`` are its output.
    """

    sums_G1M: Tensor
    means_GMK: Tensor


class Kept(NamedTuple):
    """Weights_GCM of the queries and keys of each tile that forward leaves to backward."""

    queries: list[Tensor]
    keys: list[Tensor]


class TiledFeatures(ABC):
    """One feature map with its rows, tile by tile: G segments × heads, C positions, M features.

    out = query weights · means, map = query weights · key weights^T.

    Attributes:
        num_features: the width M of a feature vector.
        can_keep: whether backward can read the weights of ``Kept``.
    """

    num_features: int
    can_keep = False

    def __init__(self, features: Features, rows_MK: Tensor | None, dtype: torch.dtype) -> None:
        self.features = features
        self.rows_MK = rows_MK
        self.dtype = dtype

    def coordinates(self, tiles: Sequence[Tile], q_THK: Tensor, k_THK: Tensor) -> Coordinates | None:
        """Return what the segments of ``tiles`` do to queries and keys first."""
        return find_coordinates(self.features, tiles, q_THK, k_THK, self.rows_MK, self.dtype)

    def values(self, tile: Tile, v_THK: Tensor) -> Tensor:
        """Return v_GCK, 0 where a key is hidden."""
        return tile.hide_keys(tile.take(v_THK, self.dtype), 0)

    @abstractmethod
    def average_keys(
        self,
        tiles: Sequence[Tile],
        k_THK: Tensor,
        v_THK: Tensor,
        coordinates: Coordinates | None,
        kept: Kept | None = None,
    ) -> State:
        """Return the state in one pass over the tiles; weights of the keys go to ``kept``."""

    @abstractmethod
    def query_weights(self, tile: Tile, q_THK: Tensor, state: State, coordinates: Coordinates | None) -> Tensor:
        """Return weights_GCM of each query for each feature's mean."""

    @abstractmethod
    def key_weights(self, tile: Tile, k_THK: Tensor, state: State, coordinates: Coordinates | None) -> Tensor:
        """Return weights_GCM of each key in each feature's mean, 0 where it is hidden."""

    @abstractmethod
    def backward_queries(
        self,
        tiles: Sequence[Tile],
        inputs: tuple[Tensor, Tensor],
        state: State,
        coordinates: Coordinates | None,
        grad_q_THK: Tensor | None,
        kept: Kept | None = None,
    ) -> State:
        """Fill in the gradient of q from ``inputs``, q and the gradient of out; return that of the state."""

    @abstractmethod
    def backward_keys(
        self,
        tiles: Sequence[Tile],
        inputs: tuple[Tensor, Tensor],
        states: tuple[State, State],
        coordinates: Coordinates | None,
        grads: Sequence[Tensor | None],
        kept: Kept | None = None,
    ) -> None:
        """Fill in the gradients of k and v from ``inputs``, k and v, the state and its gradient."""
