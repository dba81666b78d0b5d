"""One mechanism for short segments and another for long ones, in one window."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from proteinlm.ops.segments import Segment, find_segments


def attend_by_length(
    inputs: tuple[Tensor, Tensor, Tensor],
    attend_short: Callable[..., Tensor],
    attend_long: Callable[..., Tensor],
    threshold: int,
    *,
    key_mask_BL: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Return what ``attend_short`` gives segments of fewer than ``threshold`` tokens, ``attend_long`` the others.

    Visible tokens count: padding must not change how a segment is computed. Where a window has both
    kinds, each mechanism gets its segments packed, which copies q, k and v once.

    Args:
        inputs: q_BLHK, k_BLHK and v_BLHK; both functions take them, ``key_mask_BL`` and ``cu_seqlens``.

    Returns:
        out_BLHK.
    """
    segments = find_segments(*inputs[0].shape[:2], key_mask_BL=key_mask_BL, cu_seqlens=cu_seqlens)
    short = [segment for segment in segments if segment.num_visible < threshold]
    if len(short) in (0, len(segments)):
        attend = attend_short if short else attend_long
        return attend(*inputs, key_mask_BL=key_mask_BL, cu_seqlens=cu_seqlens)
    flat = [x.flatten(0, 1) for x in inputs]
    mask_T = None if key_mask_BL is None else key_mask_BL.flatten()
    long = [segment for segment in segments if segment.num_visible >= threshold]
    short_N, long_N = (_positions(part, flat[0].device) for part in (short, long))
    out_THK = torch.cat(
        (_attend(short, short_N, attend_short, flat, mask_T), _attend(long, long_N, attend_long, flat, mask_T))
    )
    return out_THK.index_select(0, torch.cat((short_N, long_N)).argsort()).view_as(inputs[2])


def _positions(segments: Sequence[Segment], device: torch.device) -> Tensor:
    return torch.cat([torch.arange(segment.start, segment.stop, device=device) for segment in segments])


def _attend(
    segments: Sequence[Segment],
    positions_N: Tensor,
    attend: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    mask_T: Tensor | None,
) -> Tensor:
    """Return out_NHK of some segments, packed into one window."""
    ends = torch.tensor([0, *map(len, segments)], device=positions_N.device).cumsum(0).int()
    picked = (x_THK.index_select(0, positions_N)[None] for x_THK in inputs)
    mask_1N = None if mask_T is None else mask_T[positions_N][None]
    out_1NHK = attend(*picked, key_mask_BL=mask_1N, cu_seqlens=ends)
    return out_1NHK[0]
