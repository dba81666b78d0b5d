"""The feature maps: what each estimates, and its features or their logarithms."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from proteinlm.errors import ShapeError
from proteinlm.ops.precision import accumulation_dtype

FeatureMap = Literal["positive", "hyperbolic", "trigonometric", "oprf", "sderf", "saderf", "generalised"]
KernelFunction = Literal["relu", "exp", "gelu", "abs", "sigmoid"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """Which feature map, with its options.

    "generalised" features are function(w·q) + epsilon, of a kernel of their own; those of every other
    map estimate exp(q·k / sqrt(K)). ``centring`` moves queries and keys to their means first, which
    changes the estimate and not what is estimated. "exp" is positive already and takes no epsilon.
    """

    feature_map: FeatureMap = "positive"
    centring: bool = False
    function: KernelFunction = "relu"
    epsilon: float = 1e-3

    @property
    def uses_statistics(self) -> bool:
        """Whether features depend on all visible tokens of the segment."""
        return self.centring or self.feature_map in {"oprf", "sderf", "saderf"}


POSITIVE = Features()


def feature_rows(rows_MK: Tensor, feature_map: FeatureMap) -> Tensor:
    """Return the rows that ``favor_attention`` takes: w and -w of each for "hyperbolic", else the rows.

    The hyperbolic map exp(-|x|^2 / 2) / sqrt(2 m) · (exp(w·x), exp(-w·x)) is the positive map on
    these 2 m rows.
    """
    return torch.cat((rows_MK, -rows_MK)) if feature_map == "hyperbolic" else rows_MK


def check_rows(rows_MK: Tensor, head_dim: int) -> None:
    """Check that projection rows are as wide as a head.

    Raises:
        ShapeError: if they are not.
    """
    if rows_MK.ndim != 2 or rows_MK.shape[1] != head_dim or not rows_MK.is_floating_point():
        raise ShapeError(f"projection rows are {rows_MK.dtype} {tuple(rows_MK.shape)}; expected floats (M, {head_dim})")


def log_features(x_NK: Tensor, rows_MK: Tensor, offset_N1: Tensor | None = None) -> Tensor:
    """Map queries or keys to the logarithms of positive random features.

    log phi(x)_m = w_m·x - |x|^2 / 2 - log(M) / 2. The inner product of phi(x) and phi(y) is an
    unbiased estimate of exp(x·y). Computed in float32, or in float64 where an argument is, also
    under autocast: bfloat16 steps by 2 at 256, a factor of e^2 in a feature.

    Args:
        x_NK: queries or keys already divided by K ** 0.25; any leading dimensions.
        rows_MK: one row for each feature (see ``feature_rows``), each distributed as N(0, I).
        offset_N1: what stands in the place of - |x|^2 / 2 - log(M) / 2.

    Source: Choromanski et al., ICLR 2021, arXiv:2009.14794, Lemma 1.
    """
    dtype = accumulation_dtype(x_NK, rows_MK)
    with torch.autocast(x_NK.device.type, enabled=False):
        x_NK, rows_MK = x_NK.to(dtype), rows_MK.to(dtype)
        if offset_N1 is None:
            offset_N1 = x_NK.square().sum(-1, keepdim=True).mul(-0.5).sub(0.5 * math.log(len(rows_MK)))
        flat = torch.addmm(offset_N1.reshape(-1, 1), x_NK.reshape(-1, x_NK.shape[-1]), rows_MK.T)
        return flat.view(*x_NK.shape[:-1], len(rows_MK))


def optimal_exponents(phi: Tensor) -> tuple[Tensor, Tensor]:
    """Return A and B of the optimal positive random features, elementwise.

    Features D exp(A |w|^2 + B w·x - |x|^2 / 2) with B = sqrt(1 - 4 A) and D = (1 - 4 A)^(K/4) are
    unbiased for any A < 1/8 and any constant phi. A = (1 - 2 phi - sqrt((2 phi + 1)^2 + 8 phi)) / 16 gives
    the least mean over pairs of the *logarithm* of the estimate's second moment, where phi is the
    mean of |x + y|^2 / K. The least mean of the second moment itself lies elsewhere.

    Source: Likhosherstov et al., NeurIPS 2022, arXiv:2205.15317, Theorem 3.2.
    """
    # hypot: the square itself leaves float32's range where norms pass 1e9
    a = (1 - 2 * phi - torch.hypot(2 * phi + 1, (8 * phi).sqrt())) / 16
    return a, (1 - 4 * a).sqrt()


# the least value of u Phi(u), at u = -0.7518: added, or a feature could be negative
GELU_DEPTH = 0.16997120747990366


def _gelu_slope(u: Tensor) -> Tensor:
    density = torch.exp(-u.square() / 2) / math.sqrt(2 * math.pi)
    return torch.addcmul(torch.special.ndtr(u), u, density)


def _sigmoid_slope(u: Tensor) -> Tensor:
    return u.sigmoid() * (-u).sigmoid()


# non-negative functions and their derivatives; "exp" has logarithms instead
FUNCTIONS: dict[KernelFunction, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "relu": (torch.relu, lambda u: (u > 0).to(u.dtype)),
    "gelu": (lambda u: torch.nn.functional.gelu(u) + GELU_DEPTH, _gelu_slope),
    "abs": (torch.abs, torch.sign),
    "sigmoid": (torch.sigmoid, _sigmoid_slope),
}
