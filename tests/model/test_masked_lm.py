"""The model as a whole: what may and what may not change its outputs."""

from __future__ import annotations

import pytest
import torch

from proteinlm.attention import FavorConfig, SoftmaxConfig
from proteinlm.errors import ShapeError
from proteinlm.model import MaskedLM, ModelConfig
from tests.model.conftest import SMALL, residues

# rounding of float64 through two layers
TOLERANCE = 1e-10


@pytest.mark.parametrize("width", [0, 5], ids=["plain", "convolution"])
@pytest.mark.parametrize("pads", [8, 96])
def test_padding_changes_no_valid_output(build, attention, pads, width):
    model = build(attention, local_convolution=width)
    tokens = residues(37)
    padded = torch.cat((tokens, torch.ones(1, pads, dtype=torch.int64)), dim=1)
    mask = torch.arange(37 + pads)[None] < 37
    difference = model(padded, key_mask_BL=mask)[:, :37] - model(tokens)
    assert difference.abs().max() < TOLERANCE


@pytest.mark.parametrize("width", [0, 5], ids=["plain", "convolution"])
def test_packed_proteins_do_not_see_their_neighbours(build, attention, width):
    model = build(attention, local_convolution=width)
    lengths = [13, 1, 40, 7]
    alone = [residues(length, seed) for seed, length in enumerate(lengths)]
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = model(torch.cat(alone, dim=1), positions_BL=positions, cu_seqlens=bounds)
    expected = torch.cat([model(tokens) for tokens in alone], dim=1)
    assert (packed - expected).abs().max() < TOLERANCE


def test_output_is_bidirectional(build, attention):
    model = build(attention)
    tokens = residues(20)
    changed = tokens.clone()
    changed[0, -1] = 4 + (changed[0, -1] - 3) % 20
    assert (model(tokens) - model(changed))[0, 0].abs().max() > 1e-6


def test_positions_matter_only_by_their_differences(build):
    # random features see the turned vectors themselves and keep this only on average
    model = build(SoftmaxConfig())
    tokens = residues(20)
    positions = torch.arange(20)[None]
    difference = model(tokens, positions_BL=positions) - model(tokens, positions_BL=positions + 1000)
    assert difference.abs().max() < 1e-9


def test_weights_are_a_function_of_the_seed(build, attention):
    first, second = build(attention), build(attention)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.fixture
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64_by_default")
def test_a_seed_is_one_model_whatever_the_default_dtype(attention):
    settings = ModelConfig(
        num_layers=2, hidden_size=32, num_heads=2, feed_forward_size=48, local_convolution=3, attention=attention
    )
    model = MaskedLM(settings, seed=3)
    model.start_at_frequencies(list(range(1, 34)))
    torch.set_default_dtype(torch.float32)
    expected = MaskedLM(settings, seed=3)
    expected.start_at_frequencies(list(range(1, 34)))
    for name, weight in model.state_dict().items():
        assert weight.dtype == torch.float64
        assert torch.equal(weight.float(), expected.state_dict()[name]), name


def test_a_seed_keeps_its_meaning():
    model = MaskedLM(ModelConfig(num_layers=1, hidden_size=32, num_heads=2, feed_forward_size=48), seed=3)
    drawn = model.encoder.embedding.weight[0, :3].tolist()
    assert drawn == pytest.approx([0.00188301, 0.00953406, -0.00055638], rel=1e-5)


def test_building_a_model_leaves_the_global_generator_alone(build, attention):
    before = torch.random.get_rng_state()
    build(attention)
    assert torch.equal(before, torch.random.get_rng_state())


def test_all_parameters_get_finite_gradients(build, attention):
    model = build(attention, local_convolution=3)
    model(residues(25)).logsumexp(-1).sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.abs().max() > 0, name


def test_output_starts_at_the_frequencies_of_the_tokens(build, attention):
    model = build(attention)
    counts = [0] * 4 + [10 * (i + 1) for i in range(20)] + [0] * 9
    model.start_at_frequencies(counts)
    # at the start hidden states hardly matter: the bias alone decides
    probabilities = model(residues(50)).softmax(-1).mean((0, 1))
    expected = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    assert (probabilities - expected).abs().max() < 0.02


def test_another_mechanism_shares_the_weights(build):
    model = build(FavorConfig(num_random_features=16))
    exact = model.with_attention(SoftmaxConfig())
    pairs = zip(model.parameters(), exact.parameters(), strict=True)
    assert all(a.data_ptr() == b.data_ptr() for a, b in pairs)
    assert exact.config.attention == SoftmaxConfig()


def test_favor_comes_close_to_softmax_with_many_features(build):
    model = build(FavorConfig(num_random_features=4096), max_temperature=1.0)
    tokens = residues(30)
    exact = model.with_attention(SoftmaxConfig())(tokens)
    few = model.with_attention(FavorConfig(num_random_features=8))(tokens)
    many = model(tokens)
    assert (many - exact).norm() < (few - exact).norm() / 4


def test_redraw_follows_the_optimiser_step(build):
    model = build(FavorConfig(num_random_features=16, redraw_interval=10))
    tokens = residues(30)
    first = model(tokens)
    model.set_step(9)
    assert torch.equal(model(tokens), first)
    model.set_step(10)
    assert not torch.equal(model(tokens), first)


def test_observer_sees_every_layer(build, attention):
    seen: list[tuple[str, int]] = []

    class Watcher:
        def hidden(self, layer, hidden_BLD):
            seen.append(("hidden", layer))
            self.last = hidden_BLD

        def attention(self, layer, inputs, out_BLHK, visibility):
            seen.append(("attention", layer))
            assert all(x.shape == out_BLHK.shape for x in inputs)
            assert (visibility.num_windows, visibility.length) == out_BLHK.shape[:2]

    model, watcher = build(attention), Watcher()
    hidden = model.encode(residues(11), observer=watcher)
    assert seen == [("hidden", 0), ("attention", 0), ("hidden", 1), ("attention", 1), ("hidden", 2)]
    assert torch.equal(watcher.last, hidden)


def test_shapes_that_do_not_fit_are_refused_by_name(build, attention):
    model = build(attention)
    with pytest.raises(ShapeError, match=r"key mask is torch.bool \(1, 4\); expected torch.bool \(1, 5\)"):
        model(residues(5), key_mask_BL=torch.ones(1, 4, dtype=torch.bool))


@pytest.mark.parametrize("sizes", [(1, 0), (0, 5), (0, 0)], ids=["no position", "no window", "neither"])
@pytest.mark.parametrize("reversible", [False, True], ids=["ordinary", "reversible"])
@pytest.mark.parametrize("name", list(SMALL))
def test_where_there_is_no_token_nothing_comes_out_and_weights_get_gradients_of_zero(build, name, reversible, sizes):
    model = build(SMALL[name], reversible=reversible, local_convolution=3)
    logits = model(torch.zeros(sizes, dtype=torch.int64))
    assert logits.shape == (*sizes, 33)
    logits.sum().backward()
    assert not any(weight.grad.any() for weight in model.encoder.blocks.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 30, "num_heads": 4}, "expected a multiple of 2 \\* num_heads = 8"),
        ({"dropout": 1.0}, "expected a share"),
        ({"local_convolution": 4}, "odd width"),
        ({"num_layers": 0}, "expected 1 or more"),
    ],
)
def test_impossible_sizes_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**settings)


def test_model_runs_in_half_precision(attention):
    model = MaskedLM(
        ModelConfig(num_layers=1, hidden_size=32, num_heads=2, feed_forward_size=32, attention=attention), seed=0
    )
    expected = model(residues(40))
    assert (model.to(torch.bfloat16)(residues(40)).float() - expected).abs().max() < 0.05
