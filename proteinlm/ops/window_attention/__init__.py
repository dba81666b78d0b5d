"""Sliding-window attention: exact softmax over the keys near each query."""

from proteinlm.ops.window_attention.eager import window_attention, window_map

__all__ = ["window_attention", "window_map"]
