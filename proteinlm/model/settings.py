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

    num_layers: int = 12
    hidden_size: int = 512
    num_heads: int = 8
    feed_forward_size: int = 2048
    attention: AttentionConfig = field(default_factory=FavorConfig)
    query_key_norm: bool = True
    # largest attention logit under query_key_norm; |q|^2 + |k|^2 is at most twice this
    max_temperature: float = 2.0
    dropout: float = 0.0
    activation: Activation = "gelu"
    # positions a filter spans, odd; 0 leaves the convolution before the trunk out
    local_convolution: int = 0
    rotary_base: float = 10_000.0
    # two streams that are computed back in the backward pass; the weights have the same names either way
    reversible: bool = False
    # "exact" rounds increments so that the streams are computed back to the bit
    reversible_precision: ReversiblePrecision = "float"
    # positions whose feed-forward is computed at a time, again in the backward pass; 0: all, and kept
    feed_forward_chunk: int = 0
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
