"""Attention mechanisms, one module each, behind one interface."""

from proteinlm.attention.favor import FavorAttention, FavorConfig
from proteinlm.attention.interface import Attention
from proteinlm.attention.linear import LinearAttention, LinearConfig
from proteinlm.attention.mechanisms import MECHANISMS, AttentionConfig, build_attention
from proteinlm.attention.softmax import SoftmaxAttention, SoftmaxConfig

__all__ = [
    "MECHANISMS",
    "Attention",
    "AttentionConfig",
    "FavorAttention",
    "FavorConfig",
    "LinearAttention",
    "LinearConfig",
    "SoftmaxAttention",
    "SoftmaxConfig",
    "build_attention",
]
