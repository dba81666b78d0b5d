"""The training loop: steps, the journal, validation, and states from which a run goes on."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from proteinlm.batches.loader import BatchLoader, MaskedBatch
from proteinlm.batches.packing import PackingConfig
from proteinlm.batches.sampler import WindowKey
from proteinlm.errors import ProteinLMError
from proteinlm.inference.evaluation import MaskedProteins
from proteinlm.progress import Progress
from proteinlm.training.interface import StepResult, TrainingEngine
from proteinlm.training.journal import Journal
from proteinlm.training.optimiser import OptimiserConfig, ScheduleConfig
from proteinlm.training.states import remove_old_states
from proteinlm.training.validation import ValidationResult, validate

STATE_FOLDER = "training_state"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """How much a step takes, and how often a run says and saves where it is."""

    # over all processes
    windows_per_step: int = 32
    # on one process at a time; what memory allows
    windows_per_micro_batch: int = 1
    # optimiser steps between two lines of the journal
    log_interval: int = 10
    # optimiser steps between two saved states
    checkpoint_interval: int = 1_000
    # saved states that are kept
    keep_states: int = 2

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")


@dataclass
class RunProgress:
    """How far a run is; saved with every state.

    Attributes:
        step: optimiser steps taken.
        num_residues: residues trained on, by all processes.
        seconds: spent in training steps.
        next_window: the first window of the next step.
    """

    step: int = 0
    num_residues: int = 0
    seconds: float = 0.0
    next_window: WindowKey = WindowKey(0, 0)  # noqa: RUF009  (frozen)

    def to_table(self) -> dict[str, Any]:
        """Return plain values that a training state can hold."""
        return {
            "step": self.step,
            "num_residues": self.num_residues,
            "seconds": self.seconds,
            "epoch": self.next_window.epoch,
            "window": self.next_window.window,
        }

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> RunProgress:
        """Return the progress that ``to_table`` wrote."""
        where = WindowKey(table["epoch"], table["window"])
        return cls(table["step"], table["num_residues"], table["seconds"], where)


@dataclass(frozen=True)
class RunResult:
    """What a run ended with.

    Attributes:
        progress: how far it came.
        validation: the last scores, split by split.
        was_interrupted: a signal asked it to stop; its state is saved.
    """

    progress: RunProgress
    validation: list[ValidationResult]
    was_interrupted: bool


@dataclass
class _Tally:
    """Sums of this process since the last line of the journal."""

    loss: float = 0.0
    num_correct: int = 0
    num_targets: int = 0
    num_residues: int = 0
    seconds: float = 0.0


@dataclass
class TrainingLoop:
    """Trains until the schedule ends or a signal asks to stop.

    Args:
        engine: holds and changes the weights.
        loader: gives this process its micro-batches.
        settings: intervals.
        optimiser: peak learning rate.
        schedule: number of steps.
        splits: validation proteins by split.
        packing: window length and context of the validation.
        validation_interval: optimiser steps.
        token_counts: of the training split.
        folder: of the run.
        export: writes the checkpoint that people pass on, given the step; every process calls it.
        journal: of the first process; None on the others.
        report: told of every step.
        progress: where to start from.
    """

    engine: TrainingEngine
    loader: BatchLoader
    settings: TrainingConfig
    optimiser: OptimiserConfig
    schedule: ScheduleConfig
    splits: Mapping[str, MaskedProteins]
    packing: PackingConfig
    validation_interval: int
    token_counts: list[int]
    folder: Path
    export: Callable[[int], None]
    journal: Journal | None
    report: Progress
    progress: RunProgress = field(default_factory=RunProgress)

    def run(self) -> RunResult:
        """Train, and return what came of it."""
        stop = StopSignal()
        was_interrupted = False
        validation: list[ValidationResult] = []
        if self.progress.step == 0:
            validation = self._validate()
        self.report.start("training", self.schedule.num_steps, "steps")
        self.report.advance(self.progress.step)
        tally = _Tally()
        with stop:
            while self.progress.step < self.schedule.num_steps and not was_interrupted:
                was_interrupted = self._step(tally, stop)
                step = self.progress.step
                is_last = step == self.schedule.num_steps
                if step % self.settings.log_interval == 0 or is_last or was_interrupted:
                    self._log(tally)
                    tally = _Tally()
                if is_last or (step % self.validation_interval == 0 and not was_interrupted):
                    validation = self._validate()
                if is_last or was_interrupted or step % self.settings.checkpoint_interval == 0:
                    self._save()
        self.report.finish()
        return RunResult(self.progress, validation, was_interrupted)

    def _step(self, tally: _Tally, stop: StopSignal) -> bool:
        """Take a step; return whether some process was asked to stop."""
        start = time.perf_counter()
        batches = self.loader.next_step()
        num_targets, num_residues, stops = self._agree(batches, stop)
        self.engine.objective.model.set_step(self.progress.step)
        rate = self.optimiser.learning_rate * self.schedule.share(self.progress.step)
        result = self.engine.step(batches, num_targets=num_targets, learning_rate=rate)
        elapsed = time.perf_counter() - start
        self._count(tally, result, batches, elapsed)
        self.progress.step += 1
        self.progress.num_residues += num_residues
        self.progress.seconds += elapsed
        self.progress.next_window = self.loader.sampler.next
        tally.num_residues += num_residues
        self._last = (rate, result.gradient_norm)
        own_targets = max(1, sum(batch.num_targets for batch in batches))
        self.report.advance(
            1, loss=f"{result.loss / own_targets:.3f}", speed=f"{num_residues / elapsed:,.0f} residues/s"
        )
        return stops > 0

    def _agree(self, batches: list[MaskedBatch], stop: StopSignal) -> tuple[int, int, int]:
        targets = sum(batch.num_targets for batch in batches)
        residues = sum(batch.num_residues for batch in batches)
        sums = self.engine.sum_over_processes([targets, residues, stop.was_received])
        if sums[0] == 0:
            raise ProteinLMError("a training step has no target at all; raise windows_per_step or masking.rate")
        return round(sums[0]), round(sums[1]), round(sums[2])

    @staticmethod
    def _count(tally: _Tally, result: StepResult, batches: list[MaskedBatch], elapsed: float) -> None:
        tally.loss += result.loss
        tally.num_correct += result.num_correct
        tally.num_targets += sum(batch.num_targets for batch in batches)
        tally.seconds += elapsed

    def _log(self, tally: _Tally) -> None:
        loss, correct, targets = self.engine.sum_over_processes([tally.loss, tally.num_correct, tally.num_targets])
        if self.journal is None:
            return
        rate, norm = self._last
        figures: dict[str, float | int | str] = {
            "loss": loss / max(1, targets),
            "accuracy": correct / max(1, targets),
            "learning_rate": rate,
            "gradient_norm": norm,
            "residues": self.progress.num_residues,
            "residues_per_second": tally.num_residues / max(tally.seconds, 1e-9),
            "seconds": self.progress.seconds,
        }
        self.journal.write("train", self.progress.step, figures)

    def _validate(self) -> list[ValidationResult]:
        results = validate(
            self.engine,
            self.splits,
            packing=self.packing,
            windows_per_batch=self.settings.windows_per_micro_batch,
            token_counts=self.token_counts,
        )
        for result in results:
            if self.journal is not None:
                self.journal.write("validation", self.progress.step, result.figures())
        return results

    def _save(self) -> None:
        folder = self.folder / STATE_FOLDER
        self.engine.save_state(folder, f"step-{self.progress.step:09d}", self.progress.to_table())
        self.export(self.progress.step)
        if self.engine.rank == 0:
            remove_old_states(folder, keep=self.settings.keep_states)


class StopSignal:
    """Remembers that SIGINT or SIGTERM came, so that the step in hand can end and be saved.

    A second signal of the kind does what it always does.
    """

    def __init__(self) -> None:
        self.was_received = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.was_received = True
        signal.signal(number, self._before[number])
