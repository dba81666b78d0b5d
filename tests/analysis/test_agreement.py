"""Agreement of maps, held to whole-map arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from proteinlm.analysis.agreement import (
    MapLayout,
    TopEntries,
    block_rows,
    compare_maps,
    fitted_slope,
    kernel_deviation,
    norm_statistics,
    row_total_variation,
)
from proteinlm.attention import FavorConfig, SoftmaxConfig, build_attention
from proteinlm.errors import ShapeError
from tests.analysis import naive

HEADS, LENGTH, WIDTH = 3, 23, 4


def random_map(seed: int, length: int = LENGTH) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(HEADS, length, length, generator=generator, dtype=torch.float64).softmax(-1)


def random_values(length: int = LENGTH) -> torch.Tensor:
    return torch.randn(HEADS, length, WIDTH, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def layout(length: int = LENGTH, *, separation: int = 3, rows: int = 5) -> MapLayout:
    return MapLayout(
        num_positions=length, first_residue=1, last_residue=length - 1, separation=separation, block_rows=rows
    )


def rows_of(map_HLL):
    return lambda rows: map_HLL[:, rows]


def agreement_of(exact, other, **settings):
    values = random_values(exact.shape[-1])
    shape = layout(exact.shape[-1], **settings)
    return compare_maps(rows_of(exact), [rows_of(other)], values, shape).approximations[0]


def by_head(function, *maps):
    return [function(*(m[head].numpy() for m in maps)) for head in range(HEADS)]


@pytest.mark.parametrize("rows", [1, 5, 23, 100])
def test_total_variation_is_that_of_whole_maps(rows):
    exact, other = random_map(0), random_map(1)
    found = agreement_of(exact, other, rows=rows).total_variation_H
    assert found.tolist() == pytest.approx(by_head(naive.total_variation, exact, other), rel=1e-12)


@pytest.mark.parametrize("rows", [1, 5, 23, 100])
def test_output_error_is_that_of_whole_maps(rows):
    exact, other = random_map(0), random_map(1)
    found = agreement_of(exact, other, rows=rows).output_error_H
    assert found.tolist() == pytest.approx(by_head(naive.output_error, exact, other, random_values()), rel=1e-12)


@pytest.mark.parametrize("rows", [1, 5, 23, 100])
@pytest.mark.parametrize("separation", [1, 3, 18, 20])
def test_overlap_is_that_of_whole_maps(rows, separation):
    exact, other = random_map(0), (random_map(0) + random_map(1)) / 2
    found = agreement_of(exact, other, rows=rows, separation=separation).top_overlap_H
    expected = [naive.top_overlap(exact[h].numpy(), other[h].numpy(), 1, LENGTH - 1, separation) for h in range(HEADS)]
    assert found.tolist() == pytest.approx(expected)


def test_entropy_is_that_of_whole_maps():
    exact = random_map(0)
    found = compare_maps(rows_of(exact), [], random_values(), layout()).entropy_H
    assert found.tolist() == pytest.approx(by_head(naive.entropy, exact), rel=1e-12)


def test_entropy_of_an_empty_weight_is_nothing():
    identity = torch.eye(LENGTH, dtype=torch.float64).expand(HEADS, -1, -1)
    found = compare_maps(rows_of(identity), [], random_values(), layout()).entropy_H
    assert found.tolist() == [0.0] * HEADS


def test_a_map_agrees_with_itself_wholly():
    exact = random_map(0)
    found = agreement_of(exact, exact)
    assert found.total_variation_H.tolist() == [0.0] * HEADS
    assert found.output_error_H.tolist() == [0.0] * HEADS
    assert found.top_overlap_H.tolist() == [1.0] * HEADS


def test_disjoint_rows_have_a_total_variation_of_one():
    identity = torch.eye(4, dtype=torch.float64)
    assert row_total_variation(identity[None], identity.flip(0)[None]).tolist() == [[1.0] * 4]


def test_uniform_baseline_is_the_uniform_map():
    exact = random_map(0)
    uniform = torch.full_like(exact, 1 / LENGTH)
    found = compare_maps(rows_of(exact), [rows_of(uniform)], random_values(), layout())
    torch.testing.assert_close(found.uniform.total_variation_H, found.approximations[0].total_variation_H)
    torch.testing.assert_close(found.uniform.output_error_H, found.approximations[0].output_error_H)


def test_uniform_baseline_of_a_uniform_map_is_no_error():
    uniform = torch.full((HEADS, LENGTH, LENGTH), 1 / LENGTH, dtype=torch.float64)
    found = compare_maps(rows_of(uniform), [], random_values(), layout()).uniform
    assert found.total_variation_H.tolist() == [0.0] * HEADS
    assert found.output_error_H.tolist() == [0.0] * HEADS


def test_chance_overlap_is_the_mean_over_random_orders():
    shape = layout(12, separation=2)
    exact = random_map(0, 12)
    generator = torch.Generator().manual_seed(4)
    draws = 400
    found = [
        agreement_of(exact, torch.rand(exact.shape, generator=generator, dtype=torch.float64), separation=2)
        .top_overlap_H.mean()
        .item()
        for _ in range(draws)
    ]
    # of N eligible entries n are drawn without replacement: variance p (1 - p) (N - n) / (N - 1) / n of the share
    n, total, p = shape.num_top, shape.num_eligible, shape.chance_overlap
    sigma = math.sqrt(p * (1 - p) * (total - n) / (total - 1) / n / (draws * HEADS))
    assert abs(np.mean(found) - p) < 4 * sigma


def test_identity_baseline_returns_the_values():
    exact, values = random_map(0), random_values()
    found = compare_maps(rows_of(exact), [], values, layout()).identity_output_error_H
    out = exact @ values
    assert found.tolist() == pytest.approx([((values - out)[h].norm() / out[h].norm()).item() for h in range(HEADS)])


def test_eligible_entries_are_counted_as_they_are_listed():
    for separation in (1, 2, 6, 20, 30):
        shape = layout(LENGTH, separation=separation)
        listed = [(i, j) for i in range(21) for j in range(21) if abs(i - j) >= separation]
        assert shape.num_eligible == len(listed)


def test_a_protein_too_short_for_the_separation_has_no_overlap():
    found = agreement_of(random_map(0, 7), random_map(1, 7), separation=6)
    assert all(math.isnan(value) for value in found.top_overlap_H.tolist())


def test_top_entries_leave_out_special_tokens_and_the_diagonal():
    weights = torch.zeros(1, 8, 8)
    weights[0, 0, :] = weights[0, :, 7] = 9  # special tokens
    weights[0].fill_diagonal_(8)
    weights[0, 2, 5], weights[0, 6, 1] = 2, 1
    top = TopEntries(MapLayout(num_positions=8, first_residue=1, last_residue=7, separation=1, block_rows=8))
    top.add(weights, slice(0, 8))
    assert {2 * 8 + 5, 6 * 8 + 1} <= set(top.indices()[0].tolist())
    assert all(1 <= index // 8 < 7 and 1 <= index % 8 < 7 for index in top.indices()[0].tolist())
    assert all(index // 8 != index % 8 for index in top.indices()[0].tolist())


def test_no_more_rows_are_read_at_a_time_than_a_block_holds():
    read = []

    def rows_of_map(rows):
        read.append(rows.stop - rows.start)
        return random_map(0)[:, rows]

    compare_maps(rows_of_map, [rows_of_map], random_values(), layout(rows=4))
    assert max(read) == 4


def test_values_of_another_length_are_refused():
    with pytest.raises(ShapeError, match="22 positions but the layout says 23"):
        compare_maps(rows_of(random_map(0)), [], random_values(22), layout())


def attention_inputs(length: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, length, HEADS, 8, generator=generator, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize("config", [SoftmaxConfig(), FavorConfig(num_random_features=32)], ids=["softmax", "favor"])
def test_blocked_maps_times_values_are_what_the_mechanism_returns(config):
    q, k, v = attention_inputs(37)
    attention = build_attention(config, head_dim=8, layer=0, seed=1)
    blocks = [attention.attention_map(q, k, rows=rows)[0] for rows in layout(37, rows=10).blocks()]
    out_HLK = torch.cat(blocks, dim=1) @ v[0].transpose(0, 1)
    torch.testing.assert_close(out_HLK, attention(q, k, v)[0].transpose(0, 1), rtol=0, atol=1e-12)


def test_a_packed_protein_agrees_as_it_does_alone():
    q, k, v = attention_inputs(40)
    inside = slice(13, 33)
    bounds = torch.tensor([0, 13, 33, 40], dtype=torch.int32)
    exact, favor = (
        build_attention(config, head_dim=8, layer=0, seed=1)
        for config in (SoftmaxConfig(), FavorConfig(num_random_features=32))
    )

    def packed(attention):
        return lambda rows: attention.attention_map(q, k, cu_seqlens=bounds)[0][:, inside, inside][:, rows]

    def alone(attention):
        return lambda rows: attention.attention_map(q[:, inside], k[:, inside], rows=rows)[0]

    values = v[0, inside].transpose(0, 1)
    found = [compare_maps(of(exact), [of(favor)], values, layout(20)).approximations[0] for of in (packed, alone)]
    torch.testing.assert_close(found[0].output_error_H, found[1].output_error_H, rtol=1e-10, atol=0)
    torch.testing.assert_close(found[0].total_variation_H, found[1].total_variation_H, rtol=1e-10, atol=0)
    assert found[0].top_overlap_H.tolist() == found[1].top_overlap_H.tolist()


def test_norms_and_kernel_deviation_are_those_of_all_pairs():
    q, k, _ = attention_inputs(11)
    queries, keys = 0.3 * q[0].transpose(0, 1), 0.3 * k[0].transpose(0, 1)
    found = norm_statistics(queries, keys, block_rows=4)
    x, y = queries / 8**0.25, keys / 8**0.25
    z_norm = (x[:, :, None] + y[:, None]).square().sum(-1)
    torch.testing.assert_close(found.query_norm_H, x.square().sum(-1).mean(-1))
    torch.testing.assert_close(found.key_norm_H, y.square().sum(-1).mean(-1))
    torch.testing.assert_close(found.sum_norm_H, z_norm.mean((-2, -1)))
    expected = [naive.kernel_deviation(queries[h].numpy(), keys[h].numpy()) for h in range(HEADS)]
    assert found.kernel_deviation_H.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("feature_map", ["positive", "hyperbolic"])
def test_kernel_deviation_is_that_of_independent_features(feature_map):
    x, y = torch.full((4,), 0.25, dtype=torch.float64), torch.full((4,), 0.15, dtype=torch.float64)
    z_norm = (x + y).square().sum()
    draws, features = 20_000, 2
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(draws, features if feature_map == "positive" else 1, 4, generator=generator, dtype=torch.float64)
    rows = rows if feature_map == "positive" else torch.cat([rows, -rows], dim=1)
    constant = (x.square().sum() + y.square().sum()) / 2
    estimates = (rows @ (x + y) - constant).exp().mean(-1)
    relative = estimates.std() / (x @ y).exp()
    predicted = kernel_deviation(z_norm, feature_map) / math.sqrt(features)
    # a standard deviation from n draws is known to about sqrt((kurtosis - 1) / 4n)
    centred = (estimates - estimates.mean()) / estimates.std()
    sigma = math.sqrt((centred.pow(4).mean().item() - 1) / (4 * draws))
    assert abs(relative / predicted - 1) < 4 * sigma


def test_slope_of_a_power_law_is_its_exponent():
    features = [16, 64, 256]
    assert fitted_slope(features, [3 * m**-0.5 for m in features]) == pytest.approx(-0.5)


def test_one_number_of_features_has_no_slope():
    assert math.isnan(fitted_slope([64], [0.1]))


@pytest.mark.parametrize(("heads", "length"), [(1, 10), (8, 2000), (20, 30_000), (40, 300_000)])
def test_a_block_of_rows_stays_within_its_entries(heads, length):
    rows = block_rows(heads, length)
    assert rows == 1 or rows * heads * length <= 1 << 22
    assert 1 <= rows <= length
