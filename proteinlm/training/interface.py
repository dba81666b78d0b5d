"""What a training engine is: it owns the weights and turns batches into better ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from proteinlm.batches.loader import MaskedBatch
from proteinlm.training.objective import MaskedLMObjective


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """How the optimiser step is carried out."""

    # what carries out a step; "local" is plain torch in one process and float32
    # when: DeepSpeed is not installed
    kind: Literal["deepspeed", "local"] = "deepspeed"
    # what is parted between processes: 0 nothing, 1 optimiser state, 2 also gradients, 3 also weights
    # when: weights and optimiser state do not fit into one GPU (2, then 3)
    zero_stage: Literal[0, 1, 2, 3] = 1
    # number format of weights and activations in a step; the optimiser and checkpoints keep float32
    # when: the GPU computes bfloat16 fast ("bfloat16"), or only float16 ("float16", whose first steps find a scale)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    # a DeepSpeed JSON for everything else, relative to the recipe
    # when: DeepSpeed should overlap communication, offload to the CPU or print timings
    deepspeed_config: str | None = None

    def __post_init__(self) -> None:
        if self.zero_stage == 0 and self.precision != "float32":
            raise ValueError(
                f"zero_stage is 0 with {self.precision}; expected 1 to 3, where the float32 weights can be exported"
            )


@dataclass(frozen=True)
class StepResult:
    """What one process saw of an optimiser step.

    Attributes:
        loss: summed over this process's targets, in nats.
        num_correct: right answers on this process.
        gradient_norm: of the global gradient, before clipping; infinite or NaN where it overflowed.
        was_skipped: the gradient was not finite, so the weights are what they were.
    """

    loss: float
    num_correct: int
    gradient_norm: float
    was_skipped: bool


class TrainingEngine(Protocol):
    """Owns the weights while they are trained.

    Attributes:
        rank: number of this process.
        world_size: number of processes.
        device: on which batches are worked on.
        objective: what is trained.
        expects_overflow: gradients may overflow now and then, and such steps are skipped.
    """

    rank: int
    world_size: int
    device: torch.device
    objective: MaskedLMObjective
    expects_overflow: bool

    def step(self, batches: Sequence[MaskedBatch], *, num_targets: int, learning_rate: float) -> StepResult:
        """Take one optimiser step on the mean loss over ``num_targets`` targets of all processes."""

    def evaluate(self, batch: MaskedBatch) -> tuple[Tensor, Tensor]:
        """Return what the objective says of a batch, without gradients."""

    def sum_over_processes(self, values: Sequence[float]) -> list[float]:
        """Return the sums of ``values`` over all processes, when all have come here."""

    def weights(self) -> dict[str, Tensor]:
        """Return the model's weights by name, whole and in float32; every process must call it."""

    def save_state(self, folder: Path) -> None:
        """Write weights and optimiser state into a folder; every process must call it."""

    def load_state(self, folder: Path) -> None:
        """Load what ``save_state`` wrote; every process must call it."""

    def close(self) -> None:
        """Leave the other processes; the engine is of no use afterwards."""
