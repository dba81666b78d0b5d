"""A checkpoint opens in one call, as it was saved, or says what is wrong with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import proteinlm
from proteinlm.attention import FavorConfig, LshConfig, ScatterbrainConfig, SoftmaxConfig
from proteinlm.errors import CheckpointError, ConfigError, UnavailableError
from proteinlm.inference import pretrained
from proteinlm.inference.pretrained import chosen_attention
from proteinlm.model import save_checkpoint


def test_root_of_the_package_serves_load():
    assert proteinlm.load is pretrained.load


def test_model_is_in_evaluation_mode(checkpoint: Path):
    assert not proteinlm.load(checkpoint).model.training


def test_step_and_recipe_are_those_saved(checkpoint: Path):
    loaded = proteinlm.load(checkpoint)
    assert (loaded.step, loaded.context, loaded.window_length) == (5, "isolated", 512)


def test_random_features_are_those_of_the_step_saved(checkpoint: Path):
    blocks = proteinlm.load(checkpoint).model.encoder.blocks
    assert [block.attention.draw for block in blocks] == [2, 2]


def test_run_folder_opens_like_its_checkpoint(checkpoint: Path, tmp_path: Path):
    shutil.copytree(checkpoint, tmp_path / "run" / "checkpoint")
    assert proteinlm.load(tmp_path / "run").path == tmp_path / "run" / "checkpoint"


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float64"])
def test_weights_take_the_dtype_asked_for(checkpoint: Path, name: str):
    weights = proteinlm.load(checkpoint, dtype=name).model.parameters()
    assert {weight.dtype for weight in weights} == {getattr(torch, name)}


def test_missing_checkpoint_says_what_was_expected(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no such folder; expected model\.safetensors"):
        proteinlm.load(tmp_path / "nothing")


def test_weight_that_a_narrow_dtype_cannot_hold_is_named(checkpoint: Path, tmp_path: Path):
    model = proteinlm.load(checkpoint).model
    with torch.no_grad():
        model.encoder.final_norm.weight[:2] = 1e5
    save_checkpoint(tmp_path / "large", model, {}, step=1)
    message = (
        r"in float16 weight 'encoder\.final_norm\.weight' holds 2 values that are not finite; expected a wider dtype"
    )
    with pytest.raises(ConfigError, match=message):
        proteinlm.load(tmp_path / "large", dtype="float16")
    assert proteinlm.load(tmp_path / "large", dtype="bfloat16").step == 1


def test_truncated_weights_are_a_checkpoint_error(checkpoint: Path, tmp_path: Path):
    shutil.copytree(checkpoint, tmp_path / "damaged")
    weights = tmp_path / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
        proteinlm.load(tmp_path / "damaged")


def test_unknown_device_is_a_config_error(checkpoint: Path):
    with pytest.raises(ConfigError, match="device 'gpu' is no device"):
        proteinlm.load(checkpoint, device="gpu")


def test_absent_device_is_unavailable(checkpoint: Path):
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a CUDA device")
    with pytest.raises(UnavailableError, match="device 'cuda' is not on this machine"):
        proteinlm.load(checkpoint, device="cuda")


def test_unknown_dtype_is_a_config_error(checkpoint: Path):
    with pytest.raises(ConfigError, match="expected one of float16, bfloat16"):
        proteinlm.load(checkpoint, dtype="fp16")


def test_checkpoint_of_another_alphabet_is_refused(checkpoint: Path, tmp_path: Path):
    model = proteinlm.load(checkpoint).model
    save_checkpoint(tmp_path / "other", model, {}, step=1, metadata={"alphabet": "0123456789abcdef"})
    with pytest.raises(CheckpointError, match="was trained with alphabet 0123456789abcdef"):
        proteinlm.load(tmp_path / "other")


def test_weights_are_shared_with_another_attention(checkpoint: Path):
    trained = proteinlm.load(checkpoint)
    exact = trained.with_attention(["kind=softmax"])
    assert exact.model.config.attention == SoftmaxConfig()
    assert not exact.model.training
    pairs = zip(trained.model.parameters(), exact.model.parameters(), strict=True)
    assert all(a.data_ptr() == b.data_ptr() for a, b in pairs)
    assert trained.with_attention([]) is trained
    assert (exact.step, exact.path) == (trained.step, trained.path)


def test_another_attention_keeps_what_both_have():
    assert chosen_attention(LshConfig(), ["kind=softmax"]) == SoftmaxConfig(shared_query_key=True)
    assert chosen_attention(SoftmaxConfig(), ["kind=favor"]) == FavorConfig()
    assert chosen_attention(SoftmaxConfig(shared_query_key=True), ["kind=lsh", "num_hashes=8"]) == LshConfig(
        num_hashes=8
    )
    favor = FavorConfig(num_random_features=64, redraw_interval=5, exact_below=9)
    assert chosen_attention(favor, ["kind=scatterbrain"]) == ScatterbrainConfig(
        num_random_features=64, redraw_interval=5
    )


def test_weights_of_separate_keys_are_hashed_separately():
    hashed = chosen_attention(FavorConfig(redraw_interval=1), ["kind=lsh", "num_sampled_keys=9"])
    assert hashed == LshConfig(shared_query_key=False, num_sampled_keys=9)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("kind=softmx", r"--set: attention\.kind: is 'softmx'; expected one of 'softmax', "),
        ("kind=[1]", r"--set: attention\.kind"),
        ("model.attention.num_hashes=3", r"--set: attention\.num_hashes: no such setting; expected one of"),
        ("model.num_layers=3", r"--set: attention\.model: no such setting"),
        ("softmax", "'softmax' is no assignment; expected NAME=VALUE"),
    ],
)
def test_impossible_attention_is_refused_by_name(checkpoint: Path, assignment: str, message: str):
    with pytest.raises(ConfigError, match=message):
        proteinlm.load(checkpoint).with_attention([assignment])
