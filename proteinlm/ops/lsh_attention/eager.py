"""LSH attention by torch: hash rounds share one normaliser, and no key counts twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Unpack

import torch
from torch import Tensor

from proteinlm.errors import ShapeError
from proteinlm.ops.derivatives import refuse_second_derivative
from proteinlm.ops.lsh_attention.chunks import Chunking, Places, find_places
from proteinlm.ops.lsh_attention.rounds import Rounds
from proteinlm.ops.precision import accumulation_dtype
from proteinlm.ops.visibility import Seen, Visibility, check_inputs

# rows of the heads that go together: enough to fill tiles, few enough for a cache
GROUP_ROWS = 2**14


def lsh_attention(
    q_BLHK: Tensor, v_BLHK: Tensor, buckets_BLHR: Tensor, chunking: Chunking, **seen: Unpack[Seen]
) -> Tensor:
    """Return softmax(q_i·k_j / sqrt(K)) v_j, k_j = q_j / |q_j|, of q, v (B, L, H, K) over what the rounds show.

    In each round the visible positions of a segment are sorted by bucket and then by position and cut into
    chunks; a query sees those of its own chunk and its neighbours of the same round. A key that several rounds
    show counts once: in the first of them. A position sees itself only if it sees nothing else, and a hidden
    position sees nothing: exactly 0, with zero gradients. Time O(L R C K), memory O(L (K + R)) a head, forward
    and backward; any length. Scores and sums are float32 for any input but float64, also under autocast.

    Args:
        buckets_BLHR: bucket of each query in each round, integers from 0; see ``hash_buckets``.
        seen: see ``Visibility``; a position that is hidden as a key is hidden as a query too.

    Returns:
        out_BLHK in the dtype of ``v_BLHK``. Differentiable once. A hidden position may hold anything.

    Raises:
        ShapeError: if the arguments do not fit together, or there is not a row of buckets for each query.

    Source: Kitaev et al., ICLR 2020, arXiv:2001.04451, section 2 and appendix A.
    """
    visibility = check_inputs(q_BLHK, None, v_BLHK, **seen)
    places = places_of(visibility, q_BLHK, buckets_BLHR, chunking)
    if places is None:
        # zeros that are still part of the graph
        everywhere = v_BLHK.new_ones((), dtype=torch.bool)
        return v_BLHK.masked_fill(everywhere, 0) + q_BLHK.masked_fill(everywhere, 0).to(v_BLHK.dtype)
    flat = (x.flatten(0, 1) for x in (q_BLHK, v_BLHK, buckets_BLHR))
    out_THK: Tensor = _LshAttention.apply(*flat, places, visibility.is_causal)  # type: ignore[no-untyped-call]
    return out_THK.view_as(v_BLHK)


def places_of(visibility: Visibility, q_BLHK: Tensor, buckets_BLHR: Tensor, chunking: Chunking) -> Places | None:
    """Return where visible positions lie in chunks; None if there is none.

    Raises:
        ShapeError: if there is not a row of buckets for each query.
    """
    sizes = q_BLHK.shape[:3]
    is_whole = not (buckets_BLHR.is_floating_point() or buckets_BLHR.is_complex() or buckets_BLHR.dtype == torch.bool)
    if buckets_BLHR.ndim != 4 or buckets_BLHR.shape[:3] != sizes or buckets_BLHR.shape[3] < 1 or not is_whole:
        found = f"{buckets_BLHR.dtype} {tuple(buckets_BLHR.shape)}"
        raise ShapeError(f"buckets are {found}; expected integers {(*sizes, 'R')}, R of 1 or more")
    if not visibility.has_key:
        return None
    device = q_BLHK.device
    return visibility.plan(
        ("lsh places", chunking, device), lambda: find_places(visibility.segments, visibility.mask_T, chunking, device)
    )


def groups(
    q_THK: Tensor, buckets_THR: Tensor, places: Places, *, is_causal: bool, dtype: torch.dtype
) -> Iterator[tuple[slice, Rounds]]:
    """Yield heads that go together, with their rounds."""
    step = max(1, GROUP_ROWS // len(places.segment_T))
    for start in range(0, q_THK.shape[1], step):
        heads = slice(start, start + step)
        buckets = visible(buckets_THR[:, heads], places)
        yield heads, Rounds(visible(q_THK[:, heads], places).to(dtype), buckets, places, is_causal=is_causal)


def visible(x_THK: Tensor, places: Places) -> Tensor:
    """Return the rows of visible positions."""
    return x_THK if places.positions_T is None else x_THK.index_select(0, places.positions_T)


def put_visible(target_THK: Tensor, heads: slice, x_THK: Tensor, places: Places) -> None:
    """Write rows of visible positions to where ``visible`` reads them."""
    if places.positions_T is None:
        target_THK[:, heads].copy_(x_THK)
    else:
        target_THK[:, heads].index_copy_(0, places.positions_T, x_THK.to(target_THK.dtype))


class _LshAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_THK: Tensor, v_THK: Tensor, buckets_THR: Tensor, places: Places, is_causal: bool) -> Tensor:
        dtype = accumulation_dtype(q_THK, v_THK)
        exact_THK = torch.zeros(v_THK.shape, dtype=dtype, device=v_THK.device)
        logarithms_HX = []
        with torch.autocast(q_THK.device.type, enabled=False):
            for heads, rounds in groups(q_THK, buckets_THR, places, is_causal=is_causal, dtype=dtype):
                v_XK = rounds.rows_of(visible(v_THK[:, heads], places).to(dtype))
                out_XK, logarithm_X = attend(rounds, v_XK)
                put_visible(exact_THK, heads, rounds.without_zeros(out_XK), places)
                logarithms_HX.append(logarithm_X)
        ctx.places, ctx.is_causal = places, is_causal
        # backward needs the output as it was before rounding: see its sum
        ctx.save_for_backward(q_THK, v_THK, buckets_THR, exact_THK, *logarithms_HX)
        return exact_THK.to(v_THK.dtype)

    @staticmethod
    def backward(ctx: Any, grad_THK: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("LSH attention")
        q_THK, v_THK, buckets_THR, exact_THK, *logarithms_HX = ctx.saved_tensors
        places, dtype = ctx.places, exact_THK.dtype
        grad_q_THK, grad_v_THK = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q_THK, v_THK))
        with torch.autocast(grad_THK.device.type, enabled=False):
            pieces = groups(q_THK, buckets_THR, places, is_causal=ctx.is_causal, dtype=dtype)
            for (heads, rounds), logarithm_X in zip(pieces, logarithms_HX, strict=True):
                v_XK, grad_XK, out_XK = (
                    rounds.rows_of(visible(x[:, heads], places).to(dtype)) for x in (v_THK, grad_THK, exact_THK)
                )
                grads = _backward(rounds, v_XK, grad_XK, (grad_XK * out_XK).sum(-1), logarithm_X)
                for target, grad in zip((grad_q_THK, grad_v_THK), grads, strict=True):
                    put_visible(target, heads, rounds.without_zeros(grad), places)
        return grad_q_THK, grad_v_THK, None, None, None


def attend(rounds: Rounds, v_XK: Tensor) -> tuple[Tensor, Tensor]:
    """Return out_XK and the log-sum-exp of each query's scores, infinite where it sees itself only."""
    shift_X = rounds.shift()
    out_XK, sums_X = torch.zeros_like(v_XK), v_XK.new_zeros(len(v_XK))
    for tile in rounds.tiles():
        weights_GCJ = rounds.weights(tile, rounds.queries(tile, rounds.q_XK), rounds.keys(tile), shift_X)
        v_GJK = rounds.around(v_XK.index_select(0, tile.around)).mT
        rows = tile.queries_GC.flatten()
        out_XK.index_add_(0, rows, torch.bmm(weights_GCJ, v_GJK).flatten(0, 1))
        sums_X.index_add_(0, rows, weights_GCJ.sum(-1).flatten())
    alone_X = sums_X == 0
    out_XK.div_(sums_X.masked_fill(alone_X, 1)[:, None]).addcmul_(v_XK, alone_X[:, None])
    logarithm_X = sums_X.log().add_(0 if shift_X is None else shift_X)
    return out_XK, logarithm_X.masked_fill_(alone_X, torch.inf)


def _backward(
    rounds: Rounds, v_XK: Tensor, grad_XK: Tensor, products_X: Tensor, logarithm_X: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of q and v.

    With g the gradient of out: dP_ij = g_i·v_j and the gradient of a score is P_ij (dP_ij - g_i·out_i). A query
    is also a key, of length 1: that part of its gradient is (dk - k (k·dk)) / |q|.
    """
    grad_q_XK, grad_k_XK, grad_v_XK = (torch.zeros_like(v_XK) for _ in range(3))
    for tile in rounds.tiles():
        rows = tile.queries_GC.flatten()
        q_GCK, g_GCK = rounds.queries(tile, rounds.q_XK), rounds.queries(tile, grad_XK)
        k_NK = rounds.keys(tile)
        weights_GCJ = rounds.weights(tile, q_GCK, k_NK, logarithm_X)
        _add_around(rounds, grad_v_XK, tile.around, torch.bmm(weights_GCJ.mT, g_GCK))
        scores_GCJ = torch.bmm(g_GCK, rounds.around(v_XK.index_select(0, tile.around)))
        scores_GCJ.sub_(products_X[tile.queries_GC][..., None]).mul_(weights_GCJ)
        grad_q_XK.index_add_(0, rows, torch.bmm(scores_GCJ, rounds.around(k_NK).mT).flatten(0, 1))
        _add_around(rounds, grad_k_XK, tile.around, torch.bmm(scores_GCJ.mT, q_GCK))
    # a position that sees nothing else reads its own value
    grad_v_XK.addcmul_(grad_XK, logarithm_X.isinf()[:, None])
    k_XK = rounds.q_XK * rounds.inverse_X1
    grad_k_XK.addcmul_(k_XK, (k_XK * grad_k_XK).sum(-1, keepdim=True), value=-1)
    grad_q_XK.addcmul_(grad_k_XK, rounds.inverse_X1, value=rounds.scale)
    return grad_q_XK, grad_v_XK


def _add_around(rounds: Rounds, target_XK: Tensor, around_N: Tensor, x_GJK: Tensor) -> None:
    """Add what each chunk of a tile gives to the slots that it looks at."""
    chunking = rounds.places.chunking
    sums_NK = x_GJK.new_zeros(len(around_N), x_GJK.shape[-1])
    for shift, x_GCK in enumerate(torch.split(x_GJK, chunking.chunk_length, 1)):
        start = shift * chunking.chunk_length
        sums_NK[start : start + len(x_GCK) * chunking.chunk_length].view_as(x_GCK).add_(x_GCK)
    target_XK.index_add_(0, around_N, sums_NK)
