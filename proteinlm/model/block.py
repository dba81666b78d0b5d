"""A block of the trunk: attention and a feed-forward network, each with its norm inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from proteinlm.attention import Attention
from proteinlm.attention.choices import Choices
from proteinlm.model.chunking import back_in_chunks, in_chunks
from proteinlm.model.dropout import KeyedDropout
from proteinlm.model.feed_forward import FeedForward
from proteinlm.model.layers import empty_linear
from proteinlm.model.observer import Observer
from proteinlm.model.query_key_norm import QueryKeyNorm
from proteinlm.model.rotary import RotaryPositions
from proteinlm.model.settings import ModelConfig
from proteinlm.ops.visibility import Visibility


@dataclass(frozen=True)
class Surroundings:
    """What a block must know of the windows besides their hidden states.

    Attributes:
        rotary: turns of the positions.
        visibility: what the positions may see: visible keys of their segment, and if causal no later ones.
        dropout_keys_B: one key a window; None drops nothing.
        observer: somebody who looks at queries, keys, values and hidden states.
        choices: remembers or repeats what the mechanism of a block chooses.
    """

    rotary: RotaryPositions
    visibility: Visibility
    dropout_keys_B: Sequence[int] | None = None
    observer: Observer | None = None
    choices: Choices | None = None


class Block(nn.Module):
    """x <- x + attend(x), x <- x + feed(x), both pre-norm."""

    def __init__(self, config: ModelConfig, attention: Attention, *, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads = config.num_heads
        self.attention_norm = nn.LayerNorm(config.hidden_size)
        # fixed by the mechanism it is built with: another one may read the same projection afterwards
        self.shares_query_key = attention.shares_query_key
        if self.shares_query_key:
            self.query_value = empty_linear(config.hidden_size, 2 * config.hidden_size)
        else:
            self.query_key_value = empty_linear(config.hidden_size, 3 * config.hidden_size)
        self.query_key_norm = (
            QueryKeyNorm(num_heads=config.num_heads, head_dim=config.head_dim, max_temperature=config.max_temperature)
            if config.query_key_norm
            else None
        )
        self.attention = attention
        self.attention_output = empty_linear(config.hidden_size, config.hidden_size)
        self.attention_dropout = KeyedDropout(config.dropout, layer=layer, site="attention")
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size)
        self.feed_forward = FeedForward(
            hidden_size=config.hidden_size,
            feed_forward_size=config.feed_forward_size,
            activation=config.activation,
        )
        self.feed_forward_chunk = config.feed_forward_chunk
        self.feed_forward_dropout = KeyedDropout(config.dropout, layer=layer, site="feed_forward")

    def forward(self, x_BLD: Tensor, around: Surroundings) -> Tensor:
        """Return the hidden states after this block, (B, L, D)."""
        x_BLD = x_BLD + self.attend(x_BLD, around)
        return x_BLD + self.feed(x_BLD, around)

    def attend(self, x_BLD: Tensor, around: Surroundings) -> Tensor:
        """Return the increment of the attention half."""
        q_BLHK, k_BLHK, v_BLHK = self._project(self.attention_norm(x_BLD), around.rotary)
        out_BLHK = self.attention(q_BLHK, k_BLHK, v_BLHK, visibility=around.visibility, choices=around.choices)
        if around.observer is not None:
            around.observer.attention(self.layer, (q_BLHK, k_BLHK, v_BLHK), out_BLHK, around.visibility)
        increment_BLD = self.attention_output(out_BLHK.flatten(2))
        dropped_BLD: Tensor = self.attention_dropout(increment_BLD, around.dropout_keys_B)
        return dropped_BLD

    def _project(self, x_BLD: Tensor, rotary: RotaryPositions) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values; shared queries come back as keys as well, the same tensor."""
        sizes = (*x_BLD.shape[:2], 2 if self.shares_query_key else 3, self.num_heads, self.attention.head_dim)
        if self.shares_query_key:
            q_BLHK, v_BLHK = self.query_value(x_BLD).view(sizes).unbind(dim=2)
            if self.query_key_norm is not None:
                return *self.query_key_norm(q_BLHK, None, rotary), v_BLHK
            q_BLHK = rotary.turn(q_BLHK)
            return q_BLHK, q_BLHK, v_BLHK
        q_BLHK, k_BLHK, v_BLHK = self.query_key_value(x_BLD).view(sizes).unbind(dim=2)
        if self.query_key_norm is not None:
            return *self.query_key_norm(q_BLHK, k_BLHK, rotary), v_BLHK
        return rotary.turn(q_BLHK), rotary.turn(k_BLHK), v_BLHK

    def feed(self, x_BLD: Tensor, around: Surroundings) -> Tensor:
        """Return the increment of the feed-forward half."""
        cut = self._cut_for_feed(x_BLD, around)
        if not 0 < self.feed_forward_chunk < x_BLD.shape[1]:
            return self._feed(*cut)[0]
        modules = (self.feed_forward_norm, self.feed_forward)
        return in_chunks(self._feed, cut, chunk_length=self.feed_forward_chunk, dim=1, modules=modules)[0]

    def feed_back(self, x_BLD: Tensor, around: Surroundings, grad_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the increment of the feed-forward half again, and the gradient of ``x_BLD``; parameters get theirs.

        A chunk is computed once for both.
        """
        return back_in_chunks(
            self._feed,
            self._cut_for_feed(x_BLD, around),
            grad_BLD,
            chunk_length=self.feed_forward_chunk or x_BLD.shape[1],
            dim=1,
            modules=(self.feed_forward_norm, self.feed_forward),
        )

    def _feed(self, x_BCD: Tensor, keep_BCD: Tensor | None = None) -> tuple[Tensor]:
        increment_BCD: Tensor = self.feed_forward(self.feed_forward_norm(x_BCD))
        return (self.feed_forward_dropout.drop(increment_BCD, keep_BCD),)

    def _cut_for_feed(self, x_BLD: Tensor, around: Surroundings) -> list[Tensor]:
        # drawn for whole windows, or what is dropped would depend on the chunks
        keep_BLD = self.feed_forward_dropout.draw(x_BLD, around.dropout_keys_B)
        return [x_BLD] if keep_BLD is None else [x_BLD, keep_BLD]
