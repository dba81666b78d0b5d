"""Runs as a whole: what they write, and that they go on where they were cut off."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from proteinlm.errors import ConfigError, OutputError
from proteinlm.model import load_checkpoint
from proteinlm.recipe import train
from proteinlm.training.journal import read_metrics


def _figures(folder, kind="train"):
    timing = ("seconds", "residues_per_second")
    entries = [entry for entry in read_metrics(folder / "metrics.jsonl") if entry["kind"] == kind]
    return [{name: value for name, value in entry.items() if name not in timing} for entry in entries]


@pytest.fixture(params=["local", pytest.param("deepspeed", marks=pytest.mark.processes)])
def engine(request):
    return {"kind": request.param}


class CutAfter:
    """A progress that ends the run, as a kill would, when some steps are done."""

    def __init__(self, steps):
        self.left = steps + 1

    def start(self, task, total, unit):
        pass

    def advance(self, amount, **figures):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt

    def finish(self):
        pass


def test_run_writes_its_recipe_journal_state_and_checkpoint(recipe, tiny_corpus, tmp_path, engine):
    folder = tmp_path / "run"
    result = train(recipe(engine=engine), tiny_corpus, folder)
    assert result.progress.step == 6
    assert [entry["step"] for entry in _figures(folder)] == [1, 2, 3, 4, 5, 6]
    assert [(e["step"], e["split"]) for e in _figures(folder, "validation")] == [
        (step, split) for step in (0, 3, 6) for split in ("validation_iid", "validation_ood")
    ]
    assert json.loads((folder / "recipe.json").read_text())["recipe"]["seed"] == 5
    assert load_checkpoint(folder).step == 6
    assert sorted(path.name for path in (folder / "training_state").glob("step-*")) == [
        "step-000000003",
        "step-000000006",
    ]


def test_resumed_run_equals_one_that_was_never_cut(recipe, tiny_corpus, tmp_path, engine):
    settings = recipe(engine=engine, model={"dropout": 0.1})
    train(settings, tiny_corpus, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(settings, tiny_corpus, tmp_path / "cut", progress=CutAfter(5))
    assert [entry["step"] for entry in _figures(tmp_path / "cut")] == [1, 2, 3, 4, 5]
    train(settings, tiny_corpus, tmp_path / "cut", resume=True)
    assert _figures(tmp_path / "cut") == _figures(tmp_path / "whole")
    assert _figures(tmp_path / "cut", "validation") == _figures(tmp_path / "whole", "validation")
    whole = load_file(tmp_path / "whole" / "checkpoint" / "model.safetensors")
    cut = load_file(tmp_path / "cut" / "checkpoint" / "model.safetensors")
    assert all(torch.equal(weight, cut[name]) for name, weight in whole.items())


def test_signal_ends_the_step_and_saves(recipe, tiny_corpus, tmp_path):
    class Interrupting(CutAfter):
        def advance(self, amount, **figures):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGTERM)

    result = train(recipe(), tiny_corpus, tmp_path / "run", progress=Interrupting(2))
    # the signal comes while step 2 is reported; step 3 is the one that sees it
    assert result.was_interrupted
    assert result.progress.step == 3
    resumed = train(recipe(), tiny_corpus, tmp_path / "run", resume=True)
    assert resumed.progress.step == 6


def test_training_learns(recipe, tiny_corpus, tmp_path):
    settings = recipe(
        schedule={"num_steps": 60, "warmup_steps": 5},
        validation={"interval": 60, "num_proteins": 0},
        optimiser={"learning_rate": 1e-2},
    )
    result = train(settings, tiny_corpus, tmp_path / "run")
    losses = [entry["loss"] for entry in _figures(tmp_path / "run")]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert result.validation[0].model.perplexity < 1.01 * result.validation[0].unigram.perplexity


def test_same_recipe_gives_the_same_run(recipe, tiny_corpus, tmp_path):
    for name in ("first", "second"):
        train(recipe(), tiny_corpus, tmp_path / name)
    assert _figures(tmp_path / "first") == _figures(tmp_path / "second")


def test_micro_batch_size_changes_only_rounding(recipe, tiny_corpus, tmp_path):
    for size in (1, 4):
        train(recipe(training={"windows_per_micro_batch": size}), tiny_corpus, tmp_path / str(size))
    pairs = zip(_figures(tmp_path / "1"), _figures(tmp_path / "4"), strict=True)
    assert all(abs(a["loss"] - b["loss"]) < 1e-5 for a, b in pairs)


def test_folder_of_another_run_is_refused(recipe, tiny_corpus, tmp_path):
    train(recipe(), tiny_corpus, tmp_path / "run")
    with pytest.raises(OutputError, match="already holds a run; go on with it by --resume"):
        train(recipe(), tiny_corpus, tmp_path / "run")


def test_resuming_with_another_recipe_is_refused_by_name(recipe, tiny_corpus, tmp_path):
    train(recipe(), tiny_corpus, tmp_path / "run")
    changed = recipe(optimiser={"learning_rate": 5e-3})
    with pytest.raises(ConfigError, match=r"optimiser\.learning_rate: was 0\.001 when the run began and is 0\.005"):
        train(changed, tiny_corpus, tmp_path / "run", resume=True)


def test_windows_that_cannot_be_dealt_are_refused(recipe, tiny_corpus, tmp_path):
    settings = recipe(training={"windows_per_step": 5})
    with pytest.raises(ConfigError, match="expected a multiple of windows_per_micro_batch"):
        train(settings, tiny_corpus, tmp_path / "run")
    assert not (tmp_path / "run").exists()
