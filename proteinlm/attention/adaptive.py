"""One mechanism for short segments and another for long ones, in one window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from proteinlm.ops.tiles import Segment
from proteinlm.ops.visibility import Visibility


class Part(NamedTuple):
    """Some segments, packed into one window: where their positions lie, and what these may see."""

    positions_N: Tensor
    visibility: Visibility


def attend_by_length(
    inputs: tuple[Tensor, Tensor, Tensor],
    attend_short: Callable[..., Tensor],
    attend_long: Callable[..., Tensor],
    threshold: int,
    visibility: Visibility,
) -> Tensor:
    """Return what ``attend_short`` gives segments of fewer than ``threshold`` tokens, ``attend_long`` the others.

    Visible tokens count: padding must not change how a segment is computed. Where a window has both
    kinds, each mechanism gets its segments packed, which copies q, k and v once.

    Args:
        inputs: q_BLHK, k_BLHK and v_BLHK; both functions take them and ``visibility``.

    Returns:
        out_BLHK.
    """
    segments, device = visibility.segments, inputs[0].device
    short = [segment for segment in segments if segment.num_visible < threshold]
    if len(short) in (0, len(segments)):
        attend = attend_short if short else attend_long
        return attend(*inputs, visibility=visibility)

    def make() -> tuple[Part, Part, Tensor]:
        long = [segment for segment in segments if segment.num_visible >= threshold]
        parts = (_packed(short, visibility, device), _packed(long, visibility, device))
        return *parts, torch.cat([part.positions_N for part in parts]).argsort()

    of_short, of_long, order_T = visibility.plan(("by length", threshold, device), make)
    flat = [x.flatten(0, 1) for x in inputs]
    out_THK = torch.cat((_attend(attend_short, flat, of_short), _attend(attend_long, flat, of_long)))
    return out_THK.index_select(0, order_T).view_as(inputs[2])


def _packed(segments: Sequence[Segment], visibility: Visibility, device: torch.device) -> Part:
    positions_N = torch.cat([torch.arange(segment.start, segment.stop, device=device) for segment in segments])
    ends = torch.tensor([0, *map(len, segments)]).cumsum(0)
    mask_1N = None if visibility.mask_T is None else visibility.mask_T[positions_N][None]
    return Part(positions_N, Visibility(1, len(positions_N), mask_1N, ends, visibility.is_causal))


def _attend(attend: Callable[..., Tensor], flat: Sequence[Tensor], part: Part) -> Tensor:
    """Return out_NHK of some segments."""
    picked = (x_THK.index_select(0, part.positions_N)[None] for x_THK in flat)
    return attend(*picked, visibility=part.visibility)[0]
