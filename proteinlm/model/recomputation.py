"""What a computation needs so that the backward pass can do it again as the forward pass did.

Gradients of parameters are never returned by an autograd function here: they go through the parameters' own
accumulation nodes, once a backward pass, where DistributedDataParallel and ZeRO wait for them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from proteinlm.attention import Attention


@dataclass(frozen=True)
class Conditions:
    """Autocast and the modes of modules, as they were in a forward pass.

    Attributes:
        device_type: of the tensors, "cpu" or "cuda".
        is_autocast: whether autocast was on.
        autocast_dtype: and to which dtype.
        modes: modules, each with whether it was in training mode.
        weights: parameters, each with the number of changes in place it had seen.
        draws: mechanisms, each with the number of its random draw.
    """

    device_type: str
    is_autocast: bool
    autocast_dtype: torch.dtype
    modes: tuple[tuple[nn.Module, bool], ...]
    weights: tuple[tuple[Tensor, int], ...]
    draws: tuple[tuple[Attention, int], ...]

    @classmethod
    def now(cls, device: torch.device, modules: Iterable[nn.Module]) -> Conditions:
        """Return the conditions under which the caller runs."""
        inner = [each for module in modules for each in module.modules()]
        return cls(
            device.type,
            torch.is_autocast_enabled(device.type),
            torch.get_autocast_dtype(device.type),
            tuple((module, module.training) for module in inner),
            tuple((weight, _version(weight)) for module in inner for weight in module.parameters(recurse=False)),
            tuple((module, module.draw_number()) for module in inner if isinstance(module, Attention)),
        )

    def check_unchanged(self, what: str) -> None:
        """Check that weights and draws are those of the forward pass.

        Raises:
            RuntimeError: if they are not, so that another function would be computed.
        """
        is_changed = any(_version(weight) != version for weight, version in self.weights)
        if is_changed or any(module.draw_number() != number for module, number in self.draws):
            changed = "a weight" if is_changed else "the random draw of a mechanism"
            raise RuntimeError(
                f"{what} computes again in its backward pass, but {changed} has changed since the forward pass; "
                "call backward() before the optimiser's step and before set_step"
            )

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Run what is inside under these conditions."""
        changed = [module for module, mode in self.modes if module.training != mode]
        for module in changed:
            module.training = not module.training
        try:
            # autocast's cache would hand casts that were made without gradient to code that needs one
            with torch.autocast(
                self.device_type, dtype=self.autocast_dtype, enabled=self.is_autocast, cache_enabled=False
            ):
                yield
        finally:
            for module in changed:
                module.training = not module.training


def _version(weight: Tensor) -> int:
    # torch counts changes in place of all tensors but those made in inference mode
    return 0 if weight.is_inference() else weight._version


def anchor(device: torch.device, modules: Sequence[nn.Module]) -> Tensor:
    """Return an empty tensor that needs a gradient if a parameter of ``modules`` does.

    Among the inputs of an autograd function it has the parameters trained where no other input needs a gradient.
    """
    is_trained = any(weight.requires_grad for module in modules for weight in module.parameters())
    return torch.empty(0, device=device, requires_grad=is_trained)


def check_backward(what: str) -> None:
    """Check, in the backward of an autograd function, that gradients are asked for in a way it can answer.

    Raises:
        RuntimeError: if a second derivative is asked for, or gradients without accumulation.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(f"{what} is differentiable once; create_graph=True is not possible")
    if not torch.autograd._is_checkpoint_valid():  # type: ignore[no-untyped-call]  # torch has no stub
        raise RuntimeError(
            f"{what} adds to .grad of its parameters; call backward() without inputs, not torch.autograd.grad"
        )
