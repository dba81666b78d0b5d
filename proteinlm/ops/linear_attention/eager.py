"""Linear attention in tiles: no tensor of L × L, and no state for each position, is ever alive.

Every sum of this module, forward and backward, is of one kind: with D_ij the decay of a pair, 0 where i may
not see j,

    read(a)_i = sum_j D_ij (a_i·b_j) c_j,   read_back(d)_i = sum_j D_ij (d_i·c_j) b_j.

Without decay and order it is a product with sum_j b_j c_j^T: see ``feature_sums``. Otherwise a tile reads its own
pairs one by one and those outside from a state, the decayed sum of b_j c_j^T up to the tile's edge. Forward has
b = phi(k), c = v and reads phi(q). Backward reads g back with the same sums for the gradient of phi(q); those of
v and phi(k) are reads with b = phi(q), c = g and D transposed.

Letters: G segments × heads of one tile, C its positions, V the values' width, 1 more if a column of ones
behind the values sums up the normaliser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor

from proteinlm.errors import ShapeError
from proteinlm.ops.blank_map import BlankMap, MapPart
from proteinlm.ops.derivatives import refuse_second_derivative
from proteinlm.ops.feature_sums import Normalisation, attend_by_sums, gradients_of_sums, inverse
from proteinlm.ops.linear_attention.features import EluFeatures, features, slopes, with_ones
from proteinlm.ops.precision import accumulation_dtype
from proteinlm.ops.tiles import Tile, cut_segment
from proteinlm.ops.visibility import Seen, check_inputs

# features of one tile, all heads: 1 MiB in float32; of several such tensors two cores keep the ones in use close
TILE_ELEMENTS = 2**18
# positions of a tile whose pairs are weighted one by one: about a head's width, where both halves cost the same
CHUNK_LENGTH = 64


LoadPair = Callable[[Tile], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class PairDecay:
    """How much a pair of positions counts: gamma_h^|i - j|, and 0 for later keys if causal."""

    is_causal: bool
    logarithms_H: Tensor | None

    @property
    def is_flat(self) -> bool:
        """Whether every pair counts alike."""
        return not self.is_causal and self.logarithms_H is None

    def inside(self, products_GCC: Tensor, *, is_reversed: bool) -> Tensor:
        """Return the products of a tile's own pairs times their decay, written over them."""
        length = products_GCC.shape[-1]
        if self.logarithms_H is not None:
            steps_C = torch.arange(length, device=products_GCC.device)
            decay_GCC = self.power(products_GCC, (steps_C[:, None] - steps_C).abs())
            products_GCC.mul_(decay_GCC)
        if self.is_causal:
            return products_GCC.triu_() if is_reversed else products_GCC.tril_()
        return products_GCC

    def over(self, x_GCN: Tensor, *, first: int, is_falling: bool) -> Tensor:
        """Return each position's vector times gamma^(first + its distance from one end of the tile)."""
        if self.logarithms_H is None:
            return x_GCN
        steps_C = torch.arange(first, first + x_GCN.shape[1], device=x_GCN.device)
        return x_GCN * self.power(x_GCN, (steps_C.flip(0) if is_falling else steps_C)[:, None])

    def shrink_(self, state_GVV: Tensor, distance: int) -> Tensor:
        """Multiply a state by gamma^distance in place."""
        if self.logarithms_H is None:
            return state_GVV
        return state_GVV.mul_(self.power(state_GVV, torch.tensor([[distance]], device=state_GVV.device)))

    def power(self, like_GNN: Tensor, exponents_NN: Tensor) -> Tensor:
        """Return gamma^exponent for the heads of each of G segments, in the dtype of ``like_GNN``."""
        assert self.logarithms_H is not None
        logarithms_H = self.logarithms_H.to(like_GNN.device)
        # float64, because an exponent may be as long as a tile and a logarithm as small as 2^-24
        powers_HNN = torch.exp(logarithms_H[:, None, None] * exponents_NN).to(like_GNN.dtype)
        return powers_HNN.repeat(len(like_GNN) // len(powers_HNN), 1, 1)


@dataclass(frozen=True, slots=True)
class Sums:
    """The pairs b_j, c_j that one tile's positions see: its own one by one, those outside summed up."""

    decay: PairDecay
    is_reversed: bool
    own: tuple[Tensor, Tensor] | None
    # sums outside, and whether they lie before the tile
    states: Sequence[tuple[Tensor, bool]]

    def read(self, a_GCN: Tensor) -> Tensor:
        """Return sum_j D_ij (a_i·b_j) c_j."""
        return self._read(a_GCN, self.own, [(state, is_before) for state, is_before in self.states])

    def read_back(self, d_GCN: Tensor) -> Tensor:
        """Return sum_j D_ij (d_i·c_j) b_j."""
        own = None if self.own is None else (self.own[1], self.own[0])
        return self._read(d_GCN, own, [(state.mT, is_before) for state, is_before in self.states])

    def _read(self, a_GCN: Tensor, own: tuple[Tensor, Tensor] | None, states: Sequence[tuple[Tensor, bool]]) -> Tensor:
        parts = []
        if own is not None:
            parts.append(self.decay.inside(a_GCN @ own[0].mT, is_reversed=self.is_reversed) @ own[1])
        for state, is_before in states:
            # a state stands at the last position before the tile, or at the first one behind it
            parts.append(self.decay.over(a_GCN, first=1, is_falling=not is_before) @ state)
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def scan(
    tiles: Sequence[Tile], load: LoadPair, decay: PairDecay, *, is_reversed: bool = False
) -> Iterator[tuple[Tile, Sums]]:
    """Yield each tile of a segment with what its positions see; ``is_reversed`` transposes D."""
    if decay.is_causal:
        order = tiles[::-1] if is_reversed else tiles
        for tile, pair, state in _states(order, load, decay, from_start=not is_reversed):
            yield tile, Sums(decay, is_reversed, pair, [] if state is None else [(state, not is_reversed)])
        return
    # one state a tile: as much memory as the inputs where a tile is as long as a head is wide
    behind = [state for _, _, state in _states(tiles[::-1], load, decay, from_start=False)]
    for tile, pair, before in _states(tiles, load, decay, from_start=True):
        around = [(before, True), (behind.pop(), False)]
        yield tile, Sums(decay, False, pair, [(state, is_before) for state, is_before in around if state is not None])


def _states(
    order: Sequence[Tile], load: LoadPair, decay: PairDecay, *, from_start: bool
) -> Iterator[tuple[Tile, tuple[Tensor, Tensor], Tensor | None]]:
    """Yield each tile, its own pairs and the sum over the tiles that came first, at their edge."""
    state: Tensor | None = None
    for tile in order:
        b_GCN, c_GCV = load(tile)
        yield tile, (b_GCN, c_GCV), state
        if tile is order[-1]:
            return
        at_edge_GCN = decay.over(b_GCN, first=0, is_falling=from_start)
        if state is None:
            state = at_edge_GCN.mT @ c_GCV
        else:
            # the tile that was given the old state may still hold it
            state = decay.shrink_(state.clone(), b_GCN.shape[1]).baddbmm_(at_edge_GCN.mT, c_GCV)


def linear_attention(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHK: Tensor,
    *,
    normalisation: Normalisation = "division",
    decay_H: Tensor | None = None,
    **seen: Unpack[Seen],
) -> Tensor:
    """Return linear attention of q, k, v (B, L, H, K), bidirectional or causal.

    With A_ij = phi(q_i)·phi(k_j) gamma^|i - j| over the visible keys j of i's segment, those up to i if
    causal, and n_i = sum_j A_ij v_j: out_i = n_i / sum_j A_ij ("division") or
    n_i / rms(n_i) ("numerator"); exactly 0, with zero gradients, where there is no key. Time O(L K^2),
    memory O(L K + K^2) a head, forward and backward; sums are float32 for any input but float64.

    Args:
        decay_H: log gamma of each head, see ``decay_logarithms``; None: no decay. Hidden positions count as
            distance.
        seen: see ``Visibility``.

    Returns:
        out_BLHK in the dtype of ``v_BLHK``. Differentiable once. A key that is hidden may hold anything.

    Raises:
        ShapeError: if the arguments do not fit together, or there is not one decay for each head.

    Source: see ``reference``.
    """
    visibility = check_inputs(q_BLHK, k_BLHK, v_BLHK, **seen)
    num_heads, head_dim = q_BLHK.shape[2:]
    check_decay(decay_H, num_heads)
    decay = PairDecay(visibility.is_causal, decay_H)
    tile_length = max(1, TILE_ELEMENTS // (num_heads * head_dim)) if decay.is_flat else CHUNK_LENGTH
    plan = visibility.tiles(q_BLHK.device, tile_length)
    q_THK, k_THK, v_THK = (x.flatten(0, 1) for x in (visibility.finite_queries(q_BLHK), k_BLHK, v_BLHK))
    if decay.is_flat:
        features_of = EluFeatures(accumulation_dtype(q_THK, k_THK, v_THK), head_dim)
        return attend_by_sums((q_THK, k_THK, v_THK), plan, features_of, normalisation).view_as(v_BLHK)
    out_THK: Tensor = _Linear.apply(q_THK, k_THK, v_THK, plan, decay, normalisation)  # type: ignore[no-untyped-call]
    return out_THK.view_as(v_BLHK)


def keys_and_values(k_THK: Tensor, v_THK: Tensor, dtype: torch.dtype, normalisation: Normalisation) -> LoadPair:
    """Return what loads phi(k) and the values of a tile, with a column of ones for the normaliser."""

    def load(tile: Tile) -> tuple[Tensor, Tensor]:
        # a hidden key may be anything, and 0 times infinity is not 0
        phi_GCK = tile.hide_keys(features(tile.look(k_THK, dtype)), 0)
        v_GCK = tile.hide_keys(tile.take(v_THK, dtype), 0)
        return phi_GCK, with_ones(v_GCK) if normalisation == "division" else v_GCK

    return load


def check_decay(decay_H: Tensor | None, num_heads: int) -> None:
    """Refuse decays that are not one for each head.

    Raises:
        ShapeError: if there are more or fewer.
    """
    if decay_H is not None and decay_H.shape != (num_heads,):
        raise ShapeError(f"decay is {tuple(decay_H.shape)} for {num_heads} heads; expected ({num_heads},)")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_THK: Tensor,
        k_THK: Tensor,
        v_THK: Tensor,
        plan: list[list[Tile]],
        decay: PairDecay,
        normalisation: Normalisation,
    ) -> Tensor:
        dtype = accumulation_dtype(q_THK, k_THK, v_THK)
        # unrounded for backward: what half precision takes from out is lost to the gradients otherwise
        out_THK = torch.zeros(v_THK.shape, dtype=dtype, device=v_THK.device)
        inverses_TH1 = torch.zeros(*v_THK.shape[:2], 1, dtype=dtype, device=v_THK.device)
        with torch.autocast(q_THK.device.type, enabled=False):
            for tiles in plan:
                for tile, sums in scan(tiles, keys_and_values(k_THK, v_THK, dtype, normalisation), decay):
                    read_GCV = sums.read(features(tile.look(q_THK, dtype)))
                    sums_GCK, inverse_GC1 = inverse(read_GCV, normalisation)
                    tile.put(inverses_TH1, inverse_GC1)
                    tile.put_product(out_THK, sums_GCK, inverse_GC1)
        ctx.plan, ctx.decay, ctx.normalisation = plan, decay, normalisation
        ctx.save_for_backward(q_THK, k_THK, v_THK, out_THK, inverses_TH1)
        return out_THK.to(v_THK.dtype)

    @staticmethod
    def backward(ctx: Any, grad_THK: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("linear attention")
        q_THK, k_THK, v_THK, out_THK, inverses_TH1 = ctx.saved_tensors
        dtype = accumulation_dtype(q_THK, k_THK, v_THK)
        grads = [
            torch.zeros_like(x, memory_format=torch.contiguous_format) if needed else None
            for x, needed in zip((q_THK, k_THK, v_THK), ctx.needs_input_grad, strict=False)
        ]
        load_keys = keys_and_values(k_THK, v_THK, dtype, ctx.normalisation)
        load_parts = gradients_of_sums(grad_THK, out_THK, inverses_TH1, ctx.normalisation)

        def load_grads(tile: Tile) -> Tensor:
            return torch.cat([x for x in load_parts(tile) if x is not None], dim=-1)

        with torch.autocast(q_THK.device.type, enabled=False):
            for tiles in ctx.plan:
                if grads[0] is not None:
                    _backward_queries(scan(tiles, load_keys, ctx.decay), q_THK, load_grads, grads[0])
                if grads[1] is not None or grads[2] is not None:

                    def load_queries(tile: Tile) -> tuple[Tensor, Tensor]:
                        return features(tile.look(q_THK, dtype)), load_grads(tile)

                    sums = scan(tiles, load_queries, ctx.decay, is_reversed=True)
                    _backward_keys(sums, load_keys, grads[1:])
        return *grads, None, None, None


def _backward_queries(
    scanned: Iterator[tuple[Tile, Sums]], q_THK: Tensor, load_grads: Callable[[Tile], Tensor], grad_q_THK: Tensor
) -> None:
    for tile, sums in scanned:
        grad_GCV = load_grads(tile)
        phi_GCK = features(tile.look(q_THK, grad_GCV.dtype))
        tile.put(grad_q_THK, sums.read_back(grad_GCV).mul_(slopes(phi_GCK)))


def _backward_keys(scanned: Iterator[tuple[Tile, Sums]], load_keys: LoadPair, grads: Sequence[Tensor | None]) -> None:
    for tile, sums in scanned:
        phi_GCK, v_GCV = load_keys(tile)
        if grads[0] is not None:
            # 0 for a hidden key, whose phi is 0
            tile.put(grads[0], sums.read_back(v_GCV).mul_(slopes(phi_GCK)))
        if grads[1] is not None:
            tile.put(grads[1], sums.read(phi_GCK)[..., : grads[1].shape[-1]])


@torch.no_grad()
def linear_map(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    *,
    decay_H: Tensor | None = None,
    rows: slice = slice(None),
    **seen: Unpack[Seen],
) -> Tensor:
    """Return the weights A_ij / sum_j A_ij of linear attention for some rows of queries (B, L, H, K).

    Positive; rows sum to 1 where a key is visible and are 0 elsewhere. Times the values it is the output with
    "division"; the output with "numerator" is that product divided by the root of its mean square. No
    gradient. Besides the result, memory as in ``linear_attention``.

    Args:
        rows: the queries wanted, a slice of L with step 1.
        seen: see ``Visibility``.

    Returns:
        map_BHRL, float32, or float64 for float64 queries or keys.

    Raises:
        ShapeError: if the arguments do not fit together, or there is not one decay for each head.
    """
    visibility = check_inputs(q_BLHK, k_BLHK, **seen)
    check_decay(decay_H, q_BLHK.shape[2])
    decay = PairDecay(visibility.is_causal, decay_H)
    blank = BlankMap(visibility, rows, q_BLHK, k_BLHK)
    flat = (visibility.finite_queries(q_BLHK).flatten(0, 1), k_BLHK.flatten(0, 1))
    with torch.autocast(q_BLHK.device.type, enabled=False):
        for part in blank.parts():
            keys = cut_segment(part.segment, visibility.mask_T, CHUNK_LENGTH)
            for queries in part.queries(CHUNK_LENGTH):
                _map_rows(part, queries, keys, flat, decay)
    return blank.map_BHRL


def _map_rows(
    part: MapPart, queries: Tile, keys: Sequence[Tile], inputs: tuple[Tensor, Tensor], decay: PairDecay
) -> None:
    """Fill in some rows of the map of one segment."""
    (q_THK, k_THK), written_HCJ = inputs, part.rows(queries)
    phi_HCK = features(queries.look(q_THK, written_HCJ.dtype))
    for tile in keys:
        weights_HCJ = phi_HCK @ tile.hide_keys(features(tile.look(k_THK, written_HCJ.dtype)), 0).mT
        steps_CJ = part.steps(queries, tile)
        if decay.logarithms_H is not None:
            weights_HCJ.mul_(decay.power(weights_HCJ, steps_CJ.abs()))
        if decay.is_causal:
            weights_HCJ.masked_fill_(steps_CJ < 0, 0)
        part.put(queries, tile, weights_HCJ)
    sums_HC1 = written_HCJ.sum(-1, keepdim=True)
    written_HCJ.div_(sums_HC1.masked_fill_(sums_HC1 == 0, 1))
