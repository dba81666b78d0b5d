"""Runs as a whole: what they write, and that they go on where they were cut off."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

import pytest
import torch
from safetensors.torch import load_file

from proteinlm.corpus import IngestionConfig, SplittingConfig, ingest
from proteinlm.errors import CheckpointError, ConfigError, OutputError, ProteinLMError
from proteinlm.model import load_checkpoint
from proteinlm.recipe import train
from proteinlm.training import loop
from proteinlm.training.journal import read_metrics
from proteinlm.training.local_engine import LocalEngine
from proteinlm.training.loop import StopSignal, TrainingLoop
from proteinlm.training.objective import MaskedLMObjective


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
        self.left = steps

    def start(self, task, total, unit, done=0):
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
    assert json.loads((folder / "run.json").read_text())["recipe"]["seed"] == 5
    assert load_checkpoint(folder).step == 6
    assert sorted(path.name for path in (folder / "training_state").glob("step-*")) == [
        "step-000000003",
        "step-000000006",
    ]


def test_resumed_run_equals_one_that_was_never_cut(recipe, tiny_corpus, tmp_path, engine):
    # a line of the journal spans the steps before and after the state at step 3
    settings = recipe(engine=engine, model={"dropout": 0.1}, training={"log_interval": 2})
    train(settings, tiny_corpus, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(settings, tiny_corpus, tmp_path / "cut", progress=CutAfter(4))
    assert [entry["step"] for entry in _figures(tmp_path / "cut")] == [2, 4]
    train(settings, tiny_corpus, tmp_path / "cut", resume=True)
    assert _figures(tmp_path / "cut") == _figures(tmp_path / "whole")
    assert _figures(tmp_path / "cut", "validation") == _figures(tmp_path / "whole", "validation")
    whole = load_file(tmp_path / "whole" / "checkpoint" / "model.safetensors")
    cut = load_file(tmp_path / "cut" / "checkpoint" / "model.safetensors")
    assert all(torch.equal(weight, cut[name]) for name, weight in whole.items())


def test_resumed_reversible_run_equals_one_that_was_never_cut(recipe, tiny_corpus, tmp_path):
    # rotations are drawn anew behind every step, and the checkpoint keeps the trunk it was trained with
    attention = {"kind": "lsh", "num_hashes": 2, "chunk_length": 16}
    model = {"attention": attention, "dropout": 0.1, "reversible": True, "feed_forward_chunk": 100}
    settings = recipe(model=model, training={"loss_chunk": 100})
    train(settings, tiny_corpus, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(settings, tiny_corpus, tmp_path / "cut", progress=CutAfter(4))
    train(settings, tiny_corpus, tmp_path / "cut", resume=True)
    assert _figures(tmp_path / "cut") == _figures(tmp_path / "whole")
    assert load_checkpoint(tmp_path / "cut").model.config == settings.model


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_signal_ends_the_step_and_saves(recipe, tiny_corpus, tmp_path, number):
    class Interrupting(CutAfter):
        def advance(self, amount, **figures):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), number)

    result = train(recipe(), tiny_corpus, tmp_path / "run", progress=Interrupting(2))
    # the signal comes while step 2 is reported; step 3 is the one that sees it
    assert result.was_interrupted
    assert result.progress.step == 3
    resumed = train(recipe(), tiny_corpus, tmp_path / "run", resume=True)
    assert resumed.progress.step == 6


def test_signal_that_was_told_to_be_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert not stop.was_received


def test_training_in_a_thread_does_without_signals(recipe, tiny_corpus, tmp_path):
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(train, recipe(), tiny_corpus, tmp_path / "run").result()
    assert result.progress.step == 6


def test_interrupted_run_equals_one_that_was_never_cut(recipe, tiny_corpus, tmp_path):
    class Interrupting(CutAfter):
        def advance(self, amount, **figures):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGINT)
                # a launcher passes on what the whole group has received already
                os.kill(os.getpid(), signal.SIGINT)

    settings = recipe(training={"log_interval": 4})
    train(settings, tiny_corpus, tmp_path / "whole")
    train(settings, tiny_corpus, tmp_path / "cut", progress=Interrupting(1))
    train(settings, tiny_corpus, tmp_path / "cut", resume=True)
    assert _figures(tmp_path / "cut") == _figures(tmp_path / "whole")


def test_signal_in_the_last_step_is_no_interruption(recipe, tiny_corpus, tmp_path):
    class Interrupting(CutAfter):
        def advance(self, amount, **figures):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGTERM)

    assert not train(recipe(), tiny_corpus, tmp_path / "run", progress=Interrupting(5)).was_interrupted


def test_run_killed_before_its_first_state_begins_again(recipe, tiny_corpus, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(recipe(), tiny_corpus, tmp_path / "run", progress=CutAfter(2))
    assert not (tmp_path / "run" / "training_state").exists()
    assert train(recipe(), tiny_corpus, tmp_path / "run", resume=True).progress.step == 6
    assert [entry["step"] for entry in _figures(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_run_killed_before_its_last_export_is_finished(recipe, tiny_corpus, tmp_path):
    whole = train(recipe(), tiny_corpus, tmp_path / "run")
    weights = load_file(tmp_path / "run" / "checkpoint" / "model.safetensors")
    shutil.rmtree(tmp_path / "run" / "checkpoint")
    again = train(recipe(), tiny_corpus, tmp_path / "run", resume=True)
    assert [score.model for score in again.validation] == [score.model for score in whole.validation]
    exported = load_file(tmp_path / "run" / "checkpoint" / "model.safetensors")
    assert all(torch.equal(weight, exported[name]) for name, weight in weights.items())
    assert len(_figures(tmp_path / "run", "validation")) == 6


def test_state_whose_writing_was_cut_is_passed_over(recipe, tiny_corpus, tmp_path):
    train(recipe(), tiny_corpus, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(recipe(), tiny_corpus, tmp_path / "cut", progress=CutAfter(4))
    half = tmp_path / "cut" / "training_state" / "step-000000006"
    half.mkdir()
    (half / "state.pt").write_bytes(b"half")
    train(recipe(), tiny_corpus, tmp_path / "cut", resume=True)
    assert _figures(tmp_path / "cut") == _figures(tmp_path / "whole")


@contextmanager
def _files_of_at_most(size):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_named_and_the_older_state_stays_whole(recipe, tiny_corpus, tmp_path, engine, monkeypatch):
    train(recipe(engine=engine), tiny_corpus, tmp_path / "whole")
    save = TrainingLoop._save

    def save_on_a_full_disk(self):
        with _files_of_at_most(50_000) if self.progress.step == 6 else nullcontext():
            save(self)

    states = tmp_path / "cut" / "training_state"
    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_save", save_on_a_full_disk)
        with pytest.raises(OutputError, match=f"^{states / 'step-000000006'}: cannot be written .File too large.$"):
            train(recipe(engine=engine), tiny_corpus, tmp_path / "cut")
    assert [path.name for path in states.glob("step-*")] == ["step-000000003"]
    train(recipe(engine=engine), tiny_corpus, tmp_path / "cut", resume=True)
    assert _figures(tmp_path / "cut") == _figures(tmp_path / "whole")


def test_a_state_that_was_cut_is_named_and_the_older_one_can_be_taken(recipe, tiny_corpus, tmp_path, engine):
    train(recipe(engine=engine), tiny_corpus, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(
            recipe(engine=engine, training={"checkpoint_interval": 2}),
            tiny_corpus,
            tmp_path / "run",
            progress=CutAfter(5),
        )
    newest = tmp_path / "run" / "training_state" / "step-000000004"
    for file in [path for path in newest.iterdir() if path.name != "progress.json"]:
        whole = file.read_bytes()
        for size in (0, len(whole) // 2):
            file.write_bytes(whole[:size])
            with pytest.raises(
                CheckpointError, match=rf"^{newest}: .*; remove {newest} to resume from step-000000002$"
            ):
                train(recipe(engine=engine), tiny_corpus, tmp_path / "run", resume=True)
        file.write_bytes(whole)
    (newest / "progress.json").write_text('{"ident')
    with pytest.raises(CheckpointError, match=rf"progress.json: cannot be read .*; remove {newest} to resume from"):
        train(recipe(engine=engine), tiny_corpus, tmp_path / "run", resume=True)
    shutil.rmtree(newest)
    train(recipe(engine=engine), tiny_corpus, tmp_path / "run", resume=True)
    assert _figures(tmp_path / "run") == _figures(tmp_path / "whole")


def test_resumed_run_remembers_what_it_began_with(recipe, tiny_corpus, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(recipe(), tiny_corpus, tmp_path / "run", progress=CutAfter(4))
    train(recipe(), tiny_corpus, tmp_path / "run", resume=True)
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [entry["step"] for entry in about["resumed"]] == [3]
    assert about["resumed"][0]["metadata"] == about["metadata"]


@pytest.fixture
def overflow(monkeypatch):
    """Make the loss infinite from step 5 on."""
    plain = MaskedLMObjective.forward

    def forward(self, batch):
        loss, num_correct = plain(self, batch)
        return (loss * torch.inf if self.model.step >= 4 and self.model.training else loss), num_correct

    monkeypatch.setattr(MaskedLMObjective, "forward", forward)


def _assert_saved_weights_are_those_of(folder, step):
    assert load_checkpoint(folder).step == step
    weights = load_file(folder / "checkpoint" / "model.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())


@pytest.mark.usefixtures("overflow")
def test_gradient_that_is_not_finite_ends_the_run_by_name(recipe, tiny_corpus, tmp_path, engine):
    settings = recipe(engine=engine, schedule={"num_steps": 20, "warmup_steps": 0})
    with pytest.raises(ProteinLMError, match=r"step 5: the gradient is not finite; lower optimiser\.learning_rate"):
        train(settings, tiny_corpus, tmp_path / "run")
    _assert_saved_weights_are_those_of(tmp_path / "run", 3)


@pytest.mark.usefixtures("overflow")
def test_engine_that_expects_overflow_may_skip_some_steps(recipe, tiny_corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(LocalEngine, "expects_overflow", True)
    monkeypatch.setattr(loop, "MOST_SKIPPED", 3)
    settings = recipe(schedule={"num_steps": 20, "warmup_steps": 0})
    with pytest.raises(ProteinLMError, match="step 8: the gradient is not finite"):
        train(settings, tiny_corpus, tmp_path / "run")
    assert [entry["skipped_steps"] for entry in _figures(tmp_path / "run")] == [0, 0, 0, 0, 1, 2, 3]
    # skipped steps leave the weights as they were
    _assert_saved_weights_are_those_of(tmp_path / "run", 6)


def test_weights_that_are_not_finite_are_never_saved(recipe, tiny_corpus, tmp_path, monkeypatch):
    plain = LocalEngine.step

    def step(self, *arguments, **settings):
        result = plain(self, *arguments, **settings)
        if self.objective.model.step == 5:
            next(self.objective.parameters()).data[0, 0] = torch.nan
        return result

    monkeypatch.setattr(LocalEngine, "step", step)
    with pytest.raises(ProteinLMError, match=r"step 6: the weight 'encoder\.embedding\.weight' is not finite"):
        train(recipe(), tiny_corpus, tmp_path / "run")
    _assert_saved_weights_are_those_of(tmp_path / "run", 3)


def test_rate_that_throws_the_weights_away_ends_the_run(recipe, tiny_corpus, tmp_path):
    settings = recipe(optimiser={"learning_rate": 1e30}, schedule={"num_steps": 6, "warmup_steps": 0})
    with pytest.raises(ProteinLMError, match="is not finite"):
        train(settings, tiny_corpus, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_corpus_without_training_proteins_is_refused(recipe, tmp_path, sample):
    settings = IngestionConfig(splitting=SplittingConfig(validation_share=0.999999))
    ingest([sample / "uniprotkb_queries.fasta.xz"], tmp_path / "corpus", config=settings)
    with pytest.raises(ConfigError, match="has no training proteins"):
        train(recipe(), tmp_path / "corpus", tmp_path / "run")


def test_split_without_proteins_is_not_scored(recipe, tmp_path, sample):
    settings = IngestionConfig(splitting=SplittingConfig(validation_share=0.0))
    ingest([sample / "uniprotkb_queries.fasta.xz"], tmp_path / "corpus", config=settings)
    assert train(recipe(), tmp_path / "corpus", tmp_path / "run").validation == []


def test_validation_that_an_interruption_left_out_is_made_on_resuming(recipe, tiny_corpus, tmp_path):
    class Interrupting(CutAfter):
        def advance(self, amount, **figures):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGTERM)

    # the step that sees the signal is one after which the run is validated
    train(recipe(), tiny_corpus, tmp_path / "run", progress=Interrupting(2))
    train(recipe(), tiny_corpus, tmp_path / "run", resume=True)
    assert [entry["step"] for entry in _figures(tmp_path / "run", "validation")] == [0, 0, 3, 3, 6, 6]


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


def test_run_of_a_version_with_fewer_settings_goes_on(recipe, tiny_corpus, tmp_path):
    train(recipe(), tiny_corpus, tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    about = json.loads(path.read_text())
    del about["recipe"]["schedule"]["decay_share"], about["recipe"]["epochs"]
    path.write_text(json.dumps(about))
    assert train(recipe(), tiny_corpus, tmp_path / "run", resume=True).progress.step == 6


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"decay": "constant"}, {"decay": "constant"}),
        ({"decay": "constant"}, {"decay": "wsd", "decay_share": 0.25}),
        ({"decay": "wsd", "decay_share": 0.0}, {"decay": "wsd", "decay_share": 0.25}),
    ],
    ids=["constant", "constant then decay", "wsd before its decay"],
)
def test_run_given_more_steps_equals_one_that_had_them_from_the_start(recipe, tiny_corpus, tmp_path, first, then):
    common = {"model": {"dropout": 0.1}, "training": {"log_interval": 2}}
    longer = recipe(**common, schedule={"num_steps": 12, "warmup_steps": 2, **then})
    train(longer, tiny_corpus, tmp_path / "whole")
    train(recipe(**common, schedule={"num_steps": 6, "warmup_steps": 2, **first}), tiny_corpus, tmp_path / "more")
    assert train(longer, tiny_corpus, tmp_path / "more", resume=True).progress.step == 12
    for kind in ("train", "validation"):
        assert _figures(tmp_path / "more", kind) == _figures(tmp_path / "whole", kind)
    whole = load_file(tmp_path / "whole" / "checkpoint" / "model.safetensors")
    more = load_file(tmp_path / "more" / "checkpoint" / "model.safetensors")
    assert all(torch.equal(weight, more[name]) for name, weight in whole.items())
    assert json.loads((tmp_path / "more" / "run.json").read_text())["recipe"]["schedule"]["num_steps"] == 12


@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        ({}, {"num_steps": 12}, r"schedule: step 4 of the 6 that the run has taken had 0\.868198 of the peak"),
        (
            {"decay": "linear"},
            {"num_steps": 12},
            r"schedule: step 4 .* \(decay = 'linear', 6 steps -> 'linear', 12 steps\)",
        ),
        ({"decay": "wsd", "decay_share": 0.5}, {"num_steps": 12}, r"schedule: step 5 .* while the rate has not begun"),
        ({"decay": "constant"}, {"num_steps": 5}, r"schedule\.num_steps: is 5, but the run has taken 6 steps"),
        ({"decay": "constant"}, {"warmup_steps": 3}, r"schedule: step 1 of the 6"),
    ],
    ids=["cosine", "linear", "wsd after its decay", "fewer steps", "another warm-up"],
)
def test_schedule_that_would_have_taken_other_steps_is_refused(recipe, tiny_corpus, tmp_path, first, then, message):
    train(recipe(schedule=first), tiny_corpus, tmp_path / "run")
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(ConfigError, match=message):
        train(recipe(schedule=first | then), tiny_corpus, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_resuming_with_another_engine_is_refused(recipe, tiny_corpus, tmp_path):
    train(recipe(), tiny_corpus, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"engine\.zero_stage: was 1 when the run began and is 2 now"):
        train(recipe(engine={"kind": "local", "zero_stage": 2}), tiny_corpus, tmp_path / "run", resume=True)


def test_resuming_a_state_of_more_processes_is_refused(recipe, tiny_corpus, tmp_path):
    train(recipe(), tiny_corpus, tmp_path / "run")
    path = tmp_path / "run" / "training_state" / "step-000000006" / "progress.json"
    saved = json.loads(path.read_text())
    saved["identity"]["processes"] = 2
    path.write_text(json.dumps(saved))
    with pytest.raises(ConfigError, match=r"was saved with .*processes 2, and this run has .*processes 1"):
        train(recipe(), tiny_corpus, tmp_path / "run", resume=True)


def test_resuming_with_another_micro_batch_changes_only_rounding(recipe, tiny_corpus, tmp_path):
    train(recipe(), tiny_corpus, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(recipe(), tiny_corpus, tmp_path / "cut", progress=CutAfter(4))
    train(recipe(training={"windows_per_micro_batch": 1}), tiny_corpus, tmp_path / "cut", resume=True)
    pairs = zip(_figures(tmp_path / "whole"), _figures(tmp_path / "cut"), strict=True)
    assert all(abs(a["loss"] - b["loss"]) < 1e-5 for a, b in pairs)


def test_windows_that_cannot_be_dealt_are_refused(recipe, tiny_corpus, tmp_path):
    settings = recipe(training={"windows_per_step": 5})
    with pytest.raises(ConfigError, match="expected a multiple of windows_per_micro_batch"):
        train(settings, tiny_corpus, tmp_path / "run")
    assert not (tmp_path / "run").exists()
