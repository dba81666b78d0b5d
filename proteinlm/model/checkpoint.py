"""Checkpoints: weights as safetensors beside a JSON that says what they are.

A checkpoint is what people pass on; it loads without DeepSpeed and without pickle. The training
state, from which a run goes on, is another thing and lives in the run folder.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proteinlm import config
from proteinlm.errors import CheckpointError
from proteinlm.model.masked_lm import MaskedLM
from proteinlm.model.settings import ModelConfig
from proteinlm.outputs import folder_beside

FORMAT_VERSION = 1
WEIGHTS_FILE = "model.safetensors"
RECIPE_FILE = "recipe.json"
# name of the newest checkpoint inside a run folder
CHECKPOINT_FOLDER = "checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """A model and where it comes from.

    Attributes:
        path: the checkpoint folder.
        model: in evaluation mode, on the CPU, with the random features of the last step taken.
        recipe: the resolved recipe of the run, as a table.
        step: optimiser steps taken.
        metadata: versions, alphabet digest, corpus digest, and the like.
    """

    path: Path
    model: MaskedLM
    recipe: dict[str, Any]
    step: int
    metadata: dict[str, Any]


def save_checkpoint(
    path: Path,
    model: MaskedLM,
    recipe: Mapping[str, Any],
    *,
    step: int,
    metadata: Mapping[str, Any] | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint folder, taking the place of an older one only when it is whole.

    Args:
        path: the folder to make.
        model: whose settings are written, and whose weights unless others are given.
        recipe: resolved recipe of the run; its tables "model" and "seed" are set from the model.
        step: optimiser steps taken; decides the redraw of random features.
        metadata: anything else that says where the weights come from.
        weights: the weights by name, where they live outside the model (as ZeRO keeps them).

    Raises:
        OutputError: if the folder cannot be written.
    """
    from safetensors.torch import save_file

    table = {**recipe, "seed": model.seed, "model": config.to_table(model.config)}
    about = {"format_version": FORMAT_VERSION, "step": step, "recipe": table, "metadata": dict(metadata or {})}
    plain = {name: weight.detach().cpu().contiguous() for name, weight in (weights or model.state_dict()).items()}
    with folder_beside(path, replace=True) as folder:
        save_file(plain, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        # safetensors lets nobody else read it; the folder's own mode is what the umask leaves
        (folder / WEIGHTS_FILE).chmod(folder.stat().st_mode & 0o666)
        (folder / RECIPE_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def is_checkpoint(path: Path) -> bool:
    """Return whether ``path`` is a checkpoint folder or a run folder that holds one."""
    return any(_is_file(folder / WEIGHTS_FILE) for folder in (path, path / CHECKPOINT_FOLDER))


def load_checkpoint(path: Path, *, refuse_not_finite: bool = True) -> Checkpoint:
    """Load a checkpoint folder, or the newest checkpoint of a run folder.

    Args:
        path: the folder.
        refuse_not_finite: whether to refuse weights that hold NaN or infinity, with which a model computes nothing.

    Raises:
        CheckpointError: if there is none, or its parts cannot be read, are damaged or do not fit together.
    """
    folder = _find(path)
    about = _read_about(folder / RECIPE_FILE)
    source = str(folder / RECIPE_FILE)
    recipe = about["recipe"]
    settings = config.parse(ModelConfig, recipe["model"], source=f"{source}: model")
    model = MaskedLM(settings, seed=recipe["seed"], draw_weights=False)
    _fill(model, folder / WEIGHTS_FILE)
    found = not_finite(model.state_dict()) if refuse_not_finite else {}
    if found:
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE}: {listed_not_finite(found)}; "
            "copy the checkpoint again, or take one from before the training diverged"
        )
    # the draw that the weights were trained with last
    model.set_step(max(0, about["step"] - 1))
    return Checkpoint(folder, model.eval(), recipe, about["step"], about["metadata"])


def not_finite(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Return how many values are NaN or infinite in each weight that holds any."""
    # the extremes of a weight with NaN are NaN, and finding them takes no memory
    suspects = {name: w for name, w in weights.items() if w.numel() and not torch.stack(w.aminmax()).isfinite().all()}
    return {name: int((~weight.isfinite()).sum()) for name, weight in suspects.items()}


def listed_not_finite(found: Mapping[str, int]) -> str:
    """Return what ``not_finite`` found, at least one weight, as messages say it."""
    (name, count), *others = found.items()
    text = f"weight '{name}' holds {count:,} value{'s' * (count > 1)} that {'are' if count > 1 else 'is'} not finite"
    return text + (f", and so do {len(others):,} other weights" if others else "")


def weights_digest(folder: Path) -> str:
    """Return the sha256 of a checkpoint folder's weights as 64 hex digits.

    Raises:
        CheckpointError: if they cannot be read.
    """
    try:
        with (folder / WEIGHTS_FILE).open("rb") as weights:
            return hashlib.file_digest(weights, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(folder / WEIGHTS_FILE, error) from error


def _find(path: Path) -> Path:
    for folder in (path, path / CHECKPOINT_FOLDER):
        if _is_file(folder / WEIGHTS_FILE) and _is_file(folder / RECIPE_FILE):
            return folder
    found = "no such folder" if _mode(path) is None else "no checkpoint here"
    raise CheckpointError(
        f"{path}: {found}; expected {WEIGHTS_FILE} and {RECIPE_FILE}, or a run folder with {CHECKPOINT_FOLDER}/"
    )


def _is_file(path: Path) -> bool:
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def _mode(path: Path) -> int | None:
    """Return the kind of a file, None where there is none; a Path's own answers mix that with what may not be seen."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path}: cannot be read ({error.strerror or error})")


def _read_about(path: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = about["format_version"]
        recipe_is_whole = isinstance(about["recipe"]["model"], dict) and isinstance(about["recipe"]["seed"], int)
        is_whole = recipe_is_whole and isinstance(about["step"], int) and isinstance(about["metadata"], dict)
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: is not the description of a checkpoint ({error!r})") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: has format version {version}; this proteinlm reads {FORMAT_VERSION}, "
            "read it with the version that wrote it"
        )
    if not is_whole:
        raise CheckpointError(f"{path}: lacks recipe.model, recipe.seed, step or metadata; expected all four")
    return about


def _fill(model: MaskedLM, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        # safetensors says of every file that it cannot open that there is none
        with path.open("rb"):
            weights: dict[str, Tensor] = load_file(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    except SafetensorError as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); copy or export the checkpoint again") from error
    expected = model.state_dict()
    for name in sorted(expected.keys() ^ weights.keys()):
        what = "is missing" if name in expected else "belongs to another model"
        raise CheckpointError(f"{path}: weight '{name}' {what}; expected the weights that {RECIPE_FILE} describes")
    for name, weight in weights.items():
        if weight.shape != expected[name].shape:
            raise CheckpointError(
                f"{path}: weight '{name}' has shape {tuple(weight.shape)}; "
                f"{RECIPE_FILE} describes {tuple(expected[name].shape)}"
            )
    model.load_state_dict(weights, assign=True)
