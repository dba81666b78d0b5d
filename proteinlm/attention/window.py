"""Sliding-window attention, after Longformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from proteinlm.attention.interface import Attention
from proteinlm.ops import window_attention as ops


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowConfig:
    """Settings of sliding-window attention.

    Raises:
        ValueError: if a setting is out of its range.
    """

    kind: Literal["window"] = "window"
    window: int = 256  # tokens that a query sees on each side; Longformer counts both sides, 512

    def __post_init__(self) -> None:
        if self.window < 0:
            raise ValueError(f"window is {self.window}; expected 0 or more tokens on each side")


class WindowAttention(Attention):
    """Softmax attention in which query i sees key j of its segment where |i - j| <= window."""

    is_exact = False

    def __init__(self, config: WindowConfig, *, head_dim: int, layer: int, seed: int) -> None:
        super().__init__(head_dim)
        self.config = config

    def extra_repr(self) -> str:
        """Name the settings that tell one mechanism from another."""
        return f"{self.config.window} tokens on each side"

    def _attend(
        self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, key_mask_BL: Tensor | None, cu_seqlens: Tensor | None
    ) -> Tensor:
        return ops.window_attention(
            q_BLHK, k_BLHK, v_BLHK, self.config.window, key_mask_BL=key_mask_BL, cu_seqlens=cu_seqlens
        )

    def _map(
        self, q_BLHK: Tensor, k_BLHK: Tensor, key_mask_BL: Tensor | None, cu_seqlens: Tensor | None, rows: slice
    ) -> Tensor:
        return ops.window_map(
            q_BLHK, k_BLHK, self.config.window, key_mask_BL=key_mask_BL, cu_seqlens=cu_seqlens, rows=rows
        )
