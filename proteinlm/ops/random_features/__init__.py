"""FAVOR+: attention by random features, in time and memory linear in the length."""

from proteinlm.ops.random_features.eager import favor_attention, favor_map
from proteinlm.ops.random_features.features import (
    FeatureMap,
    Features,
    KernelFunction,
    accumulation_dtype,
    feature_rows,
    log_features,
)
from proteinlm.ops.random_features.projection import Projection, projection_rows, regularised_ratio

__all__ = [
    "FeatureMap",
    "Features",
    "KernelFunction",
    "Projection",
    "accumulation_dtype",
    "favor_attention",
    "favor_map",
    "feature_rows",
    "log_features",
    "projection_rows",
    "regularised_ratio",
]
