"""Dropout whose draws depend on the window and not on the batch around it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from proteinlm.randomness import stream_key


class KeyedDropout(nn.Module):
    """Zero a share of the values of each window, by a stream named by the window's key.

    The same window of the same step is treated alike on any number of processes and when a
    backward pass computes it again.

    Args:
        rate: share of the values that are zeroed, in [0, 1).
        layer: number of the block.
        site: which place in the block.
    """

    def __init__(self, rate: float, *, layer: int, site: str) -> None:
        super().__init__()
        self.rate = rate
        self.layer = layer
        self.site = site

    def forward(self, x_BLD: Tensor, keys_B: Sequence[int] | None) -> Tensor:
        """Return ``x_BLD`` with values dropped and the others scaled by 1 / (1 - rate).

        Args:
            x_BLD: values of B windows.
            keys_B: a key for each window; None drops nothing, as does evaluation mode.
        """
        return self.drop(x_BLD, self.draw(x_BLD, keys_B))

    def draw(self, x_BLD: Tensor, keys_B: Sequence[int] | None) -> Tensor | None:
        """Return True where a value of ``x_BLD`` is kept, (B, L, D), or None where all are; as for ``forward``."""
        if keys_B is None or not self.training or self.rate == 0:
            return None
        keep_BLD = torch.empty(x_BLD.shape, dtype=torch.bool, device=x_BLD.device)
        generator = torch.Generator(device=x_BLD.device)
        for row, key in enumerate(keys_B):
            generator.manual_seed(stream_key(key, "dropout", self.layer, self.site))
            # in float32 whatever torch's default is, or a key would name other masks there
            drawn_LD = torch.rand(x_BLD.shape[1:], generator=generator, device=x_BLD.device, dtype=torch.float32)
            keep_BLD[row] = drawn_LD >= self.rate
        return keep_BLD

    def drop(self, x: Tensor, keep: Tensor | None) -> Tensor:
        """Return ``x`` with the values dropped that ``draw`` did not keep, or a part of both."""
        return x if keep is None else x * keep / (1 - self.rate)
