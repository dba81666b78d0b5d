"""Scatterbrain: FAVOR+ for most pairs, exact weights for those that a hash finds."""

from proteinlm.ops.scatterbrain_attention.eager import scatterbrain_attention, scatterbrain_map

__all__ = ["scatterbrain_attention", "scatterbrain_map"]
