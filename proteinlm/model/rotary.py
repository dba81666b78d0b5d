"""Rotary positions: queries and keys turned by an angle that grows with the position."""

from __future__ import annotations

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

    Source: Su et al., arXiv:2104.09864, equation 34.
    """

    def __init__(self, positions_BL: Tensor, *, head_dim: int, base: float, dtype: torch.dtype) -> None:
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        pairs = torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions_BL.device)
        rates = base ** (-pairs / head_dim)
        # position times rate in float64: float32 has lost the fast pairs' angle at a million residues
        angles = positions_BL.to(torch.float64)[..., None] * rates
        self._cos_BL1k = angles.cos().to(exact)[:, :, None]
        self._sin_BL1k = angles.sin().to(exact)[:, :, None]

    def turn(self, x_BLHK: Tensor) -> Tensor:
        """Return queries or keys turned to their positions, in their own dtype."""
        first, second = x_BLHK.to(self._cos_BL1k.dtype).chunk(2, dim=-1)
        turned = torch.cat(
            (
                first * self._cos_BL1k - second * self._sin_BL1k,
                second * self._cos_BL1k + first * self._sin_BL1k,
            ),
            dim=-1,
        )
        return turned.to(x_BLHK.dtype)
