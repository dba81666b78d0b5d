"""The optimiser and how its learning rate runs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimiserConfig:
    """AdamW with decoupled weight decay."""

    # peak of the learning rate
    # when: the model is larger (less), or the gradient is not finite (less)
    learning_rate: float = 1e-3
    # share of a matrix that a step takes off, times the learning rate; none of biases and norms
    # when: the training set is small (more)
    weight_decay: float = 0.01
    # decay of the running mean of the gradient and of its square
    # when: the loss has spikes (a smaller second one)
    betas: tuple[float, float] = (0.9, 0.98)
    # added to the root of the mean square
    # when: a paper is repeated that gives another
    epsilon: float = 1e-8
    # largest norm of the gradient of all weights; a larger one is scaled down
    # when: gradient_norm in metrics.jsonl is above it at most steps (more), or the loss has spikes (less)
    gradient_clipping: float = 1.0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epsilon", "gradient_clipping"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0")
        if self.weight_decay < 0 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"weight_decay is {self.weight_decay} and betas {self.betas}; expected >= 0 and in [0, 1)")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """A linear rise of the learning rate, then its decay to a share of the peak.

    "wsd" (warm-up, stable, decay) keeps the peak until the last ``decay_share`` of the steps, which fall in a line.

    Source of "wsd": Hu et al., arXiv:2404.06395, section 4.
    """

    # optimiser steps of the run
    # when: the run should be longer or shorter; docs/training.md says when one can be extended
    num_steps: int = 100_000
    # steps in which the rate rises in a line to its peak
    # when: the loss has spikes early in the run (more)
    warmup_steps: int = 1_000
    # how the rate goes on; "wsd" keeps the peak until the last decay_share of the steps, which fall in a line
    # when: the length of the run is not known when it begins ("constant" or "wsd")
    decay: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    # share of the peak at the end; "constant" has no use for it
    # when: training goes on from the result (more)
    final_share: float = 0.1
    # share of the steps that decay, of "wsd" only
    # when: the decay ends before the loss has settled (more)
    decay_share: float = 0.1

    def __post_init__(self) -> None:
        if self.num_steps < 1 or not 0 <= self.warmup_steps <= self.num_steps:
            raise ValueError(
                f"num_steps is {self.num_steps} and warmup_steps {self.warmup_steps}; "
                "expected at least one step and a warm-up no longer than the run"
            )
        for name in ("final_share", "decay_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a share from 0 to 1")

    @property
    def decay_start(self) -> int:
        """The step, counted from 0, from which the learning rate falls; ``num_steps`` if it never does."""
        if self.decay == "wsd":
            return max(self.warmup_steps, self.num_steps - round(self.decay_share * self.num_steps))
        return self.num_steps if self.decay == "constant" else self.warmup_steps

    def share(self, step: int) -> float:
        """Return the share of the peak learning rate at an optimiser step, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if step < self.decay_start:
            return 1.0
        done = (step - self.decay_start) / max(1, self.num_steps - self.decay_start)
        left = (1 + math.cos(math.pi * done)) / 2 if self.decay == "cosine" else 1 - done
        return self.final_share + (1 - self.final_share) * left

    def first_difference(self, other: ScheduleConfig, num_steps: int) -> int | None:
        """Return the first of the steps 0 … ``num_steps`` - 1 at which ``other`` has another share; None if none."""
        return next((step for step in range(num_steps) if self.share(step) != other.share(step)), None)


def build_optimiser(weights: Iterable[tuple[str, nn.Parameter]], config: OptimiserConfig) -> torch.optim.AdamW:
    """Return AdamW over named weights; matrices decay, biases, norms and temperatures do not."""
    named = [(name, weight) for name, weight in weights if weight.requires_grad]
    groups = [
        {"params": [w for _, w in named if w.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [w for _, w in named if w.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.epsilon)


def set_learning_rate(optimiser: Any, learning_rate: float) -> None:
    """Set the learning rate of every group of an optimiser."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate
