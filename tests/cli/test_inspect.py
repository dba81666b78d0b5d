"""The command ``proteinlm inspect``."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy
import pytest

from proteinlm.cli.main import main
from proteinlm.corpus import ingest

FILES = Path(__file__).parent.parent / "data" / "fasta"
SMALL = ["model.num_layers=1", "model.hidden_size=8", "model.num_heads=2", "model.feed_forward_size=16"]


@pytest.fixture
def inspect(capsys):
    """Inspect a path; return the exit code and what was written to stdout and stderr."""

    def run(*words):
        with pytest.raises(SystemExit) as caught:
            main(["inspect", *map(str, words)])
        written = capsys.readouterr()
        return caught.value.code or 0, written.out, written.err

    return run


@pytest.fixture
def write_lengths(tmp_path):
    """Make a corpus of proteins of these lengths, all in training; return its folder."""

    def write(lengths):
        from proteinlm.corpus import IngestionConfig, SplittingConfig

        path = tmp_path / "lengths.fasta"
        path.write_text("".join(f">p{length}\n{'M' * length}\n" for length in lengths))
        config = IngestionConfig(splitting=SplittingConfig(validation_share=0))
        return ingest([path], tmp_path / "corpus", config=config).path

    return write


@pytest.fixture
def checkpoint(tmp_path, project_root):
    """A checkpoint of a tiny untrained model."""
    from proteinlm import config
    from proteinlm.model import MaskedLM, save_checkpoint
    from proteinlm.recipe import load_recipe

    recipe = load_recipe(project_root / "pipelines" / "quickstart.toml", SMALL)
    model = MaskedLM(recipe.model, seed=recipe.seed)
    save_checkpoint(tmp_path / "run" / "checkpoint", model, config.to_table(recipe), step=12)
    return tmp_path / "run" / "checkpoint"


def test_a_corpus_is_shown_by_split(inspect, tmp_path):
    ingest([FILES / "plain.fasta"], tmp_path / "corpus")
    code, out, _ = inspect(tmp_path / "corpus")
    rows = [line.split() for line in out.splitlines()]
    assert code == 0
    assert out.startswith(f"{tmp_path / 'corpus'}: corpus\n")
    assert ["train", "validation_iid"] in rows
    assert ["residues", "44", "0"] in rows


def test_a_corpus_as_json_has_its_counts(inspect, tmp_path):
    ingest([FILES / "plain.fasta"], tmp_path / "corpus")
    _, out, _ = inspect(tmp_path / "corpus", "--json")
    found = json.loads(out)
    assert (found["kind"], found["splits"]["train"]["num_sequences"]) == ("corpus", 2)


def test_a_corpus_says_how_full_windows_get(inspect, tmp_path):
    ingest([FILES / "plain.fasta"], tmp_path / "corpus")
    _, out, _ = inspect(tmp_path / "corpus", "--window-length", 32, "--json")
    packing = json.loads(out)["packing"]
    # 44 residues in two proteins of 22, each with two special tokens
    assert (packing["train"]["num_windows"], packing["train"]["fill"]) == (2, 48 / 64)
    _, out, _ = inspect(tmp_path / "corpus", "--window-length", 64)
    rows = [line.split() for line in out.splitlines()]
    assert ["windows", "of", "64", "1", "0"] in rows
    assert ["filled", "75.00%"] in rows


def test_a_corpus_shows_lengths_and_cuts(inspect, write_lengths):
    _, out, _ = inspect(write_lengths([30, 40, 1023, 10_000]))
    rows = [line.split() for line in out.splitlines()]
    assert ["longer", "than", "1,022", "2", "(50.00%)", "0", "(0.00%)"] in rows
    assert ["16", "to", "31", "25.0%", "0.0%", "#" * 30] in rows
    assert ["8,192", "to", "16,383", "25.0%", "0.0%", "#" * 30] in rows


def test_equal_sequences_are_counted_on_request(inspect, tmp_path):
    ingest([FILES / "duplicate_sequences.fasta"], tmp_path / "corpus")
    assert json.loads(inspect(tmp_path / "corpus", "--json")[1])["duplicates"] is None
    assert json.loads(inspect(tmp_path / "corpus", "--duplicates", "--json")[1])["duplicates"]["train"] == 1
    assert "equal to an earlier one" in inspect(tmp_path / "corpus", "--duplicates")[1]


def test_clusters_are_counted_where_shards_know_them(inspect, tmp_path):
    ingest([FILES / "plain.fasta"], tmp_path / "corpus")
    with h5py.File(tmp_path / "corpus" / "train-00000.h5", "r+") as file:
        file["clusters"] = numpy.array([7, 7], dtype=numpy.uint64)
    found = json.loads(inspect(tmp_path / "corpus", "--json")[1])
    assert found["clusters"] == {"train": {"num_clusters": 1, "largest": 2}}
    rows = [line.split() for line in inspect(tmp_path / "corpus")[1].splitlines()]
    assert ["largest", "cluster", "2"] in rows


def test_lengths_are_drawn(inspect, write_lengths, tmp_path):
    corpus = write_lengths([30, 40, 1023, 10_000])
    for number, path in enumerate((corpus, FILES / "plain.fasta")):
        picture = tmp_path / f"{number}.png"
        assert inspect(path, "--picture", picture)[0] == 0
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_what_is_for_a_corpus_is_wrong_usage_elsewhere(inspect, project_root, tmp_path):
    recipe = project_root / "pipelines" / "quickstart.toml"
    for words in (["--duplicates"], ["--window-length", 64], ["--picture", tmp_path / "lengths.png"]):
        assert inspect(recipe, *words)[0] == 2
    assert list(tmp_path.iterdir()) == []


def test_entries_are_shown_as_ingest_would_see_them(inspect):
    code, out, _ = inspect(FILES.parent / "uniprot" / "entries.xml", "--json")
    found = json.loads(out)
    assert (code, found["sequences"]["num_sequences"], found["sequences"]["num_residues"]) == (0, 3, 290)


def test_a_fasta_file_is_shown_as_ingest_would_see_it(inspect):
    code, out, _ = inspect(FILES / "no_residues.fasta")
    assert code == 0
    assert "would be dropped: 2 no residues" in out


def test_a_recipe_is_resolved(inspect):
    code, out, _ = inspect("quickstart", "--json")
    found = json.loads(out)
    assert (code, found["kind"]) == (0, "recipe")
    # a setting that the file leaves to its default
    assert found["recipe"]["model"]["vocab_size"] == 33


def test_a_recipe_is_resolved_with_settings_changed(inspect, project_root):
    path = project_root / "pipelines" / "quickstart.toml"
    words = ["--set", "model.attention.kind=window", "--set", "model.num_layers=1"]
    found = json.loads(inspect(path, "--json", *words)[1])["recipe"]["model"]
    assert (found["num_layers"], found["attention"]) == (1, {"kind": "window", "window": 256})
    assert inspect(path.parent, "--set", "seed=1")[0] == 1
    fasta = FILES / "no_residues.fasta"
    assert inspect(fasta, "--set", "seed=1")[0] == 2


def test_parameters_of_a_recipe_are_those_of_its_model(inspect, project_root):
    from proteinlm.model import MaskedLM
    from proteinlm.recipe import load_recipe

    path = project_root / "pipelines" / "quickstart.toml"
    _, out, _ = inspect(path, "--json")
    model = MaskedLM(load_recipe(path).model, seed=0)
    assert json.loads(out)["num_parameters"] == sum(parameter.numel() for parameter in model.parameters())


def test_a_misspelt_recipe_is_refused(inspect, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("[model]\nnum_layer = 4\n")
    code, _, err = inspect(path)
    assert code == 1
    assert "model.num_layer: no such setting; did you mean 'num_layers'?" in err


def test_a_manifest_is_told_from_a_recipe(inspect):
    code, out, _ = inspect("uniprotkb_sample")
    assert code == 0
    assert out.startswith("uniprotkb_sample: manifest")
    assert "CC BY 4.0" in out


def test_a_list_of_families_is_told_from_a_recipe(inspect, project_root, tmp_path):
    path = project_root / "data_manifests" / "performer_pfam_families.toml"
    code, out, _ = inspect(path)
    assert code == 0
    assert "list of families" in out
    assert "20 families of Pfam" in out
    assert "PF04680 OGFr_III" in out
    assert len(json.loads(inspect(path, "--json")[1])["families"]) == 20
    (tmp_path / "odd.toml").write_text(f"colour = 1\n{path.read_text()}")
    code, _, err = inspect(tmp_path / "odd.toml")
    assert (code, err.count("no such setting")) == (1, 1)


def test_a_checkpoint_says_its_size_step_and_settings(inspect, checkpoint):
    code, out, _ = inspect(checkpoint)
    assert code == 0
    assert out.startswith(f"{checkpoint}: checkpoint\n")
    assert "parameters after 12 steps" in out
    assert "model.hidden_size = 8" in out


def test_a_checkpoint_that_no_model_can_run_is_shown_and_says_so(inspect, checkpoint):
    from proteinlm.model import load_checkpoint, save_checkpoint

    loaded = load_checkpoint(checkpoint)
    weights = {name: weight.clone() for name, weight in loaded.model.state_dict().items()}
    weights["masked_lm_head.bias_V"][:2] = float("nan")
    save_checkpoint(checkpoint, loaded.model, loaded.recipe, step=12, weights=weights)
    code, out, _ = inspect(checkpoint)
    assert code == 0
    assert "no model to run: weight 'masked_lm_head.bias_V' holds 2 values that are not finite" in out
    assert json.loads(inspect(checkpoint, "--json")[1])["not_finite"] == {"masked_lm_head.bias_V": 2}


def test_a_run_shows_its_newest_figures_and_checkpoint(inspect, checkpoint):
    lines = [
        {"kind": "train", "step": 1, "loss": 3.0},
        {"kind": "train", "step": 2, "loss": 2.5},
        {"kind": "validation", "step": 2, "split": "validation_iid", "perplexity": 17.5},
    ]
    run = checkpoint.parent
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, out, _ = inspect(run)
    assert code == 0
    assert "train: step 2, loss 2.5" in out
    assert "validation validation_iid: step 2, perplexity 17.5" in out
    assert "parameters after 12 steps" in out


def test_a_line_of_figures_that_a_kill_cut_is_left_out(inspect, checkpoint):
    run = checkpoint.parent
    (run / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": 3.0}\n{"kind": "train", "st')
    code, out, _ = inspect(run)
    assert code == 0
    assert "train: step 1, loss 3" in out


def test_a_run_without_figures_is_a_run(inspect, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    code, out, _ = inspect(tmp_path)
    assert (code, out) == (0, f"{tmp_path}: run\n  no checkpoint yet\n")


def test_a_manifest_without_files_is_refused_as_a_manifest(inspect, tmp_path):
    path = tmp_path / "release.toml"
    path.write_text('name = "tiny"\nrelease = "1"\nlicence = "CC0 1.0"\n')
    code, _, err = inspect(path)
    assert code == 1
    assert f"{path}: files" in err or "files: " in err
    assert "model" not in err


def test_verify_passes_a_whole_corpus_and_names_a_damaged_shard(inspect, tmp_path):
    ingest([FILES / "plain.fasta"], tmp_path / "corpus")
    assert inspect(tmp_path / "corpus", "--verify")[0] == 0
    with h5py.File(tmp_path / "corpus" / "train-00000.h5", "r+") as file:
        file["tokens"][0] = 24
    code, out, err = inspect(tmp_path / "corpus", "--verify")
    assert (code, out) == (1, "")
    assert "train-00000.h5: is damaged" in err


def test_windows_too_short_or_too_long_are_wrong_usage(inspect, tmp_path):
    ingest([FILES / "plain.fasta"], tmp_path / "corpus")
    for length in (7, 1 << 31):
        assert inspect(tmp_path / "corpus", "--window-length", str(length))[0] == 2


def test_verify_of_anything_but_a_corpus_is_wrong_usage(inspect):
    assert inspect(FILES / "plain.fasta", "--verify")[0] == 2


def test_what_is_nothing_of_ours_is_refused(inspect, tmp_path):
    for path, message in (
        (tmp_path, "is no corpus"),
        (tmp_path / "nowhere", "no such file, and no recipe, manifest or list of families of that name; "),
    ):
        code, out, err = inspect(path)
        assert (code, out) == (1, "")
        assert message in err
