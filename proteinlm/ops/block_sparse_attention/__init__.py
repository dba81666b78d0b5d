"""BigBird's attention: exact softmax over a window, global tokens and random blocks."""

from proteinlm.ops.block_sparse_attention.eager import bigbird_attention, bigbird_map
from proteinlm.ops.block_sparse_attention.pattern import BlockPattern

__all__ = ["BlockPattern", "bigbird_attention", "bigbird_map"]
