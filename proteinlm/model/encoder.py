"""The encoder: token embedding, trunk and final norm."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from proteinlm.attention import Attention, build_attention
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
            x_BLD = x_BLD + self.local_convolution(x_BLD, around.visibility)
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
