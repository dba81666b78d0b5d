"""Query-key normalisation and rotary positions in one pass over memory.

Both go over every query and key, there and back. One after the other they read and write them some thirty times
from main memory; here a tile is read once, and what lies between stays in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from proteinlm.model.rotary import RotaryPositions

# length below which a vector is no longer stretched in full: a vector of zeros stays one
SHORTEST = 1e-6
# numbers of one tile: 512 KiB in float32, since several tensors of that size are alive at once
TILE_ELEMENTS = 2**17


def stretch(x_BLHK: Tensor, length_H1: Tensor) -> Tensor:
    """Return queries or keys brought to the length of their head, in their own dtype."""
    # float16 squares overflow above 255: take the length in float32
    exact_BLHK = x_BLHK if x_BLHK.dtype in (torch.float32, torch.float64) else x_BLHK.float()
    square_BLH1 = torch.linalg.vecdot(exact_BLHK, exact_BLHK)[..., None]
    # one factor a head: functional.normalize goes over all values twice as often, there and back
    factor_BLH1 = length_H1.to(exact_BLHK.dtype) * (square_BLH1 + SHORTEST**2).rsqrt()
    stretched: Tensor = exact_BLHK * factor_BLH1
    return stretched.to(x_BLHK.dtype)


def stretch_and_turn(x_BLHK: Tensor, length_H1: Tensor, rotary: RotaryPositions) -> Tensor:
    """Return ``rotary.turn(stretch(x_BLHK, length_H1))``, rounded once, in the dtype of ``x_BLHK``.

    Args:
        x_BLHK: queries or keys.
        length_H1: the length of a head's vectors.
        rotary: turns of the positions.
    """
    turned: Tensor = _StretchedTurn.apply(  # type: ignore[no-untyped-call]
        x_BLHK, length_H1.to(rotary.cos_BL1k.dtype), rotary
    )
    return turned


class _StretchedTurn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BLHK: Tensor, length_H1: Tensor, rotary: RotaryPositions) -> Tensor:
        ctx.rotary = rotary
        ctx.save_for_backward(x_BLHK, length_H1)
        out_BLHK = torch.empty(x_BLHK.shape, dtype=x_BLHK.dtype, device=x_BLHK.device)
        out_THK = out_BLHK.view(-1, *x_BLHK.shape[2:])
        for places, x_CHK, cos_C1k, sin_C1k in _tiles(x_BLHK, rotary):
            stretched_CHK = x_CHK * (_inverse_length(x_CHK) * length_H1)
            _turn(stretched_CHK, cos_C1k, sin_C1k, out=out_THK[places])
        return out_BLHK

    @staticmethod
    def backward(ctx: Any, grad_BLHK: Tensor) -> tuple[Tensor | None, ...]:
        x_BLHK, length_H1 = ctx.saved_tensors
        if torch.is_grad_enabled():
            turned = ctx.rotary.turn(stretch(x_BLHK, length_H1))
            return *_differentiable(turned, (x_BLHK, length_H1), grad_BLHK, ctx.needs_input_grad), None
        grad_x_BLHK = torch.empty(x_BLHK.shape, dtype=x_BLHK.dtype, device=x_BLHK.device)
        grad_x_THK, grad_THK = grad_x_BLHK.view(-1, *x_BLHK.shape[2:]), grad_BLHK.flatten(0, 1)
        grad_length_H1 = torch.zeros_like(length_H1)
        for places, x_CHK, cos_C1k, sin_C1k in _tiles(x_BLHK, ctx.rotary):
            back_CHK = torch.empty(x_CHK.shape, dtype=x_CHK.dtype, device=x_CHK.device)
            _turn(grad_THK[places].to(x_CHK.dtype), cos_C1k, -sin_C1k, out=back_CHK)
            # with r = 1 / |x| and h the gradient turned back: length r (h - x r^2 (h·x)), and r (h·x) for the length
            inverse_CH1 = _inverse_length(x_CHK)
            along_CH1 = (back_CHK * x_CHK).sum(-1, keepdim=True).mul_(inverse_CH1)
            grad_length_H1 += along_CH1.sum(0)
            back_CHK.addcmul_(x_CHK, along_CH1.mul_(inverse_CH1), value=-1)
            _write_product(back_CHK, inverse_CH1.mul_(length_H1), grad_x_THK[places])
        return grad_x_BLHK, grad_length_H1, None


def _differentiable(
    turned: Tensor, inputs: tuple[Tensor, Tensor], grad: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of the inputs that need one, themselves to be differentiated."""
    wanted = [x for x, is_needed in zip(inputs, needed, strict=False) if is_needed]
    grads = iter(torch.autograd.grad(turned, wanted, grad, create_graph=True))
    return tuple(next(grads) if is_needed else None for is_needed in needed[:2])


def _tiles(x_BLHK: Tensor, rotary: RotaryPositions) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Yield places among the B·L positions, and what is there of ``x_BLHK`` and of the turns."""
    x_THK = x_BLHK.flatten(0, 1)
    cos_T1k, sin_T1k = rotary.cos_BL1k.flatten(0, 1), rotary.sin_BL1k.flatten(0, 1)
    # only a cache asks for tiles: elsewhere each would be so many more calls
    length = max(1, TILE_ELEMENTS // max(1, x_THK[:1].numel())) if x_THK.device.type == "cpu" else len(x_THK)
    for start in range(0, len(x_THK), max(1, length)):
        places = slice(start, start + length)
        yield places, x_THK[places].to(cos_T1k.dtype), cos_T1k[places], sin_T1k[places]


def _inverse_length(x_CHK: Tensor) -> Tensor:
    return (x_CHK * x_CHK).sum(-1, keepdim=True).add_(SHORTEST**2).rsqrt_()


def _turn(x_CHK: Tensor, cos_C1k: Tensor, sin_C1k: Tensor, *, out: Tensor) -> None:
    first, second = x_CHK.chunk(2, dim=-1)
    target = out if out.dtype == x_CHK.dtype else torch.empty_like(x_CHK)
    turned_first, turned_second = target.chunk(2, dim=-1)
    torch.mul(first, cos_C1k, out=turned_first)
    turned_first.addcmul_(second, sin_C1k, value=-1)
    torch.mul(second, cos_C1k, out=turned_second)
    turned_second.addcmul_(first, sin_C1k)
    if target is not out:
        out.copy_(target)


def _write_product(a_CHK: Tensor, b_CH1: Tensor, target: Tensor) -> None:
    if target.dtype == a_CHK.dtype:
        torch.mul(a_CHK, b_CH1, out=target)
    else:
        target.copy_(a_CHK.mul_(b_CH1))
