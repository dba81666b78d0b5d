"""Exact softmax attention in which groups of queries see chosen keys, one group after the other.

A mechanism that sees few keys says which ones by a plan: a list of readings, each a tile of queries and
the tile of keys that they see. No two readings share a query, so each softmax is whole, and no tensor of
all queries × keys is ever alive. Letters: G segments × heads of one tile, C its queries, J its keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proteinlm.ops.blank_map import BlankMap
from proteinlm.ops.derivatives import refuse_second_derivative
from proteinlm.ops.precision import accumulation_dtype
from proteinlm.ops.tiles import Tile

# weights of one reading, all heads: 1 MiB in float32; with 4 times as many, narrow windows took 1.7 times the time
READING_ELEMENTS = 2**18


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """Queries and the keys that they see: of its run and not hidden, less the pairs of ``unseen_CJ`` (None: none).

    ``log_weights_SJ`` are added to the scores of a key (None: nothing): a key of weight w counts w times, and one of
    weight 0, minus infinity here, not at all.
    """

    queries: Tile
    keys: Tile
    unseen_CJ: Tensor | None = None
    log_weights_SJ: Tensor | None = None


def readings_of_runs(
    parts: Iterable[Sequence[Tile]],
    mask_T: Tensor | None,
    seen: Callable[[slice, slice], slice],
    unseen: Callable[[int, int, int], Tensor | None],
) -> Iterator[Reading]:
    """Yield what the queries of each tile see where that is a run of keys, less some pairs.

    Args:
        parts: tiles; those of one inner sequence share their segments.
        mask_T: True where a key is visible; None: everywhere.
        seen: from the run of a tile's queries and that of their segment, the run of keys.
        unseen: from numbers of queries and keys, and how far the first query is behind the first key, the
            pairs not seen as unseen_CJ; None: all are.
    """
    for tiles in parts:
        first, last = tiles[0].positions, tiles[-1].positions
        if isinstance(first, Tensor):
            length = len(first) // tiles[0].num_runs
            yield Reading(tiles[0], tiles[0], unseen(length, length, 0))
            continue
        for tile in tiles:
            queries = tile.positions
            assert isinstance(queries, slice)
            assert isinstance(last, slice)
            keys = seen(queries, slice(first.start, last.stop))
            hidden_1J = None if mask_T is None or tile.hidden_SC is None else ~mask_T[None, keys]
            sizes = (queries.stop - queries.start, keys.stop - keys.start, queries.start - keys.start)
            yield Reading(tile, Tile(keys, 1, None, hidden_1J), unseen(*sizes))


def sparse_softmax(q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, plan: Iterable[Reading]) -> Tensor:
    """Return softmax(q_i·k_j / sqrt(K)) v_j over the keys j that the plan shows to each query i.

    Exactly 0, with zero gradients, for a query that is in no reading or sees no key. Scores and sums
    are float32 for any input but float64, also under autocast. Memory beyond inputs, output and
    gradients is that of one reading, forward and backward.

    Args:
        plan: gone through once forward and once backward; it may make its readings as it goes.

    Returns:
        out_BLHK in the dtype of ``v_BLHK``. Differentiable once. A key that is hidden may hold anything.
    """
    flat = (x.flatten(0, 1) for x in (q_BLHK, k_BLHK, v_BLHK))
    out_THK: Tensor = _SparseSoftmax.apply(*flat, plan)  # type: ignore[no-untyped-call]
    return out_THK.view_as(v_BLHK)


class _SparseSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, plan: Iterable[Reading]) -> Tensor:
        dtype = accumulation_dtype(q_THK, k_THK, v_THK)
        out_THK = torch.zeros_like(v_THK, memory_format=torch.contiguous_format)
        with torch.autocast(q_THK.device.type, enabled=False):
            for reading in plan:
                weights_GCJ = _weights(reading, _queries(reading, q_THK, dtype), _seen(reading, k_THK, dtype))
                reading.queries.put(out_THK, weights_GCJ @ _seen(reading, v_THK, dtype))
        ctx.plan = plan
        ctx.save_for_backward(q_THK, k_THK, v_THK)
        return out_THK

    @staticmethod
    def backward(ctx: Any, grad_THK: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("sparse attention")
        inputs = ctx.saved_tensors
        dtype = accumulation_dtype(*inputs)
        # keys are read several times: sums in half precision would lose what comes late
        grads = [torch.zeros_like(x, dtype=dtype, memory_format=torch.contiguous_format) for x in inputs]
        with torch.autocast(grad_THK.device.type, enabled=False):
            for reading in ctx.plan:
                _backward(reading, inputs, grad_THK, grads)
        needed = zip(grads, inputs, ctx.needs_input_grad, strict=False)
        return *(grad.to(x.dtype) if wanted else None for grad, x, wanted in needed), None


def _queries(reading: Reading, q_THK: Tensor, dtype: torch.dtype) -> Tensor:
    return reading.queries.take(q_THK, dtype).mul_(q_THK.shape[-1] ** -0.5)


def _seen(reading: Reading, x_THK: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x_GJK of the keys, 0 where one is hidden: it may be anything, and 0 times infinity is not 0."""
    tile = reading.keys
    if isinstance(tile.positions, slice) and tile.hidden_SC is None and x_THK.dtype == dtype:
        return x_THK[tile.positions].transpose(0, 1)
    return tile.hide_keys(tile.take(x_THK, dtype), 0)


def _weights(reading: Reading, q_GCK: Tensor, k_GJK: Tensor) -> Tensor:
    """Return P_GCJ, rows of 0 where no key is seen."""
    scores_GCJ = q_GCK @ k_GJK.mT
    if reading.log_weights_SJ is not None:
        num_heads = len(q_GCK) // reading.keys.num_runs
        scores_GCJ.add_(reading.log_weights_SJ.to(scores_GCJ.dtype).repeat_interleave(num_heads, 0)[:, None])
    hidden_SJ, unseen_CJ = reading.keys.hidden_SC, reading.unseen_CJ
    # finite, or a query that sees no key would have a softmax of nothing
    lowest = torch.finfo(scores_GCJ.dtype).min
    if unseen_CJ is not None:
        scores_GCJ.masked_fill_(unseen_CJ, lowest)
    if hidden_SJ is None:
        return scores_GCJ.softmax(-1)
    num_runs = reading.keys.num_runs
    scores_SHCJ = scores_GCJ.view(num_runs, -1, *scores_GCJ.shape[1:]).masked_fill_(hidden_SJ[:, None, None], lowest)
    unseen_SCJ = hidden_SJ[:, None] if unseen_CJ is None else hidden_SJ[:, None] | unseen_CJ
    weights_SHCJ: Tensor = scores_SHCJ.softmax(-1).masked_fill_(unseen_SCJ.all(-1)[:, None, :, None], 0)
    return weights_SHCJ.flatten(0, 1)


def reading_weights(reading: Reading, q_THK: Tensor, k_THK: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weights of one reading as weights_GCJ, those of repeated queries included."""
    return _weights(reading, _queries(reading, q_THK, dtype), _seen(reading, k_THK, dtype))


def _backward(reading: Reading, inputs: tuple[Tensor, ...], grad_THK: Tensor, grads: Sequence[Tensor]) -> None:
    """Add what one reading contributes.

    With g the gradient of out: dP_ij = g_i·v_j and the gradient of a score is P_ij (dP_ij - sum_j P_ij dP_ij).
    """
    q_THK, k_THK, v_THK = inputs
    dtype = grads[0].dtype
    q_GCK, k_GJK = _queries(reading, q_THK, dtype), _seen(reading, k_THK, dtype)
    weights_GCJ = _weights(reading, q_GCK, k_GJK)
    grad_GCK = reading.queries.hide_repeats(reading.queries.take(grad_THK, dtype))
    _add(reading.keys, grads[2], weights_GCJ.mT @ grad_GCK)
    grad_scores_GCJ = torch.bmm(grad_GCK, _seen(reading, v_THK, dtype).mT).mul_(weights_GCJ)
    # the sum is g_i·out_i, but out was rounded to the dtype of the values
    grad_scores_GCJ.addcmul_(weights_GCJ, grad_scores_GCJ.sum(-1, keepdim=True), value=-1)
    _add(reading.keys, grads[1], grad_scores_GCJ.mT @ q_GCK)
    reading.queries.put(grads[0], (grad_scores_GCJ @ k_GJK).mul_(q_THK.shape[-1] ** -0.5))


def _add(tile: Tile, target_THK: Tensor, x_GJK: Tensor) -> None:
    x_NHK = x_GJK.view(tile.num_runs, -1, *x_GJK.shape[1:]).transpose(1, 2).flatten(0, 1)
    if isinstance(tile.positions, slice):
        target_THK[tile.positions].add_(x_NHK)
    else:
        target_THK.index_add_(0, tile.positions, x_NHK)


@torch.no_grad()
def fill_sparsely(blank: BlankMap, q_BLHK: Tensor, k_BLHK: Tensor, plan: Iterable[Reading]) -> Tensor:
    """Write the weights of the plan's pairs to the rows of a map, and return it as map_BHRL; without gradient.

    Args:
        plan: readings of one run each.
    """
    map_BHRL, length = blank.map_BHRL, blank.visibility.length
    q_THK, k_THK = q_BLHK.flatten(0, 1), k_BLHK.flatten(0, 1)
    with torch.autocast(q_BLHK.device.type, enabled=False):
        for reading in plan:
            queries_C, keys_J = (_positions(tile, q_THK.device) for tile in (reading.queries, reading.keys))
            window = int(queries_C[0]) // length
            rows_C = queries_C - window * length
            wanted_C = (rows_C >= blank.first) & (rows_C < blank.behind)
            if wanted_C.any():
                weights_HCJ = reading_weights(reading, q_THK, k_THK, map_BHRL.dtype)
                rows_R1 = (rows_C[wanted_C] - blank.first)[:, None]
                map_BHRL[window][:, rows_R1, keys_J % length] = weights_HCJ[:, wanted_C]
    return map_BHRL


def _positions(tile: Tile, device: torch.device) -> Tensor:
    if isinstance(tile.positions, slice):
        return torch.arange(tile.positions.start, tile.positions.stop, device=device)
    return tile.positions
