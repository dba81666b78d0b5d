"""What mechanisms share that draw at random, and draw again as training goes on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from proteinlm.attention.choices import Choices
from proteinlm.attention.interface import Attention
from proteinlm.ops.sampled_attention import hash_orders, hash_planes
from proteinlm.ops.visibility import Visibility


class RedrawnAttention(Attention):
    """Attention whose random numbers are a pure function of (seed, layer, draw).

    They are neither parameters nor buffers: no checkpoint holds them and ``half()`` leaves them as they are. In
    training call ``set_step`` after each optimiser step, as ``proteinlm train`` does, or set ``draw`` yourself;
    whoever calls neither keeps the first draw.

    Attributes:
        draw: which draw is in use; ``set_step`` sets it and so may you.
        redraw_interval: optimiser steps between draws; 0 keeps the first.
    """

    is_exact = False

    def __init__(self, *, head_dim: int, layer: int, seed: int, redraw_interval: int) -> None:
        super().__init__(head_dim)
        self.redraw_interval = redraw_interval
        self.layer = layer
        self.seed = seed
        self.draw = 0
        self._kept: dict[tuple[str, int, torch.device, torch.dtype], Tensor] = {}

    def set_step(self, step: int) -> None:
        """Use the draw of optimiser step ``step``: number step // redraw_interval."""
        self.draw = step // self.redraw_interval if self.redraw_interval else 0

    @property
    def redrawing(self) -> str:
        """How random numbers are drawn again, for ``repr``."""
        if not self.redraw_interval:
            return f"draw {self.draw}, never redrawn"
        return f"draw {self.draw}, redrawn every {self.redraw_interval:,} steps told by set_step"

    def draw_number(self) -> int:
        """Return the number of the draw in use."""
        return self.draw

    def drawn(
        self, name: str, make: Callable[[], Tensor], device: torch.device | str, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        """Return what ``make`` returns, made once for each draw, device and dtype, and kept under ``name``."""
        key = (name, self.draw, torch.device(device), dtype)
        if key not in self._kept:
            self._kept = {k: kept for k, kept in self._kept.items() if k[1] == self.draw}
            # tensors first drawn in inference mode could not be used in training afterwards
            with torch.inference_mode(False):
                self._kept[key] = make().to(device, dtype)
        return self._kept[key]


class OrderedAttention(RedrawnAttention, ABC):
    """Attention in blocks of queries and keys, each sorted by a hash; the orders are what it chooses."""

    def hash_orders(self, q_BLHK: Tensor, k_BLHK: Tensor, visibility: Visibility) -> Tensor:
        """Return orders_2HT by the planes of the draw in use, of queries and of keys."""

        def draw() -> Tensor:
            return hash_planes(self.head_dim, seed=self.seed, layer=self.layer, draw=self.draw)

        planes_NK = self.drawn("planes", draw, q_BLHK.device)
        return hash_orders(q_BLHK, k_BLHK, planes_NK, visibility=visibility)

    @abstractmethod
    def _attend_in_order(
        self, inputs: tuple[Tensor, Tensor, Tensor], orders_2HT: Tensor, visibility: Visibility
    ) -> Tensor: ...

    def _attend(
        self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, visibility: Visibility, choices: Choices | None
    ) -> Tensor:
        kept = Choices() if choices is None else choices
        orders_2HT = kept.make(lambda: self.hash_orders(q_BLHK, k_BLHK, visibility))
        return self._attend_in_order((q_BLHK, k_BLHK, v_BLHK), orders_2HT, visibility)
