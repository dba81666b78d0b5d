from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from proteinlm.ops.random_features import (
    Features,
    feature_rows,
    log_features,
    projection_rows,
    reference,
    regularised_ratio,
)
from proteinlm.ops.random_features.features import FUNCTIONS, optimal_exponents

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
        off_K = 0.2 * z_K / math.sqrt(head_dim)
    z_K = z_K * (norm / z_K.norm())
    return z_K / 2 + off_K, z_K / 2 - off_K


def printed_features(feature_map: str, x_NK: Tensor, rows_MK: Tensor) -> Tensor:
    """Return phi(x), that of oprf and sderf for statistics that have nothing to do with x."""
    generator = torch.Generator().manual_seed(6)
    shape = (x_NK.shape[-1], x_NK.shape[-1])
    root_KK = torch.randn(shape, generator=generator, dtype=torch.float64) / shape[0]
    statistics = {"oprf": 0.3 * torch.eye(shape[0], dtype=torch.float64), "sderf": root_KK @ root_KK.T}
    if feature_map in statistics:
        return reference.optimal_features(x_NK, rows_MK, statistics[feature_map])
    return reference.FEATURES[feature_map](x_NK, rows_MK)


def estimates(
    x_K: Tensor, y_K: Tensor, *, feature_map: str, projection: str, per_block: int, num_blocks: int = NUM_BLOCKS
) -> Tensor:
    """Return one estimate of exp(x·y) for each of many independent blocks of rows."""
    rows_MK = projection_rows(num_blocks * per_block, len(x_K), projection=projection, **NAME)
    phi_x, phi_y = (printed_features(feature_map, z[None], rows_MK)[0] for z in (x_K, y_K))
    # two features of a row stand one after the other, all first ones before all second ones
    products_M = (phi_x * phi_y * len(rows_MK)).view(-1, len(rows_MK)).sum(0)
    return products_M.view(num_blocks, per_block).mean(1)


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
@pytest.mark.parametrize("feature_map", ["positive", "hyperbolic", "trigonometric", "oprf", "sderf"])
def test_features_estimate_the_softmax_kernel_without_bias(feature_map, projection, direction):
    x_K, y_K = pair(direction, 16, norm=1.0)
    drawn = estimates(x_K, y_K, feature_map=feature_map, projection=projection, per_block=16, num_blocks=5000)
    standard_error = drawn.std() / math.sqrt(len(drawn))
    assert abs(drawn.mean() - (x_K @ y_K).exp()) < 4 * standard_error


def printed_variance(feature_map: str, x_K: Tensor, y_K: Tensor) -> float:
    """Return the variance of the estimate from one iid row (Choromanski et al. 2021, Lemma 2)."""
    kernel, plus, minus = (x_K @ y_K).exp(), (x_K + y_K).square().sum(), (x_K - y_K).square().sum()
    positive = plus.exp() * kernel**2 * -torch.expm1(-plus)
    return {
        "positive": positive,
        "hyperbolic": positive * -torch.expm1(-plus) / 2,
        "trigonometric": plus.exp() / kernel**2 * torch.expm1(-minus) ** 2 / 2,
    }[feature_map].item()


@pytest.mark.parametrize("feature_map", ["positive", "hyperbolic", "trigonometric"])
def test_variance_of_iid_features_is_as_printed(feature_map):
    x_K, y_K = pair("random", 8, norm=0.5)
    drawn = estimates(x_K, y_K, feature_map=feature_map, projection="iid", per_block=1, num_blocks=200_000)
    expected = printed_variance(feature_map, x_K, y_K)
    standard_error = (drawn - drawn.mean()).square().std() / math.sqrt(len(drawn))
    # 5 % of the variance is no luck: it is more than four standard errors
    assert abs(drawn.var() - expected) < 4 * standard_error < 0.05 * expected


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


@pytest.mark.parametrize("feature_map", ["positive", "hyperbolic"])
def test_regularised_rows_are_low_by_the_printed_series(feature_map):
    x_K, y_K = pair("random", 8, norm=1.5)
    drawn = estimates(x_K, y_K, feature_map=feature_map, projection="regularised", per_block=8) / (x_K @ y_K).exp()
    ratio = regularised_ratio((x_K + y_K).square().sum(), 8).item()
    standard_error = drawn.std().item() / math.sqrt(len(drawn))
    assert abs(drawn.mean().item() - ratio) < 4 * standard_error
    # the bias itself is well above what the test could miss
    assert 1 - ratio > 20 * standard_error


def test_regularised_rows_err_less_than_orthogonal_ones():
    x_K, y_K = pair("random", 8, norm=1.0)
    kernel = (x_K @ y_K).exp()
    errors = [
        (estimates(x_K, y_K, feature_map="positive", projection=projection, per_block=8) - kernel).square().mean()
        for projection in ("regularised", "orthogonal")
    ]
    assert errors[0] < errors[1]


def log_second_moment(a: float, z_K: Tensor) -> float:
    """Return log E f^2 + |x|^2 + |y|^2 of one row, f the estimate with A = a (arXiv:2205.15317, Theorem 3.1)."""
    k = len(z_K)
    norm = z_K.square().sum().item()
    return k * math.log(1 - 4 * a) - k / 2 * math.log(1 - 8 * a) + 2 * (1 - 4 * a) / (1 - 8 * a) * norm


def test_second_moment_of_optimal_features_is_as_derived():
    x_K, y_K = pair("random", 8, norm=0.7)
    drawn = estimates(x_K, y_K, feature_map="oprf", projection="iid", per_block=1, num_blocks=200_000)
    a = optimal_exponents(torch.tensor(0.3, dtype=torch.float64))[0].item()
    squares = drawn.square() * (x_K.square().sum() + y_K.square().sum()).exp()
    standard_error = squares.std() / math.sqrt(len(squares))
    assert abs(squares.mean() - math.exp(log_second_moment(a, x_K + y_K))) < 4 * standard_error


@pytest.mark.parametrize("norm", [0.1, 1.0, 3.0])
def test_oprf_minimises_the_mean_logarithm_of_the_second_moment_and_not_its_mean(norm):
    generator = torch.Generator().manual_seed(8)
    sums_NK = norm * torch.randn(50, 8, generator=generator, dtype=torch.float64)
    sums_NK *= torch.linspace(0.2, 1.8, 50, dtype=torch.float64)[:, None]

    def least(function):
        return minimize_scalar(function, bounds=(-10, 0.124), method="bounded", options={"xatol": 1e-10}).x

    of_logarithm = least(lambda a: sum(log_second_moment(a, z_K) for z_K in sums_NK))
    most = max(log_second_moment(0.0, z_K) for z_K in sums_NK)
    of_moment = least(lambda a: sum(math.exp(log_second_moment(a, z_K) - most) for z_K in sums_NK))
    closed = optimal_exponents(sums_NK.square().sum(1).mean() / 8)[0].item()
    # a minimum found from values is exact to the root of their rounding
    assert closed == pytest.approx(of_logarithm, abs=1e-6 * max(1, abs(closed)))
    assert abs(closed - of_moment) > 1e-3 * abs(closed)


def test_sderf_has_the_lower_mean_logarithm_where_few_directions_carry_the_norm():
    generator = torch.Generator().manual_seed(8)
    sums_NK = torch.randn(50, 8, generator=generator, dtype=torch.float64)
    sums_NK *= torch.tensor([2, 1] + [0.1] * 6, dtype=torch.float64)
    values_K = torch.linalg.eigvalsh(sums_NK.T @ sums_NK / 50)

    def mean_logarithm(phi_K: Tensor) -> float:
        exponents_K = optimal_exponents(phi_K)[0].tolist()
        # a direction with the mean square Lambda_l is a one-dimensional problem of its own
        pairs = zip(exponents_K, values_K.sqrt()[:, None], strict=True)
        return sum(log_second_moment(a, z_1) for a, z_1 in pairs)

    positive, oprf, sderf = (mean_logarithm(x) for x in (0 * values_K, values_K.mean().expand(8), values_K))
    assert sderf < oprf < positive


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_generalised_functions_are_not_negative_and_have_their_slopes(name):
    u = torch.cat((torch.linspace(-9, 9, 2001), torch.tensor([-0.7517915, 100.0, -100.0]))).double()
    u.requires_grad_()
    function, slope = FUNCTIONS[name]
    # the depth of gelu is rounded in the last place
    assert function(u).min() >= -1e-16
    # at the kink of relu and abs any slope would do
    away = u.detach().abs() > 1e-6
    torch.testing.assert_close(slope(u.detach())[away], torch.autograd.grad(function(u).sum(), u)[0][away])


def performer_pytorch_softmax_kernel(data_LK: Tensor, rows_MK: Tensor, *, is_query: bool, eps: float = 1e-4) -> Tensor:
    """Return what performer-pytorch 1.1.4 computes; its own words in our names."""
    data_normalizer = data_LK.shape[-1] ** -0.25
    ratio = len(rows_MK) ** -0.5
    data_dash = (data_normalizer * data_LK) @ rows_MK.T
    diag_data = data_LK.square().sum(-1, keepdim=True) / 2.0 * data_normalizer**2
    peak = data_dash.amax(-1, keepdim=True) if is_query else data_dash.amax()
    return ratio * (torch.exp(data_dash - diag_data - peak) + eps)


@pytest.mark.parametrize("is_query", [True, False], ids=["queries", "keys"])
def test_features_are_those_of_performer_pytorch(is_query):
    x_LK = torch.randn(40, 16, generator=torch.Generator().manual_seed(9))
    rows_MK = projection_rows(64, 16, projection="orthogonal", **NAME).float()
    scaled_LK = x_LK * 16**-0.25
    projected_LM = scaled_LK @ rows_MK.T
    peak = projected_LM.amax(-1, keepdim=True) if is_query else projected_LM.amax()
    got = (log_features(scaled_LK, rows_MK) - peak).exp() + 1e-4 / math.sqrt(64)
    expected = performer_pytorch_softmax_kernel(x_LK, rows_MK, is_query=is_query)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("feature_map", ["positive", "oprf", "sderf", "saderf"])
def test_centred_estimates_are_unbiased_up_to_a_factor_of_each_query(feature_map):
    generator = torch.Generator().manual_seed(10)
    x_LK, y_LK = (0.3 * torch.randn(5, 4, generator=generator, dtype=torch.float64) + shift for shift in (0.4, -0.3))
    segment = reference.Segment(x_LK, y_LK, torch.ones(5, dtype=torch.bool))
    features = Features(feature_map=feature_map, centring=True)
    drawn = torch.stack(
        [
            reference.segment_kernel(
                segment, projection_rows(64, 4, projection="orthogonal", seed=0, layer=0, redraw_index=i), features
            )
            for i in range(1000)
        ]
    )
    # exp(x·y) = exp((x - a)·(y - b) + a·y) exp((x - a)·b)
    expected = (x_LK @ y_LK.T - ((x_LK - x_LK.mean(0)) @ y_LK.mean(0))[:, None]).exp()
    errors_LL = (drawn.mean(0) - expected).abs() / (drawn.std(0) / math.sqrt(len(drawn)))
    # of 25 numbers of four standard errors or more there is one in 600 runs
    assert errors_LL.max() < 4
