"""A function of positions, computed a chunk at a time in the forward and in the backward pass.

Computing in chunks alone saves nothing in training: autograd keeps what every chunk left behind. Here a chunk keeps
nothing; the backward pass computes it again and propagates back through it before the next one begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from proteinlm.model.recomputation import Conditions, anchor, check_backward


def in_chunks(
    function: Callable[..., tuple[Tensor, ...]],
    cut: Sequence[Tensor],
    whole: Sequence[Tensor] = (),
    *,
    chunk_length: int,
    dim: int,
    modules: Sequence[nn.Module],
) -> tuple[Tensor, ...]:
    """Return what ``function`` says of ``cut``, ``chunk_length`` positions at a time.

    Equals ``function(*cut, *whole)`` up to rounding if that treats every position by itself. Differentiable
    once. A backward pass accumulates the gradient of each parameter once, however many chunks there are.

    Args:
        function: takes chunks of the tensors of ``cut``, then ``whole``; the first tensor that it returns has a
            gradient and the others have none. All are joined along ``dim``.
        cut: tensors that are cut along ``dim``, all of one length there, 1 or more.
        whole: tensors that every chunk needs, such as a weight that is used elsewhere as well.
        modules: those whose parameters ``function`` uses, besides ``whole``.
    """
    conditions = Conditions.now(cut[0].device, modules)
    plan = _Plan(function, len(cut), chunk_length, dim, tuple(modules), conditions)
    outputs: tuple[Tensor, ...] = _Chunks.apply(anchor(cut[0].device, modules), plan, *cut, *whole)  # type: ignore[no-untyped-call]
    return outputs


def back_in_chunks(
    function: Callable[..., tuple[Tensor, ...]],
    cut: Sequence[Tensor],
    grad: Tensor,
    *,
    chunk_length: int,
    dim: int,
    modules: Sequence[nn.Module],
) -> tuple[Tensor, Tensor]:
    """Return the first tensor that ``function`` returns and the gradient of ``cut[0]``, each chunk computed once.

    For a caller that needs both in its backward pass. Parameters get their gradients as behind ``in_chunks``.

    Args:
        function: as for ``in_chunks``.
        cut: as for ``in_chunks``; the first gets a gradient and the others do not.
        grad: that of the result.
        chunk_length: positions at a time.
        dim: along which ``cut`` and ``grad`` are cut.
        modules: those whose parameters ``function`` uses.
    """
    conditions = Conditions.now(cut[0].device, modules)
    plan = _Plan(function, len(cut), chunk_length, dim, tuple(modules), conditions)
    outputs: list[Tensor] = []
    (of_first, *_) = plan.go_back(cut, [True, *(False for _ in cut[1:])], grad, outputs)
    assert of_first is not None
    return outputs[0], of_first


@dataclass(frozen=True)
class _Plan:
    function: Callable[..., tuple[Tensor, ...]]
    num_cut: int
    chunk_length: int
    dim: int
    modules: tuple[nn.Module, ...]
    conditions: Conditions

    def pieces(self, tensors: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        """Return chunk by chunk the parts of the tensors that are cut."""
        split = [torch.split(tensor, self.chunk_length, self.dim) for tensor in tensors[: self.num_cut]]
        return list(zip(*split, strict=True))

    def go_back(
        self, tensors: Sequence[Tensor], needed: Sequence[bool], grad: Tensor, outputs: list[Tensor] | None = None
    ) -> list[Tensor | None]:
        """Return the gradients of the tensors that need one; ``outputs`` gets what the function returned, if asked."""
        whole = [_leaf(x, need) for x, need in zip(tensors[self.num_cut :], needed[self.num_cut :], strict=True)]
        pieces, of_pieces = self.pieces(tensors), torch.split(grad, self.chunk_length, self.dim)
        sums, start = _Sums(self.modules), 0
        of_cut: list[list[Tensor]] = []
        for number, (piece, grad_piece) in enumerate(zip(pieces, of_pieces, strict=True), start=1):
            leaves = [_leaf(x, need) for x, need in zip(piece, needed, strict=False)]
            with torch.enable_grad(), self.conditions.hold():
                output = self.function(*leaves, *whole)[0]
            asked = [x for x in (*leaves, *whole) if x.requires_grad]
            sums.add(output, grad_piece.to(output.dtype), asked, is_last=number == len(pieces))
            of_cut.append([_gradient(x) for x in leaves if x.requires_grad])
            if outputs is not None:
                self.join(outputs, [output.detach()], start, grad.shape[self.dim])
            start += grad_piece.shape[self.dim]
        joined = [torch.cat(column, self.dim) for column in zip(*of_cut, strict=True)]
        found = iter([*joined, *(_gradient(x) for x in whole if x.requires_grad)])
        return [next(found) if need else None for need in needed]

    def join(self, outputs: list[Tensor], parts: Sequence[Tensor], start: int, length: int) -> None:
        """Write the parts of one chunk into the outputs, which the first chunk makes."""
        # joined as they come: a list of chunks and then the whole would be twice the memory
        outputs.extend(_longer(part, self.dim, length) for part in (parts if not outputs else ()))
        for output, part in zip(outputs, parts, strict=True):
            output.narrow(self.dim, start, part.shape[self.dim]).copy_(part)


class _Chunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, _: Tensor, plan: _Plan, *tensors: Tensor) -> tuple[Tensor, ...]:
        outputs: list[Tensor] = []
        length, start = tensors[0].shape[plan.dim], 0
        with plan.conditions.hold():
            for piece in plan.pieces(tensors):
                plan.join(outputs, plan.function(*piece, *tensors[plan.num_cut :]), start, length)
                start += piece[0].shape[plan.dim]
        ctx.plan = plan
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(*outputs[1:])
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        check_backward("a computation in chunks")
        plan.conditions.check_unchanged("a computation in chunks")
        return None, None, *plan.go_back(ctx.saved_tensors, ctx.needs_input_grad[2:], grad)


class _Sums:
    """Gradients of the parameters of modules, added up over chunks and accumulated once.

    Reducers and ZeRO take each accumulation for the end of a parameter's gradient. With the last chunk the sums of
    the others flow into the same node, while ZeRO still holds the parameter together.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._weights = dict.fromkeys(w for module in modules for w in module.parameters() if w.requires_grad)
        self._edges: list[GradientEdge] = []
        self._sums: list[Tensor | None] = [None] * len(self._weights)

    def add(self, output: Tensor, grad: Tensor, leaves: Sequence[Tensor], *, is_last: bool) -> None:
        """Propagate back through a chunk; ``leaves`` get theirs in ``.grad``."""
        if not output.requires_grad:
            return
        # asked for behind the first chunk, whose graph made the nodes when ZeRO held the parameters together
        self._edges = self._edges or [get_gradient_edge(weight) for weight in self._weights]
        if is_last:
            known = [(edge, total) for edge, total in zip(self._edges, self._sums, strict=True) if total is not None]
            # edges may be roots since torch 2.7, and unlike leaves have a shape where ZeRO has parted the weight
            roots: list[Any] = [output, *(edge for edge, _ in known)]
            torch.autograd.backward(roots, [grad, *(total for _, total in known)])
            return
        asked: list[Any] = [*leaves, *self._edges]
        found = torch.autograd.grad(output, asked, grad, allow_unused=True)
        for leaf, part in zip(leaves, found, strict=False):
            leaf.grad = _sum(leaf.grad, part)
        self._sums = [_sum(total, part) for total, part in zip(self._sums, found[len(leaves) :], strict=True)]


def _longer(part: Tensor, dim: int, length: int) -> Tensor:
    return part.new_empty([*part.shape[:dim], length, *part.shape[dim:][1:]])


def _leaf(x: Tensor, needs_gradient: bool) -> Tensor:
    return x.detach().requires_grad_(needs_gradient)


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _sum(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    return part if total is None else total if part is None else total + part
