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

    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: float = 1e-8
    # largest norm of the gradient of all weights; a larger one is scaled down
    gradient_clipping: float = 1.0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epsilon", "gradient_clipping"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0")
        if self.weight_decay < 0 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"weight_decay is {self.weight_decay} and betas {self.betas}; expected >= 0 and in [0, 1)")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """A linear rise of the learning rate, then its decay to a share of the peak."""

    num_steps: int = 100_000
    warmup_steps: int = 1_000
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    final_share: float = 0.1

    def __post_init__(self) -> None:
        if self.num_steps < 1 or not 0 <= self.warmup_steps <= self.num_steps:
            raise ValueError(
                f"num_steps is {self.num_steps} and warmup_steps {self.warmup_steps}; "
                "expected at least one step and a warm-up no longer than the run"
            )
        if not 0 <= self.final_share <= 1:
            raise ValueError(f"final_share is {self.final_share}; expected a share from 0 to 1")

    def share(self, step: int) -> float:
        """Return the share of the peak learning rate at an optimiser step, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps)
        left = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}[self.decay]
        return self.final_share + (1 - self.final_share) * left


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
