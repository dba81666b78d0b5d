"""Exact softmax attention by torch's fused kernels: one call for each segment, or one for all where that can run."""

from __future__ import annotations

from typing import Literal, Unpack

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from proteinlm.errors import UnavailableError
from proteinlm.ops.blank_map import BlankMap
from proteinlm.ops.precision import accumulation_dtype
from proteinlm.ops.softmax_attention import varlen
from proteinlm.ops.tiles import Segment
from proteinlm.ops.visibility import Seen, check_inputs

Implementation = Literal["auto", "eager", "varlen"]


def softmax_attention(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHK: Tensor,
    *,
    implementation: Implementation = "auto",
    **seen: Unpack[Seen],
) -> Tensor:
    """Return softmax(Q K^T / sqrt(K)) V of q, k, v (B, L, H, K) over the keys that each query sees.

    Exactly 0, with zero gradients, where there is none. A hidden position may hold anything. Time O(L^2 K) a
    segment, memory O(L K). On a CPU scores and sums are float32 for any input but float64, also under autocast; on a
    GPU torch's kernels work in the dtype of the inputs, or of autocast.

    Args:
        implementation: "eager" calls scaled_dot_product_attention for each segment, "varlen" calls
            torch.nn.attention.varlen once, "auto" prefers the latter for several segments or hidden keys.
        seen: see ``Visibility``.

    Returns:
        out_BLHK in the dtype of ``v_BLHK``.

    Raises:
        ShapeError: if the arguments do not fit together.
        UnavailableError: if "varlen" is asked for and cannot run; it takes half precision on a GPU.
    """
    visibility = check_inputs(q_BLHK, k_BLHK, v_BLHK, **seen)
    is_causal = visibility.is_causal
    q_BLHK = visibility.finite_queries(q_BLHK)
    # the varlen kernel counts positions among visible keys, which for a causal form are the wrong ones
    takes_eager = implementation == "eager" or (implementation == "auto" and is_causal)
    obstacle = "nothing" if takes_eager else varlen.missing(q_BLHK, k_BLHK, v_BLHK)
    if implementation == "varlen" and is_causal:
        obstacle = "attention that is not causal"
    if implementation == "varlen" and obstacle:
        raise UnavailableError(
            f'softmax attention with implementation = "varlen" needs {obstacle}; "auto" does without'
        )
    segments = visibility.segments
    is_dense = visibility.cu_seqlens is None and all(segment.num_visible == len(segment) for segment in segments)
    is_wanted = implementation == "varlen" or not is_dense
    if obstacle is None and is_wanted and visibility.has_key:
        return varlen.attend(q_BLHK, k_BLHK, v_BLHK, visibility)
    inputs, device_type, out_dtype = (q_BLHK, k_BLHK, v_BLHK), q_BLHK.device.type, v_BLHK.dtype
    dtype = accumulation_dtype(*inputs) if device_type == "cpu" else varlen.kernel_dtype(*inputs)
    with torch.autocast(device_type, enabled=False):
        q_BLHK, k_BLHK, v_BLHK = (x.to(dtype) for x in inputs)
        if is_dense:
            return _attend(q_BLHK, k_BLHK, v_BLHK, is_causal=is_causal).to(out_dtype)
        inputs = (q_BLHK, k_BLHK, v_BLHK)
        return _attend_segments(inputs, segments, visibility.mask_T, is_causal).to(out_dtype)


def _attend_segments(
    inputs: tuple[Tensor, Tensor, Tensor], segments: list[Segment], mask_T: Tensor | None, is_causal: bool
) -> Tensor:
    sizes = [len(segment) for segment in segments]
    # split, not slices: the gradient of a slice is a whole tensor of zeros for each segment
    flat = (x.reshape(1, -1, *x.shape[2:]) for x in inputs)
    q_parts, k_parts, v_parts = (torch.split(x, sizes, dim=1) for x in flat)
    parts = zip(segments, q_parts, k_parts, v_parts, strict=True)
    outputs = [_attend_segment(segment, (q, k, v), mask_T, is_causal) for segment, q, k, v in parts]
    return torch.cat(outputs, dim=1).view_as(inputs[-1]) if outputs else _nothing_read(*inputs)


def _attend_segment(
    segment: Segment, inputs: tuple[Tensor, Tensor, Tensor], mask_T: Tensor | None, is_causal: bool
) -> Tensor:
    q_1CHK, k_1CHK, v_1CHK = inputs
    if segment.num_visible == 0:
        return _nothing_read(q_1CHK, k_1CHK, v_1CHK)
    if mask_T is None or segment.num_visible == len(segment):
        return _attend(q_1CHK, k_1CHK, v_1CHK, is_causal=is_causal)
    if is_causal:
        return _attend_causal_with_holes(q_1CHK, k_1CHK, v_1CHK, ~mask_T[segment.start : segment.stop])
    visible_N = mask_T[segment.start : segment.stop].nonzero()[:, 0]
    return _attend(q_1CHK, k_1CHK.index_select(1, visible_N), v_1CHK.index_select(1, visible_N))


def _nothing_read(q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor) -> Tensor:
    """Return zeros that are part of the graph, with gradients of 0 for each input."""
    # filled over and not multiplied by 0: what is read from nothing may hold NaN
    everything_BLHK = v_BLHK + (q_BLHK + k_BLHK).to(v_BLHK.dtype)
    return everything_BLHK.masked_fill(v_BLHK.new_ones((), dtype=torch.bool), 0)


def _attend(
    q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, *, is_causal: bool = False, scale: float | None = None
) -> Tensor:
    q_BHLK, k_BHLK, v_BHLK = (x.transpose(1, 2) for x in (q_BLHK, k_BLHK, v_BLHK))
    out_BHLK = scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK, is_causal=is_causal, scale=scale)
    return out_BHLK.transpose(1, 2)


def _attend_causal_with_holes(q_1CHK: Tensor, k_1CHK: Tensor, v_1CHK: Tensor, hidden_C: Tensor) -> Tensor:
    """Return causal attention among which some keys are hidden, without a mask of C × C.

    A coordinate more, 1 in queries and hugely negative in hidden keys, gives these the weight 0. A query
    that sees hidden keys only weighs them alike, and their values are 0 here.
    """
    hidden_C11 = hidden_C[:, None, None]
    k_1CHK, v_1CHK = k_1CHK.masked_fill(hidden_C11, 0), v_1CHK.masked_fill(hidden_C11, 0)
    one_1CH1 = q_1CHK.new_ones(*q_1CHK.shape[:-1], 1)
    lowest = min(torch.finfo(x.dtype).max for x in (q_1CHK, k_1CHK)) / -2
    sunk_1CH1 = torch.zeros_like(one_1CH1, dtype=k_1CHK.dtype).masked_fill(hidden_C11, lowest)
    # torch's fused kernel wants values as wide as keys
    nothing_1CH1 = torch.zeros_like(one_1CH1, dtype=v_1CHK.dtype)
    pairs = ((q_1CHK, one_1CH1), (k_1CHK, sunk_1CH1), (v_1CHK, nothing_1CH1))
    q_1CHJ, k_1CHJ, v_1CHJ = (torch.cat(pair, -1) for pair in pairs)
    return _attend(q_1CHJ, k_1CHJ, v_1CHJ, is_causal=True, scale=q_1CHK.shape[-1] ** -0.5)[..., :-1]


@torch.no_grad()
def softmax_map(q_BLHK: Tensor, k_BLHK: Tensor, *, rows: slice = slice(None), **seen: Unpack[Seen]) -> Tensor:
    """Return the attention weights of some rows of queries (B, L, H, K), without gradient.

    Args:
        rows: the queries wanted, a slice of L with step 1.
        seen: see ``Visibility``.

    Returns:
        map_BHRL, float32, or float64 for float64 queries or keys; rows sum to 1 where a key is
        visible and are 0 elsewhere.
    """
    visibility = check_inputs(q_BLHK, k_BLHK, **seen)
    blank, mask_T = BlankMap(visibility, rows, q_BLHK, k_BLHK), visibility.mask_T
    q_THK, k_THK = visibility.finite_queries(q_BLHK).flatten(0, 1), k_BLHK.flatten(0, 1)
    dtype = blank.map_BHRL.dtype
    with torch.autocast(q_BLHK.device.type, enabled=False):
        for segment, start, stop, weights_HCJ in blank.parts():
            keys = slice(segment.start, segment.stop)
            q_HCK = q_THK[start:stop].transpose(0, 1).to(dtype) * q_THK.shape[-1] ** -0.5
            scores_HCJ = q_HCK @ k_THK[keys].permute(1, 2, 0).to(dtype)
            if mask_T is not None:
                scores_HCJ.masked_fill_(~mask_T[keys], -torch.inf)
            if visibility.is_causal:
                scores_HCJ.masked_fill_(_later(scores_HCJ, start - keys.start), -torch.inf)
            sees_HC1 = (scores_HCJ > -torch.inf).any(-1, keepdim=True)
            # a row of minus infinities has no softmax
            weights_HCJ.copy_(scores_HCJ.softmax(-1).masked_fill_(~sees_HC1, 0))
    return blank.map_BHRL


def _later(scores_HCJ: Tensor, first_row: int) -> Tensor:
    rows_C, keys_C = (torch.arange(n, device=scores_HCJ.device) for n in scores_HCJ.shape[-2:])
    return keys_C > first_row + rows_C[:, None]
