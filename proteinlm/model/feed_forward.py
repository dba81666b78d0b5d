"""The position-wise network of a block."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from proteinlm.model.layers import empty_linear

Activation = Literal["gelu", "swiglu"]


class FeedForward(nn.Module):
    """Two projections with a non-linearity between them, the same at every position.

    gelu: W_out gelu(W_in x). swiglu: W_out (silu(W_gate x) * W_in x), with both in one matrix.

    Source: Hendrycks & Gimpel, arXiv:1606.08415; Shazeer, arXiv:2002.05202, equation 6.
    """

    def __init__(self, *, hidden_size: int, feed_forward_size: int, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        width = feed_forward_size * (2 if activation == "swiglu" else 1)
        self.inner = empty_linear(hidden_size, width)
        self.outer = empty_linear(feed_forward_size, hidden_size)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return the increment of each position, (B, L, D)."""
        inner = self.inner(x_BLD)
        if self.activation == "swiglu":
            gate, value = inner.chunk(2, dim=-1)
            inner = functional.silu(gate) * value
        else:
            inner = functional.gelu(inner)
        increment: Tensor = self.outer(inner)
        return increment
