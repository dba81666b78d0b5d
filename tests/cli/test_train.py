"""The commands ``train`` and ``evaluate``."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import pytest

from proteinlm.cli.main import main

RECIPE = """
[packing]
window_length = 512
[model]
num_layers = 1
hidden_size = 32
num_heads = 2
feed_forward_size = 32
[schedule]
num_steps = 3
warmup_steps = 1
[training]
windows_per_step = 2
windows_per_micro_batch = 2
[engine]
kind = "local"
"""


def _proteinlm(*arguments):
    """Run the command line; return its exit code and what it wrote."""
    output, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(errors), pytest.raises(SystemExit) as end:
        main([*map(str, arguments)])
    return SimpleNamespace(returncode=end.value.code or 0, stdout=output.getvalue(), stderr=errors.getvalue())


@pytest.fixture(scope="module")
def run(tiny_corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    (folder / "run.toml").write_text(RECIPE)
    done = _proteinlm("train", folder / "run.toml", "--corpus", tiny_corpus, "--output", folder / "run")
    return folder, done


def test_train_prints_scores_to_stdout_and_the_rest_to_stderr(run):
    _, done = run
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("validation_iid: perplexity ")
    assert "(unigram" in done.stdout
    assert "trained 3 steps on" in done.stderr


def test_evaluate_prints_json(run, tiny_corpus):
    folder, _ = run
    done = _proteinlm("evaluate", folder / "run", "--corpus", tiny_corpus, "--json")
    assert done.returncode == 0, done.stderr
    assert [entry["split"] for entry in json.loads(done.stdout)] == ["validation_iid", "validation_ood"]


def test_evaluate_says_in_a_log_how_far_it_is(run, tiny_corpus, monkeypatch, capsys):
    from proteinlm.cli import terminal
    from proteinlm.cli.main import main

    monkeypatch.setattr(terminal, "LOG_INTERVAL", 0.0)
    with pytest.raises(SystemExit, match="0"):
        main(["evaluate", str(run[0] / "run"), "--corpus", str(tiny_corpus)])
    lines = [line for line in capsys.readouterr().err.splitlines() if " residues, " in line]
    for split in ("validation_iid", "validation_ood"):
        of_split = [line for line in lines if line.startswith(f"{split}: ")]
        done, total = (
            word.replace(",", "") for word in of_split[-1].split(": ")[1].split(" residues")[0].split(" of ")
        )
        assert len(of_split) > 1
        assert done == total


def test_misspelt_setting_ends_with_one_line_and_code_1(run, tiny_corpus):
    folder, _ = run
    done = _proteinlm(
        "train", folder / "run.toml", "--corpus", tiny_corpus, "--output", folder / "x", "--set", "model.num_layer=4"
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"proteinlm: {folder / 'run.toml'}: model.num_layer: no such setting; did you mean 'num_layers'?"
    ]
    assert not (folder / "x").exists()


def test_a_recipe_is_trained_by_its_name(tiny_corpus, tmp_path):
    small = ["packing.window_length=512", "model.num_layers=1", "model.hidden_size=32", "model.num_heads=2"]
    small += ["schedule.num_steps=1", "schedule.warmup_steps=0", "training.windows_per_step=1", "engine.kind=local"]
    small += ["training.windows_per_micro_batch=1"]
    words = [f"--set={assignment}" for assignment in small]
    done = _proteinlm("train", "quickstart", "--corpus", tiny_corpus, "--output", tmp_path / "run", *words)
    assert done.returncode == 0, done.stderr
    recipe = json.loads((tmp_path / "run" / "run.json").read_text())["recipe"]
    # as the recipe says and not as the default does
    assert recipe["model"]["attention"]["num_random_features"] == 128
    assert "trained 1 steps" in done.stderr


def test_missing_corpus_ends_with_code_1_and_no_run_folder(run):
    folder, _ = run
    done = _proteinlm("train", folder / "run.toml", "--corpus", folder / "none", "--output", folder / "x")
    assert done.returncode == 1
    assert str(folder / "none") in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "x").exists()


def test_second_run_into_a_folder_is_refused(run, tiny_corpus):
    folder, _ = run
    done = _proteinlm("train", folder / "run.toml", "--corpus", tiny_corpus, "--output", folder / "run")
    assert done.returncode == 1
    assert "already holds a run" in done.stderr


@pytest.fixture(scope="module")
def hashed(tiny_corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hashed")
    (folder / "run.toml").write_text(RECIPE + '[model.attention]\nkind = "lsh"\nchunk_length = 16\n')
    done = _proteinlm("train", folder / "run.toml", "--corpus", tiny_corpus, "--output", folder / "run")
    return folder / "run", done


def test_a_model_trained_with_four_rounds_is_evaluated_with_eight(hashed, tiny_corpus):
    run, trained = hashed
    done = _proteinlm("evaluate", run, "--corpus", tiny_corpus, "--set", "num_hashes=8")
    assert (trained.returncode, done.returncode) == (0, 0), trained.stderr + done.stderr
    endings = [{line.rpartition("by ")[2] for line in text.splitlines()} for text in (trained.stdout, done.stdout)]
    assert endings == [{"shared-QK lsh, 4 rounds"}, {"shared-QK lsh, 8 rounds"}]


def test_shared_queries_and_keys_are_not_read_by_another_kind(hashed, tiny_corpus):
    done = _proteinlm("evaluate", hashed[0], "--corpus", tiny_corpus, "--set", "kind=favor")
    assert done.returncode == 1
    assert "project shared queries and keys; expected lsh or softmax" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_wrong_usage_ends_with_code_2():
    assert _proteinlm("train").returncode == 2
