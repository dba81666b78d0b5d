"""Exact softmax attention."""

from proteinlm.ops.softmax_attention.eager import softmax_attention, softmax_map

__all__ = ["softmax_attention", "softmax_map"]
