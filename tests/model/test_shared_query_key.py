"""Models whose keys are their queries."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from proteinlm.attention import FavorConfig, LshConfig, SoftmaxConfig
from proteinlm.errors import ConfigError
from tests.model.conftest import residues

SHARED = SoftmaxConfig(shared_query_key=True)
LSH = LshConfig(num_hashes=2, chunk_length=8)


@pytest.mark.parametrize("config", [LSH, SHARED], ids=["lsh", "softmax"])
def test_a_shared_model_projects_queries_and_values_only(build, config):
    shared, separate = build(config), build(SoftmaxConfig())
    assert shared.encoder.blocks[0].query_value.weight.shape == (64, 32)
    counts = [sum(weight.numel() for weight in model.parameters()) for model in (separate, shared)]
    assert counts[0] - counts[1] == 2 * (32 * 32 + 32)  # two layers, weights and bias


def test_queries_and_keys_of_a_shared_block_are_one_tensor(build):
    seen = []

    class Watcher:
        def hidden(self, layer, hidden_BLD): ...

        def attention(self, layer, inputs, out_BLHK, visibility):
            seen.append(inputs[0] is inputs[1])

    build(LSH).encode(residues(20), observer=Watcher())
    assert seen == [True, True]


def test_an_lsh_model_of_long_chunks_is_exact(build):
    model, tokens = build(LSH), residues(50)
    exact = model.with_attention(SHARED)(tokens)
    long = model.with_attention(dataclasses.replace(LSH, chunk_length=50))(tokens)
    torch.testing.assert_close(long, exact, rtol=0, atol=1e-10)
    assert not torch.allclose(model(tokens), exact, rtol=0, atol=1e-6)


def test_packed_equals_alone(build):
    model = build(LSH)
    parts = [residues(length, seed=length) for length in (30, 1, 21)]
    cu_seqlens = torch.tensor([0, 30, 31, 52], dtype=torch.int32)
    positions = torch.cat([torch.arange(part.shape[1]) for part in parts])[None]
    together = model(torch.cat(parts, 1), positions_BL=positions, cu_seqlens=cu_seqlens).split([30, 1, 21], 1)
    for part, got in zip(parts, together, strict=True):
        torch.testing.assert_close(got, model(part), rtol=0, atol=1e-10)


def test_rounds_can_change_at_evaluation(build):
    model = build(LSH)
    model.set_step(7)
    more = model.with_attention(dataclasses.replace(LSH, num_hashes=8))
    first = model.encoder.mechanisms()[0].rotations()
    assert torch.equal(more.encoder.mechanisms()[0].rotations()[:2], first)


@pytest.mark.parametrize("other", [SoftmaxConfig(), FavorConfig(num_random_features=8)], ids=lambda config: config.kind)
def test_weights_of_one_projection_refuse_mechanisms_of_the_other(build, other):
    with pytest.raises(ConfigError, match=r"reads keys of their own, but the weights \(lsh\) project shared"):
        build(LSH).with_attention(other)
    with pytest.raises(ConfigError, match=r"project separate queries and keys; train with .* shared_query_key = false"):
        build(other).with_attention(LSH)
