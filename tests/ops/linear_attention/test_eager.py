from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from proteinlm.errors import ShapeError
from proteinlm.ops.linear_attention import decay_logarithms, eager, linear_attention, linear_map, reference

HEADS, HEAD_DIM = 3, 5
FORMS = {
    "division": {},
    "numerator": {"normalisation": "numerator"},
    "decay": {"decay_H": decay_logarithms(HEADS)},
    "decay, numerator": {"decay_H": decay_logarithms(HEADS), "normalisation": "numerator"},
    "causal": {"is_causal": True},
    "causal, numerator": {"is_causal": True, "normalisation": "numerator"},
    "causal, decay": {"is_causal": True, "decay_H": decay_logarithms(HEADS)},
}
MAPS = {name: form for name, form in FORMS.items() if "normalisation" not in form}


@pytest.fixture(params=list(FORMS.values()), ids=list(FORMS))
def form(request):
    return request.param


@pytest.fixture(params=[None, 7], ids=["one tile", "many tiles"])
def tiles(request, monkeypatch):
    """Let a segment be one tile, or be cut into several."""
    if request.param:
        monkeypatch.setattr(eager, "TILE_ELEMENTS", request.param * HEADS * HEAD_DIM)
        monkeypatch.setattr(eager, "CHUNK_LENGTH", request.param)


@pytest.mark.one_in(2)
@pytest.mark.usefixtures("tiles")
def test_value_equals_the_reference(layout, form):
    q, k, v = layout.draw(HEADS, HEAD_DIM)
    out = linear_attention(q, k, v, **form, **layout.options)
    expected = reference.linear_attention(q, k, v, **form, **layout.options)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


@pytest.mark.one_in(2)
@pytest.mark.usefixtures("tiles")
def test_gradients_equal_the_reference(layout, form):
    q, k, v = layout.draw(HEADS, HEAD_DIM)
    weights = torch.randn(q.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    out = linear_attention(q, k, v, **form, **layout.options)
    expected = reference.linear_attention(q, k, v, **form, **layout.options)
    for got, wanted in zip(
        torch.autograd.grad(out, (q, k, v), weights), torch.autograd.grad(expected, (q, k, v), weights), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-11)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("form", list(MAPS.values()), ids=list(MAPS))
@pytest.mark.parametrize("part", [slice(None), slice(12, -1), slice(0, 0)], ids=["all", "block", "none"])
@pytest.mark.usefixtures("tiles")
def test_map_equals_the_reference(layout, form, part):
    q, k, _ = layout.draw(HEADS, HEAD_DIM, requires_grad=False)
    expected = reference.linear_map(q, k, **form, **layout.options)[:, :, part]
    torch.testing.assert_close(linear_map(q, k, rows=part, **form, **layout.options), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", list(MAPS.values()), ids=list(MAPS))
def test_numerator_form_is_the_map_times_values_over_its_root_mean_square(form):
    # large values, beside which the addition under the root vanishes
    q, k, v = (torch.randn(1, 40, HEADS, HEAD_DIM, dtype=torch.float64) for _ in range(3))
    product = torch.einsum("bhrl,blhk->brhk", linear_map(q, k, **form), v)
    got = linear_attention(q, k, 1e6 * v, normalisation="numerator", **form)
    torch.testing.assert_close(got, product / product.square().mean(-1, keepdim=True).sqrt(), rtol=0, atol=1e-9)


@pytest.mark.usefixtures("tiles")
def test_a_row_without_visible_key_is_exactly_zero_in_value_and_gradient(form):
    q, k, v = (torch.randn(1, 29, HEADS, 4, requires_grad=True) for _ in range(3))
    cu_seqlens = torch.tensor([0, 14, 29], dtype=torch.int32)
    key_mask = torch.arange(29)[None] >= 14
    out = linear_attention(q, k, v, key_mask_BL=key_mask, cu_seqlens=cu_seqlens, **form)
    out[:, :14].sum().backward()
    assert not any(x.any() for x in (out[:, :14], q.grad, k.grad, v.grad))


@pytest.mark.usefixtures("tiles")
def test_queries_before_the_first_visible_key_are_exactly_zero_if_causal():
    q, k, v = (torch.randn(1, 29, HEADS, 4, requires_grad=True) for _ in range(3))
    for normalisation in ("division", "numerator"):
        key_mask = torch.arange(29)[None] >= 10
        out = linear_attention(q, k, v, key_mask_BL=key_mask, is_causal=True, normalisation=normalisation)
        gradients = torch.autograd.grad(out[:, :10].sum(), (q, k, v))
        assert not any(x.any() for x in (out[:, :10], *gradients))


def test_nothing_visible_at_all_still_has_gradients(form):
    q, k, v = (torch.randn(2, 3, HEADS, 4, requires_grad=True) for _ in range(3))
    linear_attention(q, k, v, key_mask_BL=torch.zeros(2, 3, dtype=torch.bool), **form).sum().backward()
    assert not any(x.grad.any() for x in (q, k, v))


def test_gradcheck_in_several_tiles(monkeypatch, form):
    monkeypatch.setattr(eager, "TILE_ELEMENTS", 3 * HEADS * 3)
    monkeypatch.setattr(eager, "CHUNK_LENGTH", 3)
    inputs = [torch.randn(1, 7, HEADS, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    key_mask = torch.tensor([[True, False, True, True, True, True, False]])
    assert torch.autograd.gradcheck(lambda q, k, v: linear_attention(q, k, v, key_mask_BL=key_mask, **form), inputs)


def test_differentiating_twice_is_refused():
    q, k, v = (torch.randn(1, 4, 1, 3, requires_grad=True) for _ in range(3))
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(linear_attention(q, k, v).sum(), q, create_graph=True)


@pytest.mark.parametrize(
    "wanted",
    [c for n in (1, 2) for c in itertools.combinations(range(3), n)],
    ids=lambda c: "".join("qkv"[i] for i in c),
)
def test_each_gradient_is_the_same_when_others_are_not_wanted(wanted, form):
    drawn = [torch.randn(2, 11, HEADS, 4, dtype=torch.float64) for _ in range(3)]
    every = [x.clone().requires_grad_() for x in drawn]
    some = [x.clone().requires_grad_(i in wanted) for i, x in enumerate(drawn)]
    linear_attention(*every, **form).square().sum().backward()
    linear_attention(*some, **form).square().sum().backward()
    assert all(torch.equal(some[i].grad, every[i].grad) for i in wanted)


@pytest.mark.parametrize("num_pads", [0, 8, 96])
def test_pads_change_no_valid_output(num_pads, form):
    q, k, v = (torch.randn(2, 32, HEADS, 16, dtype=torch.float64) for _ in range(3))
    padded = [torch.cat((x, torch.randn(2, num_pads, HEADS, 16, dtype=torch.float64)), 1) for x in (q, k, v)]
    key_mask = (torch.arange(32 + num_pads) < 32).expand(2, -1)
    got = linear_attention(*padded, key_mask_BL=key_mask, **form)[:, :32]
    torch.testing.assert_close(got, linear_attention(q, k, v, **form), rtol=0, atol=1e-10)


def test_neighbours_in_a_window_change_no_output(form):
    lengths = [1, 300, 41, 7, 40, 38, 24, 23, 1200]
    parts = [[torch.randn(1, n, HEADS, 16, dtype=torch.float64) for _ in range(3)] for n in lengths]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    packed = [torch.cat(x, 1) for x in zip(*parts, strict=True)]
    together = linear_attention(*packed, cu_seqlens=cu_seqlens, **form).split(lengths, 1)
    for part, got in zip(parts, together, strict=True):
        torch.testing.assert_close(got, linear_attention(*part, **form), rtol=0, atol=1e-10)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_hidden_keys_and_values_may_hold_anything(value, form):
    q, k, v = (torch.randn(1, 12, HEADS, 4, dtype=torch.float64) for _ in range(3))
    key_mask = torch.arange(12)[None] % 3 > 0
    dirty = (q, *(x.masked_fill(~key_mask[..., None, None], value) for x in (k, v)))
    results = []
    for inputs in ((q, k, v), dirty):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = linear_attention(*leaves, key_mask_BL=key_mask, **form)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    assert all(map(torch.equal, *results))


def test_a_later_key_changes_no_earlier_chunk_and_only_rounding_in_its_own(monkeypatch):
    monkeypatch.setattr(eager, "CHUNK_LENGTH", 16)
    inputs = [torch.randn(1, 61, HEADS, 8, dtype=torch.float64) for _ in range(3)]
    for form in (FORMS["causal"], FORMS["causal, numerator"], FORMS["causal, decay"]):
        before = linear_attention(*inputs, **form)
        for j in (20, 40, 60):
            changed = [inputs[0], *(x.index_fill(1, torch.tensor([j]), 30.0) for x in inputs[1:])]
            after = linear_attention(*changed, **form)
            start = j // 16 * 16
            assert torch.equal(after[:, :start], before[:, :start])
            torch.testing.assert_close(after[:, :j], before[:, :j], rtol=0, atol=1e-12)
            assert not torch.isclose(after[:, j], before[:, j]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spread", [1.0, 4.0, 8.0])
@pytest.mark.parametrize("form", list(MAPS.values()), ids=list(MAPS))
def test_reduced_precision_stays_within_its_rounding_of_float64(dtype, spread, form):
    length = 200
    q, k = (spread * torch.randn(1, length, HEADS, 16) for _ in range(2))
    q, k, v = (x.to(dtype) for x in (q, k, torch.randn(1, length, HEADS, 16)))
    expected = linear_attention(q.double(), k.double(), v.double(), **form)
    # all weights are positive: each is off by the rounding of two features, their product and K sums, and
    # numerator and normaliser by that of L sums more
    relative = 2 * (length + 16 + 16) * 2**-24
    tolerance = relative * v.double().abs().max() + torch.finfo(dtype).eps / 2 * expected.abs()
    assert ((linear_attention(q, k, v, **form).double() - expected).abs() <= tolerance).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_gradients_are_finite_and_of_the_input_dtype(dtype, form):
    q, k, v = ((8 * torch.randn(1, 300, HEADS, 16)).to(dtype).requires_grad_() for _ in range(3))
    out = linear_attention(q, k, v, **form)
    out.float().square().sum().backward()
    assert out.dtype == dtype
    assert all(x.grad.isfinite().all() and x.grad.dtype == dtype for x in (q, k, v))


@pytest.mark.parametrize("value", [-90.0, -1e4])
def test_features_that_underflow_stay_finite(value):
    q = torch.full((1, 9, HEADS, 4), value, requires_grad=True)
    out = linear_attention(q, q, torch.ones_like(q))
    out.sum().backward()
    assert out.isfinite().all()
    assert q.grad.isfinite().all()


def test_autocast_changes_nothing(form):
    inputs = [torch.randn(2, 33, HEADS, 16, requires_grad=True) for _ in range(3)]
    plain = linear_attention(*inputs, **form)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = linear_attention(*inputs, **form)
        gradients = torch.autograd.grad(under.square().sum(), inputs)
    assert torch.equal(plain, under)
    assert all(map(torch.equal, gradients, torch.autograd.grad(plain.square().sum(), inputs)))


def test_queries_may_have_another_dtype_than_values(form):
    q, k = (torch.randn(1, 6, HEADS, 4, requires_grad=True) for _ in range(2))
    v = torch.randn(1, 6, HEADS, 4, dtype=torch.bfloat16, requires_grad=True)
    out = linear_attention(q, k, v, **form)
    out.sum().backward()
    assert (out.dtype, q.grad.dtype, v.grad.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)


def test_inputs_are_left_as_they_were(form):
    q, k, v = (torch.randn(1, 6, HEADS, 4, requires_grad=True) for _ in range(3))
    before = [x.detach().clone() for x in (q, k, v)]
    linear_attention(q, k, v, **form).sum().backward()
    assert all(map(torch.equal, before, (q, k, v)))


@pytest.mark.parametrize("cu_seqlens", [None, torch.arange(0, 4097, 64, dtype=torch.int32)], ids=["long", "packed"])
def test_no_tensor_is_larger_than_an_input(cu_seqlens, form, largest_tensor):
    inputs: list[Tensor] = [torch.randn(1, 4096, HEADS, 32, requires_grad=True) for _ in range(3)]
    with largest_tensor() as largest:
        linear_attention(*inputs, cu_seqlens=cu_seqlens, **form).sum().backward()
    assert largest.num_bytes <= 4 * inputs[0].numel()


def test_decay_is_that_of_the_published_rates():
    assert decay_logarithms(8).exp().tolist() == pytest.approx([1 - 2.0 ** (-5 - h) for h in range(8)])
    assert decay_logarithms(40)[-1] < 0


def test_one_decay_for_each_head_is_asked_for():
    q = torch.randn(1, 4, 3, 5)
    with pytest.raises(ShapeError, match=r"decay is \(2,\) for 3 heads; expected \(3,\)"):
        linear_attention(q, q, q, decay_H=decay_logarithms(2))
