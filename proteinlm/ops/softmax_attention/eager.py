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
    key_mask_BL: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """Return softmax(Q K^T / sqrt(K)) V over the visible keys of each query's segment.

    Exactly 0, with zero gradients, where there is none. Hidden keys are left out of the product, not
    masked, and a hidden position may hold anything. Time O(L^2 K) a segment, memory O(L K).

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
    obstacle = "nothing" if implementation == "eager" else varlen.missing(q_BLHK, k_BLHK, v_BLHK)
    if implementation == "varlen" and obstacle:
        raise UnavailableError(
            f'softmax attention with implementation = "varlen" needs {obstacle}; "auto" does without'
        )
    is_dense = cu_seqlens is None and all(segment.num_visible == len(segment) for segment in segments)
    is_wanted = implementation == "varlen" or not is_dense
    if obstacle is None and is_wanted and any(segment.num_visible for segment in segments):
        return varlen.attend(q_BLHK, k_BLHK, v_BLHK, segments, mask_T)
    if is_dense:
        return _attend(q_BLHK, k_BLHK, v_BLHK)
    return _attend_segments(q_BLHK, k_BLHK, v_BLHK, segments, mask_T)


def _attend_segments(
    q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, segments: list[Segment], mask_T: Tensor | None
) -> Tensor:
    sizes = [len(segment) for segment in segments]
    # split, not slices: the gradient of a slice is a whole tensor of zeros for each segment
    flat = (x.reshape(1, -1, *x.shape[2:]) for x in (q_BLHK, k_BLHK, v_BLHK))
    q_parts, k_parts, v_parts = (torch.split(x, sizes, dim=1) for x in flat)
    parts = zip(segments, q_parts, k_parts, v_parts, strict=True)
    outputs = [_attend_segment(segment, q, k, v, mask_T) for segment, q, k, v in parts]
    return torch.cat(outputs, dim=1).view_as(v_BLHK) if outputs else torch.zeros_like(v_BLHK)


def _attend_segment(segment: Segment, q_1CHK: Tensor, k_1CHK: Tensor, v_1CHK: Tensor, mask_T: Tensor | None) -> Tensor:
    if segment.num_visible == 0:
        # zeros that are still part of the graph
        return v_1CHK.masked_fill(v_1CHK.new_ones((), dtype=torch.bool), 0)
    if mask_T is not None and segment.num_visible < len(segment):
        visible_N = mask_T[segment.start : segment.stop].nonzero()[:, 0]
        k_1CHK, v_1CHK = k_1CHK.index_select(1, visible_N), v_1CHK.index_select(1, visible_N)
    return _attend(q_1CHK, k_1CHK, v_1CHK)


def _attend(q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor) -> Tensor:
    dtype = torch.promote_types(torch.promote_types(q_BLHK.dtype, k_BLHK.dtype), v_BLHK.dtype)
    q_BHLK, k_BHLK, v_BHLK = (x.to(dtype).transpose(1, 2) for x in (q_BLHK, k_BLHK, v_BLHK))
    return scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK).transpose(1, 2).to(v_BLHK.dtype)


@torch.no_grad()
def softmax_map(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    *,
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
            map_BHRL[window, :, start - first : stop - first, keys] = scores_HCC.softmax(-1)
    return map_BHRL
