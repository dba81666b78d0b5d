"""What mechanisms share that draw at random, and draw again as training goes on."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from proteinlm.attention.choices import Choices
from proteinlm.attention.interface import Attention
from proteinlm.ops.sampled_attention import hash_orders, hash_planes


class RedrawnAttention(Attention):
    """Attention whose random numbers are a pure function of (seed, layer, draw).

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

    def set_step(self, step: int) -> None:
        """Use the draw of optimiser step ``step``: number step // redraw_interval."""
        self.draw = step // self.redraw_interval if self.redraw_interval else 0

    def draw_number(self) -> int:
        """Return the number of the draw in use."""
        return self.draw


class OrderedAttention(RedrawnAttention, ABC):
    """Attention in blocks of queries and keys, each sorted by a hash; the orders are what it chooses."""

    def hash_orders(
        self, q_BLHK: Tensor, k_BLHK: Tensor, key_mask_BL: Tensor | None, cu_seqlens: Tensor | None
    ) -> Tensor:
        """Return orders_2HT by the planes of the draw in use, of queries and of keys."""
        planes_NK = hash_planes(self.head_dim, seed=self.seed, layer=self.layer, draw=self.draw)
        return hash_orders(q_BLHK, k_BLHK, planes_NK, key_mask_BL=key_mask_BL, cu_seqlens=cu_seqlens)

    @abstractmethod
    def _attend_in_order(
        self,
        inputs: tuple[Tensor, Tensor, Tensor],
        orders_2HT: Tensor,
        key_mask_BL: Tensor | None,
        cu_seqlens: Tensor | None,
    ) -> Tensor: ...

    def _attend_form(
        self,
        q_BLHK: Tensor,
        k_BLHK: Tensor,
        v_BLHK: Tensor,
        key_mask_BL: Tensor | None,
        cu_seqlens: Tensor | None,
        is_causal: bool,
        choices: Choices | None,
    ) -> Tensor:
        if is_causal:
            return self._attend_causal(q_BLHK, k_BLHK, v_BLHK, key_mask_BL, cu_seqlens)
        kept = Choices() if choices is None else choices
        orders_2HT = kept.make(lambda: self.hash_orders(q_BLHK, k_BLHK, key_mask_BL, cu_seqlens))
        return self._attend_in_order((q_BLHK, k_BLHK, v_BLHK), orders_2HT, key_mask_BL, cu_seqlens)

    def _attend(
        self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, key_mask_BL: Tensor | None, cu_seqlens: Tensor | None
    ) -> Tensor:
        return self._attend_form(q_BLHK, k_BLHK, v_BLHK, key_mask_BL, cu_seqlens, False, None)
