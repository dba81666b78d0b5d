"""Layouts of segments and visible keys that every mechanism must get right."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Layout:
    num_windows: int
    length: int
    key_mask_BL: Tensor | None = None
    cu_seqlens: Tensor | None = None

    @property
    def options(self) -> dict[str, Tensor | None]:
        return {"key_mask_BL": self.key_mask_BL, "cu_seqlens": self.cu_seqlens}

    def draw(self, num_heads: int, head_dim: int, *, requires_grad: bool = True) -> list[Tensor]:
        """Return random q, k, v in float64, the same each time."""
        generator = torch.Generator().manual_seed(1)
        sizes = (self.num_windows, self.length, num_heads, head_dim)
        drawn = (torch.randn(sizes, generator=generator, dtype=torch.float64) for _ in range(3))
        return [x.requires_grad_(requires_grad) for x in drawn]


def _mask(num_windows: int, length: int) -> Tensor:
    return torch.rand(num_windows, length, generator=torch.Generator().manual_seed(2)) > 0.3


def _hidden(mask_BL: Tensor, window: int, positions: slice) -> Tensor:
    mask_BL[window, positions] = False
    return mask_BL


CU_SEQLENS = torch.tensor([0, 1, 14, 14, 37, 40, 53, 74], dtype=torch.int32)

LAYOUTS = {
    "odd sizes": Layout(2, 37),
    "one token": Layout(3, 1),
    "padded": Layout(2, 37, torch.arange(37) < torch.tensor([[37], [5]])),
    "scattered mask": Layout(2, 37, _mask(2, 37)),
    "no visible key": Layout(2, 37, _hidden(_mask(2, 37), 1, slice(None))),
    "packed": Layout(2, 37, None, CU_SEQLENS),
    "packed and masked": Layout(2, 37, _mask(2, 37), CU_SEQLENS),
    "packed, a segment hidden": Layout(2, 37, _hidden(_mask(2, 37), 0, slice(1, 14)), CU_SEQLENS),
    "packed, start of a segment hidden": Layout(2, 37, _hidden(_mask(2, 37), 0, slice(14, 33)), CU_SEQLENS),
}


@pytest.fixture(params=list(LAYOUTS.values()), ids=list(LAYOUTS))
def layout(request: pytest.FixtureRequest) -> Layout:
    return request.param


class LargestTensor(TorchDispatchMode):
    """Records the bytes of the largest storage that any operation returns."""

    num_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [x.untyped_storage().nbytes() for x in tree_leaves(result) if isinstance(x, Tensor)]
        self.num_bytes = max([self.num_bytes, *sizes])
        return result


@pytest.fixture
def largest_tensor() -> type[LargestTensor]:
    return LargestTensor
