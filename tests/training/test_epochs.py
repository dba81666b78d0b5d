"""Training on one member of every cluster."""

from __future__ import annotations

import json
import shutil

import h5py
import numpy
import pytest

from proteinlm.corpus import layout, open_corpus
from proteinlm.errors import ConfigError
from proteinlm.progress import SilentProgress
from proteinlm.recipe import train
from proteinlm.training.journal import read_metrics

NUM_CLUSTERS = 10
CLUSTERS = {"draw": "clusters"}


class Notes(SilentProgress):
    """Keeps what it is told, and ends the run, as a kill would, when some steps are done."""

    def __init__(self, steps=100):
        self.left, self.lines = steps, []

    def advance(self, amount, **figures):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt

    def note(self, text):
        self.lines.append(text)


def _copy(corpus, folder, clusters):
    """Copy a corpus with the cluster that ``clusters`` gives each training protein, or with none."""
    shutil.copytree(corpus, folder)
    for shard in open_corpus(folder).index.splits["train"].shards:
        with h5py.File(folder / shard.file, "r+") as file:
            if layout.CLUSTERS_DATASET in file:
                del file[layout.CLUSTERS_DATASET]
            if clusters is not None:
                file.create_dataset(layout.CLUSTERS_DATASET, data=clusters(numpy.arange(shard.num_sequences)))
    return folder


@pytest.fixture(scope="module")
def clustered_corpus(tiny_corpus, tmp_path_factory):
    def clusters(numbers):
        return (numbers % NUM_CLUSTERS).astype(numpy.uint64)

    return _copy(tiny_corpus, tmp_path_factory.mktemp("clustered") / "corpus", clusters)


def _figures(folder):
    timing = ("seconds", "residues_per_second")
    return [
        {name: value for name, value in entry.items() if name not in timing}
        for entry in read_metrics(folder / "metrics.jsonl")
    ]


def test_run_says_how_many_clusters_an_epoch_has(recipe, clustered_corpus, tmp_path):
    notes = Notes()
    train(recipe(epochs=CLUSTERS), clustered_corpus, tmp_path / "run", progress=notes)
    num_proteins = open_corpus(clustered_corpus).splits["train"].num_sequences
    assert notes.lines == [f"an epoch draws one member of each of 10 clusters ({num_proteins} proteins)"]


def test_run_by_clusters_that_was_cut_equals_one_that_was_not(recipe, clustered_corpus, tmp_path):
    # an epoch of ten proteins is two or three steps
    settings = recipe(epochs=CLUSTERS)
    result = train(settings, clustered_corpus, tmp_path / "whole")
    assert result.progress.next_window.epoch > 0
    with pytest.raises(KeyboardInterrupt):
        train(settings, clustered_corpus, tmp_path / "cut", progress=Notes(steps=4))
    train(settings, clustered_corpus, tmp_path / "cut", resume=True)
    assert _figures(tmp_path / "cut") == _figures(tmp_path / "whole")


def test_validation_is_the_same_whatever_an_epoch_draws(recipe, clustered_corpus, tmp_path):
    settings = {"schedule": {"num_steps": 1, "warmup_steps": 0}, "validation": {"num_proteins": 0}}
    targets = []
    for epochs in ({}, CLUSTERS):
        folder = tmp_path / str(len(targets))
        train(recipe(epochs=epochs, **settings), clustered_corpus, folder)
        entries = [entry for entry in _figures(folder) if entry["kind"] == "validation"]
        targets.append([(entry["split"], entry["num_targets"]) for entry in entries])
    assert targets[0] == targets[1]


def test_corpus_without_clusters_is_refused_with_the_way_out(recipe, tiny_corpus, tmp_path):
    corpus = _copy(tiny_corpus, tmp_path / "corpus", None)
    with pytest.raises(ConfigError, match=r"ingest again with --clusters, or set epochs\.draw = 'sequences'"):
        train(recipe(epochs=CLUSTERS), corpus, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_run_does_not_go_on_with_another_draw(recipe, clustered_corpus, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(recipe(), clustered_corpus, tmp_path / "run", progress=Notes(steps=4))
    with pytest.raises(ConfigError, match=r"epochs\.draw: was 'sequences' when the run began and is 'clusters' now"):
        train(recipe(epochs=CLUSTERS), clustered_corpus, tmp_path / "run", resume=True)


def test_run_that_began_before_there_was_a_choice_goes_on(recipe, clustered_corpus, tmp_path):
    train(recipe(), clustered_corpus, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(recipe(), clustered_corpus, tmp_path / "run", progress=Notes(steps=4))
    path = tmp_path / "run" / "run.json"
    about = json.loads(path.read_text())
    del about["recipe"]["epochs"]
    path.write_text(json.dumps(about))
    train(recipe(), clustered_corpus, tmp_path / "run", resume=True)
    assert _figures(tmp_path / "run") == _figures(tmp_path / "whole")
