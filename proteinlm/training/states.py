"""Training states: folders named by step, and a file that says which is the newest whole one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from proteinlm.errors import CheckpointError
from proteinlm.outputs import file_beside

STATE_FOLDER = "training_state"
_NEWEST_FILE = "latest"
_PROGRESS_FILE = "progress.json"


def has_state(folder: Path) -> bool:
    """Return whether a training state is there to go on from."""
    return (folder / _NEWEST_FILE).is_file()


def newest_tag(folder: Path) -> str:
    """Return the tag of the newest whole training state.

    Raises:
        CheckpointError: if there is none.
    """
    try:
        return (folder / _NEWEST_FILE).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise CheckpointError(f"{folder}: holds no training state to resume from; start without --resume") from error


def read_progress(folder: Path) -> dict[str, Any]:
    """Return how far the run was when the newest state was saved.

    Raises:
        CheckpointError: if there is no state, or what it says of itself cannot be read.
    """
    path = folder / newest_tag(folder) / _PROGRESS_FILE
    try:
        table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read, so there is no state to resume from ({error})") from error
    return table


def complete_state(folder: Path, tag: str, progress: Mapping[str, Any], *, keep: int) -> None:
    """Make a state that every process has written the newest, and remove old ones.

    Args:
        folder: of the states.
        tag: of the state; tags sort by step.
        progress: how far the run is.
        keep: how many states to keep.
    """
    with file_beside(folder / tag / _PROGRESS_FILE) as partial:
        partial.write_text(json.dumps(dict(progress)) + "\n", encoding="utf-8")
    with file_beside(folder / _NEWEST_FILE) as partial:
        partial.write_text(tag, encoding="utf-8")
    for old in sorted(path.name for path in folder.iterdir() if path.is_dir())[:-keep]:
        if old != tag:
            shutil.rmtree(folder / old)
