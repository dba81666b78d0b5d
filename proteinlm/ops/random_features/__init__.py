"""FAVOR+: attention by random features, in time and memory linear in the length."""

from proteinlm.ops.random_features.causal import causal_favor_attention, causal_favor_map
from proteinlm.ops.random_features.eager import favor_attention, favor_map
from proteinlm.ops.random_features.features import (
    FeatureMap,
    Features,
    KernelFunction,
    feature_rows,
    log_features,
)
from proteinlm.ops.random_features.projection import Projection, projection_rows, regularised_ratio
from proteinlm.ops.random_features.recurrent import FavorState, favor_state, favor_step

__all__ = [
    "FavorState",
    "FeatureMap",
    "Features",
    "KernelFunction",
    "Projection",
    "causal_favor_attention",
    "causal_favor_map",
    "favor_attention",
    "favor_map",
    "favor_state",
    "favor_step",
    "feature_rows",
    "log_features",
    "projection_rows",
    "regularised_ratio",
]
