"""Exact softmax attention by torch's fused kernels: one call for each segment, or one for all where that can run."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from proteinlm.errors import UnavailableError
from proteinlm.ops.segments import Segment, find_segments, finite_queries, row_bounds
from proteinlm.ops.softmax_attention import varlen

Implementation = Literal["auto", "eager", "varlen"]


def softmax_attention(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHK: Tensor,
    *,
    is_causal: bool = False,
    key_mask_BL: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """Return softmax(Q K^T / sqrt(K)) V over the visible keys of each query's segment, if causal no later ones.

    Exactly 0, with zero gradients, where there is none. A hidden position may hold anything. Time O(L^2 K) a
    segment, memory O(L K).

    Args:
        key_mask_BL: True where a key is visible.
        cu_seqlens: where segments start in the flattened B·L positions, and B·L.
        implementation: "eager" calls scaled_dot_product_attention for each segment, "varlen" calls
            torch.nn.attention.varlen once, "auto" prefers the latter for several segments or hidden keys.

    Returns:
        out_BLHK in the dtype of ``v_BLHK``.

    Raises:
        UnavailableError: if "varlen" is asked for and cannot run; it takes half precision on a GPU.
    """
    segments = find_segments(*q_BLHK.shape[:2], key_mask_BL=key_mask_BL, cu_seqlens=cu_seqlens)
    mask_T = None if key_mask_BL is None else key_mask_BL.flatten()
    q_BLHK = finite_queries(q_BLHK, key_mask_BL)
    # the varlen kernel counts positions among visible keys, which for a causal form are the wrong ones
    takes_eager = implementation == "eager" or (implementation == "auto" and is_causal)
    obstacle = "nothing" if takes_eager else varlen.missing(q_BLHK, k_BLHK, v_BLHK)
    if implementation == "varlen" and is_causal:
        obstacle = "attention that is not causal"
    if implementation == "varlen" and obstacle:
        raise UnavailableError(
            f'softmax attention with implementation = "varlen" needs {obstacle}; "auto" does without'
        )
    is_dense = cu_seqlens is None and all(segment.num_visible == len(segment) for segment in segments)
    is_wanted = implementation == "varlen" or not is_dense
    if obstacle is None and is_wanted and any(segment.num_visible for segment in segments):
        return varlen.attend(q_BLHK, k_BLHK, v_BLHK, segments, mask_T)
    if is_dense:
        return _attend(q_BLHK, k_BLHK, v_BLHK, is_causal=is_causal)
    return _attend_segments((q_BLHK, k_BLHK, v_BLHK), segments, mask_T, is_causal)


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
    dtype = torch.promote_types(torch.promote_types(q_BLHK.dtype, k_BLHK.dtype), v_BLHK.dtype)
    q_BHLK, k_BHLK, v_BHLK = (x.to(dtype).transpose(1, 2) for x in (q_BLHK, k_BLHK, v_BLHK))
    out_BHLK = scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK, is_causal=is_causal, scale=scale)
    return out_BHLK.transpose(1, 2).to(v_BLHK.dtype)


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
def softmax_map(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    *,
    is_causal: bool = False,
    key_mask_BL: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    rows: slice = slice(None),
) -> Tensor:
    """Return the attention weights of some rows of queries, without gradient.

    Args:
        rows: the queries wanted, a slice of L with step 1.

    Returns:
        map_BHRL, float32, or float64 for float64 queries or keys; rows sum to 1 where a key is
        visible and are 0 elsewhere.
    """
    num_windows, length, num_heads, head_dim = q_BLHK.shape
    first, behind = row_bounds(rows, length)
    dtype = torch.float64 if torch.float64 in (q_BLHK.dtype, k_BLHK.dtype) else torch.float32
    map_BHRL = torch.zeros(num_windows, num_heads, behind - first, length, dtype=dtype, device=q_BLHK.device)
    q_BLHK = finite_queries(q_BLHK, key_mask_BL)
    with torch.autocast(q_BLHK.device.type, enabled=False):
        for segment in find_segments(num_windows, length, key_mask_BL=key_mask_BL, cu_seqlens=cu_seqlens):
            window, offset = divmod(segment.start, length)
            keys = slice(offset, offset + len(segment))
            start, stop = max(first, keys.start), min(behind, keys.stop)
            if start >= stop or segment.num_visible == 0:
                continue
            q_HCK = q_BLHK[window, start:stop].transpose(0, 1).to(dtype) * head_dim**-0.5
            scores_HCC = q_HCK @ k_BLHK[window, keys].permute(1, 2, 0).to(dtype)
            if key_mask_BL is not None:
                scores_HCC.masked_fill_(~key_mask_BL[window, keys], -torch.inf)
            if is_causal:
                scores_HCC.masked_fill_(_later(scores_HCC, start - keys.start), -torch.inf)
            sees_HC1 = (scores_HCC > -torch.inf).any(-1, keepdim=True)
            # a row of minus infinities has no softmax
            map_BHRL[window, :, start - first : stop - first, keys] = scores_HCC.softmax(-1).masked_fill_(~sees_HC1, 0)
    return map_BHRL


def _later(scores_HCC: Tensor, first_row: int) -> Tensor:
    rows_C, keys_C = (torch.arange(n, device=scores_HCC.device) for n in scores_HCC.shape[-2:])
    return keys_C > first_row + rows_C[:, None]
