"""Training states: folders named by step, each whole once it says how far the run was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from proteinlm.errors import CheckpointError
from proteinlm.outputs import file_beside

STATE_FOLDER = "training_state"
# the file that is written last
_PROGRESS_FILE = "progress.json"


def has_state(folder: Path) -> bool:
    """Return whether a training state is there to go on from.

    Raises:
        CheckpointError: if that cannot be found out.
    """
    return bool(_whole_states(folder))


def newest_tag(folder: Path) -> str:
    """Return the tag of the newest whole training state.

    Raises:
        CheckpointError: if there is none.
    """
    tags = _whole_states(folder)
    if not tags:
        raise CheckpointError(f"{folder}: holds no training state to resume from; start without --resume")
    return tags[-1]


def read_progress(folder: Path) -> dict[str, Any]:
    """Return how far the run was when the newest state was saved.

    Raises:
        CheckpointError: if there is no state, or what it says of itself cannot be read.
    """
    tag = newest_tag(folder)
    path = folder / tag / _PROGRESS_FILE
    try:
        table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({_said(error)}); {way_out(folder / tag)}") from error
    if not isinstance(table, dict) or not {"identity", "progress"} <= table.keys():
        raise CheckpointError(f"{path}: does not say how far the run was; {way_out(folder / tag)}")
    return table


@contextmanager
def loading(state: Path) -> Iterator[None]:
    """Turn whatever goes wrong while a state is loaded into one error that names it and what can be done.

    Raises:
        CheckpointError: if the state is damaged or of another model.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # torch meets damage with RuntimeError, EOFError, UnpicklingError and more
        reason = f"cannot be loaded as the state of this model ({_said(error)})"
        raise CheckpointError(f"{state}: {reason}; {way_out(state)}") from error


def _said(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]


def way_out(state: Path) -> str:
    """Return what can be done where a state cannot be loaded, as the end of a message."""
    older = [tag for tag in _whole_states(state.parent) if tag < state.name]
    if not older:
        return "there is no older one; remove the folder of the run and start again"
    return f"remove {state} to resume from {older[-1]}"


def complete_state(folder: Path, tag: str, progress: Mapping[str, Any], *, keep: int) -> None:
    """Make a state that every process has written the newest, and remove old ones.

    Args:
        folder: of the states.
        tag: of the state; tags sort by step.
        progress: how far the run is.
        keep: how many states to keep.

    Raises:
        OutputError: if it cannot be written.
    """
    with file_beside(folder / tag / _PROGRESS_FILE) as partial:
        partial.write_text(json.dumps(dict(progress)) + "\n", encoding="utf-8")
    for old in sorted(path.name for path in folder.iterdir() if path.is_dir())[:-keep]:
        if old != tag:
            shutil.rmtree(folder / old)


def _whole_states(folder: Path) -> list[str]:
    """Return the tags of the states that every process has written, the newest last."""
    try:
        states = list(folder.iterdir())
        return sorted(state.name for state in states if (state / _PROGRESS_FILE).is_file())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error.strerror})") from error
