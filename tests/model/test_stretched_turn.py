"""Query-key normalisation and rotary positions in one pass."""

from __future__ import annotations

import pytest
import torch

from proteinlm.model import stretched_turn
from proteinlm.model.rotary import RotaryPositions
from proteinlm.model.stretched_turn import stretch, stretch_and_turn


def _draw(dtype=torch.float64, *, length=7, heads=3, width=4):
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, length, 3, heads, width, generator=generator, dtype=torch.float64).to(dtype)
    positions = torch.randint(0, 50, (2, length), generator=generator)
    rotary = RotaryPositions(positions, head_dim=width, base=100.0, dtype=dtype)
    lengths = torch.rand(heads, 1, generator=generator, dtype=torch.float64).to(rotary.cos_BL1k.dtype) + 0.5
    return qkv.unbind(2)[1], lengths, rotary, generator


# tiles of one position, of some that do not divide the 14, and of all
@pytest.mark.parametrize("tile_elements", [1, 36, 10_000])
def test_value_and_gradients_are_those_of_one_after_the_other(monkeypatch, tile_elements):
    monkeypatch.setattr(stretched_turn, "TILE_ELEMENTS", tile_elements)
    x, lengths, rotary, generator = _draw()
    weights = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    results = []
    for run in (stretch_and_turn, lambda x, lengths, rotary: rotary.turn(stretch(x, lengths))):
        leaves = x.detach().requires_grad_(), lengths.detach().requires_grad_()
        out = run(*leaves, rotary)
        results.append((out, *torch.autograd.grad(out, leaves, weights)))
    for ours, expected in zip(*results, strict=True):
        assert torch.allclose(ours, expected, atol=1e-12)


def test_gradient_is_numeric_gradient_also_a_second_time():
    x, lengths, rotary, _ = _draw(length=2, heads=2)
    leaves = x.clone().requires_grad_(), lengths.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, lengths: stretch_and_turn(x, lengths, rotary), leaves)
    assert torch.autograd.gradgradcheck(lambda x, lengths: stretch_and_turn(x, lengths, rotary), leaves)


def test_only_what_needs_a_gradient_is_differentiated_twice():
    x, lengths, rotary, _ = _draw()
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(stretch_and_turn(leaf, lengths, rotary).square().sum(), leaf, create_graph=True)
    assert torch.autograd.grad(grad.sum(), leaf)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    x, lengths, rotary, generator = _draw(dtype)
    x = x * 300  # squares beyond float16
    weights = torch.randn(x.shape, generator=generator).to(dtype)
    leaf = x.detach().requires_grad_()
    out = stretch_and_turn(leaf, lengths, rotary)
    exact = x.double().requires_grad_()
    exact_rotary = RotaryPositions(torch.zeros(x.shape[:2]), head_dim=x.shape[-1], base=100.0, dtype=torch.float64)
    exact_rotary.cos_BL1k, exact_rotary.sin_BL1k = rotary.cos_BL1k.double(), rotary.sin_BL1k.double()
    expected = exact_rotary.turn(stretch(exact, lengths.double()))
    assert torch.allclose(out.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)
    grad, expected_grad = torch.autograd.grad(out, leaf, weights)[0], torch.autograd.grad(expected, exact, weights)[0]
    assert grad.dtype == dtype
    assert torch.allclose(grad.double(), expected_grad, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_zeros_stay_zeros_with_finite_gradients():
    x, lengths, rotary, _ = _draw()
    leaf = torch.zeros_like(x).requires_grad_()
    out = stretch_and_turn(leaf, lengths, rotary)
    assert not out.any()
    assert torch.autograd.grad(out.sum(), leaf)[0].isfinite().all()


def test_windows_without_positions_are_no_trouble():
    x, lengths, _, _ = _draw(length=0)
    rotary = RotaryPositions(torch.zeros(2, 0), head_dim=4, base=100.0, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    stretch_and_turn(leaf, lengths, rotary).sum().backward()
    assert leaf.grad.shape == x.shape
