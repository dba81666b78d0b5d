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
from proteinlm.attention.lsh_separate import SeparateLshAttention
from proteinlm.attention.scatterbrain import ScatterbrainAttention, ScatterbrainConfig
from proteinlm.attention.softmax import SoftmaxAttention, SoftmaxConfig
from proteinlm.attention.window import WindowAttention, WindowConfig

AttentionConfig = Annotated[
    SoftmaxConfig
    | FavorConfig
    | LinearConfig
    | WindowConfig
    | BigBirdConfig
    | LshConfig
    | ScatterbrainConfig
    | IdentityConfig,
    pydantic.Field(discriminator="kind"),
]


def build_lsh(config: LshConfig, *, head_dim: int, layer: int, seed: int) -> Attention:
    """Return the form of LSH attention that ``config`` describes: of shared or of separate queries and keys."""
    form = LshAttention if config.shared_query_key else SeparateLshAttention
    return form(config, head_dim=head_dim, layer=layer, seed=seed)


MECHANISMS: dict[str, tuple[type, Callable[..., Attention]]] = {
    "softmax": (SoftmaxConfig, SoftmaxAttention),
    "favor": (FavorConfig, FavorAttention),
    "linear": (LinearConfig, LinearAttention),
    "window": (WindowConfig, WindowAttention),
    "bigbird": (BigBirdConfig, BigBirdAttention),
    "lsh": (LshConfig, build_lsh),
    "scatterbrain": (ScatterbrainConfig, ScatterbrainAttention),
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


def listed_name(config: Any) -> str:
    """Return the name under which results of ``config``, one of ``AttentionConfig``, are listed.

    FAVOR+ that computes short segments exactly is listed apart from FAVOR+ by its features alone, and LSH
    attention with its rounds, which may differ between runs of the same weights.
    """
    if isinstance(config, LshConfig):
        return _listed_lsh(config)
    if getattr(config, "shared_query_key", False):
        return f"shared-QK {config.kind}"
    if isinstance(config, ScatterbrainConfig):
        return f"{config.kind} {config.num_random_features}"
    if not isinstance(config, FavorConfig):
        return str(config.kind)
    if config.feature_map == "generalised":
        return f"generalised {config.kernel_function} {config.num_random_features}"
    name = f"FAVOR+ {config.num_random_features}"
    return f"adaptive {name}, exact below {config.exact_below:,}" if config.exact_below else name


def _listed_lsh(config: LshConfig) -> str:
    if config.shared_query_key:
        rounds = "1 round" if config.num_hashes == 1 else f"{config.num_hashes} rounds"
        return f"shared-QK lsh, {rounds}"
    return f"separate-QK lsh, {config.num_sampled_keys:,} sampled keys"
