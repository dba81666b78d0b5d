"""BigBird: window, global and random attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from proteinlm.attention.choices import Choices
from proteinlm.attention.interface import Attention
from proteinlm.ops import block_sparse_attention as ops
from proteinlm.ops.visibility import Visibility


@dataclass(frozen=True, kw_only=True, slots=True)
class BigBirdConfig:
    """Settings of BigBird's attention.

    Raises:
        ValueError: if a setting is out of its range.
    """

    # near blocks, global tokens and random blocks
    # when: a sparse baseline is wanted
    kind: Literal["bigbird"] = "bigbird"
    # tokens of a block
    # when: the GPU is poorly used (more), or memory is short (less)
    block_length: int = 64
    # blocks that a query sees on each side of its own
    # when: near contacts are missed (more)
    num_window_blocks: int = 1
    # first tokens of a segment that see and are seen by all: 1 is <cls>; the paper takes two blocks of its text
    # when: the paper is repeated
    num_global_tokens: int = 1
    # blocks drawn at random for each block, by seed and layer
    # when: far contacts are missed (more)
    num_random_blocks: int = 3

    def __post_init__(self) -> None:
        if self.block_length < 1:
            raise ValueError(f"block_length is {self.block_length}; expected 1 or more tokens")
        for name in ("num_window_blocks", "num_global_tokens", "num_random_blocks"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")


class BigBirdAttention(Attention):
    """Softmax attention over nearby blocks, the first tokens of the segment and random blocks.

    Random blocks are a pure function of (seed, layer, length of the segment): no checkpoint holds them,
    and a protein sees the same ones alone, padded or packed.
    """

    is_exact = False

    def __init__(self, config: BigBirdConfig, *, head_dim: int, layer: int, seed: int) -> None:
        super().__init__(head_dim)
        self.config = config
        self.pattern = ops.BlockPattern(
            block_length=config.block_length,
            num_window_blocks=config.num_window_blocks,
            num_global_tokens=config.num_global_tokens,
            num_random_blocks=config.num_random_blocks,
            seed=seed,
            layer=layer,
        )

    def extra_repr(self) -> str:
        """Name the settings that tell one mechanism from another."""
        config = self.config
        blocks = f"{2 * config.num_window_blocks + 1} + {config.num_random_blocks} blocks of {config.block_length}"
        return f"{blocks}, {config.num_global_tokens} global tokens"

    def _attend(
        self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, visibility: Visibility, choices: Choices | None
    ) -> Tensor:
        return ops.bigbird_attention(q_BLHK, k_BLHK, v_BLHK, self.pattern, visibility=visibility)

    def _map(self, q_BLHK: Tensor, k_BLHK: Tensor, visibility: Visibility, rows: slice, heads: slice) -> Tensor:
        q_BLhK, k_BLhK = q_BLHK[:, :, heads], k_BLHK[:, :, heads]
        return ops.bigbird_map(q_BLhK, k_BLhK, self.pattern, rows=rows, visibility=visibility)
