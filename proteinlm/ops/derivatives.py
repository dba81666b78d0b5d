"""What the autograd functions of operations share."""

from __future__ import annotations

import torch


def refuse_second_derivative(name: str) -> None:
    """Raise if a backward pass is to be differentiated itself; each ``backward`` written by hand begins with it.

    Args:
        name: what is differentiated, the beginning of the message.

    Raises:
        RuntimeError: if gradients are recorded, which only ``create_graph=True`` makes of a backward pass.
    """
    # torch's once_differentiable lets a constant gradient through, and a penalty on it would be lost
    if torch.is_grad_enabled():
        raise RuntimeError(f"{name} is differentiable once; create_graph=True is not possible")
