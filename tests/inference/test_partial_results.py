"""The folder of an unfinished run holds whole batches, whatever happened to it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy
import pytest

from proteinlm.errors import InUseError, OutputError
from proteinlm.inference.partial_results import JOURNAL_FILE, RESIDUES_FILE, Column, Entry, PartialResults

MEAN, PER_TOK = Column("mean", 2), Column("per_tok", 2)


def opened(path: Path, *, resume: bool = False, step: int = 5) -> PartialResults:
    return PartialResults(path, [MEAN, PER_TOK], dtype="float32", width=3, settings={"step": step}, resume=resume)


def append_batch(results: PartialResults, number: int) -> None:
    """Commit a batch of a protein of 2 residues, one that failed, and one of 1 residue."""
    names = [f"{number}{letter}" for letter in "abc"]
    entries = [Entry(name, place, 2 - place // 2, "0") for place, name in enumerate(names)]
    entries[1] = Entry(names[1], 1, 0, "0", failure="has no residues")
    rows = [numpy.full((2, 3), number), numpy.full((1, 3), -number)]
    rows = [array.astype(numpy.float32) for array in rows]
    results.append(entries, b"MKV", {MEAN: [array[0] for array in rows], PER_TOK: rows})


@pytest.fixture
def two_batches(tmp_path: Path) -> Path:
    results = opened(tmp_path / "out.h5.partial")
    append_batch(results, 1)
    append_batch(results, 2)
    results.close()
    return results.path


def content(results: PartialResults) -> tuple[list[str], list[float], list[float], bytes]:
    results.close()
    names = [entry.identifier for entry in results.embedded()]
    rows = results.array(MEAN)[:, 0].tolist(), results.array(PER_TOK)[:, 0].tolist()
    return names, *rows, results.residues().tobytes()


BOTH = (["1a", "1c", "2a", "2c"], [1, -1, 2, -2], [1, 1, -1, 2, 2, -2], b"MKVMKV")
FIRST = (["1a", "1c"], [1, -1], [1, 1, -1], b"MKV")


def test_committed_batches_are_read_back(two_batches: Path):
    assert content(opened(two_batches, resume=True)) == BOTH


def test_appending_goes_on_after_reopening(tmp_path: Path):
    path = tmp_path / "out.h5.partial"
    first = opened(path)
    append_batch(first, 1)
    first.close()
    second = opened(path, resume=True)
    append_batch(second, 2)
    assert content(second) == BOTH


@pytest.mark.parametrize("file", [JOURNAL_FILE, RESIDUES_FILE, MEAN.file_name, PER_TOK.file_name])
def test_batch_with_a_file_cut_short_is_dropped_as_a_whole(two_batches: Path, file: str):
    path = two_batches / file
    path.write_bytes(path.read_bytes()[:-1])
    results = opened(two_batches, resume=True)
    assert (results.num_batches, content(results)) == (1, FIRST)


@pytest.mark.parametrize("file", [JOURNAL_FILE, RESIDUES_FILE, MEAN.file_name, PER_TOK.file_name])
def test_what_was_appended_but_not_committed_is_cut_off(two_batches: Path, file: str):
    before = (two_batches / file).read_bytes()
    (two_batches / file).write_bytes(before + b"[{")
    opened(two_batches, resume=True).close()
    assert (two_batches / file).read_bytes() == before


def test_unfinished_run_is_not_overwritten(two_batches: Path):
    with pytest.raises(OutputError, match="holds an interrupted run; add --resume"):
        opened(two_batches)


def test_other_settings_are_refused_by_name(two_batches: Path):
    with pytest.raises(OutputError, match="was begun with step = 5, now it is 6"):
        opened(two_batches, resume=True, step=6)


def test_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot make this folder"):
        opened(tmp_path / "file" / "out.h5.partial")


@pytest.mark.parametrize("resume", [True, False], ids=["resume", "begin"])
def test_two_runs_at_once_are_refused_by_the_holder_and_lose_nothing(two_batches: Path, resume: bool):
    first = opened(two_batches, resume=True)
    append_batch(first, 3)
    with pytest.raises(InUseError, match=rf"is being written by process {os.getpid()} on .*; wait for it"):
        opened(two_batches, resume=resume)
    assert first.num_batches == 3
    assert content(first)[1] == [1.0, -1.0, 2.0, -2.0, 3.0, -3.0]
    # and it is free again
    opened(two_batches, resume=True).close()
