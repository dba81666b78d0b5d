"""The reversible trunk: two streams from which every earlier state can be computed back.

y1 = x1 + F(x2), y2 = x2 + G(y1), with F and G the two halves of a block, norms inside. Both streams start as the
embedding, and their average is what comes out. Backward, x2 = y2 - G(y1) and x1 = y1 - F(x2): the last two streams
stand for all activations, whatever the depth.

Source: Gomez et al., arXiv:1707.04585, section 3; Kitaev et al., arXiv:2001.04451, section 3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from proteinlm.attention.choices import Choices
from proteinlm.errors import PrecisionError
from proteinlm.model.block import Block, Surroundings
from proteinlm.model.recomputation import Conditions, anchor, check_backward
from proteinlm.model.settings import ReversiblePrecision

# Streams on the grid of multiples of 2^-k add and subtract without rounding below 2^(mantissa bits - k). In float32
# k = 14 leaves 1,024, fifty thousand times the deviation of a new embedding, and rounds an increment by at most
# 2^-15: bfloat16 rounds a value near 1 by up to 2^-9.
_GRID = {torch.float32: 14, torch.float64: 40}
_MANTISSA_BITS = {torch.float32: 24, torch.float64: 53}


def run_reversible(
    blocks: Sequence[Block], start_BLD: Tensor, around: Surroundings, *, precision: ReversiblePrecision
) -> Tensor:
    """Return the average of the two streams behind the last block, (B, L, D) in the dtype of ``start_BLD``.

    Streams are float32, or float64 for float64 input; blocks work in the dtype of the input or of autocast. With
    gradients to compute, the two last streams are kept, and with "float" what the mechanisms choose, block by block.
    Differentiable once, by ``backward`` and not by ``torch.autograd.grad``. An observer is shown the average of the
    streams as hidden states, in the forward pass only.

    Args:
        blocks: the trunk.
        start_BLD: the embedding, on which both streams start.
        around: what the blocks must know besides.
        precision: "exact" rounds the start and each increment to a grid so that the streams are computed back to
            the bit, without gradient of the rounding; "float" does not round.

    Raises:
        PrecisionError: if "exact" is asked for and a stream grows beyond what it can represent.
    """
    needs = torch.is_grad_enabled() and (
        start_BLD.requires_grad or any(weight.requires_grad for block in blocks for weight in block.parameters())
    )
    trunk = _Pass(blocks, around, start_BLD, is_exact=precision == "exact", keeps_choices=needs)
    if needs:
        one_BLD, two_BLD = _Reversible.apply(start_BLD, anchor(start_BLD.device, blocks), trunk)  # type: ignore[no-untyped-call]
    else:
        one_BLD, two_BLD = trunk.advance(start_BLD)
    return _average(one_BLD, two_BLD, start_BLD.dtype)


class _Pass:
    """One forward pass through the trunk, and all that its way back needs."""

    def __init__(
        self, blocks: Sequence[Block], around: Surroundings, start_BLD: Tensor, *, is_exact: bool, keeps_choices: bool
    ) -> None:
        self.blocks = list(blocks)
        self.around = around
        self.input_dtype = start_BLD.dtype
        self.stream_dtype = torch.float64 if start_BLD.dtype == torch.float64 else torch.float32
        self.is_exact = is_exact
        self.conditions = Conditions.now(start_BLD.device, self.blocks)
        # what is computed back to the bit is chosen again as it was
        keeps_choices = keeps_choices and not is_exact
        self.choices = [Choices() if keeps_choices else None for _ in self.blocks]

    def advance(self, start_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two streams behind the last block."""
        one_BLD = two_BLD = self._stream(start_BLD)
        largest = [_largest(one_BLD)] if self.is_exact else []
        with self.conditions.hold():
            for layer, block in enumerate(self.blocks):
                around = dataclasses.replace(self.around, choices=self.choices[layer])
                one_BLD = one_BLD + self._stream(block.attend(two_BLD.to(self.input_dtype), around))
                two_BLD = two_BLD + self._stream(block.feed(one_BLD.to(self.input_dtype), around))
                if self.is_exact:
                    largest.append(torch.maximum(_largest(one_BLD), _largest(two_BLD)))
                if around.observer is not None and layer + 1 < len(self.blocks):
                    around.observer.hidden(layer + 1, _average(one_BLD, two_BLD, self.input_dtype))
        if self.is_exact:
            _check_bound(largest, self.stream_dtype)
        return one_BLD, two_BLD

    def go_back(
        self, streams: tuple[Tensor, Tensor], grads: tuple[Tensor, Tensor], *, to_start: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of the two streams before the first block, or before the first that is trained.

        Parameters get theirs on the way.
        """
        (one_BLD, two_BLD), (grad_one_BLD, grad_two_BLD) = streams, grads
        for layer in range(len(self.blocks) - 1, -1 if to_start else self._first_trained() - 1, -1):
            block, kept = self.blocks[layer], self.choices[layer]
            around = dataclasses.replace(self.around, observer=None, choices=None if kept is None else kept.repeat())
            increment_BLD, grad_BLD = self._feed_again(block, one_BLD, around, grad_two_BLD)
            two_BLD, grad_one_BLD = two_BLD - increment_BLD, grad_one_BLD + grad_BLD
            increment_BLD, grad_BLD = self._attend_again(block, two_BLD, around, grad_one_BLD)
            one_BLD, grad_two_BLD = one_BLD - increment_BLD, grad_two_BLD + grad_BLD
        return grad_one_BLD, grad_two_BLD

    def _feed_again(self, block: Block, x_BLD: Tensor, around: Surroundings, grad_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """Return an increment as it was added to a stream, and the gradient of what it was computed from."""
        with self.conditions.hold():
            increment_BLD, grad_x_BLD = block.feed_back(x_BLD.to(self.input_dtype), around, grad_BLD)
        return self._stream(increment_BLD), grad_x_BLD.to(self.stream_dtype)

    def _attend_again(
        self, block: Block, x_BLD: Tensor, around: Surroundings, grad_BLD: Tensor
    ) -> tuple[Tensor, Tensor]:
        x_BLD = x_BLD.detach().requires_grad_()
        with torch.enable_grad(), self.conditions.hold():
            increment_BLD = block.attend(x_BLD.to(self.input_dtype), around)
        if increment_BLD.requires_grad:
            torch.autograd.backward(increment_BLD, grad_BLD.to(increment_BLD.dtype))
        grad_x_BLD = torch.zeros_like(x_BLD) if x_BLD.grad is None else x_BLD.grad
        return self._stream(increment_BLD.detach()), grad_x_BLD

    def _stream(self, x_BLD: Tensor) -> Tensor:
        """Return the start or an increment as a stream takes it."""
        x_BLD = x_BLD.to(self.stream_dtype)
        if not self.is_exact:
            return x_BLD
        scale = 2.0 ** _GRID[self.stream_dtype]
        return (x_BLD * scale).round_().div_(scale)

    def _first_trained(self) -> int:
        trained = (any(weight.requires_grad for weight in block.parameters()) for block in self.blocks)
        return next((layer for layer, is_trained in enumerate(trained) if is_trained), len(self.blocks))


class _Reversible(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, start_BLD: Tensor, _: Tensor, trunk: _Pass) -> tuple[Tensor, Tensor]:
        streams = trunk.advance(start_BLD)
        ctx.trunk = trunk
        ctx.save_for_backward(*streams)
        return streams

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        check_backward("the reversible trunk")
        ctx.trunk.conditions.check_unchanged("the reversible trunk")
        to_start = ctx.needs_input_grad[0]
        one_BLD, two_BLD = ctx.trunk.go_back(ctx.saved_tensors, grads, to_start=to_start)
        return (one_BLD + two_BLD).to(ctx.trunk.input_dtype) if to_start else None, None, None


def _average(one_BLD: Tensor, two_BLD: Tensor, dtype: torch.dtype) -> Tensor:
    return ((one_BLD + two_BLD) / 2).to(dtype)


def _largest(x_BLD: Tensor) -> Tensor:
    # a norm makes no copy of the stream, as abs() would
    largest: Tensor = torch.linalg.vector_norm(x_BLD.detach(), float("inf"))
    return largest


def _check_bound(largest: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Check what was largest at the start and behind each block, all at once: reading a device waits for it."""
    bound = 2.0 ** (_MANTISSA_BITS[dtype] - _GRID[dtype])
    for layer, value in enumerate(torch.stack(list(largest)).tolist(), start=-1):
        # NaN passes: it has other causes, and the loss shows it
        if value >= bound:
            place = "the embedding" if layer < 0 else f"layer {layer}"
            raise PrecisionError(
                f"{place}: a stream of the reversible trunk reaches {value:,.1f}; exact reconstruction holds below "
                f'{bound:,.0f}, lower the learning rate or set model.reversible_precision = "float"'
            )
