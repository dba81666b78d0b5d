"""LSH attention with separate queries and keys: exact blocks, and a weighted sample of all other keys."""

from proteinlm.ops.sampled_attention.blocks import BlockSampling
from proteinlm.ops.sampled_attention.eager import sampled_attention, sampled_map
from proteinlm.ops.sampled_attention.order import hash_orders, hash_planes

__all__ = ["BlockSampling", "hash_orders", "hash_planes", "sampled_attention", "sampled_map"]
