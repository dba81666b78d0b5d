"""Rotary positions: queries and keys turned by an angle that grows with the position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class RotaryPositions:
    """The turns of one batch of windows, computed once and used by every layer.

    Pair (i, i + K/2) of a head is turned by ``position * base ** (-2 i / K)``, so that a product of
    a query and a key depends on their positions only through the difference.

    Args:
        positions_BL: position of each token in its protein, from 0.
        head_dim: K, an even number.
        base: the slowest pair turns once in about ``2 pi base`` residues.
        dtype: of the queries and keys; the angles themselves are in float32 or float64.

    Attributes:
        cos_BL1k: cosine of each pair's angle at each position; ``sin_BL1k`` the sine.

    Source: Su et al., arXiv:2104.09864, equation 34.
    """

    def __init__(self, positions_BL: Tensor, *, head_dim: int, base: float, dtype: torch.dtype) -> None:
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        pairs = torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions_BL.device)
        rates = base ** (-pairs / head_dim)
        # position times rate in float64: float32 has lost the fast pairs' angle at a million residues
        angles = positions_BL.to(torch.float64)[..., None] * rates
        self.cos_BL1k = angles.cos().to(exact)[:, :, None]
        self.sin_BL1k = angles.sin().to(exact)[:, :, None]

    def turn(self, x_BLHK: Tensor) -> Tensor:
        """Return queries or keys turned to their positions, in their own dtype."""
        turned: Tensor = _Turn.apply(x_BLHK, self.cos_BL1k, self.sin_BL1k)  # type: ignore[no-untyped-call]
        return turned


class _Turn(torch.autograd.Function):
    """Turn pairs; the gradient is turned back. Written in place: half the passes of what autograd would record."""

    @staticmethod
    def forward(ctx: Any, x_BLHK: Tensor, cos_BL1k: Tensor, sin_BL1k: Tensor) -> Tensor:
        ctx.save_for_backward(cos_BL1k, sin_BL1k)
        first, second = x_BLHK.to(cos_BL1k.dtype).chunk(2, dim=-1)
        turned = torch.empty(x_BLHK.shape, dtype=cos_BL1k.dtype, device=x_BLHK.device)
        turned_first, turned_second = turned.chunk(2, dim=-1)
        torch.mul(first, cos_BL1k, out=turned_first)
        turned_first.addcmul_(second, sin_BL1k, value=-1)
        torch.mul(second, cos_BL1k, out=turned_second)
        turned_second.addcmul_(first, sin_BL1k)
        return turned.to(x_BLHK.dtype)

    @staticmethod
    def backward(ctx: Any, grad_BLHK: Tensor) -> tuple[Tensor, None, None]:
        cos_BL1k, sin_BL1k = ctx.saved_tensors
        return _Turn.apply(grad_BLHK, cos_BL1k, -sin_BL1k), None, None  # type: ignore[no-untyped-call]
