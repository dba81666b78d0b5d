from __future__ import annotations

import functools
import itertools
import math
import re

import pytest
import torch
from torch import Tensor

from proteinlm.errors import ShapeError
from proteinlm.ops.random_features import (
    Features,
    eager,
    favor_attention,
    favor_map,
    feature_rows,
    projection_rows,
    reference,
)
from proteinlm.ops.softmax_attention import softmax_map

HEADS, HEAD_DIM = 3, 5


def rows(num_rows: int = 8, head_dim: int = HEAD_DIM, redraw_index: int = 0) -> Tensor:
    return projection_rows(num_rows, head_dim, projection="orthogonal", seed=0, layer=0, redraw_index=redraw_index)


@pytest.fixture(params=[2**19, 7 * HEADS * 8], ids=["one tile", "many tiles"])
def tile_elements(request, monkeypatch):
    """Let a segment be one tile, or be cut into several."""
    monkeypatch.setattr(eager, "TILE_ELEMENTS", request.param)
    monkeypatch.setattr(eager, "LEAST_TILE", 7)
    return request.param


MAPS = {
    "positive": Features(),
    "hyperbolic": Features(feature_map="hyperbolic"),
    "trigonometric": Features(feature_map="trigonometric"),
    "oprf": Features(feature_map="oprf"),
    "sderf": Features(feature_map="sderf"),
    "saderf": Features(feature_map="saderf"),
    "centred positive": Features(centring=True),
    "centred hyperbolic": Features(feature_map="hyperbolic", centring=True),
    "centred trigonometric": Features(feature_map="trigonometric", centring=True),
    "centred oprf": Features(feature_map="oprf", centring=True),
    "centred sderf": Features(feature_map="sderf", centring=True),
    "centred saderf": Features(feature_map="saderf", centring=True),
    "relu": Features(feature_map="generalised"),
    "exp": Features(feature_map="generalised", function="exp"),
    "gelu": Features(feature_map="generalised", function="gelu"),
    "abs": Features(feature_map="generalised", function="abs", epsilon=0.1),
    "sigmoid": Features(feature_map="generalised", function="sigmoid"),
    "relu, no rows": Features(feature_map="generalised", epsilon=0.1),
    "exp, no rows": Features(feature_map="generalised", function="exp"),
    "sigmoid, no rows": Features(feature_map="generalised", function="sigmoid"),
}


@pytest.fixture(params=list(MAPS))
def feature_map(request):
    """Return the features, the rows that the paper's map takes, and those that ours does."""
    features = MAPS[request.param]
    if request.param.endswith("no rows"):
        return features, None, None
    return features, rows(), feature_rows(rows(), features.feature_map)


def assert_close_to_reference(got: Tensor, wanted: Tensor, features: Features, atol: float) -> None:
    # a trigonometric normaliser comes close to 0 and multiplies rounding errors by as much
    slack = 1e4 if features.feature_map == "trigonometric" else 1.0
    torch.testing.assert_close(got, wanted, rtol=1e-11 * slack, atol=atol * slack)


@pytest.mark.one_in(2)
@pytest.mark.usefixtures("tile_elements")
def test_value_equals_the_reference(layout, feature_map):
    features, printed_MK, rows_MK = feature_map
    q, k, v = layout.draw(HEADS, HEAD_DIM)
    out = favor_attention(q, k, v, rows_MK, features=features, **layout.options)
    expected = reference.favor_attention(q, k, v, printed_MK, features=features, **layout.options)
    assert_close_to_reference(out, expected, features, 1e-12)


@pytest.fixture(params=[0, 2**25], ids=["computed again", "kept"])
def kept_bytes(monkeypatch, request):
    """Make backward compute weights again, or let it keep those of these small inputs."""
    monkeypatch.setattr(eager, "KEPT_BYTES", request.param)


@pytest.mark.one_in(3)
@pytest.mark.usefixtures("tile_elements", "kept_bytes")
def test_gradients_equal_the_reference(layout, feature_map):
    features, printed_MK, rows_MK = feature_map
    q, k, v = layout.draw(HEADS, HEAD_DIM)
    weights = torch.randn(q.shape, dtype=torch.float64)
    out = favor_attention(q, k, v, rows_MK, features=features, **layout.options)
    expected = reference.favor_attention(q, k, v, printed_MK, features=features, **layout.options)
    for got, wanted in zip(
        torch.autograd.grad(out, (q, k, v), weights), torch.autograd.grad(expected, (q, k, v), weights), strict=True
    ):
        assert_close_to_reference(got, wanted, features, 1e-11)


@pytest.mark.one_in(2)
@pytest.mark.usefixtures("tile_elements")
def test_implied_map_equals_the_reference(layout, feature_map):
    features, printed_MK, rows_MK = feature_map
    q, k, _ = layout.draw(HEADS, HEAD_DIM, requires_grad=False)
    got = favor_map(q, k, rows_MK, features=features, **layout.options)
    expected = reference.favor_map(q, k, printed_MK, features=features, **layout.options)
    assert_close_to_reference(got, expected, features, 1e-12)


@pytest.mark.usefixtures("tile_elements")
def test_a_block_of_rows_is_that_part_of_the_map(layout):
    q, k, _ = layout.draw(HEADS, HEAD_DIM, requires_grad=False)
    part = slice(layout.length // 3, -1)
    whole = favor_map(q, k, rows(), **layout.options)
    # equal to rounding: other tiles sum in another order
    torch.testing.assert_close(favor_map(q, k, rows(), rows=part, **layout.options), whole[:, :, part])


@pytest.mark.usefixtures("tile_elements")
def test_implied_map_times_values_is_the_output(layout):
    q, k, v = layout.draw(HEADS, HEAD_DIM, requires_grad=False)
    product = torch.einsum("bhrl,blhk->brhk", favor_map(q, k, rows(), **layout.options), v)
    torch.testing.assert_close(favor_attention(q, k, v, rows(), **layout.options), product, rtol=0, atol=1e-12)


def test_rows_of_the_implied_map_sum_to_one_where_a_key_is_visible(layout):
    q, k, _ = layout.draw(HEADS, HEAD_DIM, requires_grad=False)
    sums = favor_map(q, k, rows(), **layout.options).sum(-1)
    sees = reference.visible_pairs(q, **layout.options).any(-1)
    torch.testing.assert_close(sums, sees.expand_as(sums).double())


def test_a_row_without_visible_key_is_exactly_zero_in_value_and_gradient():
    q, k, v = (torch.randn(1, 9, 2, 4, requires_grad=True) for _ in range(3))
    cu_seqlens = torch.tensor([0, 4, 9], dtype=torch.int32)
    key_mask = torch.tensor([[False] * 4 + [True] * 5])
    out = favor_attention(q, k, v, rows(8, 4), key_mask_BL=key_mask, cu_seqlens=cu_seqlens)
    out[:, :4].sum().backward()
    assert not any(x.any() for x in (out[:, :4], q.grad, k.grad, v.grad))


@pytest.mark.usefixtures("kept_bytes")
def test_gradcheck_in_several_tiles(monkeypatch):
    monkeypatch.setattr(eager, "TILE_ELEMENTS", 1)
    monkeypatch.setattr(eager, "LEAST_TILE", 3)
    inputs = [torch.randn(1, 7, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    key_mask = torch.tensor([[True, False, True, True, True, True, False]])
    assert torch.autograd.gradcheck(lambda q, k, v: favor_attention(q, k, v, rows(4, 3), key_mask_BL=key_mask), inputs)


@pytest.mark.parametrize(
    "wanted",
    [c for n in (1, 2) for c in itertools.combinations(range(3), n)],
    ids=lambda c: "".join("qkv"[i] for i in c),
)
@pytest.mark.parametrize("name", ["positive", "centred sderf", "relu", "centred trigonometric"])
def test_each_gradient_is_the_same_when_others_are_not_wanted(wanted, name):
    attend = functools.partial(favor_attention, rows_MK=wide_rows(name), features=MAPS[name])
    drawn = [torch.randn(2, 11, 2, 16, dtype=torch.float64) for _ in range(3)]
    every = [x.clone().requires_grad_() for x in drawn]
    some = [x.clone().requires_grad_(i in wanted) for i, x in enumerate(drawn)]
    attend(*every).square().sum().backward()
    attend(*some).square().sum().backward()
    assert all(torch.equal(some[i].grad, every[i].grad) for i in wanted)


def wide_rows(name: str) -> Tensor | None:
    """Return 64 rows of width 16 for a map of ``MAPS``, or 32 of "hyperbolic" and its negatives."""
    if name.endswith("no rows"):
        return None
    drawn = rows(64, 16)
    return feature_rows(drawn[:32], "hyperbolic") if MAPS[name].feature_map == "hyperbolic" else drawn


@pytest.mark.parametrize("name", list(MAPS))
@pytest.mark.parametrize("num_pads", [0, 8, 96])
def test_pads_change_no_valid_output(num_pads, name):
    attend = functools.partial(favor_attention, rows_MK=wide_rows(name), features=MAPS[name])
    q, k, v = (torch.randn(2, 32, 2, 16, dtype=torch.float64) for _ in range(3))
    padded = [torch.cat((x, torch.randn(2, num_pads, 2, 16, dtype=torch.float64)), 1) for x in (q, k, v)]
    key_mask = (torch.arange(32 + num_pads) < 32).expand(2, -1)
    got = attend(*padded, key_mask_BL=key_mask)[:, :32]
    torch.testing.assert_close(got, attend(q, k, v), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", list(MAPS))
def test_neighbours_in_a_window_change_no_output(name):
    attend = functools.partial(favor_attention, rows_MK=wide_rows(name), features=MAPS[name])
    # where one token is a segment or two, covariances have null spaces
    lengths = [1, 300, 41, 7, 40, 38, 2, 1200]
    parts = [[torch.randn(1, n, 2, 16, dtype=torch.float64) for _ in range(3)] for n in lengths]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    packed = [torch.cat(x, 1) for x in zip(*parts, strict=True)]
    together = attend(*packed, cu_seqlens=cu_seqlens).split(lengths, 1)
    for part, got in zip(parts, together, strict=True):
        torch.testing.assert_close(got, attend(*part), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", list(MAPS))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_hidden_keys_and_values_may_hold_anything(value, name):
    q, k, v = (torch.randn(1, 12, 2, 16, dtype=torch.float64) for _ in range(3))
    key_mask = torch.arange(12)[None] % 3 > 0
    dirty = (q, *(x.masked_fill(~key_mask[..., None, None], value) for x in (k, v)))
    results = []
    for inputs in ((q, k, v), dirty):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = favor_attention(*leaves, wide_rows(name), features=MAPS[name], key_mask_BL=key_mask)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("name", [name for name, features in MAPS.items() if features.uses_statistics])
def test_hidden_queries_are_not_part_of_the_statistics(name):
    q, k, v = (torch.randn(1, 12, 2, 16, dtype=torch.float64) for _ in range(3))
    key_mask = torch.arange(12)[None] % 3 > 0
    dirty = q.masked_fill(~key_mask[..., None, None], math.nan)
    got, expected = (
        favor_attention(x, k, v, wide_rows(name), features=MAPS[name], key_mask_BL=key_mask) for x in (dirty, q)
    )
    assert torch.equal(got[key_mask], expected[key_mask])


@pytest.mark.parametrize("name", list(MAPS))
def test_equal_tokens_have_finite_outputs_and_gradients(name):
    # no spread to normalise by, no norm, and products that underflow
    for size in (0.0, 1.0, 1e-30):
        leaves = [torch.full((1, 6, 2, 16), size, requires_grad=True) for _ in range(3)]
        out = favor_attention(*leaves, wide_rows(name), features=MAPS[name])
        out.sum().backward()
        torch.testing.assert_close(out, leaves[2])
        assert all(x.grad.isfinite().all() for x in leaves)


@pytest.mark.parametrize("norm", [1e10, 1e15], ids="{:.0e}".format)
@pytest.mark.parametrize("name", [name for name in MAPS if "trigonometric" not in name])
def test_queries_and_keys_of_any_length_have_finite_outputs_and_gradients(name, norm):
    # the square of a mean square is infinite in float32 from norms of 1e10 on
    q, k, v = (torch.randn(1, 20, 2, 16) for _ in range(3))
    leaves = [x.requires_grad_() for x in (q * norm, k * norm, v)]
    out = favor_attention(*leaves, wide_rows(name), features=MAPS[name])
    out.sum().backward()
    assert out.isfinite().all()
    assert all(x.grad.isfinite().all() for x in leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [name for name in MAPS if "trigonometric" not in name])
def test_every_map_is_within_rounding_of_float64_at_ordinary_norms(dtype, name):
    generator = torch.Generator().manual_seed(4)
    q, k, v = (torch.randn(1, 200, 2, 16, generator=generator).to(dtype) for _ in range(3))
    rows_MK = wide_rows(name)
    expected = favor_attention(q.double(), k.double(), v.double(), rows_MK, features=MAPS[name])
    # log-features are below 100, and so in error by less than 20 × 100 × 2^-24 = 1.2e-4 (see test_both_forms)
    tolerance = 4 * 1.2e-4 * v.double().abs().max() + torch.finfo(dtype).eps / 2 * expected.abs()
    assert ((favor_attention(q, k, v, rows_MK, features=MAPS[name]).double() - expected).abs() <= tolerance).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [name for name in MAPS if "trigonometric" not in name])
def test_every_map_has_finite_gradients_in_half_precision(dtype, name):
    q, k, v = ((4 * torch.randn(1, 300, 2, 16)).to(dtype).requires_grad_() for _ in range(3))
    favor_attention(q, k, v, wide_rows(name), features=MAPS[name]).float().square().sum().backward()
    assert all(x.grad.isfinite().all() and x.grad.dtype == dtype for x in (q, k, v))


def test_trigonometric_weights_sum_to_one_and_can_be_negative():
    q, k = (torch.randn(1, 50, 2, 16, dtype=torch.float64) for _ in range(2))
    weights = favor_map(q, k, rows(64, 16), features=MAPS["trigonometric"])
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, 50, dtype=torch.float64))
    assert weights.min() < 0


@pytest.mark.parametrize("name", [name for name in MAPS if "trigonometric" not in name])
def test_weights_of_every_other_map_are_not_negative(name):
    q, k = (torch.randn(1, 50, 2, 16, dtype=torch.float64) for _ in range(2))
    assert favor_map(q, k, wide_rows(name), features=MAPS[name]).min() >= 0


@pytest.mark.parametrize("size", [(8, 5), (8,)], ids=["width", "one dimension"])
def test_rows_that_do_not_fit_are_refused(size):
    q, k, v = (torch.randn(1, 4, 1, 3) for _ in range(3))
    with pytest.raises(
        ShapeError, match=re.escape(f"projection rows are torch.float32 {size}; expected floats (M, 3)")
    ):
        favor_attention(q, k, v, torch.randn(size))


@pytest.mark.parametrize("feature_map", ["positive", "trigonometric", "oprf"])
def test_maps_of_random_rows_need_some(feature_map):
    q, k, v = (torch.randn(1, 4, 1, 3) for _ in range(3))
    with pytest.raises(ShapeError, match=f"no projection rows; {feature_map} features are of random rows"):
        favor_attention(q, k, v, None, features=Features(feature_map=feature_map))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mean", [0, 4])
@pytest.mark.parametrize("name", list(MAPS))
def test_half_precision_gradients_are_those_of_float32_rounded_once(dtype, mean, name):
    q, k, noise, weights = torch.randn(4, 1, 200, 2, 16, generator=torch.Generator().manual_seed(4)).to(dtype)
    half = [x.clone().requires_grad_() for x in (q, k, mean + noise / 10)]
    single = [x.detach().float().requires_grad_() for x in half]
    attend = functools.partial(favor_attention, rows_MK=wide_rows(name), features=MAPS[name])
    got = torch.autograd.grad(attend(*half), half, weights)
    expected = torch.autograd.grad(attend(*single), single, weights.float())
    assert all(torch.equal(mine, theirs.to(dtype)) for mine, theirs in zip(got, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mean", [0, 4])
def test_gradients_are_within_rounding_of_float64(dtype, mean):
    length, head_dim, num_features = 200, 16, 64
    q, k, noise, weights = torch.randn(4, 1, length, 2, head_dim, generator=torch.Generator().manual_seed(4)).to(dtype)
    inputs = [x.clone().requires_grad_() for x in (q, k, mean + noise / 10)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    rows_MK = rows(num_features, head_dim).float()
    got = torch.autograd.grad(favor_attention(*inputs, rows_MK), inputs, weights)
    expected = torch.autograd.grad(favor_attention(*exact, rows_MK), exact, weights.double())
    # the error of a weight as in test_both_forms; sums over positions, features and the head come to it
    scaled = torch.cat(exact[:2]).detach() * head_dim**-0.25
    magnitude = (scaled.abs() @ rows_MK.double().abs().T).amax() + scaled.square().sum(-1).amax() / 2
    in_logarithm = 2 * (head_dim + 2) * 2**-24 * magnitude
    error = 4 * torch.expm1(in_logarithm) + (length + num_features + 2 * head_dim) * 2**-24
    # how large the terms of each sum are: weights of a query sum to 1, those of a key to a column of the map;
    # dq has two terms g·U, dk has four of them (v·dU, two in ds, dU·U)
    product = weights.double().abs().sum(-1).max() * exact[2].detach().abs().max()
    column = favor_map(*exact[:2], rows_MK).sum(-2).max()
    width = rows_MK.abs().max().double() * head_dim**-0.25
    of_query, of_key = 2 * product * width, 4 * product * column * (width + scaled.abs().max() * head_dim**-0.25)
    for mine, theirs, terms in zip(
        got, expected, (of_query, of_key, weights.double().abs().max() * column), strict=True
    ):
        assert mine.dtype == dtype
        assert ((mine.double() - theirs).abs() <= error * terms + torch.finfo(dtype).eps / 2 * theirs.abs()).all()


@pytest.mark.parametrize(("length", "is_kept"), [(512, True), (513, False)])
def test_weights_are_kept_up_to_the_bound_and_only_for_a_gradient(monkeypatch, length, is_kept):
    monkeypatch.setattr(eager, "KEPT_BYTES", 2 * 512 * 2 * 16 * 4)
    inputs = [torch.randn(1, length, 2, 8, requires_grad=True) for _ in range(3)]
    num_kept = 2 * length * 2 * 16
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        out = favor_attention(*inputs, rows(16, 8))
        assert (sum(saved) >= num_kept) == is_kept
        first = torch.autograd.grad(out.sum(), inputs, retain_graph=True)
        assert all(map(torch.equal, first, torch.autograd.grad(out.sum(), inputs)))
        saved.clear()
        with torch.no_grad():
            favor_attention(*inputs, rows(16, 8))
        assert not saved


@pytest.mark.parametrize("cu_seqlens", [None, torch.arange(0, 4097, 64, dtype=torch.int32)], ids=["long", "packed"])
@pytest.mark.parametrize("name", list(MAPS))
def test_no_tensor_of_all_positions_features_and_heads_is_alive(cu_seqlens, name, largest_tensor):
    inputs = [torch.randn(1, 4096, 4, 8, requires_grad=True) for _ in range(3)]
    rows_MK = None if name.endswith("no rows") else rows(256, 8)
    with largest_tensor() as largest:
        favor_attention(*inputs, rows_MK, features=MAPS[name], cu_seqlens=cu_seqlens).sum().backward()
    # the larger of a tile of features and one input; all features would take 16 MiB
    assert largest.num_bytes <= max(4 * eager.TILE_ELEMENTS, 4 * inputs[0].numel())


def test_map_error_falls_as_one_over_the_root_of_the_number_of_features():
    q, k = (0.5 * torch.randn(1, 24, 1, 16, dtype=torch.float64) for _ in range(2))
    exact = softmax_map(q, k)
    num_features = [128, 256, 512, 1024, 2048]
    logarithms, variances = [], []
    for m in num_features:
        drawn = [projection_rows(m, 16, projection="iid", seed=m, layer=0, redraw_index=i) for i in range(40)]
        errors = torch.stack([(favor_map(q, k, w) - exact).abs().sum(-1).mean() / 2 for w in drawn])
        logarithms.append(errors.mean().log())
        variances.append(errors.var() / len(drawn) / errors.mean() ** 2)
    centred = torch.tensor(num_features).double().log()
    centred = centred - centred.mean()
    weights = centred / centred.square().sum()
    slope = weights @ torch.stack(logarithms)
    # least squares of independent points with known variances; the next term of the error, of
    # relative order exp(|z|^2) / m, bends the line by less than its value at the smallest m
    bend = torch.expm1((q[:, :, None] + k[:, None]).square().sum(-1).mean() / 4) / num_features[0]
    assert abs(slope + 0.5) < 4 * (weights.square() @ torch.stack(variances)).sqrt() + bend
