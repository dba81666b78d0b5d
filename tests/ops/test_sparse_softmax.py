"""What window and BigBird attention have in common."""

from __future__ import annotations

import functools

import pytest
import torch

from proteinlm.ops.block_sparse_attention import BlockPattern, bigbird_attention, bigbird_map
from proteinlm.ops.window_attention import window_attention, window_map

PATTERN = BlockPattern(block_length=8, num_window_blocks=1, num_global_tokens=1, num_random_blocks=2, seed=0, layer=0)
MECHANISMS = {
    "window": (functools.partial(window_attention, window=11), functools.partial(window_map, window=11)),
    "bigbird": (
        functools.partial(bigbird_attention, pattern=PATTERN),
        functools.partial(bigbird_map, pattern=PATTERN),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mean", [0, 4])
@pytest.mark.parametrize("name", list(MECHANISMS))
def test_gradients_are_within_rounding_of_float64(dtype, mean, name):
    attend, weigh = MECHANISMS[name]
    length, head_dim = 200, 16
    q, k, noise, weights = torch.randn(4, 1, length, 2, head_dim, generator=torch.Generator().manual_seed(4)).to(dtype)
    inputs = [x.clone().requires_grad_() for x in (q, k, mean + noise / 10)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    got = torch.autograd.grad(attend(*inputs), inputs, weights)
    expected = torch.autograd.grad(attend(*exact), exact, weights.double())
    # a score sums K products in float32, a weight has one in numerator and normaliser; sums over positions come to it
    q, k, v = (x.detach().abs() for x in exact)
    scores = torch.einsum("bihk,bjhk->bhij", q, k) * head_dim**-0.5
    error = 2 * torch.expm1(2 * (head_dim + 2) * 2**-24 * scores.max()) + (length + 2 * head_dim) * 2**-24
    # how large the terms of each sum are: weights of a query sum to 1, those of a key to a column of the map
    product = 2 * weights.double().abs().sum(-1).max() * v.max() * head_dim**-0.5
    column = weigh(*exact[:2]).sum(-2).max()
    sizes = (product * k.max(), product * q.max() * column, weights.double().abs().max() * column)
    for mine, theirs, terms in zip(got, expected, sizes, strict=True):
        assert mine.dtype == dtype
        assert ((mine.double() - theirs).abs() <= error * terms + torch.finfo(dtype).eps / 2 * theirs.abs()).all()
