from __future__ import annotations

import math

import pytest
import torch
from scipy.special import ive

from proteinlm.ops.random_features.projection import projection_rows, regularised_ratio

NAME = {"seed": 0, "layer": 0, "redraw_index": 0}


@pytest.mark.parametrize("projection", ["orthogonal", "iid", "regularised"])
def test_the_same_name_draws_the_same_rows(projection):
    first_MK = projection_rows(10, 4, projection=projection, **NAME)
    torch.manual_seed(99)
    assert torch.equal(first_MK, projection_rows(10, 4, projection=projection, **NAME))


@pytest.mark.parametrize("part", ["seed", "layer", "redraw_index"])
def test_another_name_draws_other_rows(part):
    first_MK = projection_rows(10, 4, projection="orthogonal", **NAME)
    other_MK = projection_rows(10, 4, projection="orthogonal", **(NAME | {part: 1}))
    assert not torch.isclose(first_MK, other_MK).any()


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    projection_rows(10, 4, projection="orthogonal", **NAME)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("projection", ["orthogonal", "regularised"])
def test_rows_of_a_block_are_orthogonal_and_the_last_block_is_cut(projection):
    rows_MK = projection_rows(19, 8, projection=projection, **NAME)
    assert rows_MK.shape == (19, 8)
    for block_CK in rows_MK.split(8):
        unit_CK = block_CK / block_CK.norm(dim=1, keepdim=True)
        torch.testing.assert_close(unit_CK @ unit_CK.T, torch.eye(len(block_CK), dtype=torch.float64))


def test_orthogonal_rows_have_chi_lengths():
    num_rows, head_dim = 16_000, 8
    squared_M = projection_rows(num_rows, head_dim, projection="orthogonal", **NAME).square().sum(1)
    # chi-squared with d degrees of freedom: mean d, variance 2 d
    assert abs(squared_M.mean().item() - head_dim) < 4 * math.sqrt(2 * head_dim / num_rows)
    # and its sample variance has variance (fourth central moment - variance^2) / n = (8 d^2 + 48 d) / n
    tolerance = 4 * math.sqrt((8 * head_dim**2 + 48 * head_dim) / num_rows)
    assert abs(squared_M.var().item() - 2 * head_dim) < tolerance


def test_regularised_rows_have_one_length():
    rows_MK = projection_rows(19, 8, projection="regularised", **NAME)
    torch.testing.assert_close(rows_MK.norm(dim=1), torch.full((19,), math.sqrt(8), dtype=torch.float64))


@pytest.mark.parametrize("head_dim", [1, 2, 8, 64])
def test_regularised_ratio_is_the_bessel_function_that_its_series_sums_to(head_dim):
    squared = torch.tensor([[1e-3, 0.5, 1.0], [4.0, 30.0, 200.0]], dtype=torch.float64)
    # exp(-|z|^2 / 2) Gamma(K / 2) (2 / t)^nu I_nu(t) with t = sqrt(K) |z| and nu = K / 2 - 1
    t = (head_dim * squared).sqrt()
    nu = head_dim / 2 - 1
    logarithm = torch.from_numpy(ive(nu, t.numpy())).log() + t - squared / 2
    expected = (logarithm + math.lgamma(head_dim / 2) + nu * (2 / t).log()).exp()
    torch.testing.assert_close(regularised_ratio(squared, head_dim), expected, rtol=1e-9, atol=0)


def test_regularised_rows_have_no_bias_at_zero_and_more_further_out():
    ratios = regularised_ratio(torch.tensor([0.0, 1.0, 2.0, 4.0]), 64).tolist()
    assert ratios[0] == 1
    assert ratios == sorted(ratios, reverse=True)


def test_corner_of_an_orthogonal_block_is_negative_half_the_time():
    draws = [projection_rows(1, 8, projection="orthogonal", seed=0, layer=0, redraw_index=i)[0, 0] for i in range(2000)]
    # without the sign correction it is negative always; 0.04 is 3.6 standard errors
    assert abs(sum(float(w) < 0 for w in draws) / 2000 - 0.5) < 0.04
