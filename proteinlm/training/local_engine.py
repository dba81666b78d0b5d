"""Plain torch in one process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from proteinlm.batches.loader import MaskedBatch
from proteinlm.training.interface import StepResult
from proteinlm.training.objective import MaskedLMObjective
from proteinlm.training.optimiser import OptimiserConfig, build_optimiser, set_learning_rate
from proteinlm.training.states import loading

STATE_FILE = "state.pt"


class LocalEngine:
    """Plain torch in one process: no DeepSpeed needed, and what it is compared with."""

    rank = 0
    world_size = 1
    expects_overflow = False

    def __init__(self, objective: MaskedLMObjective, optimiser: OptimiserConfig, device: torch.device) -> None:
        self.device = device
        self.objective = objective.to(device)
        self._clipping = optimiser.gradient_clipping
        self._optimiser = build_optimiser(self.objective.named_parameters(), optimiser)

    def step(self, batches: Sequence[MaskedBatch], *, num_targets: int, learning_rate: float) -> StepResult:
        """Take one optimiser step on the mean loss over ``num_targets`` targets."""
        set_learning_rate(self._optimiser, learning_rate)
        loss_sum, num_correct = 0.0, 0
        for batch in batches:
            loss, correct = self.objective(batch.to(self.device))
            (loss / num_targets).backward()
            loss_sum += loss.item()
            num_correct += int(correct)
        norm = float(torch.nn.utils.clip_grad_norm_(self.objective.parameters(), self._clipping))
        if math.isfinite(norm):
            self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        return StepResult(loss_sum, num_correct, norm, was_skipped=not math.isfinite(norm))

    @torch.no_grad()
    def evaluate(self, batch: MaskedBatch) -> tuple[Tensor, Tensor]:
        """Return what the objective says of a batch, without gradients."""
        result: tuple[Tensor, Tensor] = self.objective(batch.to(self.device))
        return result

    def sum_over_processes(self, values: Sequence[float]) -> list[float]:
        """Return ``values``: there is one process."""
        return list(values)

    def weights(self) -> dict[str, Tensor]:
        """Return the model's weights by name."""
        return dict(self.objective.model.state_dict())

    def save_state(self, folder: Path) -> None:
        """Write weights and optimiser state into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {"objective": self.objective.state_dict(), "optimiser": self._optimiser.state_dict()}
        torch.save(state, folder / STATE_FILE)

    def load_state(self, folder: Path) -> None:
        """Load what ``save_state`` wrote.

        Raises:
            CheckpointError: if it is damaged or of another model.
        """
        with loading(folder):
            state = torch.load(folder / STATE_FILE, map_location=self.device, weights_only=True)
            self.objective.load_state_dict(state["objective"])
            self._optimiser.load_state_dict(state["optimiser"])

    def close(self) -> None:
        """Do nothing: there is one process."""
