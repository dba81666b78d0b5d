"""Sliding-window attention, after Longformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from proteinlm.attention.choices import Choices
from proteinlm.attention.interface import Attention
from proteinlm.ops import window_attention as ops
from proteinlm.ops.visibility import Visibility


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowConfig:
    """Settings of sliding-window attention.

    Raises:
        ValueError: if a setting is out of its range.
    """

    # exact attention to near tokens only
    # when: a local baseline is wanted
    kind: Literal["window"] = "window"
    # tokens that a query sees on each side; Longformer counts both sides, 512
    # when: contacts lie further apart (more)
    window: int = 256

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
        self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, visibility: Visibility, choices: Choices | None
    ) -> Tensor:
        return ops.window_attention(q_BLHK, k_BLHK, v_BLHK, self.config.window, visibility=visibility)

    def _map(self, q_BLHK: Tensor, k_BLHK: Tensor, visibility: Visibility, rows: slice, heads: slice) -> Tensor:
        q_BLhK, k_BLhK = q_BLHK[:, :, heads], k_BLHK[:, :, heads]
        return ops.window_map(q_BLhK, k_BLhK, self.config.window, rows=rows, visibility=visibility)
