"""Checkpoints."""

from __future__ import annotations

import json
import re

import pytest
import torch

from proteinlm.attention import FavorConfig
from proteinlm.errors import CheckpointError
from proteinlm.model import load_checkpoint, save_checkpoint
from proteinlm.model.checkpoint import listed_not_finite, not_finite
from tests.model.conftest import residues


@pytest.fixture
def model(build):
    model = build(FavorConfig(num_random_features=16, redraw_interval=10)).float()
    model.set_step(25)
    return model.eval()


@pytest.fixture
def checkpoint(model, tmp_path):
    path = tmp_path / "checkpoint"
    save_checkpoint(path, model, {"packing": {"context": "isolated"}}, step=25, metadata={"alphabet": "x"})
    return path


def test_loaded_model_answers_alike_to_the_bit(model, checkpoint):
    loaded = load_checkpoint(checkpoint)
    assert torch.equal(loaded.model(residues(50)), model(residues(50)))
    assert loaded.step == 25
    assert loaded.recipe["packing"] == {"context": "isolated"}


def test_run_folder_stands_for_its_checkpoint(checkpoint):
    assert load_checkpoint(checkpoint.parent).path == checkpoint


def test_loading_imports_no_deepspeed(checkpoint):
    import subprocess
    import sys

    program = (
        f"from proteinlm.model import load_checkpoint; load_checkpoint(__import__('pathlib').Path({str(checkpoint)!r}))"
    )
    check = "; import sys; assert not any(name.startswith('deepspeed') for name in sys.modules)"
    subprocess.run([sys.executable, "-c", program + check], check=True)


def test_missing_checkpoint_says_what_was_expected(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint here; expected model\.safetensors and recipe\.json"):
        load_checkpoint(tmp_path)


def test_cut_weights_are_refused(checkpoint):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(checkpoint)


def test_weights_of_other_sizes_are_refused_by_name(checkpoint):
    path = checkpoint / "recipe.json"
    about = json.loads(path.read_text())
    about["recipe"]["model"]["feed_forward_size"] = 64
    path.write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match=r"weight 'encoder\.blocks\.0\.feed_forward\.inner\.bias' has shape"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_every_weight_that_is_not_finite_is_refused_by_name_and_count(model, tmp_path, value):
    whole = {name: weight.clone() for name, weight in model.state_dict().items()}
    for name, weight in whole.items():
        damaged = weight.clone()
        damaged.view(-1)[-2:] = value
        path = tmp_path / "damaged"
        save_checkpoint(path, model, {}, step=1, weights={**whole, name: damaged})
        count = min(2, weight.numel())
        said = f"weight '{name}' holds {count} value{'s' * (count > 1)} that {'are' if count > 1 else 'is'} not finite;"
        with pytest.raises(CheckpointError, match=re.escape(said)):
            load_checkpoint(path)
        assert not_finite(load_checkpoint(path, refuse_not_finite=False).model.state_dict()) == {name: count}


def test_other_weights_that_are_not_finite_are_counted():
    assert listed_not_finite({"a": 1, "b": 2000, "c": 1}) == (
        "weight 'a' holds 1 value that is not finite, and so do 2 other weights"
    )


def test_later_format_is_refused(checkpoint):
    path = checkpoint / "recipe.json"
    about = json.loads(path.read_text())
    about["format_version"] = 99
    path.write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match="format version 99"):
        load_checkpoint(checkpoint)


def test_failed_write_leaves_the_older_checkpoint(model, checkpoint, monkeypatch):
    import safetensors.torch

    def fail(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(Exception, match="cannot be written"):
        save_checkpoint(checkpoint, model, {}, step=30)
    assert load_checkpoint(checkpoint).step == 25
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint"]
