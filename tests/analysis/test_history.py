"""The metrics of a run as a report reads them."""

from __future__ import annotations

import json

import pytest

from proteinlm.analysis.history import read_history, series, smoothed
from proteinlm.errors import CheckpointError
from tests.analysis.conftest import HISTORY


def test_history_keeps_a_thousand_training_lines_and_every_validation(tmp_path):
    lines = [{"kind": "train", "step": step} for step in range(2500)]
    lines += [{"kind": "validation", "step": step} for step in range(30)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    history = read_history(tmp_path / "checkpoint")
    assert [line["step"] for line in history if line["kind"] == "train"] == list(range(0, 2500, 3))
    assert sum(line["kind"] == "validation" for line in history) == 30


def test_a_checkpoint_outside_a_run_has_no_history(tmp_path):
    assert read_history(tmp_path / "checkpoint") == ()


def test_half_a_last_line_of_metrics_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    assert read_history(tmp_path / "checkpoint") == ({"step": 1},)


def test_a_damaged_line_of_metrics_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n')
    with pytest.raises(CheckpointError, match=r"metrics.jsonl:2: is no JSON"):
        read_history(tmp_path / "checkpoint")


def test_a_series_is_of_one_kind_and_split():
    assert series(HISTORY, "train", None, "loss") == ([10, 20], [2.91, 2.88])
    assert series(HISTORY, "validation", "validation_ood", "perplexity") == ([20], [18.0])


def test_running_means_of_a_line_lie_on_it():
    steps, losses = smoothed(list(range(30)), [3 - 0.1 * step for step in range(30)])
    assert losses.tolist() == pytest.approx((3 - 0.1 * steps).tolist())
