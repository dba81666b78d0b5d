"""The encoder: token embedding, trunk and final norm."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from proteinlm.attention import Attention, build_attention
from proteinlm.errors import ShapeError
from proteinlm.model.block import Block, Surroundings
from proteinlm.model.layers import empty_embedding
from proteinlm.model.local_convolution import LocalConvolution
from proteinlm.model.reversible import run_reversible
from proteinlm.model.settings import ModelConfig


class Encoder(nn.Module):
    """Pre-norm encoder, bidirectional unless its surroundings say otherwise.

    Args:
        config: sizes and mechanism.
        seed: of the run; names the streams of the mechanisms.
    """

    def __init__(self, config: ModelConfig, *, seed: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = empty_embedding(config.vocab_size, config.hidden_size)
        self.local_convolution = (
            LocalConvolution(hidden_size=config.hidden_size, width=config.local_convolution)
            if config.local_convolution
            else None
        )
        self.blocks = nn.ModuleList(
            Block(
                config,
                build_attention(config.attention, head_dim=config.head_dim, layer=layer, seed=seed),
                layer=layer,
            )
            for layer in range(config.num_layers)
        )
        self.final_norm = nn.LayerNorm(config.hidden_size)

    @property
    def shares_query_key(self) -> bool:
        """Whether blocks project queries and values only, and hand the queries over as keys."""
        return any(cast(Block, block).shares_query_key for block in self.blocks)

    def mechanisms(self) -> list[Attention]:
        """Return the attention mechanism of each block."""
        return [cast(Block, block).attention for block in self.blocks]

    def forward(self, tokens_BL: Tensor, around: Surroundings) -> Tensor:
        """Return the hidden states after the final norm, (B, L, D)."""
        x_BLD = self.embedding(tokens_BL)
        if self.local_convolution is not None:
            x_BLD = x_BLD + self.local_convolution(x_BLD, key_mask_BL=around.key_mask_BL, cu_seqlens=around.cu_seqlens)
        if around.observer is not None:
            around.observer.hidden(0, x_BLD)
        hidden_BLD: Tensor = self.final_norm(self._run_blocks(x_BLD, around))
        if around.observer is not None:
            around.observer.hidden(len(self.blocks), hidden_BLD)
        return hidden_BLD

    def _run_blocks(self, x_BLD: Tensor, around: Surroundings) -> Tensor:
        blocks = [cast(Block, block) for block in self.blocks]
        if self.config.reversible:
            return run_reversible(blocks, x_BLD, around, precision=self.config.reversible_precision)
        for layer, block in enumerate(blocks):
            x_BLD = block(x_BLD, around)
            if around.observer is not None and layer + 1 < len(blocks):
                around.observer.hidden(layer + 1, x_BLD)
        return x_BLD


def check_windows(
    tokens_BL: Tensor, *, positions_BL: Tensor | None, key_mask_BL: Tensor | None, cu_seqlens: Tensor | None
) -> None:
    """Check that the parts of a batch fit together.

    Raises:
        ShapeError: says which part has which shape and which was expected.
    """
    if tokens_BL.dim() != 2:
        raise ShapeError(f"tokens have shape {tuple(tokens_BL.shape)}; expected (windows, positions)")
    for name, part in (("positions", positions_BL), ("key mask", key_mask_BL)):
        if part is not None and part.shape != tokens_BL.shape:
            raise ShapeError(f"{name} have shape {tuple(part.shape)} but tokens {tuple(tokens_BL.shape)}")
    if key_mask_BL is not None and key_mask_BL.dtype != torch.bool:
        raise ShapeError(f"the key mask is of {key_mask_BL.dtype}; expected torch.bool, True where a key is visible")
    if cu_seqlens is not None and (cu_seqlens.dim() != 1 or len(cu_seqlens) < 2):
        raise ShapeError(f"cu_seqlens has shape {tuple(cu_seqlens.shape)}; expected (segments + 1,)")
