"""Linear attention: the features elu(x) + 1 in place of softmax, in time linear in the length."""

from proteinlm.ops.feature_sums import Normalisation
from proteinlm.ops.linear_attention.eager import linear_attention, linear_map
from proteinlm.ops.linear_attention.features import decay_logarithms
from proteinlm.ops.linear_attention.recurrent import LinearState, linear_state, linear_step

__all__ = [
    "LinearState",
    "Normalisation",
    "decay_logarithms",
    "linear_attention",
    "linear_map",
    "linear_state",
    "linear_step",
]
