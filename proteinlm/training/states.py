"""Training states: folders named by step, and a file that says which is the newest."""

from __future__ import annotations

import shutil
from pathlib import Path

from proteinlm.errors import CheckpointError


def newest_tag(folder: Path) -> str:
    """Return the tag of the newest training state.

    Raises:
        CheckpointError: if there is none.
    """
    try:
        return (folder / "latest").read_text(encoding="utf-8").strip()
    except OSError as error:
        raise CheckpointError(f"{folder}: holds no training state to resume from; start without --resume") from error


def remove_old_states(folder: Path, *, keep: int) -> None:
    """Remove all but the ``keep`` newest training states; tags sort by step."""
    newest = newest_tag(folder)
    tags = sorted(path.name for path in folder.iterdir() if path.is_dir())
    for tag in tags[:-keep]:
        if tag != newest:
            shutil.rmtree(folder / tag)


def point_to(folder: Path, tag: str) -> None:
    """Make ``tag`` the newest training state."""
    partial = folder / ".latest.partial"
    partial.write_text(tag, encoding="utf-8")
    partial.replace(folder / "latest")
