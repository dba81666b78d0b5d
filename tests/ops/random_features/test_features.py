from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from proteinlm.ops.random_features import feature_rows, log_features, projection_rows, reference

NUM_BLOCKS = 20_000
NAME = {"seed": 3, "layer": 0, "redraw_index": 0}


def pair(direction: str, head_dim: int, norm: float) -> tuple[Tensor, Tensor]:
    """Return x, y with |x + y| = norm along the direction."""
    generator = torch.Generator().manual_seed(5)
    if direction == "random":
        z_K = torch.randn(head_dim, generator=generator, dtype=torch.float64)
        off_K = 0.3 * torch.randn(head_dim, generator=generator, dtype=torch.float64) / math.sqrt(head_dim)
    else:
        z_K = torch.full((head_dim,), 1.0 if direction == "plus" else -1.0, dtype=torch.float64)
        off_K = torch.zeros(head_dim, dtype=torch.float64)
    z_K = z_K * (norm / z_K.norm())
    return z_K / 2 + off_K, z_K / 2 - off_K


def estimates(x_K: Tensor, y_K: Tensor, *, feature_map: str, projection: str, per_block: int) -> Tensor:
    """Return one estimate of exp(x·y) for each of many independent blocks of rows."""
    rows_MK = projection_rows(NUM_BLOCKS * per_block, len(x_K), projection=projection, **NAME)
    products_M = sum(
        torch.exp(log_features(x_K[None], signed_MK)[0] + log_features(y_K[None], signed_MK)[0]) * len(signed_MK)
        for signed_MK in feature_rows(rows_MK, feature_map).split(len(rows_MK))
    ) / (2 if feature_map == "hyperbolic" else 1)
    return products_M.view(NUM_BLOCKS, per_block).mean(1)


@pytest.mark.parametrize("feature_map", ["positive", "hyperbolic"])
def test_log_features_are_the_logarithm_of_the_printed_features(feature_map):
    x_BLHK = torch.randn(2, 5, 3, 8, dtype=torch.float64)
    rows_MK = projection_rows(12, 8, projection="orthogonal", **NAME)
    printed = reference.FEATURES[feature_map](x_BLHK, rows_MK)
    torch.testing.assert_close(log_features(x_BLHK, feature_rows(rows_MK, feature_map)).exp(), printed)


def test_log_features_of_half_precision_are_float32_even_under_autocast():
    x_LK = torch.randn(7, 8, dtype=torch.bfloat16)
    rows_MK = torch.randn(6, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = log_features(x_LK, rows_MK)
    assert torch.equal(under_autocast, log_features(x_LK.float(), rows_MK))


@pytest.mark.parametrize("direction", ["random", "plus", "minus"])
@pytest.mark.parametrize("projection", ["orthogonal", "iid"])
@pytest.mark.parametrize("feature_map", ["positive", "hyperbolic"])
def test_features_estimate_the_softmax_kernel_without_bias(feature_map, projection, direction):
    x_K, y_K = pair(direction, 16, norm=1.0)
    drawn = estimates(x_K, y_K, feature_map=feature_map, projection=projection, per_block=16)
    standard_error = drawn.std() / math.sqrt(len(drawn))
    assert abs(drawn.mean() - (x_K @ y_K).exp()) < 4 * standard_error


def test_variance_of_iid_positive_features_is_as_printed():
    x_K, y_K = pair("random", 8, norm=0.7)
    drawn = estimates(x_K, y_K, feature_map="positive", projection="iid", per_block=1) / (x_K @ y_K).exp()
    s = 0.7**2
    # relative variance exp(|z|^2) - 1 of a log-normal, and the standard error its fourth moment gives
    fourth = math.expm1(s) ** 2 * (math.exp(4 * s) + 2 * math.exp(3 * s) + 3 * math.exp(2 * s) - 3)
    standard_error = math.sqrt((fourth - math.expm1(s) ** 2) / len(drawn))
    assert abs(drawn.var() - math.expm1(s)) < 4 * standard_error


def test_variance_of_hyperbolic_features_is_as_printed():
    x_K, y_K = pair("random", 8, norm=0.7)
    drawn = estimates(x_K, y_K, feature_map="hyperbolic", projection="iid", per_block=1) / (x_K @ y_K).exp()
    expected = -math.expm1(-(0.7**2)) / 2 * math.expm1(0.7**2)
    standard_error = (drawn - 1).square().std() / math.sqrt(len(drawn))
    assert abs(drawn.var() - expected) < 4 * standard_error


def test_hyperbolic_features_vary_less_than_as_many_positive_ones():
    x_K, y_K = pair("random", 8, norm=0.7)
    hyperbolic = estimates(x_K, y_K, feature_map="hyperbolic", projection="orthogonal", per_block=4)
    positive = estimates(x_K, y_K, feature_map="positive", projection="orthogonal", per_block=8)
    assert hyperbolic.var() < positive.var()


def test_orthogonal_error_is_below_the_bound_of_theorem_2():
    head_dim = num_rows = 8
    x_K, y_K = pair("random", head_dim, norm=1.0)
    kernel = (x_K @ y_K).exp().item()
    squares = (estimates(x_K, y_K, feature_map="positive", projection="orthogonal", per_block=num_rows) - kernel) ** 2
    iid = kernel**2 * math.expm1((x_K + y_K).square().sum().item()) / num_rows
    apart = kernel - math.exp(-(x_K.square().sum() + y_K.square().sum()).item() / 2)
    bound = iid - 2 * (num_rows - 1) / (num_rows * (head_dim + 2)) * apart**2
    assert squares.mean() < bound + 4 * squares.std() / math.sqrt(len(squares))
