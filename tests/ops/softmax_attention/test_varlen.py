from __future__ import annotations

import re

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from proteinlm.errors import UnavailableError
from proteinlm.ops.softmax_attention import reference, softmax_attention, varlen
from proteinlm.ops.visibility import Visibility

HEADS, HEAD_DIM = 3, 8


def loop(q_NHK, k_NHK, v_NHK, cu_q, cu_k, max_q, max_k):
    """Do on a CPU what torch.nn.attention.varlen.varlen_attn says it does on a GPU."""
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert (max_q, max_k) == (int(cu_q.diff().max()), int(cu_k.diff().max()))
    assert int(cu_k.diff().min()) > 0
    parts = zip(
        torch.split(q_NHK, cu_q.diff().tolist()),
        torch.split(k_NHK, cu_k.diff().tolist()),
        torch.split(v_NHK, cu_k.diff().tolist()),
        strict=True,
    )
    outputs = [scaled_dot_product_attention(*(x.transpose(0, 1) for x in part)).transpose(0, 1) for part in parts]
    return torch.cat(outputs)


@pytest.fixture
def _kernel(monkeypatch):
    module = pytest.importorskip("torch.nn.attention.varlen", reason="needs torch.nn.attention.varlen")
    monkeypatch.setattr(module, "varlen_attn", loop)


@pytest.mark.usefixtures("_kernel")
def test_what_the_kernel_is_given_makes_the_reference(layout):
    inputs = layout.draw(HEADS, HEAD_DIM)
    out = varlen.attend(*inputs, Visibility(layout.num_windows, layout.length, **layout.options))
    expected = reference.softmax_attention(*inputs, **layout.options)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    weights = torch.randn(out.shape, dtype=torch.float64)
    got, wanted = (torch.autograd.grad(x, inputs, weights) for x in (out, expected))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-11)


def test_on_a_cpu_varlen_says_what_it_needs_and_auto_does_without():
    q, k, v = (torch.randn(1, 9, 2, 8) for _ in range(3))
    message = 'implementation = "varlen" needs a CUDA device, and the inputs are on cpu; "auto" does without'
    with pytest.raises(UnavailableError, match=re.escape(message)):
        softmax_attention(q, k, v, implementation="varlen")
    options = {"cu_seqlens": torch.tensor([0, 4, 9])}
    auto, eager = (softmax_attention(q, k, v, implementation=which, **options) for which in ("auto", "eager"))
    assert torch.equal(auto, eager)


@pytest.mark.parametrize("segments", [[0, 37, 74], [0, 1, 14, 37, 40, 53, 74]], ids=["whole windows", "packed"])
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_kernel_equals_the_reference_to_rounding(segments):
    inputs = [torch.randn(2, 37, 2, 16, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    options = {"key_mask_BL": torch.arange(74).view(2, 37) % 5 > 0, "cu_seqlens": torch.tensor(segments)}
    expected = reference.softmax_attention(*inputs, **options)
    on_gpu = {name: x.cuda() for name, x in options.items()}
    out = softmax_attention(*(x.cuda() for x in inputs), implementation="varlen", **on_gpu).cpu()
    # weights are rounded to the dtype once before they multiply the values, and so is the output
    tolerance = 2 * torch.finfo(torch.bfloat16).eps * inputs[2].double().abs().max()
    assert (out.double() - expected).abs().max() <= tolerance
    gradients = torch.autograd.grad(out.float().square().sum(), inputs)
    assert all(x.isfinite().all() for x in gradients)
