"""The settings of a model: sizes, and which attention."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from proteinlm.attention import AttentionConfig, FavorConfig
from proteinlm.model.feed_forward import Activation

ReversiblePrecision = Literal["float", "exact"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Sizes and mechanisms of a masked language model."""

    # blocks of the trunk
    # when: another size of model is wanted; time and weights grow in proportion
    num_layers: int = 12
    # width of the hidden states; a multiple of 2 * num_heads
    # when: another size of model is wanted; time and weights grow with its square
    hidden_size: int = 512
    # attention heads; each is hidden_size / num_heads wide
    # when: hidden_size changes: widths of 32 to 64 a head are usual
    num_heads: int = 8
    # width inside the feed-forward part of a block
    # when: hidden_size changes: four times it is usual
    feed_forward_size: int = 2048
    # the mechanism and its settings, by kind
    attention: AttentionConfig = field(default_factory=FavorConfig)
    # queries and keys of one learned length a head
    # when: never with random features, which fail without; false is for models of other programs
    query_key_norm: bool = True
    # largest attention logit under query_key_norm; |q|^2 + |k|^2 is at most twice this
    # when: attention is exact or hashed and should be sharper (16); random features need it small
    max_temperature: float = 2.0
    # share of the values dropped behind attention and feed-forward in training
    # when: the validation loss rises while the training loss falls
    dropout: float = 0.0
    # non-linearity of the feed-forward part; "swiglu" gates with a third matrix
    # when: architectures are compared
    activation: Activation = "gelu"
    # positions a filter before the trunk spans, odd; 0 leaves it out
    # when: a small model learns slowly (7); it sees both sides, so a causal model needs 0
    local_convolution: int = 0
    # base of rotary positions, whose wavelengths run from 2 pi to 2 pi times it, in positions
    # when: windows are far longer than 50,000 (more)
    rotary_base: float = 10_000.0
    # two streams that are computed back in the backward pass; weights have the same names either way
    # when: activations do not fit into memory: they no longer grow with num_layers, for more time
    reversible: bool = False
    # "exact" rounds increments so that the streams are computed back to the bit
    # when: a reversible trunk is deep, or hashes its queries and must choose the same buckets twice
    reversible_precision: ReversiblePrecision = "float"
    # positions whose feed-forward is computed at a time, again in the backward pass; 0: all, and kept
    # when: the feed-forward part does not fit into memory
    feed_forward_chunk: int = 0
    # rows of the token embedding; the alphabet has 33
    # when: never, but to leave room for tokens of your own
    vocab_size: int = 33

    def __post_init__(self) -> None:
        for name in ("num_layers", "hidden_size", "num_heads", "feed_forward_size", "vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size is {self.hidden_size}; expected a multiple of 2 * num_heads = {2 * self.num_heads}, "
                "so that every head has an even width"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; expected a share from 0 to below 1")
        if self.max_temperature <= 0:
            raise ValueError(f"max_temperature is {self.max_temperature}; expected more than 0")
        if self.feed_forward_chunk < 0:
            raise ValueError(f"feed_forward_chunk is {self.feed_forward_chunk}; expected 1 or more, or 0 for all")
        if self.reversible_precision not in get_args(ReversiblePrecision):
            raise ValueError(f"reversible_precision is {self.reversible_precision}; expected 'float' or 'exact'")
        if self.reversible_precision != "float" and not self.reversible:
            raise ValueError(
                f"reversible_precision is {self.reversible_precision}, but reversible is false: "
                "there is nothing to compute back"
            )
        if self.local_convolution < 0 or (self.local_convolution and self.local_convolution % 2 == 0):
            raise ValueError(f"local_convolution is {self.local_convolution}; expected 0 or an odd width")

    @property
    def head_dim(self) -> int:
        """Width K of a head."""
        return self.hidden_size // self.num_heads
