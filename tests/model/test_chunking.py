"""Chunks that are recomputed: the same numbers in less memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from proteinlm.attention import SoftmaxConfig
from proteinlm.model import ModelConfig
from proteinlm.model.chunking import back_in_chunks, in_chunks
from tests.model.conftest import residues, step_peak

TOLERANCE = 1e-10
LENGTH = 13


@pytest.fixture
def layer():
    return nn.Linear(4, 6).double()


@pytest.fixture
def tensors():
    x = torch.randn(2, LENGTH, 4, dtype=torch.float64, requires_grad=True)
    shared = torch.randn(6, 6, dtype=torch.float64, requires_grad=True)
    return x, shared


def positions(layer):
    def function(x, shared):
        y = functional.gelu(layer(x)) @ shared
        return y, y.argmax(-1)

    return function


@pytest.mark.parametrize("chunk_length", [1, 6, LENGTH - 1, LENGTH, LENGTH + 1])
def test_values_and_gradients_are_those_of_the_whole(layer, tensors, chunk_length):
    x, shared = tensors
    leaves = [x, shared, *layer.parameters()]
    expected, expected_best = positions(layer)(x, shared)
    direction = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * direction).sum(), leaves)
    found, best = in_chunks(positions(layer), [x], [shared], chunk_length=chunk_length, dim=1, modules=[layer])
    (found * direction).sum().backward()
    assert (found - expected).abs().max() < 1e-12
    assert torch.equal(best, expected_best)
    assert not best.requires_grad
    for leaf, gradient in zip(leaves, wanted, strict=True):
        assert (leaf.grad - gradient).abs().max() < 1e-12


def test_each_parameter_is_accumulated_once(layer, tensors):
    counts = {name: 0 for name, _ in layer.named_parameters()}

    def count(name):
        counts[name] += 1

    for name, weight in layer.named_parameters():
        weight.register_post_accumulate_grad_hook(lambda _, name=name: count(name))
    x, shared = tensors
    found, _ = in_chunks(positions(layer), [x], [shared], chunk_length=3, dim=1, modules=[layer])
    found.sum().backward()
    assert set(counts.values()) == {1}


def test_parameters_are_trained_where_no_input_needs_a_gradient(layer, tensors):
    x, shared = (tensor.detach() for tensor in tensors)
    found, _ = in_chunks(positions(layer), [x], [shared], chunk_length=3, dim=1, modules=[layer])
    found.sum().backward()
    (expected,) = torch.autograd.grad(positions(layer)(x, shared)[0].sum(), layer.weight)
    assert (layer.weight.grad - expected).abs().max() < 1e-12


def test_frozen_parameters_let_the_gradient_through(layer, tensors):
    x, shared = tensors
    layer.requires_grad_(False)
    found, _ = in_chunks(positions(layer), [x], [shared], chunk_length=3, dim=1, modules=[layer])
    found.sum().backward()
    assert layer.weight.grad is None
    expected = torch.autograd.grad(positions(layer)(x, shared)[0].sum(), [x, shared])
    assert (x.grad - expected[0]).abs().max() < 1e-12
    assert (shared.grad - expected[1]).abs().max() < 1e-12


def test_parameter_that_the_function_leaves_out_gets_no_gradient(layer, tensors):
    spare = nn.Linear(2, 2).double()
    found, _ = in_chunks(positions(layer), tensors[:1], tensors[1:], chunk_length=3, dim=1, modules=[layer, spare])
    found.sum().backward()
    assert spare.weight.grad is None


def test_second_derivatives_are_refused(layer, tensors):
    found, _ = in_chunks(positions(layer), tensors[:1], tensors[1:], chunk_length=3, dim=1, modules=[layer])
    with pytest.raises(RuntimeError, match="differentiable once"):
        found.sum().backward(create_graph=True)


@pytest.mark.parametrize("reversible", [False, True], ids=["ordinary", "reversible"])
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_chunked_feed_forward_changes_neither_values_nor_gradients(build, activation, reversible):
    settings = {"dropout": 0.1, "activation": activation, "reversible": reversible}
    tokens = torch.cat([residues(29, 1), residues(29, 2)])
    gradients = []
    for chunk in (0, 1, 7, 29, 64):
        model = build(SoftmaxConfig(), feed_forward_chunk=chunk, **settings).train()
        hidden_BLD = model.encode(tokens, dropout_keys_B=[1, 2])
        hidden_BLD.square().mul(torch.arange(32)).sum().backward()
        gradients.append([hidden_BLD, *(weight.grad for weight in model.encoder.parameters())])
    for others in gradients[1:]:
        assert max((one - other).abs().max() for one, other in zip(gradients[0], others, strict=True)) < TOLERANCE


@pytest.mark.parametrize("reversible", [False, True], ids=["ordinary", "reversible"])
def test_chunked_feed_forward_lowers_the_peak_of_a_step(build, reversible):
    settings = {"feed_forward_size": 1024, "num_layers": 2, "reversible": reversible}
    whole, chunked = (
        step_peak(build(SoftmaxConfig(), feed_forward_chunk=chunk, **settings), residues(256)) for chunk in (0, 16)
    )
    # hidden states are 32 wide and the inner layer 1,024: a sixteenth of it leaves little
    assert chunked < whole / 3


def test_chunked_feed_forward_saves_its_input_alone(build):
    saved = []
    for chunk in (0, 8):
        sizes = []
        model = build(SoftmaxConfig(), feed_forward_size=256, feed_forward_chunk=chunk)
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.nbytes) or x, lambda x: x):
            model.encoder.blocks[0].feed(torch.randn(1, 64, 32, dtype=torch.float64), _Nothing())
        saved.append(sum(sizes))
    assert saved[1] == 64 * 32 * 8
    assert saved[0] > 8 * saved[1]


class _Nothing:
    dropout_keys_B = None


def test_negative_chunk_is_refused():
    with pytest.raises(ValueError, match="feed_forward_chunk is -1; expected 1 or more, or 0 for all"):
        ModelConfig(feed_forward_chunk=-1)


@pytest.mark.parametrize("chunk_length", [1, 6, LENGTH, LENGTH + 1])
def test_the_way_back_computes_each_chunk_once_for_output_and_gradients(layer, tensors, chunk_length):
    lengths = []

    def function(x, scale):
        lengths.append(x.shape[1])
        return (functional.gelu(layer(x)) * scale,)

    x, scale = tensors[0], torch.rand(2, LENGTH, 1, dtype=torch.float64)
    expected = function(x, scale)[0]
    grad = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, [x, *layer.parameters()], grad)
    lengths.clear()
    found, of_x = back_in_chunks(function, [x, scale], grad, chunk_length=chunk_length, dim=1, modules=[layer])
    assert sum(lengths) == LENGTH
    assert (found - expected).abs().max() < 1e-12
    assert not found.requires_grad
    for gradient, other in zip([of_x, layer.weight.grad, layer.bias.grad], wanted, strict=True):
        assert (gradient - other).abs().max() < 1e-12
    assert x.grad is None


def test_weight_that_changes_before_backward_is_an_error(layer, tensors):
    found, _ = in_chunks(positions(layer), tensors[:1], tensors[1:], chunk_length=3, dim=1, modules=[layer])
    with torch.no_grad():
        layer.bias += 1
    with pytest.raises(RuntimeError, match=r"in chunks computes again .* a weight has changed since the forward pass"):
        found.sum().backward()
