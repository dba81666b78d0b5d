"""The convolution before the trunk."""

from __future__ import annotations

import torch

from proteinlm.model.local_convolution import LocalConvolution
from proteinlm.ops.visibility import Visibility


def _naive(x_LD, filter_OD, segments):
    width, length = len(filter_OD), len(x_LD)
    y = torch.zeros_like(x_LD)
    for i in range(length):
        for o in range(-(width // 2), width // 2 + 1):
            if 0 <= i + o < length and segments[i] == segments[i + o]:
                y[i] += filter_OD[o + width // 2] * x_LD[i + o]
    return y


def test_equals_the_sum_over_neighbours_of_the_same_segment():
    convolution = LocalConvolution(hidden_size=3, width=5).double()
    with torch.no_grad():
        convolution.filter_OD.copy_(torch.randn(5, 3))
        convolution.outer.weight.copy_(torch.eye(3))
        convolution.outer.bias.zero_()
    x = torch.randn(2, 9, 3, dtype=torch.float64)
    bounds = torch.tensor([0, 4, 5, 9, 18], dtype=torch.int32)
    y = convolution(x, Visibility(2, 9, cu_seqlens=bounds))
    segments = torch.tensor([[0] * 4 + [1] + [2] * 4, [3] * 9])
    for row in range(2):
        assert torch.allclose(y[row], _naive(x[row], convolution.filter_OD, segments[row].tolist()), atol=1e-12)
