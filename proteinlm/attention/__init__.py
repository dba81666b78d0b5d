"""Attention mechanisms, one module each, behind one interface."""

from proteinlm.attention.bigbird import BigBirdAttention, BigBirdConfig
from proteinlm.attention.favor import FavorAttention, FavorConfig
from proteinlm.attention.identity import IdentityAttention, IdentityConfig
from proteinlm.attention.interface import Attention
from proteinlm.attention.linear import LinearAttention, LinearConfig
from proteinlm.attention.lsh import LshAttention, LshConfig
from proteinlm.attention.mechanisms import MECHANISMS, AttentionConfig, build_attention, listed_name
from proteinlm.attention.scatterbrain import ScatterbrainAttention, ScatterbrainConfig
from proteinlm.attention.softmax import SoftmaxAttention, SoftmaxConfig
from proteinlm.attention.window import WindowAttention, WindowConfig

__all__ = [
    "MECHANISMS",
    "Attention",
    "AttentionConfig",
    "BigBirdAttention",
    "BigBirdConfig",
    "FavorAttention",
    "FavorConfig",
    "IdentityAttention",
    "IdentityConfig",
    "LinearAttention",
    "LinearConfig",
    "LshAttention",
    "LshConfig",
    "ScatterbrainAttention",
    "ScatterbrainConfig",
    "SoftmaxAttention",
    "SoftmaxConfig",
    "WindowAttention",
    "WindowConfig",
    "build_attention",
    "listed_name",
]
