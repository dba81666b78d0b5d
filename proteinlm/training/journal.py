"""The journal of a run: metrics.jsonl, a JSON object a line, and TensorBoard where it is installed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from proteinlm.errors import CheckpointError, OutputError
from proteinlm.outputs import file_beside, writing

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a metrics file, leaving out a last line that was cut by a kill.

    Raises:
        CheckpointError: if another line is no entry.
        OSError: if the file cannot be read.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(_entry(line))
        except ValueError as error:
            if number < len(lines):
                raise CheckpointError(
                    f"{path}:{number}: is no entry of a journal, found {line[:60]!r}; mend or remove it"
                ) from error
    return entries


def _entry(line: str) -> dict[str, Any]:
    entry = json.loads(line)
    if not isinstance(entry, dict) or not {"kind", "step"} <= entry.keys():
        raise ValueError("expected an object with kind and step")
    return entry


class Journal:
    """Writes what happens in a run; only the first process has one.

    Args:
        folder: of the run.
        step: optimiser steps already taken; entries after it belong to a run that was cut off
            before its state was saved, and are taken out.
        tensorboard: also write TensorBoard events.

    Raises:
        CheckpointError: if there is a journal that cannot be read.
        OutputError: if it cannot be written; so do all methods.
    """

    def __init__(self, folder: Path, *, step: int = 0, tensorboard: bool = True) -> None:
        path = folder / METRICS_FILE
        kept = [entry for entry in read_metrics(path) if entry["step"] <= step] if path.exists() and step else []
        with file_beside(path) as partial:
            partial.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
        self._path, self._events_folder = path, folder / TENSORBOARD_FOLDER
        with writing(path):
            self._file = path.open("a", encoding="utf-8", buffering=1)
        self._events: Any = None
        try:
            with writing(self._events_folder):
                self._events = _tensorboard_writer(self._events_folder, step) if tensorboard else None
        except OutputError:
            self._file.close()
            raise

    def write(self, kind: str, step: int, figures: dict[str, float | int | str]) -> None:
        """Write an entry; a number that is not finite becomes null.

        Numbers also go to TensorBoard under ``kind/name``.
        """
        # JSON has no NaN and no infinity
        finite = {name: None if _is_unbounded(value) else value for name, value in figures.items()}
        with writing(self._path):
            self._file.write(json.dumps({"kind": kind, "step": step, **finite}, allow_nan=False) + "\n")
        if self._events is None:
            return
        group = f"{kind}/{figures['split']}" if "split" in figures else kind
        with writing(self._events_folder):
            for name, value in figures.items():
                if not isinstance(value, str):
                    self._events.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        """Close the files."""
        try:
            with writing(self._path):
                self._file.close()
        finally:
            if self._events is not None:
                with writing(self._events_folder):
                    self._events.close()


def _is_unbounded(value: float | int | str) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def has_tensorboard() -> bool:
    """Return whether TensorBoard is installed."""
    import importlib.util

    return importlib.util.find_spec("tensorboard") is not None


def _tensorboard_writer(folder: Path, step: int) -> Any:
    if not has_tensorboard():
        return None
    from torch.utils.tensorboard.writer import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
