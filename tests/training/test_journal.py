"""The journal of a run."""

from __future__ import annotations

import pytest

from proteinlm.errors import CheckpointError
from proteinlm.training.journal import Journal, read_metrics


def test_entries_are_read_back(tmp_path):
    journal = Journal(tmp_path)
    journal.write("train", 1, {"loss": 2.5})
    journal.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"kind": "train", "step": 1, "loss": 2.5}]


def test_resuming_takes_out_steps_that_were_not_saved(tmp_path):
    journal = Journal(tmp_path)
    for step in (1, 2, 3):
        journal.write("train", step, {"loss": 1.0})
    journal.close()
    Journal(tmp_path, step=2).close()
    assert [entry["step"] for entry in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


def test_line_cut_by_a_kill_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 1}\n{"kind": "tra')
    assert read_metrics(path) == [{"kind": "train", "step": 1}]


def test_tensorboard_events_are_written(tmp_path):
    journal = Journal(tmp_path)
    journal.write("validation", 1, {"split": "validation_iid", "loss": 2.5})
    journal.close()
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_damaged_line_before_the_last_is_named_and_nothing_is_lost(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 1}\nrubbish\n{"kind": "train", "step": 3}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl:2: is no entry of a journal, found 'rubbish'"):
        Journal(tmp_path, step=3)
    assert "rubbish" in path.read_text()


@pytest.mark.parametrize("line", [b"\xff\xfe", b"3", b'{"loss": 1}'], ids=["no text", "no object", "no step"])
def test_line_of_anything_else_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line + b'\n{"kind": "train", "step": 3}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl:1: is no entry of a journal"):
        Journal(tmp_path, step=3)


def test_number_that_is_not_finite_becomes_null(tmp_path):
    journal = Journal(tmp_path, tensorboard=False)
    journal.write("train", 1, {"gradient_norm": float("inf")})
    journal.close()
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["gradient_norm"] is None
