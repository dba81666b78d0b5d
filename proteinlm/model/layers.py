"""Layers made without weights: the model draws all of them by name, from its own streams."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import skip_init


def empty_linear(num_inputs: int, num_outputs: int) -> nn.Linear:
    """Return a linear layer whose weights are not drawn yet."""
    layer: nn.Linear = skip_init(nn.Linear, num_inputs, num_outputs)  # type: ignore[no-untyped-call]  # torch has no stub
    return layer


def empty_embedding(num_rows: int, width: int) -> nn.Embedding:
    """Return an embedding whose rows are not drawn yet."""
    layer: nn.Embedding = skip_init(nn.Embedding, num_rows, width)  # type: ignore[no-untyped-call]  # as above
    return layer
