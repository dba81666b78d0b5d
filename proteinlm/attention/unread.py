"""Inputs that a mechanism does not read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def keep_in_graph(out_BLHK: Tensor, unread_BLHK: Tensor) -> Tensor:
    """Return ``out_BLHK``, through which ``unread_BLHK`` gets a gradient of 0.

    Each parameter of a model then still gets a gradient, as training on several processes expects.
    """
    kept: Tensor = _Kept.apply(out_BLHK, unread_BLHK)  # type: ignore[no-untyped-call]
    return kept


class _Kept(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out_BLHK: Tensor, unread_BLHK: Tensor) -> Tensor:
        ctx.like = unread_BLHK.shape, unread_BLHK.dtype
        return out_BLHK.view_as(out_BLHK)

    @staticmethod
    def backward(ctx: Any, grad_BLHK: Tensor) -> tuple[Tensor, Tensor]:
        shape, dtype = ctx.like
        # one number, seen as many: nothing to fill in
        return grad_BLHK, grad_BLHK.new_zeros((), dtype=dtype).expand(shape)
