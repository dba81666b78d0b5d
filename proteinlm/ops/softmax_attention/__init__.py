"""Exact softmax attention."""

from proteinlm.ops.softmax_attention.eager import Implementation, softmax_attention, softmax_map

__all__ = ["Implementation", "softmax_attention", "softmax_map"]
