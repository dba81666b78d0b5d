"""Attention by features that are computed themselves: two sums over a segment, each read once.

    S = sum_j phi(k_j) v_j^T,  z = sum_j phi(k_j),  n_i = phi(q_i)·S,  out_i = n_i / phi(q_i)·z  or  n_i / rms(n_i).

Backward needs S and z again, which are small and kept, and their gradients, which the pass over the queries
sums up while it fills in theirs. No column of ones stands behind the values: products of an odd width, and the
copies that make it, cost more than a sum. Letters: G segments × heads of one tile, C its positions, M features;
V is K, and 1 more if S and z lie side by side in a total_GMV.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from proteinlm.ops.blank_map import MapPart
from proteinlm.ops.derivatives import refuse_second_derivative
from proteinlm.ops.tiles import Tile, blank

Normalisation = Literal["division", "numerator"]

# added to the mean square of a numerator, far below that of any values of ordinary size
RMS_EPSILON = 1e-6


class Evaluated(NamedTuple):
    """Features phi_GCM of one tile, and what their gradient needs besides."""

    phi_GCM: Tensor
    needed: tuple[Tensor, ...] = ()


class PlainFeatures(ABC):
    """One feature map, tile by tile, in the precision ``dtype``; hidden keys have features of 0."""

    num_features: int

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def prepare(self, tiles: Sequence[Tile], q_THK: Tensor, k_THK: Tensor) -> Any:
        """Return what the features of the segments of ``tiles`` need to know of all their positions: nothing here."""
        return None

    @abstractmethod
    def queries(self, tile: Tile, q_THK: Tensor, prepared: Any) -> Evaluated:
        """Return the features of a tile's queries."""

    @abstractmethod
    def keys(self, tile: Tile, k_THK: Tensor, prepared: Any) -> Evaluated:
        """Return the features of a tile's keys."""

    @abstractmethod
    def put_query_gradient(
        self, target_THK: Tensor, tile: Tile, found: Evaluated, grad_GCM: Tensor, prepared: Any
    ) -> None:
        """Fill in the gradient of a tile's queries for that of their features, which may be overwritten."""

    @abstractmethod
    def put_key_gradient(
        self, target_THK: Tensor, tile: Tile, found: Evaluated, grad_GCM: Tensor, prepared: Any
    ) -> None:
        """Fill in the gradient of a tile's keys for that of their features, which may be overwritten."""


def attend_by_sums(
    inputs: Sequence[Tensor], plan: list[list[Tile]], features: PlainFeatures, normalisation: Normalisation = "division"
) -> Tensor:
    """Return out_THK of q_THK, k_THK and v_THK; 0 where no tile of ``plan`` is. Differentiable once."""
    out_THK: Tensor = _FeatureSums.apply(*inputs, plan, features, normalisation)  # type: ignore[no-untyped-call]
    return out_THK


class _FeatureSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_THK: Tensor,
        k_THK: Tensor,
        v_THK: Tensor,
        plan: list[list[Tile]],
        features: PlainFeatures,
        normalisation: Normalisation,
    ) -> Tensor:
        # unrounded for backward: what half precision takes from out is lost to the gradients otherwise
        out_THK = blank(v_THK, plan, features.dtype)
        inverses_TH1 = blank(v_THK[..., :1], plan, features.dtype)
        prepared, totals = [], []
        with torch.autocast(q_THK.device.type, enabled=False):
            for tiles in plan:
                prepared.append(features.prepare(tiles, q_THK, k_THK))
                totals.append(_total(tiles, (k_THK, v_THK), features, prepared[-1], normalisation))
                for tile in tiles:
                    read_GCV = features.queries(tile, q_THK, prepared[-1]).phi_GCM @ totals[-1]
                    sums_GCK, inverse_GC1 = inverse(read_GCV, normalisation)
                    tile.put_product(out_THK, sums_GCK, inverse_GC1)
                    if any(ctx.needs_input_grad):
                        tile.put(inverses_TH1, inverse_GC1)
        ctx.plan, ctx.features, ctx.prepared, ctx.normalisation = plan, features, prepared, normalisation
        ctx.save_for_backward(q_THK, k_THK, v_THK, out_THK, inverses_TH1, *totals)
        return out_THK.to(v_THK.dtype)

    @staticmethod
    def backward(ctx: Any, grad_THK: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("attention by features")
        q_THK, k_THK, v_THK, out_THK, inverses_TH1, *totals = ctx.saved_tensors
        grads = [
            blank(x, ctx.plan) if needed else None
            for x, needed in zip((q_THK, k_THK, v_THK), ctx.needs_input_grad, strict=False)
        ]
        load_grads = gradients_of_sums(grad_THK, out_THK, inverses_TH1, ctx.normalisation)
        with torch.autocast(q_THK.device.type, enabled=False):
            for tiles, prepared, total_GMV in zip(ctx.plan, ctx.prepared, totals, strict=True):
                reader = _Reader(ctx.features, prepared)
                grad_sums = reader.backward_queries(tiles, q_THK, load_grads, total_GMV, v_THK.shape[-1], grads[0])
                if grads[1] is not None or grads[2] is not None:
                    reader.backward_keys(tiles, (k_THK, v_THK), grad_sums, grads[1:])
        return *grads, None, None, None


def _total(
    tiles: Sequence[Tile],
    inputs: tuple[Tensor, Tensor],
    features: PlainFeatures,
    prepared: Any,
    normalisation: Normalisation,
) -> Tensor:
    """Return S, and z behind it where the output is divided by a sum."""
    k_THK, v_THK = inputs
    sizes = (tiles[0].num_runs * k_THK.shape[1], features.num_features)
    products_GMK = torch.zeros(*sizes, v_THK.shape[-1], dtype=features.dtype, device=k_THK.device)
    sums_GM1 = products_GMK.new_zeros(*sizes, 1)
    for tile in tiles:
        phi_GCM = features.keys(tile, k_THK, prepared).phi_GCM
        products_GMK.baddbmm_(phi_GCM.mT, _values(tile, v_THK, features.dtype))
        if normalisation == "division":
            sums_GM1.add_(phi_GCM.sum(1)[..., None])
    return torch.cat((products_GMK, sums_GM1), dim=-1) if normalisation == "division" else products_GMK


def _values(tile: Tile, v_THK: Tensor, dtype: torch.dtype) -> Tensor:
    # a hidden key may be anything, and 0 times infinity is not 0
    return tile.look(v_THK, dtype) if tile.hidden_SC is None else tile.hide_keys(tile.take(v_THK, dtype), 0)


class _Reader(NamedTuple):
    features: PlainFeatures
    prepared: Any

    def backward_queries(
        self,
        tiles: Sequence[Tile],
        q_THK: Tensor,
        load_grads: Callable[[Tile], tuple[Tensor, Tensor | None]],
        total_GMV: Tensor,
        width: int,
        grad_q_THK: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Fill in the gradient of q and return those of S and z; S is ``width`` wide.

        dS = sum_i phi(q_i) dn_i^T, dz = sum_i dz_i phi(q_i), dphi(q_i) = S dn_i + dz_i z for the gradients of i's sums.
        """
        products_GMK, sums_GMN = total_GMV.split_with_sizes((width, total_GMV.shape[-1] - width), dim=-1)
        # each contiguous: products of a batch are not taken at once into a part of a tensor
        grad_products_GMK, grad_sums_GMN = (torch.zeros_like(x.contiguous()) for x in (products_GMK, sums_GMN))
        for tile in tiles:
            found, (grad_GCK, grad_sum_GC1) = self.features.queries(tile, q_THK, self.prepared), load_grads(tile)
            grad_products_GMK.baddbmm_(found.phi_GCM.mT, grad_GCK)
            if grad_sum_GC1 is not None:
                grad_sums_GMN.baddbmm_(found.phi_GCM.mT, grad_sum_GC1)
            if grad_q_THK is not None:
                grad_phi_GCM = grad_GCK @ products_GMK.mT
                if grad_sum_GC1 is not None:
                    grad_phi_GCM.addcmul_(grad_sum_GC1, sums_GMN.mT)
                self.features.put_query_gradient(grad_q_THK, tile, found, grad_phi_GCM, self.prepared)
        return grad_products_GMK, grad_sums_GMN

    def backward_keys(
        self,
        tiles: Sequence[Tile],
        inputs: tuple[Tensor, Tensor],
        grad_sums: tuple[Tensor, Tensor],
        grads: Sequence[Tensor | None],
    ) -> None:
        """Fill in the gradients of k and v: dphi(k_j) = dS v_j + dz, dv_j = dS^T phi(k_j)."""
        (k_THK, v_THK), (grad_products_GMK, grad_sums_GMN) = inputs, grad_sums
        for tile in tiles:
            found = self.features.keys(tile, k_THK, self.prepared)
            if grads[1] is not None:
                tile.put(grads[1], found.phi_GCM @ grad_products_GMK)
            if grads[0] is not None:
                grad_phi_GCM = _values(tile, v_THK, self.features.dtype) @ grad_products_GMK.mT
                if grad_sums_GMN.shape[-1]:
                    grad_phi_GCM.add_(grad_sums_GMN.mT)
                self.features.put_key_gradient(grads[0], tile, found, grad_phi_GCM, self.prepared)


def gradients_of_sums(
    grad_THK: Tensor, out_THK: Tensor, inverses_TH1: Tensor, normalisation: Normalisation
) -> Callable[[Tile], tuple[Tensor, Tensor | None]]:
    """Return what loads the gradients of a tile's sums n, and z where there is one.

    With g the gradient of out: g / z and -g·out / z for out = n / z, and (g - out g·out / K) / rms for
    out = n / rms.
    """
    dtype = inverses_TH1.dtype

    def load(tile: Tile) -> tuple[Tensor, Tensor | None]:
        grad_GCK = tile.hide_repeats(tile.look(grad_THK, dtype) * tile.look(inverses_TH1, dtype))
        out_GCK = tile.look(out_THK, dtype)
        offset_GC1 = (grad_GCK * out_GCK).sum(-1, keepdim=True).neg_()
        if normalisation == "division":
            return grad_GCK, offset_GC1
        return grad_GCK.addcmul_(out_GCK, offset_GC1, value=1 / out_GCK.shape[-1]), None

    return load


def inverse(read_GCV: Tensor, normalisation: Normalisation) -> tuple[Tensor, Tensor]:
    """Return sums_GCK of what queries read, and the inverses_GC1 that they are to be multiplied by."""
    if normalisation == "division":
        return read_GCV[..., :-1], inverse_sum(read_GCV[..., -1:])
    return read_GCV, inverse_rms(read_GCV)


def inverse_rms(sums_NK: Tensor) -> Tensor:
    """Return 1 / sqrt(mean square + epsilon) of each vector, as inverses_N1; finite for a vector of zeros.

    Source: Qin et al., EMNLP 2022, arXiv:2210.10340, there called NormAttention.
    """
    return sums_NK.square().mean(-1, keepdim=True).add_(RMS_EPSILON).rsqrt_()


def inverse_sum(sums_N1: Tensor) -> Tensor:
    """Return 1 / sum, and 0 where the sum is 0, or as good as that, because there is nothing to add up."""
    return sums_N1.reciprocal().nan_to_num_(nan=torch.nan, posinf=0, neginf=0)


def fill_by_sums(
    part: MapPart, keys: Sequence[Tile], inputs: tuple[Tensor, Tensor], features: PlainFeatures, tile_length: int
) -> None:
    """Fill in the weights phi(q_i)·phi(k_j) / phi(q_i)·z of one part of a map; ``keys`` cover its segment."""
    q_THK, k_THK = inputs
    prepared = features.prepare(keys, q_THK, k_THK)
    total_GM1 = _total(keys, (k_THK, k_THK[..., :0]), features, prepared, "division")
    for queries in part.queries(tile_length):
        phi_HCM = features.queries(queries, q_THK, prepared).phi_GCM
        phi_HCM = phi_HCM * inverse_sum(phi_HCM @ total_GM1)
        for tile in keys:
            part.put(queries, tile, phi_HCM @ features.keys(tile, k_THK, prepared).phi_GCM.mT)
