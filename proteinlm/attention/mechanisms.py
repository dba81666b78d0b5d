"""Which kinds of attention there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import pydantic

from proteinlm.attention.bigbird import BigBirdAttention, BigBirdConfig
from proteinlm.attention.favor import FavorAttention, FavorConfig
from proteinlm.attention.identity import IdentityAttention, IdentityConfig
from proteinlm.attention.interface import Attention
from proteinlm.attention.linear import LinearAttention, LinearConfig
from proteinlm.attention.lsh import LshAttention, LshConfig
from proteinlm.attention.softmax import SoftmaxAttention, SoftmaxConfig
from proteinlm.attention.window import WindowAttention, WindowConfig

AttentionConfig = Annotated[
    SoftmaxConfig | FavorConfig | LinearConfig | WindowConfig | BigBirdConfig | LshConfig | IdentityConfig,
    pydantic.Field(discriminator="kind"),
]

MECHANISMS: dict[str, tuple[type, Callable[..., Attention]]] = {
    "softmax": (SoftmaxConfig, SoftmaxAttention),
    "favor": (FavorConfig, FavorAttention),
    "linear": (LinearConfig, LinearAttention),
    "window": (WindowConfig, WindowAttention),
    "bigbird": (BigBirdConfig, BigBirdAttention),
    "lsh": (LshConfig, LshAttention),
    "identity": (IdentityConfig, IdentityAttention),
}


def build_attention(config: Any, *, head_dim: int, layer: int, seed: int) -> Attention:
    """Return the mechanism that ``config``, one of ``AttentionConfig``, describes.

    Args:
        head_dim: width K of one head.
        layer: 0-based; with ``seed`` it names what the mechanism draws at random.
    """
    _, module = MECHANISMS[config.kind]
    return module(config, head_dim=head_dim, layer=layer, seed=seed)
