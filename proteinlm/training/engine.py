"""What turns batches into better weights: DeepSpeed over processes, or plain torch in one.

This is the only door of DeepSpeed. What is known to be wrong or surprising in it is answered here:
losses are divided by the global number of targets and never by DeepSpeed's own counts, gradient
clipping and the overflow check are always written, and its messages go to stderr.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from proteinlm.batches.loader import MaskedBatch
from proteinlm.errors import CheckpointError, ConfigError, UnavailableError
from proteinlm.progress import SILENT, Progress
from proteinlm.training.interface import EngineConfig, StepResult, TrainingEngine
from proteinlm.training.local_engine import LocalEngine
from proteinlm.training.objective import MaskedLMObjective
from proteinlm.training.optimiser import OptimiserConfig, build_optimiser, set_learning_rate
from proteinlm.training.processes import join, launched
from proteinlm.training.states import loading, way_out

# what a DeepSpeed JSON may not set, by path, and the setting of the recipe that decides it
_DECIDED = {
    "train_batch_size": "training.windows_per_step",
    "train_micro_batch_size_per_gpu": "training.windows_per_micro_batch",
    "gradient_accumulation_steps": "training.windows_per_step and training.windows_per_micro_batch",
    "gradient_clipping": "optimiser.gradient_clipping",
    "optimizer": "[optimiser]",
    "scheduler": "[schedule]",
    "zero_optimization.stage": "engine.zero_stage",
    "zero_allow_untested_optimizer": "engine.kind",
    "bf16.enabled": "engine.precision",
    "bf16.check_grad_overflow": "engine.precision",
    # DeepSpeed reads the old name only where the new one is absent, which it never is here
    "bfloat16": "engine.precision",
    "fp16.enabled": "engine.precision",
    "torch_autocast": "engine.precision",
}


class DeepSpeedEngine:
    """DeepSpeed, in as many processes as the launcher started."""

    def __init__(
        self,
        objective: MaskedLMObjective,
        optimiser: OptimiserConfig,
        settings: EngineConfig,
        *,
        micro_batch: int,
        windows_per_step: int,
        extra: Mapping[str, Any],
        report: Progress = SILENT,
    ) -> None:
        deepspeed = _import_deepspeed()
        self.device = _join_processes(deepspeed, report)
        self.rank = distributed.get_rank()
        self.world_size = distributed.get_world_size()
        self._zero_stage = settings.zero_stage
        self.expects_overflow = settings.precision == "float16"
        accumulation = windows_per_step // (micro_batch * self.world_size)
        self.objective = objective
        table = deepspeed_settings(settings, optimiser, micro_batch=micro_batch, accumulation=accumulation, extra=extra)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                self._engine, self._optimiser, _, _ = deepspeed.initialize(
                    model=objective.to(self.device),
                    optimizer=build_optimiser(objective.named_parameters(), optimiser),
                    config=table,
                )
        except (ValueError, AssertionError, RuntimeError) as error:
            raise ConfigError(f"engine: DeepSpeed refuses these settings here: {error}") from error

    def step(self, batches: Sequence[MaskedBatch], *, num_targets: int, learning_rate: float) -> StepResult:
        """Take one optimiser step on the mean loss over ``num_targets`` targets of all processes."""
        set_learning_rate(self._optimiser, learning_rate)
        loss_sum, num_correct = 0.0, 0
        skipped_before = self._engine.skipped_steps
        for batch in batches:
            loss, correct = self._engine(batch.to(self.device))
            # DeepSpeed averages gradients over processes: undo that, and leave accumulation to us
            self._engine.backward(loss * (self.world_size / num_targets), scale_wrt_gas=False)
            # taken here, because without ZeRO nobody keeps it through the step
            norm = self._plain_norm()
            self._engine.step()
            loss_sum += loss.item()
            num_correct += int(correct)
        known = self._engine.get_global_grad_norm()
        was_skipped = self._engine.skipped_steps > skipped_before
        return StepResult(loss_sum, num_correct, norm if known is None else float(known), was_skipped)

    def _plain_norm(self) -> float:
        if self._zero_stage > 0 or not self._engine.is_gradient_accumulation_boundary():
            return math.nan
        gradients = [weight.grad for weight in self.objective.parameters() if weight.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    @torch.no_grad()
    def evaluate(self, batch: MaskedBatch) -> tuple[Tensor, Tensor]:
        """Return what the objective says of a batch, without gradients."""
        result: tuple[Tensor, Tensor] = self._engine(batch.to(self.device))
        return result

    def sum_over_processes(self, values: Sequence[float]) -> list[float]:
        """Return the sums of ``values`` over all processes."""
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(sums)
        return [float(value) for value in sums.tolist()]

    def weights(self) -> dict[str, Tensor]:
        """Return the model's weights by name, whole and in float32; every process must call it."""
        from deepspeed.utils import safe_get_full_fp32_param

        weights = {}
        for name, weight in self.objective.model.named_parameters():
            full = safe_get_full_fp32_param(weight) if hasattr(weight, "_hp_mapping") or _is_parted(weight) else None
            weights[name] = (weight if full is None else full).detach().cpu().clone()
        return weights

    def save_state(self, folder: Path) -> None:
        """Write weights and optimiser state into a folder; every process must call it."""
        with contextlib.redirect_stdout(sys.stderr):
            self._engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)

    def load_state(self, folder: Path) -> None:
        """Load what ``save_state`` wrote; every process must call it.

        Raises:
            CheckpointError: if it is damaged or of another model.
        """
        with loading(folder), contextlib.redirect_stdout(sys.stderr):
            path, _ = self._engine.load_checkpoint(str(folder.parent), tag=folder.name)
            if path is None:
                raise CheckpointError(f"{folder}: is no training state that DeepSpeed can load; {way_out(folder)}")

    def close(self) -> None:
        """Leave the other processes when all are done, or their threads abort the interpreter at its exit."""
        if self.world_size > 1:
            distributed.barrier()
            distributed.destroy_process_group()


def deepspeed_settings(
    settings: EngineConfig,
    optimiser: OptimiserConfig,
    *,
    micro_batch: int,
    accumulation: int,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the DeepSpeed configuration of a run.

    Args:
        settings: stage and precision.
        optimiser: its clipping is written out, since DeepSpeed's default has changed.
        micro_batch: windows on one process at a time.
        accumulation: micro-batches of one process in a step.
        extra: the user's own DeepSpeed JSON.

    Raises:
        ConfigError: if the user's JSON sets what the recipe decides.
    """
    _check_extra(extra)
    zero = {**extra.get("zero_optimization", {}), "stage": settings.zero_stage}
    is_bfloat16 = settings.precision == "bfloat16"
    return {
        "steps_per_print": sys.maxsize,
        **extra,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": optimiser.gradient_clipping,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "bf16": {**extra.get("bf16", {}), "enabled": is_bfloat16, "check_grad_overflow": is_bfloat16},
        "fp16": {**extra.get("fp16", {}), "enabled": settings.precision == "float16"},
    }


def _check_extra(extra: Mapping[str, Any]) -> None:
    """Refuse, all at once and each by its path, what a user's JSON may not set."""
    faults = []
    for path, setting in _DECIDED.items():
        section, _, key = path.partition(".")
        if section not in extra:
            continue
        found = extra[section]
        if key and not isinstance(found, Mapping):
            faults.append(f"'{section}' is {json.dumps(found)}; expected an object")
        elif not key or key in found:
            faults.append(f"sets '{path}', which the recipe decides by {setting}; take it out")
    if faults:
        raise ConfigError("\n".join(f"engine.deepspeed_config: {fault}" for fault in dict.fromkeys(faults)))


def build_engine(
    objective: MaskedLMObjective,
    optimiser: OptimiserConfig,
    settings: EngineConfig,
    *,
    micro_batch: int,
    windows_per_step: int,
    folder: Path,
    report: Progress = SILENT,
) -> TrainingEngine:
    """Return the engine that the settings ask for.

    Args:
        objective: what is trained.
        optimiser: and with which optimiser.
        settings: kind, stage and precision.
        micro_batch: windows on one process at a time.
        windows_per_step: windows of all processes in a step.
        folder: of the recipe, in which a DeepSpeed JSON is looked for.
        report: is told if the other processes let this one wait.

    Raises:
        ConfigError: if the windows of a step cannot be dealt evenly, the local engine is asked for
            what it cannot do, or the environment names processes that nobody has started.
        UnavailableError: if DeepSpeed is not installed, or the processes do not find each other.
    """
    world_size = launched().world_size
    if windows_per_step % (micro_batch * world_size):
        raise ConfigError(
            f"training.windows_per_step is {windows_per_step}; expected a multiple of windows_per_micro_batch "
            f"({micro_batch}) times the number of processes ({world_size})"
        )
    if settings.kind == "deepspeed":
        return DeepSpeedEngine(
            objective,
            optimiser,
            settings,
            micro_batch=micro_batch,
            windows_per_step=windows_per_step,
            extra=_read_extra(settings, folder),
            report=report,
        )
    if world_size > 1 or settings.precision != "float32":
        raise ConfigError(
            f"engine.kind is 'local' with {world_size} processes and {settings.precision}; "
            "it trains in one process and float32, use 'deepspeed'"
        )
    return LocalEngine(objective, optimiser, _device())


def _is_parted(weight: Tensor) -> bool:
    return hasattr(weight, "ds_id")


def _read_extra(settings: EngineConfig, folder: Path) -> dict[str, Any]:
    if settings.deepspeed_config is None:
        return {}
    path = folder / settings.deepspeed_config
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"engine.deepspeed_config: {path} cannot be read as JSON ({error})") from error
    if not isinstance(table, dict):
        raise ConfigError(f"engine.deepspeed_config: {path} holds no JSON object")
    return table


def _device() -> torch.device:
    if os.environ.get("DS_ACCELERATOR") == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _import_deepspeed() -> Any:
    if not torch.cuda.is_available():
        # or DeepSpeed looks for an accelerator and warns of each that it does not find
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            import deepspeed
    except ImportError as error:
        raise UnavailableError(
            f"DeepSpeed cannot be imported ({error}); install deepspeed>=0.19.3 or set engine.kind = 'local'"
        ) from error
    deepspeed.logger.setLevel(logging.WARNING)
    return deepspeed


def _join_processes(deepspeed: Any, report: Progress) -> torch.device:
    """Join the processes that the launcher started, or be the only one, and return this one's device."""
    device = _device()
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        join(launched(), backend, report)
    # DeepSpeed asks for it even where no launcher has set it
    os.environ.setdefault("LOCAL_RANK", "0")
    # an operator for inference that training never calls: building it needs a compiler and half a minute, and a
    # run killed meanwhile leaves a lock on which every later one hangs
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    with contextlib.redirect_stdout(sys.stderr):
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False)
    return device
