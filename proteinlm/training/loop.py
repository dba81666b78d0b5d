"""The training loop: steps, the journal, validation, and states from which a run goes on."""

from __future__ import annotations

import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from torch import Tensor

from proteinlm.batches.loader import BatchLoader, MaskedBatch
from proteinlm.batches.packing import PackingConfig
from proteinlm.batches.sampler import WindowKey
from proteinlm.errors import CheckpointError, ProteinLMError
from proteinlm.inference.evaluation import MaskedProteins
from proteinlm.outputs import writing
from proteinlm.progress import Progress
from proteinlm.training.interface import StepResult, TrainingEngine
from proteinlm.training.journal import Journal
from proteinlm.training.optimiser import OptimiserConfig, ScheduleConfig
from proteinlm.training.states import STATE_FOLDER, complete_state
from proteinlm.training.validation import ValidationResult, validate

# steps in a row that float16 may take to find its loss scale
MOST_SKIPPED = 50
_WAY_OUT = "lower optimiser.learning_rate or take another engine.precision; the state saved last is the last good one"
# repeats of a signal within this time are the same request
SAME_REQUEST_SECONDS = 10.0
# of Ctrl-C, of a batch system, and of a terminal that is closed
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """How much a step takes, and how often a run says and saves where it is."""

    # windows in an optimiser step, over all processes
    # when: the loss is too noisy (more); a multiple of windows_per_micro_batch times processes
    windows_per_step: int = 32
    # windows on one process at a time; changes speed and rounding only
    # when: memory is left (more) or runs out (less)
    windows_per_micro_batch: int = 1
    # positions of a window whose loss is computed at a time, again in the backward pass; 0: all, and kept
    # when: logits do not fit into memory
    loss_chunk: int = 0
    # optimiser steps between two lines of the journal
    # when: the journal is too long or too coarse
    log_interval: int = 10
    # optimiser steps between two saved states
    # when: a kill should cost fewer steps, or saving takes long
    checkpoint_interval: int = 1_000
    # saved states that are kept
    # when: the disk is small (1), or older states are wanted
    keep_states: int = 2

    def __post_init__(self) -> None:
        for name in self.__slots__:
            least = 0 if name == "loss_chunk" else 1
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected {least} or more")


@dataclass
class Tally:
    """Sums over the steps since the last line of the journal.

    Attributes:
        loss: in nats, over this process's targets.
        num_correct: right answers on this process.
        num_targets: of this process.
        num_residues: of all processes.
        seconds: of wall time.
    """

    loss: float = 0.0
    num_correct: float = 0
    num_targets: float = 0
    num_residues: int = 0
    seconds: float = 0.0


@dataclass
class RunProgress:
    """How far a run is; saved with every state.

    Attributes:
        step: optimiser steps taken, skipped ones included.
        num_skipped: steps whose gradient was not finite, which left the weights as they were.
        num_residues: residues trained on, by all processes.
        seconds: spent in training steps.
        next_window: the first window of the next step.
        is_validated: the step was validated, or needs no validation.
        tally: sums that no line of the journal has yet.
    """

    step: int = 0
    num_skipped: int = 0
    num_residues: int = 0
    seconds: float = 0.0
    next_window: WindowKey = WindowKey(0, 0)  # noqa: RUF009  (frozen)
    is_validated: bool = False
    tally: Tally = field(default_factory=Tally)

    @classmethod
    def from_table(cls, table: Mapping[str, Any], *, rank: int) -> RunProgress:
        """Return the progress that ``dataclasses.asdict`` made a table of.

        Args:
            table: of all processes.
            rank: of this process; only the first takes over the sums over processes.

        Raises:
            CheckpointError: if it is no such table.
        """
        try:
            tally = Tally(**table["tally"])
            progress = cls(**{**table, "next_window": WindowKey(**table["next_window"]), "tally": tally})
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"the newest training state does not say how far the run was ({error!r})") from error
        if rank > 0:
            tally.loss, tally.num_correct, tally.num_targets = 0.0, 0, 0
        return progress


@dataclass(frozen=True)
class RunResult:
    """What a run ended with.

    Attributes:
        progress: how far it came.
        validation: the last scores, split by split.
        was_interrupted: a signal asked it to stop; its state is saved.
        is_first_process: this is the process that speaks for all.
    """

    progress: RunProgress
    validation: list[ValidationResult]
    was_interrupted: bool
    is_first_process: bool


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
        export: writes the checkpoint that people pass on, given step and weights; every process calls it.
        identity: what a state can be loaded by again; saved with it.
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
    export: Callable[[int, dict[str, Tensor]], None]
    identity: Mapping[str, Any]
    journal: Journal | None
    report: Progress
    progress: RunProgress = field(default_factory=RunProgress)
    _skipped_in_a_row: int = field(default=0, init=False)

    def run(self) -> RunResult:
        """Train, and return what came of it.

        Raises:
            ProteinLMError: if the loss is no longer finite; the last state is the last good one.
        """
        num_steps = self.schedule.num_steps
        validation: list[ValidationResult] = []
        if not self.progress.is_validated:
            validation = self._validate()
        elif self.progress.step == num_steps:
            # a run that was killed after its last state: what is missing is made now
            validation = self._validate(is_repeated=True)
            self.export(num_steps, self._finite_weights())
        self.report.start("training", num_steps, "steps", done=self.progress.step)
        was_interrupted = False
        with StopSignal() as stop:
            while self.progress.step < num_steps and not was_interrupted:
                is_asked_to_stop = self._step(stop)
                step = self.progress.step
                was_interrupted = is_asked_to_stop and step < num_steps
                if step % self.settings.log_interval == 0 or step == num_steps:
                    self._log()
                if not self.progress.is_validated and not was_interrupted:
                    validation = self._validate()
                if step == num_steps or was_interrupted or step % self.settings.checkpoint_interval == 0:
                    self._save()
        self.report.finish()
        return RunResult(self.progress, validation, was_interrupted, self.engine.rank == 0)

    def _step(self, stop: StopSignal) -> bool:
        """Take a step; return whether some process was asked to stop."""
        start = time.perf_counter()
        batches = self.loader.next_step()
        num_targets, num_residues, num_stops = self._agree(batches, stop)
        self._use_draw_of_step(self.progress.step)
        rate = self.optimiser.learning_rate * self.schedule.share(self.progress.step)
        result = self.engine.step(batches, num_targets=num_targets, learning_rate=rate)
        self._check(result)
        elapsed = time.perf_counter() - start
        own_targets = sum(batch.num_targets for batch in batches)
        tally = self.progress.tally
        tally.loss += result.loss
        tally.num_correct += result.num_correct
        tally.num_targets += own_targets
        tally.num_residues += num_residues
        tally.seconds += elapsed
        self.progress.step += 1
        self.progress.num_residues += num_residues
        self.progress.seconds += elapsed
        self.progress.next_window = self.loader.sampler.next
        is_due = self.progress.step % self.validation_interval == 0 or self.progress.step == self.schedule.num_steps
        self.progress.is_validated = not is_due
        self._last = (rate, result.gradient_norm)
        speed = f"{num_residues / elapsed:,.0f} residues/s"
        self.report.advance(1, loss=f"{result.loss / max(1, own_targets):.3f}", speed=speed)
        return num_stops > 0

    def _agree(self, batches: list[MaskedBatch], stop: StopSignal) -> tuple[int, int, int]:
        targets = sum(batch.num_targets for batch in batches)
        residues = sum(batch.num_residues for batch in batches)
        sums = self.engine.sum_over_processes([targets, residues, stop.was_received])
        if sums[0] == 0:
            raise ProteinLMError("a training step has no target at all; raise windows_per_step or masking.rate")
        return round(sums[0]), round(sums[1]), round(sums[2])

    def _check(self, result: StepResult) -> None:
        if math.isfinite(result.gradient_norm) and not result.was_skipped:
            self._skipped_in_a_row = 0
            return
        self.progress.num_skipped += 1
        self._skipped_in_a_row += 1
        # float16 finds its loss scale by overflowing; elsewhere nothing good comes after the first time
        allowed = MOST_SKIPPED if self.engine.expects_overflow and result.was_skipped else 0
        if self._skipped_in_a_row > allowed:
            raise ProteinLMError(f"step {self.progress.step + 1}: the gradient is not finite; {_WAY_OUT}")

    def _finite_weights(self) -> dict[str, Tensor]:
        weights = self.engine.weights()
        for name, weight in weights.items():
            if not bool(weight.isfinite().all()):
                raise ProteinLMError(f"step {self.progress.step}: the weight '{name}' is not finite; {_WAY_OUT}")
        return weights

    def _log(self) -> None:
        tally, self.progress.tally = self.progress.tally, Tally()
        own = [tally.loss, tally.num_correct, tally.num_targets]
        loss, num_correct, num_targets = self.engine.sum_over_processes(own)
        if self.journal is None:
            return
        rate, norm = self._last
        figures: dict[str, float | int | str] = {
            "loss": loss / max(1, num_targets),
            "accuracy": num_correct / max(1, num_targets),
            "learning_rate": rate,
            "gradient_norm": norm,
            "skipped_steps": self.progress.num_skipped,
            "residues": self.progress.num_residues,
            "residues_per_second": tally.num_residues / max(tally.seconds, 1e-9),
            "seconds": self.progress.seconds,
        }
        self.journal.write("train", self.progress.step, figures)

    def _validate(self, *, is_repeated: bool = False) -> list[ValidationResult]:
        self._use_draw_of_step(max(0, self.progress.step - 1))
        results = validate(
            self.engine,
            self.splits,
            packing=self.packing,
            windows_per_batch=self.settings.windows_per_micro_batch,
            token_counts=self.token_counts,
        )
        for result in results:
            if self.journal is not None and not is_repeated:
                self.journal.write("validation", self.progress.step, result.figures())
        self.progress.is_validated = True
        return results

    def _use_draw_of_step(self, step: int) -> None:
        self.engine.objective.model.set_step(step)

    def _save(self) -> None:
        weights = self._finite_weights()
        folder, tag = self.folder / STATE_FOLDER, f"step-{self.progress.step:09d}"
        try:
            with writing(folder / tag):
                self.engine.save_state(folder / tag)
        except BaseException:
            # the older states stay, and half of one only fills the disk
            shutil.rmtree(folder / tag, ignore_errors=True)
            raise
        own = self.progress.tally
        # also waits for every process to have written its part
        sums = self.engine.sum_over_processes([own.loss, own.num_correct, own.num_targets])
        if self.engine.rank == 0:
            tally = replace(own, loss=sums[0], num_correct=sums[1], num_targets=sums[2])
            progress = asdict(replace(self.progress, tally=tally))
            complete_state(
                folder, tag, {"identity": dict(self.identity), "progress": progress}, keep=self.settings.keep_states
            )
        self.export(self.progress.step, weights)


class StopSignal:
    """Remembers that SIGINT, SIGTERM or SIGHUP came, so that the step in hand can end and be saved.

    Launchers pass on what the whole group of processes has received already, so repeats within a
    while are the same request; a later one does what it always does. A signal that this process was told
    to ignore, as ``nohup`` does, stays ignored.
    """

    def __init__(self) -> None:
        self.was_received = False
        self._first = math.inf
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is not threading.main_thread():
            # only the main thread hears of signals
            return self
        for number in _STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.was_received = True
        self._first = min(self._first, time.monotonic())
        if time.monotonic() - self._first > SAME_REQUEST_SECONDS:
            signal.signal(number, self._before[number])
            signal.raise_signal(number)
