"""How a run went: the lines of its metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from proteinlm.analysis.results import Figures
from proteinlm.errors import CheckpointError

METRICS_FILE = "metrics.jsonl"
# training lines that a report carries, evenly spaced
MOST_TRAINING_LINES = 1000


def read_history(checkpoint: Path) -> tuple[dict[str, Any], ...]:
    """Return the lines of the run's metrics, or none where the checkpoint lies in no run folder.

    Of the training lines at most ``MOST_TRAINING_LINES`` are kept, evenly spaced.

    Raises:
        CheckpointError: if the file cannot be read, or a line that ends is no JSON object; names file and line.
    """
    path = checkpoint.parent / METRICS_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    # a run that was killed may leave half a last line
    *lines, _ = text.split("\n")
    history: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            history.append(json.loads(line))
        except ValueError as error:
            raise CheckpointError(f"{path}:{number}: is no JSON ({error}); mend or remove the file") from error
    training = [line for line in history if line.get("kind") == "train"]
    every = -(-len(training) // MOST_TRAINING_LINES) or 1
    kept = {id(line) for line in training[::every]}
    return tuple(line for line in history if line.get("kind") != "train" or id(line) in kept)


def series(
    history: Sequence[Mapping[str, Any]], kind: str, split: str | None, figure: str
) -> tuple[list[int], list[float]]:
    """Return the steps and the values of one figure in the lines of a kind and, if named, a split."""
    lines = [
        line
        for line in history
        if line.get("kind") == kind and (split is None or line.get("split") == split) and line.get(figure) is not None
    ]
    return [int(line["step"]) for line in lines], [float(line[figure]) for line in lines]


def smoothed(steps: list[int], losses: list[float]) -> tuple[Figures, Figures]:
    """Return running means over a 25th of the values, at least 5, and the mean steps they stand for."""
    width = max(5, len(losses) // 25)
    kernel = np.full(width, 1 / width)
    centres = np.convolve(np.asarray(steps, dtype=float), kernel, mode="valid")
    return centres, np.convolve(np.asarray(losses), kernel, mode="valid")
