"""Recipes, from the file to a score."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from proteinlm.attention import MECHANISMS
from proteinlm.corpus import IngestionConfig, SplittingConfig, ingest
from proteinlm.errors import CheckpointError, ConfigError, PrecisionError
from proteinlm.model import load_checkpoint, save_checkpoint
from proteinlm.recipe import evaluate_checkpoint, load_recipe, train

PIPELINES = sorted((Path(__file__).parent.parent / "pipelines").glob("*.toml"))


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_every_recipe_of_the_project_parses(path):
    assert load_recipe(path).schedule.num_steps > 0


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_every_favor_recipe_bounds_queries_and_keys(path):
    model = load_recipe(path).model
    assert model.attention.kind != "favor" or model.query_key_norm


def test_misspelt_setting_is_named_with_its_file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("[model]\nnum_layer = 3\n")
    with pytest.raises(ConfigError, match=r"run\.toml: model\.num_layer: no such setting; did you mean 'num_layers'\?"):
        load_recipe(path)


def test_assignments_change_the_recipe(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("seed = 4\n")
    recipe = load_recipe(path, ["model.num_layers=2", "model.attention.kind=softmax"])
    assert (recipe.seed, recipe.model.num_layers, recipe.model.attention.kind) == (4, 2, "softmax")


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_every_recipe_takes_every_kind_of_attention(path):
    for kind in MECHANISMS:
        assert load_recipe(path, [f"model.attention.kind={kind}"]).model.attention.kind == kind


@pytest.fixture(scope="module")
def run(tiny_corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    path = folder.parent / "run.toml"
    path.write_text(
        """
        [packing]
        window_length = 512
        [model]
        num_layers = 1
        hidden_size = 32
        num_heads = 2
        feed_forward_size = 32
        attention = { kind = "favor", num_random_features = 16, redraw_interval = 1 }
        [schedule]
        num_steps = 3
        warmup_steps = 1
        [training]
        windows_per_step = 2
        windows_per_micro_batch = 2
        [engine]
        kind = "local"
        """
    )
    return folder, train(load_recipe(path), tiny_corpus, folder)


def test_evaluating_the_checkpoint_repeats_the_last_validation(run, tiny_corpus):
    folder, result = run
    scores = evaluate_checkpoint(folder, tiny_corpus)
    again = scores.results
    assert scores.is_training_corpus
    assert [score.split for score in again] == [score.split for score in result.validation]
    for ours, theirs in zip(again, result.validation, strict=True):
        assert ours.model.num_targets == theirs.model.num_targets
        assert ours.model.loss == pytest.approx(theirs.model.loss, abs=1e-5)
        assert ours.unigram == theirs.unigram


def test_a_loss_that_is_not_finite_is_no_score(run, tiny_corpus, tmp_path):
    loaded = load_checkpoint(run[0])
    with torch.no_grad():
        loaded.model.masked_lm_head.dense.weight.fill_(3e38)
    save_checkpoint(tmp_path / "large", loaded.model, loaded.recipe, step=1, metadata=loaded.metadata)
    with pytest.raises(PrecisionError, match=r"large: the loss on validation_iid is not finite, although every weight"):
        evaluate_checkpoint(tmp_path / "large", tiny_corpus)


def test_same_weights_are_evaluated_with_another_mechanism(run, tiny_corpus):
    folder, _ = run
    favor = evaluate_checkpoint(folder, tiny_corpus).results[0].model
    exact = evaluate_checkpoint(folder, tiny_corpus, attention=["kind=softmax"]).results[0].model
    more = evaluate_checkpoint(folder, tiny_corpus, attention=["num_random_features=512"]).results[0].model
    assert len({favor.loss, exact.loss, more.loss}) == 3
    assert favor.num_targets == exact.num_targets == more.num_targets


def test_settings_are_named_as_in_a_recipe_or_in_short(run, tiny_corpus):
    short, long = (
        evaluate_checkpoint(run[0], tiny_corpus, attention=[f"{start}num_random_features=512"]).results
        for start in ("", "model.attention.")
    )
    assert short == long
    assert short[0].attention == "FAVOR+ 512"


def test_every_result_says_by_which_attention_and_adaptive_favor_is_apart(run, tiny_corpus):
    folder, trained = run
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    listed = {entry["attention"] for entry in entries if entry["kind"] == "validation"}
    assert listed == {score.attention for score in trained.validation} == {"FAVOR+ 16"}
    # longer than any protein, so that all are computed exactly
    adaptive = evaluate_checkpoint(folder, tiny_corpus, attention=["exact_below=100000"]).results[0]
    exact = evaluate_checkpoint(folder, tiny_corpus, attention=["kind=softmax"]).results[0]
    assert adaptive.figures()["attention"] == "adaptive FAVOR+ 16, exact below 100,000"
    assert str(exact).endswith(" targets, by softmax")
    assert adaptive.model.loss == pytest.approx(exact.model.loss, abs=1e-5)


def test_separate_hashing_that_samples_all_keys_measures_as_exact_attention(run, tiny_corpus):
    whole = ["kind=lsh", "shared_query_key=false", "chunk_length=8", "num_sampled_keys=100000"]
    hashed, exact = (
        evaluate_checkpoint(run[0], tiny_corpus, attention=chosen).results[0] for chosen in (whole, ["kind=softmax"])
    )
    assert hashed.figures()["attention"] == "separate-QK lsh, 100,000 sampled keys"
    assert hashed.model.loss == pytest.approx(exact.model.loss, abs=1e-5)


def test_unknown_mechanism_is_refused_by_name(run, tiny_corpus):
    with pytest.raises(ConfigError, match=r"attention\.kind: is 'softmx'"):
        evaluate_checkpoint(run[0], tiny_corpus, attention=["kind=softmx"])


def test_another_corpus_is_noticed(run, sample, tmp_path):
    other = tmp_path / "other"
    settings = IngestionConfig(splitting=SplittingConfig(validation_share=0.1))
    ingest([sample / "uniprotkb_queries.fasta.xz"], other, config=settings)
    assert not evaluate_checkpoint(run[0], other).is_training_corpus


def test_checkpoint_without_counts_is_refused(run, tiny_corpus, tmp_path):
    shutil.copytree(run[0] / "checkpoint", tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / "recipe.json"
    about = json.loads(path.read_text())
    del about["metadata"]["training_token_counts"]
    path.write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match="does not hold the residue counts"):
        evaluate_checkpoint(tmp_path, tiny_corpus)


def test_folder_without_checkpoint_is_refused(tmp_path, tiny_corpus):
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        evaluate_checkpoint(tmp_path, tiny_corpus)


@pytest.mark.processes
@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_every_recipe_of_the_project_takes_a_step(path, tiny_corpus, tmp_path):
    small = [
        "packing.window_length=256",
        "model.num_layers=1",
        "model.hidden_size=32",
        "model.num_heads=2",
        "model.feed_forward_size=32",
        "schedule.num_steps=1",
        "schedule.warmup_steps=0",
        "training.windows_per_step=2",
        "training.windows_per_micro_batch=1",
        "validation.num_proteins=4",
    ]
    result = train(load_recipe(path, small), tiny_corpus, tmp_path / "run", recipe_folder=path.parent)
    assert result.progress.step == 1
