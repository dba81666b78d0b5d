"""What the bidirectional and the causal form of FAVOR+ promise alike."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from proteinlm.ops.random_features import causal_favor_attention, favor_attention, projection_rows

FORMS = {"bidirectional": favor_attention, "causal": causal_favor_attention}


@pytest.fixture(params=list(FORMS.values()), ids=list(FORMS))
def attend(request) -> Callable[..., Tensor]:
    return request.param


def rows(num_rows: int, head_dim: int) -> Tensor:
    return projection_rows(num_rows, head_dim, projection="orthogonal", seed=0, layer=0, redraw_index=0)


def test_nothing_visible_at_all_still_has_gradients(attend):
    q, k, v = (torch.randn(2, 3, 2, 4, requires_grad=True) for _ in range(3))
    attend(q, k, v, rows(8, 4), key_mask_BL=torch.zeros(2, 3, dtype=torch.bool)).sum().backward()
    assert not any(x.grad.any() for x in (q, k, v))


def test_differentiating_twice_is_refused(attend):
    q, k, v = (torch.randn(1, 4, 1, 3, requires_grad=True) for _ in range(3))
    out = attend(q, k, v, rows(4, 3))
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(out.sum(), q, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spread", [1.0, 4.0, 8.0])
def test_reduced_precision_stays_within_its_rounding_of_float64(attend, dtype, spread):
    head_dim = 16
    generator = torch.Generator().manual_seed(4)
    q, k = (spread * torch.randn(1, 200, 2, head_dim, generator=generator) for _ in range(2))
    q, k, v = (x.to(dtype) for x in (q, k, torch.randn(1, 200, 2, head_dim, generator=generator)))
    rows_MK = rows(64, head_dim).float()
    expected = attend(q.double(), k.double(), v.double(), rows_MK)
    # a log-feature sums K + 1 products in float32: its error is at most (K + 2) 2^-24 times the sum
    # of their magnitudes; a weight has one from the query and one from the key, its normaliser too
    scaled = torch.cat((q, k)).double() * head_dim**-0.25
    magnitude = (scaled.abs() @ rows_MK.double().abs().T).amax() + scaled.square().sum(-1).amax() / 2
    in_logarithm = 2 * (head_dim + 2) * 2**-24 * magnitude
    # rounding the output to half a unit in the last place
    tolerance = 2 * torch.expm1(in_logarithm) * v.double().abs().max() + torch.finfo(dtype).eps / 2 * expected.abs()
    assert ((attend(q, k, v, rows_MK).double() - expected).abs() <= tolerance).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_gradients_are_finite_and_of_the_input_dtype(attend, dtype):
    q, k, v = ((8 * torch.randn(1, 300, 2, 16)).to(dtype).requires_grad_() for _ in range(3))
    attend(q, k, v, rows(64, 16)).float().square().sum().backward()
    assert all(x.grad.isfinite().all() and x.grad.dtype == dtype for x in (q, k, v))


def test_autocast_changes_nothing(attend):
    inputs = [torch.randn(2, 33, 2, 16, requires_grad=True) for _ in range(3)]
    plain = attend(*inputs, rows(64, 16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = attend(*inputs, rows(64, 16))
        gradients = torch.autograd.grad(under.square().sum(), inputs)
    assert torch.equal(plain, under)
    assert all(map(torch.equal, gradients, torch.autograd.grad(plain.square().sum(), inputs)))


def test_queries_may_have_another_dtype_than_values(attend):
    q, k = (torch.randn(1, 6, 2, 4, requires_grad=True) for _ in range(2))
    v = torch.randn(1, 6, 2, 4, dtype=torch.bfloat16, requires_grad=True)
    out = attend(q, k, v, rows(8, 4))
    out.sum().backward()
    assert (out.dtype, q.grad.dtype, v.grad.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)


def test_inputs_are_left_as_they_were(attend):
    # one head in float32 is laid out exactly as a tile is: a copy left out would scale the input
    q, k, v = (torch.randn(1, 6, 1, 4, requires_grad=True) for _ in range(3))
    before = [x.detach().clone() for x in (q, k, v)]
    attend(q, k, v, rows(8, 4)).sum().backward()
    assert all(map(torch.equal, before, (q, k, v)))
