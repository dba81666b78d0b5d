"""Exact softmax attention."""

from proteinlm.ops.softmax_attention.eager import Implementation, softmax_attention, softmax_map
from proteinlm.ops.softmax_attention.shared import shared_query_key_attention, shared_query_key_map

__all__ = [
    "Implementation",
    "shared_query_key_attention",
    "shared_query_key_map",
    "softmax_attention",
    "softmax_map",
]
