"""Checkpoints."""

from __future__ import annotations

import json

import pytest
import torch

from proteinlm.attention import FavorConfig
from proteinlm.errors import CheckpointError
from proteinlm.model import load_checkpoint, save_checkpoint
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
