"""What queries may see: the visible keys of their own segment, and if causal no later ones.

Positions are those of the flattened windows, 0 … B·L - 1. A segment is a run of positions that
see each other's visible keys and nothing else.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar, Unpack

import torch
from torch import Tensor

from proteinlm.errors import ShapeError, UnavailableError
from proteinlm.ops.tiles import Segment, Tile, plan_tiles

Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class Visibility:
    """What the queries of B windows of L positions may see; made once a batch, read by every layer.

    Attributes:
        num_windows: B.
        length: L, in positions.
        key_mask_BL: bool, True where a key is visible; None: everywhere.
        cu_seqlens: int32 (S + 1,), where segments start in the flattened B·L positions, and B·L; ends of windows are
            among them. None: each window is one segment.
        is_causal: whether no query sees a later key.

    Raises:
        ShapeError: if the mask is not bool of B × L, or ``cu_seqlens`` does not run from 0 to B·L in order, with
            every window's end among its values.
    """

    num_windows: int
    length: int
    key_mask_BL: Tensor | None = None
    cu_seqlens: Tensor | None = None
    is_causal: bool = False

    def __post_init__(self) -> None:
        mask_BL, sizes = self.key_mask_BL, (self.num_windows, self.length)
        if mask_BL is not None and (mask_BL.shape != sizes or mask_BL.dtype != torch.bool):
            found = f"{mask_BL.dtype} {tuple(mask_BL.shape)}"
            raise ShapeError(f"key mask is {found}; expected torch.bool {sizes}, True where a key is visible")
        # read once: every operation would wait for the device again
        _ = self.ends

    @functools.cached_property
    def ends(self) -> list[int]:
        """Where segments start and, last, where they end."""
        window_ends = range(0, self.num_windows * self.length + 1, max(self.length, 1))
        if self.cu_seqlens is None:
            return list(window_ends)
        bounds = self.cu_seqlens
        if bounds.ndim != 1 or bounds.dtype not in (torch.int32, torch.int64):
            raise ShapeError(f"cu_seqlens is {bounds.dtype} {tuple(bounds.shape)}; expected int32 (S + 1,)")
        ends: list[int] = bounds.tolist()
        if ends[:1] != [0] or ends[-1] != window_ends[-1] or any(b < a for a, b in itertools.pairwise(ends)):
            raise ShapeError(f"cu_seqlens is {_shortened(ends)}; expected 0 to {window_ends[-1]} in rising order")
        if missing := set(window_ends).difference(ends):
            raise ShapeError(
                f"cu_seqlens lacks {min(missing)}, the end of a window of {self.length}; segments end with windows"
            )
        return ends

    @functools.cached_property
    def segments(self) -> list[Segment]:
        """The segments of at least one position, in order, those without a visible key included."""
        pairs = [(a, b) for a, b in itertools.pairwise(self.ends) if b > a]
        mask_T = self.mask_T
        if mask_T is None:
            return [Segment(a, b, b - a) for a, b in pairs]
        sums_T = torch.cat((mask_T.new_zeros(1, dtype=torch.int64), mask_T.cumsum(0)))
        running: list[int] = sums_T[torch.tensor(self.ends, device=mask_T.device)].tolist()
        visible = dict(zip(self.ends, running, strict=True))
        return [Segment(a, b, visible[b] - visible[a]) for a, b in pairs]

    @property
    def mask_T(self) -> Tensor | None:
        """The mask over the flattened positions."""
        return None if self.key_mask_BL is None else self.key_mask_BL.flatten()

    @property
    def has_key(self) -> bool:
        """Whether any key is visible at all."""
        return any(segment.num_visible for segment in self.segments)

    def segment_numbers(self, device: torch.device) -> Tensor:
        """Return the number of the segment of every position, int64 (B, L)."""

        def make() -> Tensor:
            lengths_S = torch.tensor(self.ends, device=device).diff()
            numbers_T = torch.arange(len(lengths_S), device=device).repeat_interleave(lengths_S)
            return numbers_T.view(self.num_windows, self.length)

        return self.plan(("segment numbers", device), make)

    def of_window(self, window: int) -> Visibility:
        """Return what the queries of one window may see.

        Raises:
            ShapeError: if there is no such window.
        """
        if not 0 <= window < self.num_windows:
            raise ShapeError(f"window {window}; expected one of {self.num_windows} windows")
        start, cu_seqlens = window * self.length, None
        if self.cu_seqlens is not None:
            cu_seqlens = torch.tensor([end - start for end in self.ends if start <= end <= start + self.length])
        mask_1L = None if self.key_mask_BL is None else self.key_mask_BL[window, None]
        return Visibility(1, self.length, mask_1L, cu_seqlens, self.is_causal)

    def tiles(self, device: torch.device, tile_length: int) -> list[list[Tile]]:
        """Return tiles of at most ``tile_length`` positions that cover all segments with a visible key."""
        return self.plan(
            ("tiles", device, tile_length), lambda: plan_tiles(self.segments, self.mask_T, device, tile_length)
        )

    def plan(self, name: Hashable, make: Callable[[], Made]) -> Made:
        """Return what ``make`` returns, made at the first call with this name; nobody may write to it."""
        plans = self._plans
        if name not in plans:
            # tensors made in inference mode could not be used in training afterwards
            with torch.inference_mode(False):
                plans[name] = make()
        made: Made = plans[name]
        return made

    @functools.cached_property
    def _plans(self) -> dict[Hashable, Any]:
        return {}

    def finite_queries(self, q_BLHK: Tensor) -> Tensor:
        """Return queries with 0 in the place of what is not finite, or as good as that, at a hidden position.

        Such a query would reach the gradients of all keys that it sees, as 0 · NaN where nobody reads its output.
        Other queries come back as they are, without a copy.
        """
        if self.key_mask_BL is None:
            return q_BLHK
        # memory that nobody wrote can hold 1e38: products with keys, and squares of these, must stay finite too
        range_ = torch.finfo(torch.float64 if q_BLHK.dtype == torch.float64 else torch.float32).max
        # float16 would round a larger bound to infinity, and let that pass
        largest = min(range_**0.25, torch.finfo(q_BLHK.dtype).max)
        if (q_BLHK.detach()[~self.key_mask_BL].abs() <= largest).all():
            return q_BLHK
        return q_BLHK.masked_fill(~(self.key_mask_BL[..., None, None] | (q_BLHK.abs() <= largest)), 0)


class Seen(TypedDict, total=False):
    """How every operation is told what its queries may see: by ``visibility``, or by what that is made of."""

    visibility: Visibility | None
    key_mask_BL: Tensor | None
    cu_seqlens: Tensor | None
    is_causal: bool


def visibility_of(
    windows: tuple[int, int],
    *,
    visibility: Visibility | None = None,
    key_mask_BL: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    is_causal: bool = False,
) -> Visibility:
    """Return ``visibility``, or that of its parts.

    Args:
        windows: B and L of the tensors that it is for.

    Raises:
        ShapeError: if parts are given beside it, if it is of other sizes, or see ``Visibility``.
    """
    if visibility is None:
        return Visibility(*windows, key_mask_BL, cu_seqlens, is_causal)
    if key_mask_BL is not None or cu_seqlens is not None or is_causal:
        raise ShapeError("visibility holds key mask, cu_seqlens and is_causal; expected it or these, not both")
    if (visibility.num_windows, visibility.length) != tuple(windows):
        found = f"{visibility.num_windows} windows of {visibility.length}"
        raise ShapeError(f"visibility is of {found}, but the inputs are {windows[0]} windows of {windows[1]}")
    return visibility


def check_inputs(
    q_BLHK: Tensor,
    k_BLHK: Tensor | None = None,
    v_BLHK: Tensor | None = None,
    *,
    bidirectional_only: str | None = None,
    **seen: Unpack[Seen],
) -> Visibility:
    """Check what an operation is given, and return what its queries may see.

    Args:
        q_BLHK: queries, in the layout (windows, positions, heads, head width) and not (B, H, L, K).
        k_BLHK: keys; they and ``v_BLHK``, the values, have the shape of the queries: no operation offers
            cross-attention or heads that share keys. Dtypes may differ.
        bidirectional_only: the name of an operation that cannot keep later keys from a query.

    Raises:
        ShapeError: if shapes or dtypes do not fit together.
        UnavailableError: if there is no causal form and one is asked for.
    """
    for name, x in (("queries", q_BLHK), ("keys", k_BLHK), ("values", v_BLHK)):
        if x is None:
            continue
        if x.ndim != 4 or not x.is_floating_point():
            raise ShapeError(f"{name} are {x.dtype} {tuple(x.shape)}; expected floating point (B, L, H, K)")
        if x.shape != q_BLHK.shape:
            raise ShapeError(
                f"{name} are {tuple(x.shape)} but queries {tuple(q_BLHK.shape)}; expected the same (B, L, H, K): "
                "cross-attention and heads that share keys are not offered"
            )
    visibility = visibility_of((q_BLHK.shape[0], q_BLHK.shape[1]), **seen)
    if visibility.is_causal and bidirectional_only is not None:
        raise UnavailableError(
            f"{bidirectional_only} has no causal form; leave is_causal out, or use kind 'linear', 'favor', 'lsh' or "
            "'softmax'"
        )
    return visibility


def _shortened(values: list[int]) -> str:
    return str(values) if len(values) <= 8 else f"[{', '.join(map(str, values[:4]))}, …, {values[-1]}]"
