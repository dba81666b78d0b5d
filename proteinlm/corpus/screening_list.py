"""The list ``screening.tsv``: a line for every record that was dropped, and for odd ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from proteinlm.corpus import layout
from proteinlm.corpus.work_folder import UnusableWorkError
from proteinlm.sequence.wording import on_one_line

# rows of each kind of noted records; all are counted
MOST_NOTED = 10_000


def begin_list(folder: Path) -> IO[str]:
    """Return the list of a corpus folder, with its first line."""
    table = _opened(folder, "w")
    table.write("outcome\treason\tfile\tline\tidentifier\n")
    return table


def resume_list(folder: Path, size: int) -> IO[str]:
    """Return the list as it was when it had ``size`` bytes.

    Raises:
        UnusableWorkError: if it has fewer.
    """
    path = folder / layout.SCREENING_FILE
    if not path.exists() or path.stat().st_size < size:
        raise UnusableWorkError(f"{path}: is shorter than it was; begin anew with --restart")
    os.truncate(path, size)
    return _opened(folder, "a")


def _opened(folder: Path, mode: str) -> IO[str]:
    return (folder / layout.SCREENING_FILE).open(mode, encoding="utf-8", newline="\n")


def list_row(outcome: str, reason: str, source: str, line: int, identifier: str) -> str:
    """Return a line of the list."""
    return f"{outcome}\t{reason}\t{on_one_line(os.path.basename(source))}\t{line}\t{on_one_line(identifier)}\n"
