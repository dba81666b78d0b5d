"""Causal FAVOR+ in chunks: pairs of one chunk one by one, earlier ones by a sum over their features.

Notation: x = q / K^(1/4), y = k / K^(1/4), rows w_r, a_ir = w_r·x_i, l_jr = w_r·y_j - |y_j|^2 / 2. Then

    out_i = sum_r sum_{j <= i} pi_ijr v_j,   pi_ijr = exp(a_ir + l_jr - lambda_i),

where lambda_i, a query's log normaliser, makes the weights sum to 1. Exponentials are kept in range by

    c_r = max of l_jr over the visible keys of earlier chunks,
    mu_i = max over r of (a_ir + c_r),   nu_j = max over r of (l_jr - c_r),

which cancel, and of which none that a query sees knows a later key: nothing leaks, not even by rounding. The
state of earlier chunks is S_r = sum_j exp(l_jr - c_r) (v_j, 1). In the first chunk that has a visible key, c_r is
half of the first one's l_jr: for a key alone, which all of the weight goes to, the features of query and key
then stay within each other's range even if they point in opposite directions.

Letters: G segments × heads of one chunk, C its positions, V = K + 1 with a column of ones behind the values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor

from proteinlm.ops.blank_map import BlankMap, MapPart
from proteinlm.ops.derivatives import refuse_second_derivative
from proteinlm.ops.precision import accumulation_dtype
from proteinlm.ops.random_features.features import check_rows, log_features
from proteinlm.ops.tiles import Tile, cut_segment
from proteinlm.ops.visibility import Seen, check_inputs

# positions of a chunk: its pairs, weighted one by one, then cost less than its features
CHUNK_LENGTH = 64


def causal_favor_attention(
    q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, rows_MK: Tensor, **seen: Unpack[Seen]
) -> Tensor:
    """Return the FAVOR+ estimate of causal softmax attention of q, k, v (B, L, H, K).

    out_i = sum_j phi(x_i)·phi(y_j) v_j / sum_j phi(x_i)·phi(y_j) over the visible keys j <= i of i's
    segment; exactly 0, with zero gradients, where there is none. Time O(L M K), memory O(L K + M K)
    a head, forward and backward. Features and sums are float32 for any input but float64, also under
    autocast. A key changes no output before it.

    Args:
        rows_MK: one row for each feature (``feature_rows``); gets no gradient.
        seen: see ``Visibility``.

    Returns:
        out_BLHK in the dtype of ``v_BLHK``. Differentiable once. A key that is hidden may hold anything.

    Raises:
        ShapeError: if the arguments do not fit together.

    Source: Choromanski et al., ICLR 2021, arXiv:2009.14794, equation 2 and appendix B.1.
    """
    visibility = check_inputs(q_BLHK, k_BLHK, v_BLHK, **seen)
    check_rows(rows_MK, q_BLHK.shape[-1])
    plan = visibility.tiles(q_BLHK.device, CHUNK_LENGTH)
    flat = (x.flatten(0, 1) for x in (visibility.finite_queries(q_BLHK), k_BLHK, v_BLHK))
    out_THK: Tensor = _CausalFavor.apply(*flat, rows_MK, plan)  # type: ignore[no-untyped-call]
    return out_THK.view_as(v_BLHK)


class _CausalFavor(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, rows_MK: Tensor, plan: list[list[Tile]]
    ) -> Tensor:
        dtype = accumulation_dtype(q_THK, k_THK, v_THK)
        rows_MK = rows_MK.to(q_THK.device, dtype)
        # unrounded for backward: what half precision takes from out is lost to the gradients otherwise
        out_THK = torch.zeros(v_THK.shape, dtype=dtype, device=v_THK.device)
        normalisers_TH1 = torch.zeros(*v_THK.shape[:2], 1, dtype=dtype, device=v_THK.device)
        with torch.autocast(q_THK.device.type, enabled=False):
            for tiles in plan:
                for chunk in _chunks(tiles, k_THK, v_THK, rows_MK):
                    out_GCK, normaliser_GC1 = chunk.read(_scaled(chunk.tile, q_THK, dtype) @ rows_MK.T)
                    chunk.tile.put(out_THK, out_GCK)
                    chunk.tile.put(normalisers_TH1, normaliser_GC1)
        ctx.plan = plan
        ctx.save_for_backward(q_THK, k_THK, v_THK, rows_MK, out_THK, normalisers_TH1)
        return out_THK.to(v_THK.dtype)

    @staticmethod
    def backward(ctx: Any, grad_THK: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("FAVOR+ attention")
        q_THK, k_THK, v_THK, rows_MK, out_THK, normalisers_TH1 = ctx.saved_tensors
        grads = [
            torch.zeros_like(x, memory_format=torch.contiguous_format) if needed else None
            for x, needed in zip((q_THK, k_THK, v_THK), ctx.needs_input_grad, strict=False)
        ]
        queries = _Queries(q_THK, grad_THK, out_THK, normalisers_TH1, rows_MK)
        with torch.autocast(q_THK.device.type, enabled=False):
            for tiles in ctx.plan:
                maxima = _backward_queries(tiles, queries, k_THK, v_THK, grads[0])
                if grads[1] is not None or grads[2] is not None:
                    _backward_keys(tiles, queries, k_THK, v_THK, maxima, grads[1:])
        return *grads, None, None


def _scaled(tile: Tile, x_THK: Tensor, dtype: torch.dtype) -> Tensor:
    return tile.take(x_THK, dtype).mul_(x_THK.shape[-1] ** -0.25)


def _lowest(dtype: torch.dtype) -> float:
    # stands for minus infinity where one is subtracted from another
    return torch.finfo(dtype).min / 8


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A chunk's keys and the state that its queries find."""

    tile: Tile
    y_GCK: Tensor
    logarithms_GCM: Tensor  # l, minus infinity where a key is hidden
    v_GCV: Tensor
    earlier_G1M: Tensor  # max of l over earlier chunks
    state_GMV: Tensor | None  # None: there are no earlier chunks
    stabiliser_G1M: Tensor  # c

    def keys(self) -> tuple[Tensor, Tensor]:
        """Return exp(l - c - nu)_GCM and nu_G1C."""
        shifted_GCM = self.logarithms_GCM - self.stabiliser_G1M
        largest_GC1 = shifted_GCM.amax(-1, keepdim=True).clamp_min_(_lowest(shifted_GCM.dtype))
        return shifted_GCM.sub_(largest_GC1).exp_(), largest_GC1.mT

    def queries(self, a_GCM: Tensor) -> tuple[Tensor, Tensor]:
        """Return exp(a + c - mu)_GCM and mu_GC1; writes over ``a_GCM``."""
        largest_GC1 = a_GCM.add_(self.stabiliser_G1M).amax(-1, keepdim=True)
        return a_GCM.sub_(largest_GC1).exp_(), largest_GC1

    def read(self, a_GCM: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output out_GCK and lambda_GC1, huge where a query sees no key."""
        dtype = a_GCM.dtype
        key_GCM, nu_G1C = self.keys()
        query_GCM, mu_GC1 = self.queries(a_GCM)
        logarithms_GCC = (query_GCM @ key_GCM.mT).log_().add_(nu_G1C).masked_fill_(_later(query_GCM), -torch.inf)
        largest_GC1 = logarithms_GCC.amax(-1, keepdim=True)
        if self.state_GMV is None:
            read_GCV = self._averaged(logarithms_GCC, largest_GC1.clamp_min_(_lowest(dtype)))
        else:
            earlier_GCV = query_GCM @ self.state_GMV
            # at least 0, unless no earlier key is visible and the state is 0
            largest_GC1 = torch.maximum(largest_GC1, earlier_GCV[..., -1:].log()).clamp_min_(_lowest(dtype))
            read_GCV = self._averaged(logarithms_GCC, largest_GC1)
            read_GCV.addcmul_(earlier_GCV, largest_GC1.neg().clamp_max_(0).exp_())
        sums_GC1 = read_GCV[..., -1:]
        normaliser_GC1 = (mu_GC1 + largest_GC1).add_(sums_GC1.log())
        normaliser_GC1.masked_fill_(sums_GC1 == 0, -_lowest(dtype))
        return read_GCV[..., :-1] / sums_GC1.clamp_min(torch.finfo(dtype).tiny), normaliser_GC1

    def _averaged(self, logarithms_GCC: Tensor, largest_GC1: Tensor) -> Tensor:
        return logarithms_GCC.sub_(largest_GC1).exp_() @ self.v_GCV

    def after(self) -> tuple[Tensor, Tensor]:
        """Return max of l, and the state, over this chunk and those before."""
        grown_G1M = torch.maximum(self.earlier_G1M, self.logarithms_GCM.amax(1, keepdim=True))
        key_GCM = (self.logarithms_GCM - grown_G1M).exp_()
        if self.state_GMV is None:
            return grown_G1M, key_GCM.mT @ self.v_GCV
        shrunk_GMV = self.state_GMV * (self.earlier_G1M - grown_G1M).exp_().mT
        return grown_G1M, shrunk_GMV.baddbmm_(key_GCM.mT, self.v_GCV)


def _chunks(tiles: Sequence[Tile], k_THK: Tensor, v_THK: Tensor, rows_MK: Tensor) -> Iterator[_Chunk]:
    """Yield the chunks of a segment in order."""
    num_matrices = tiles[0].num_runs * k_THK.shape[1]
    earlier_G1M = rows_MK.new_full((num_matrices, 1, len(rows_MK)), _lowest(rows_MK.dtype))
    state_GMV: Tensor | None = None
    for tile in tiles:
        chunk = _chunk(tile, k_THK, v_THK, rows_MK, earlier_G1M, state_GMV)
        yield chunk
        if tile is not tiles[-1]:
            earlier_G1M, state_GMV = chunk.after()


def _chunk(
    tile: Tile, k_THK: Tensor, v_THK: Tensor, rows_MK: Tensor, earlier_G1M: Tensor, state_GMV: Tensor | None
) -> _Chunk:
    # a hidden key may be anything, and 0 times infinity is not 0
    y_GCK = tile.hide_keys(_scaled(tile, k_THK, rows_MK.dtype), 0)
    logarithms_GCM = tile.hide_keys(log_features(y_GCK, rows_MK), -torch.inf)
    v_GCK = tile.hide_keys(tile.take(v_THK, rows_MK.dtype), 0)
    v_GCV = torch.cat((v_GCK, v_GCK.new_ones(*v_GCK.shape[:-1], 1)), dim=-1)
    lowest = _lowest(rows_MK.dtype)
    first_G1M = _first_visible(tile, logarithms_GCM).clamp_min(lowest)
    stabiliser_G1M = torch.where(earlier_G1M > lowest, earlier_G1M, first_G1M / 2)
    return _Chunk(tile, y_GCK, logarithms_GCM, v_GCV, earlier_G1M, state_GMV, stabiliser_G1M)


def _first_visible(tile: Tile, x_GCM: Tensor) -> Tensor:
    if tile.hidden_SC is None:
        return x_GCM[:, :1]
    first_S = (~tile.hidden_SC).int().argmax(1)
    first_G = first_S.repeat_interleave(len(x_GCM) // tile.num_runs)
    return x_GCM[torch.arange(len(x_GCM), device=x_GCM.device), first_G][:, None]


@dataclass(frozen=True, slots=True)
class _Queries:
    """What backward needs of the queries."""

    q_THK: Tensor
    grad_THK: Tensor
    out_THK: Tensor
    normalisers_TH1: Tensor
    rows_MK: Tensor

    def load(self, tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
        """Return a_GCM, lambda_GC1 and h_GCV = (g, -g·out), with g 0 where a position is there again."""
        dtype = self.rows_MK.dtype
        grad_GCK = tile.hide_repeats(tile.take(self.grad_THK, dtype))
        offset_GC1 = (grad_GCK * tile.take(self.out_THK, dtype)).sum(-1, keepdim=True).neg_()
        a_GCM = _scaled(tile, self.q_THK, dtype) @ self.rows_MK.T
        return a_GCM, tile.take(self.normalisers_TH1, dtype), torch.cat((grad_GCK, offset_GC1), dim=-1)


def _later(x_GCN: Tensor) -> Tensor:
    return torch.ones(x_GCN.shape[1], x_GCN.shape[1], dtype=torch.bool, device=x_GCN.device).triu_(1)


def _pair_weights(mu_GC1: Tensor, nu_G1C: Tensor, normaliser_GC1: Tensor) -> Tensor:
    """Return exp(mu_i + nu_j - lambda_i) for j <= i, and 0 for later keys."""
    logarithms_GCC = (mu_GC1 - normaliser_GC1) + nu_G1C
    # where this overflows, the products of features that it multiplies have vanished
    logarithms_GCC.clamp_max_(math.log(torch.finfo(mu_GC1.dtype).max) - 8)
    return logarithms_GCC.masked_fill_(_later(logarithms_GCC), -torch.inf).exp_()


def _backward_queries(
    tiles: Sequence[Tile], queries: _Queries, k_THK: Tensor, v_THK: Tensor, grad_q_THK: Tensor | None
) -> list[Tensor]:
    """Fill in the gradient of q, da_ir = sum_{j <= i} pi_ijr h_i·(v_j, 1); return the maxima before each chunk."""
    maxima = []
    for chunk in _chunks(tiles, k_THK, v_THK, queries.rows_MK):
        maxima.append(chunk.earlier_G1M)
        if grad_q_THK is None:
            continue
        a_GCM, normaliser_GC1, h_GCV = queries.load(chunk.tile)
        key_GCM, nu_G1C = chunk.keys()
        query_GCM, mu_GC1 = chunk.queries(a_GCM)
        weights_GCC = _pair_weights(mu_GC1, nu_G1C, normaliser_GC1).mul_(h_GCV @ chunk.v_GCV.mT)
        grad_GCM = weights_GCC @ key_GCM
        if chunk.state_GMV is not None:
            h_GCV.mul_((mu_GC1 - normaliser_GC1).exp_())
            grad_GCM.baddbmm_(h_GCV, chunk.state_GMV.mT)
        grad_GCK = grad_GCM.mul_(query_GCM) @ queries.rows_MK
        chunk.tile.put(grad_q_THK, grad_GCK.mul_(grad_GCK.shape[-1] ** -0.25))
    return maxima


def _backward_keys(
    tiles: Sequence[Tile],
    queries: _Queries,
    k_THK: Tensor,
    v_THK: Tensor,
    maxima: Sequence[Tensor],
    grads: Sequence[Tensor | None],
) -> None:
    """Fill in the gradients of k and v, from the last chunk to the first.

    dv_j = sum_{i >= j, r} pi_ijr g_i and dl_jr = sum_{i >= j} pi_ijr h_i·(v_j, 1). Queries of later chunks are
    summed up as R_r = sum_i exp(a_ir + c_r - lambda_i) h_i, c_r the maximum up to this chunk's end: no
    exponential is above 1, because c_r is one of the l_jr that lambda_i counts.
    """
    rows_MK = queries.rows_MK
    later_GMV: Tensor | None = None
    for tile, earlier_G1M, until_G1M in zip(reversed(tiles), reversed(maxima), [None, *reversed(maxima)], strict=False):
        chunk = _chunk(tile, k_THK, v_THK, rows_MK, earlier_G1M, None)
        a_GCM, normaliser_GC1, h_GCV = queries.load(tile)
        next_GCM = (a_GCM + earlier_G1M).sub_(normaliser_GC1).exp_() if tile is not tiles[0] else None
        key_GCM, nu_G1C = chunk.keys()
        query_GCM, mu_GC1 = chunk.queries(a_GCM)
        pairs_GCC = _pair_weights(mu_GC1, nu_G1C, normaliser_GC1)
        weights_GCC = pairs_GCC * (h_GCV @ chunk.v_GCV.mT)
        grad_l_GCM = (weights_GCC.mT @ query_GCM).mul_(key_GCM)
        grad_v_GCK = pairs_GCC.mul_(query_GCM @ key_GCM.mT).mT @ h_GCV[..., :-1]
        if later_GMV is not None and until_G1M is not None:
            outer_GCM = (chunk.logarithms_GCM - until_G1M).exp_()
            grad_v_GCK.baddbmm_(outer_GCM, later_GMV[..., :-1])
            grad_l_GCM.addcmul_(outer_GCM, chunk.v_GCV @ later_GMV.mT)
        if grads[1] is not None:
            tile.put(grads[1], grad_v_GCK)
        if grads[0] is not None:
            grad_y_GCK = (grad_l_GCM @ rows_MK).addcmul_(chunk.y_GCK, grad_l_GCM.sum(-1, keepdim=True), value=-1)
            tile.put(grads[0], grad_y_GCK.mul_(grad_y_GCK.shape[-1] ** -0.25))
        if next_GCM is not None:
            if later_GMV is None or until_G1M is None:
                later_GMV = next_GCM.mT @ h_GCV
            else:
                later_GMV.mul_((earlier_G1M - until_G1M).exp_().mT).baddbmm_(next_GCM.mT, h_GCV)


@torch.no_grad()
def causal_favor_map(
    q_BLHK: Tensor, k_BLHK: Tensor, rows_MK: Tensor, *, rows: slice = slice(None), **seen: Unpack[Seen]
) -> Tensor:
    """Return the weights that causal FAVOR+ implies for some rows of queries (B, L, H, K).

    Times the values they are the output of ``causal_favor_attention``. Rows sum to 1 where a key is visible and
    are 0 elsewhere. No gradient. Besides the result, memory as in ``causal_favor_attention``.

    Args:
        rows: the queries wanted, a slice of L with step 1.
        seen: see ``Visibility``.

    Returns:
        map_BHRL, float32, or float64 for float64 queries or keys.
    """
    visibility = check_inputs(q_BLHK, k_BLHK, **seen)
    check_rows(rows_MK, q_BLHK.shape[-1])
    blank = BlankMap(visibility, rows, q_BLHK, k_BLHK)
    inputs = (visibility.finite_queries(q_BLHK).flatten(0, 1), k_BLHK.flatten(0, 1), rows_MK.to(blank.map_BHRL))
    with torch.autocast(q_BLHK.device.type, enabled=False):
        for part in blank.parts():
            keys = cut_segment(part.segment, visibility.mask_T, CHUNK_LENGTH)
            for queries in part.queries(CHUNK_LENGTH):
                _map_rows(part, queries, keys, inputs)
    return blank.map_BHRL


def _map_rows(part: MapPart, queries: Tile, keys: Sequence[Tile], inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    """Fill in some rows of the map of one segment.

    The map is the softmax of log kernels mu_i + nu_j + log(sum_r exp(a_ir + c_r - mu_i) exp(l_jr - c_r - nu_j)).
    """
    q_THK, k_THK, rows_MK = inputs
    a_HCM = _scaled(queries, q_THK, rows_MK.dtype) @ rows_MK.T
    written_HCJ = part.rows(queries).fill_(-torch.inf)
    for tile in keys:
        steps_CJ = part.steps(queries, tile)
        if steps_CJ.max() < 0:
            break
        unseen_H1M = a_HCM.new_full((len(a_HCM), 1, a_HCM.shape[-1]), _lowest(a_HCM.dtype))
        chunk = _chunk(tile, k_THK, k_THK[..., :0], rows_MK, unseen_H1M, None)
        key_HCM, nu_H1C = chunk.keys()
        query_HCM, mu_HC1 = chunk.queries(a_HCM.clone())
        logarithms_HCJ = (query_HCM @ key_HCM.mT).log_().add_(mu_HC1).add_(nu_H1C)
        part.put(queries, tile, logarithms_HCJ.masked_fill_(steps_CJ < 0, -torch.inf))
    sees_HC1 = (written_HCJ > -torch.inf).any(-1, keepdim=True)
    written_HCJ.copy_(written_HCJ.softmax(-1).masked_fill_(~sees_HC1, 0))
