"""A short convolution over neighbouring residues that never reaches into another protein."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from proteinlm.model.layers import empty_linear
from proteinlm.ops.visibility import Visibility


class LocalConvolution(nn.Module):
    """Mix each position with its neighbours, one filter a channel, then project.

    y_i = W_out sum_o f_o * x_(i+o) over offsets o from -(width // 2) to width // 2, leaving out
    positions that belong to another segment, to another window, or that the mask hides.

    Args:
        hidden_size: D.
        width: number of positions in the filter, odd.
    """

    def __init__(self, *, hidden_size: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.filter_OD = nn.Parameter(torch.empty(width, hidden_size))
        self.outer = empty_linear(hidden_size, hidden_size)

    def forward(self, x_BLD: Tensor, visibility: Visibility) -> Tensor:
        """Return the increment of each position, (B, L, D)."""
        if visibility.key_mask_BL is not None:
            x_BLD = x_BLD * visibility.key_mask_BL[..., None]
        segments_BL = visibility.segment_numbers(x_BLD.device)
        mixed_BLD = x_BLD * self.filter_OD[self.width // 2]
        for offset in range(1, min(self.width // 2, x_BLD.shape[1] - 1) + 1):
            same_Bl1 = (segments_BL[:, offset:] == segments_BL[:, :-offset])[..., None]
            later_BlD = x_BLD[:, offset:] * same_Bl1 * self.filter_OD[self.width // 2 + offset]
            earlier_BlD = x_BLD[:, :-offset] * same_Bl1 * self.filter_OD[self.width // 2 - offset]
            mixed_BLD = mixed_BLD + _shifted(later_BlD, before=0, after=offset) + _shifted(earlier_BlD, offset, 0)
        increment: Tensor = self.outer(mixed_BLD)
        return increment


def _shifted(x_BLD: Tensor, before: int, after: int) -> Tensor:
    return nn.functional.pad(x_BLD, (0, 0, before, after))
