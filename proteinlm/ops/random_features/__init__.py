"""FAVOR+: attention by positive random features, in time and memory linear in the length."""

from proteinlm.ops.random_features.eager import favor_attention, favor_map
from proteinlm.ops.random_features.features import FeatureMap, accumulation_dtype, feature_rows, log_features
from proteinlm.ops.random_features.projection import Projection, projection_rows

__all__ = [
    "FeatureMap",
    "Projection",
    "accumulation_dtype",
    "favor_attention",
    "favor_map",
    "feature_rows",
    "log_features",
    "projection_rows",
]
