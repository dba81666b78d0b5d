"""The reversible trunk against the same function by ordinary autograd."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from proteinlm.attention import SoftmaxConfig
from proteinlm.attention.mechanisms import MECHANISMS
from proteinlm.errors import ConfigError
from proteinlm.model import ModelConfig, encoder
from proteinlm.model.block import Block
from proteinlm.model.dropout import KeyedDropout
from proteinlm.model.reversible import run_reversible
from tests.model.conftest import LENGTH, SMALL, residues, windows

TOLERANCE = 1e-10

LAYOUTS = {
    "windows": {},
    "packed": {"cu_seqlens": torch.tensor([0, 9, 10, 23, 23 + 17, 46], dtype=torch.int32)},
    "holes": {"key_mask_BL": torch.arange(2 * LENGTH).view(2, LENGTH) % 5 != 3},
}


def two_streams(blocks, start_BLD, around, *, precision):
    """The oracle: y1 = x1 + F(x2), y2 = x2 + G(y1), and autograd keeps everything."""
    grid = 2.0 ** (40 if start_BLD.dtype == torch.float64 else 14)

    def stream(x_BLD):
        x_BLD = x_BLD if x_BLD.dtype == torch.float64 else x_BLD.float()
        return x_BLD if precision == "float" else x_BLD + ((x_BLD * grid).round() / grid - x_BLD).detach()

    one_BLD = two_BLD = stream(start_BLD)
    for layer, block in enumerate(blocks):
        one_BLD = one_BLD + stream(block.attend(two_BLD.to(start_BLD.dtype), around))
        two_BLD = two_BLD + stream(block.feed(one_BLD.to(start_BLD.dtype), around))
        if around.observer is not None and layer + 1 < len(blocks):
            around.observer.hidden(layer + 1, (one_BLD + two_BLD) / 2)
    return ((one_BLD + two_BLD) / 2).to(start_BLD.dtype)


@pytest.fixture
def by_autograd(monkeypatch):
    """Compute with an ordinary two-stream loop, without chunks, inside the context."""

    class Ordinary:
        def __enter__(self):
            monkeypatch.setattr(encoder, "run_reversible", two_streams)

        def __exit__(self, *_):
            monkeypatch.setattr(encoder, "run_reversible", run_reversible)

    return Ordinary()


@pytest.fixture(params=["float", "exact"])
def model(request, build):
    settings = {"num_layers": 3, "dropout": 0.1, "local_convolution": 3}
    return build(SoftmaxConfig(), reversible=True, reversible_precision=request.param, **settings).train()


def loss_of(model, seed=0, **inputs):
    direction = torch.randn(32, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    hidden_BLD = model.encode(windows(seed), dropout_keys_B=[seed + 5, seed + 6], **inputs)
    return (hidden_BLD.square() @ direction.to(hidden_BLD.dtype)).sum()


def take_gradients(model):
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad(set_to_none=True)
    return gradients


def distance(one, other):
    assert one.keys() == other.keys()
    assert one
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_small_settings_are_of_every_mechanism():
    assert {attention.kind for attention in SMALL.values()} == set(MECHANISMS)


@pytest.mark.parametrize("precision", ["float", "exact"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("kind", SMALL)
def test_gradients_are_those_of_ordinary_autograd(build, by_autograd, kind, layout, precision):
    settings = {"num_layers": 3, "dropout": 0.1, "reversible": True, "reversible_precision": precision}
    whole = build(SMALL[kind], **settings).train()
    model = build(SMALL[kind], feed_forward_chunk=7, **settings).train()
    with by_autograd:
        expected_loss = loss_of(whole, **layout)
        expected_loss.backward()
    loss = loss_of(model, **layout)
    loss.backward()
    assert abs(loss - expected_loss) < TOLERANCE
    gradients = take_gradients(model)
    assert gradients.keys() == {name for name, _ in model.named_parameters() if name.startswith("encoder.")}
    assert distance(gradients, take_gradients(whole)) < TOLERANCE


def test_dropout_of_the_recomputation_is_that_of_the_forward_pass(model, monkeypatch):
    kept = []
    plain = KeyedDropout.draw

    def draw(self, x_BLD, keys_B):
        kept.append(plain(self, x_BLD, keys_B))
        return kept[-1]

    monkeypatch.setattr(KeyedDropout, "draw", draw)
    loss_of(model).backward()
    forward, again = kept[:6], kept[:5:-1]
    for one, other in zip(forward, again, strict=True):
        assert not one.all()
        assert torch.equal(one, other)


def test_parameters_are_trained_where_the_input_needs_no_gradient(model, by_autograd):
    for name, weight in model.named_parameters():
        weight.requires_grad_("blocks" in name)
    loss_of(model).backward()
    gradients = take_gradients(model)
    with by_autograd:
        loss_of(model).backward()
    assert distance(gradients, take_gradients(model)) < TOLERANCE


@pytest.mark.parametrize("trains_embedding", [True, False], ids=["embedding", "no embedding"])
@pytest.mark.parametrize("frozen", [[0], [1], [2], [0, 1], [0, 1, 2]], ids=str)
def test_frozen_layers_get_no_gradient_and_let_it_through(model, by_autograd, frozen, trains_embedding):
    for layer in frozen:
        model.encoder.blocks[layer].requires_grad_(False)
    model.encoder.embedding.requires_grad_(trains_embedding)
    model.encoder.local_convolution.requires_grad_(trains_embedding)
    loss_of(model).backward()
    gradients = take_gradients(model)
    with by_autograd:
        loss_of(model).backward()
    assert distance(gradients, take_gradients(model)) < TOLERANCE


def test_frozen_half_of_a_block_lets_the_gradient_through(model, by_autograd):
    model.encoder.blocks[1].feed_forward.requires_grad_(False)
    model.encoder.blocks[1].feed_forward_norm.requires_grad_(False)
    loss_of(model).backward()
    gradients = take_gradients(model)
    with by_autograd:
        loss_of(model).backward()
    assert distance(gradients, take_gradients(model)) < TOLERANCE


def test_wholly_frozen_encoder_asks_for_no_gradient(model):
    model.encoder.requires_grad_(False)
    assert not model.encode(windows()).requires_grad


def test_two_forward_passes_may_wait_for_one_backward(model, by_autograd):
    (loss_of(model, seed=0) * loss_of(model, seed=40)).backward()
    gradients = take_gradients(model)
    with by_autograd:
        (loss_of(model, seed=0) * loss_of(model, seed=40)).backward()
    # the product of two losses, each of order 1e2
    assert distance(gradients, take_gradients(model)) < 1e3 * TOLERANCE


def test_gradients_add_up_over_backward_passes(model):
    loss_of(model, seed=0).backward()
    first = take_gradients(model)
    loss_of(model, seed=40).backward()
    second = take_gradients(model)
    loss_of(model, seed=0).backward()
    loss_of(model, seed=40).backward()
    assert distance(take_gradients(model), {name: first[name] + second[name] for name in first}) < TOLERANCE


def test_backward_works_in_evaluation_mode(model, by_autograd):
    model.eval()
    loss_of(model).backward()
    gradients = take_gradients(model)
    with by_autograd:
        loss_of(model).backward()
    assert distance(gradients, take_gradients(model)) < TOLERANCE


def test_change_of_mode_before_backward_changes_nothing(model, by_autograd):
    with by_autograd:
        loss_of(model).backward()
    expected = take_gradients(model)
    loss = loss_of(model)
    model.eval()
    loss.backward()
    assert distance(take_gradients(model), expected) < TOLERANCE
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("is_inside", [False, True], ids=["backward outside", "backward inside"])
def test_recomputation_sees_the_autocast_of_the_forward_pass(build, by_autograd, is_inside):
    model = build(SoftmaxConfig(), reversible=True, reversible_precision="exact", dropout=0.1).float().train()

    def run():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            # without gradient first: autocast would keep casts that no gradient flows through
            with torch.no_grad():
                loss_of(model)
            loss = loss_of(model)
            if is_inside:
                loss.backward()
        if not is_inside:
            loss.backward()
        return take_gradients(model)

    gradients = run()
    with by_autograd:
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model)
        loss.backward()
    expected = take_gradients(model)
    # all activations are computed back to the bit: only sums in another order differ
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).norm() <= 1e-5 * expected[name].norm(), name


def test_streams_of_a_bfloat16_model_are_float32(build, monkeypatch):
    model = build(SoftmaxConfig(), reversible=True).to(torch.bfloat16)
    seen = []
    plain = Block.attend
    monkeypatch.setattr(Block, "attend", lambda self, x, around: seen.append(x.dtype) or plain(self, x, around))
    hidden_BLD = model.encode(residues(9))
    hidden_BLD.sum().backward()
    assert hidden_BLD.dtype == torch.bfloat16
    assert set(seen) == {torch.bfloat16}
    assert all(weight.grad.dtype == torch.bfloat16 for weight in model.encoder.parameters())


def test_second_derivatives_are_refused(model):
    with pytest.raises(RuntimeError, match="differentiable once"):
        loss_of(model).backward(create_graph=True)


def test_gradients_that_are_not_accumulated_are_refused(model):
    loss = loss_of(model)
    with pytest.raises(RuntimeError, match=r"not torch\.autograd\.grad"):
        torch.autograd.grad(loss, model.encoder.embedding.weight)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_output_is_the_same_to_the_bit(model, context):
    model.eval()
    with context():
        hidden_BLD = model.encode(windows())
    assert torch.equal(hidden_BLD, model.encode(windows()))


class Watcher:
    def __init__(self):
        self.seen = []

    def hidden(self, layer, hidden_BLD):
        self.seen.append((layer, hidden_BLD.detach()))

    def attention(self, layer, inputs, out_BLHK, visibility):
        self.seen.append((layer, torch.stack((*inputs, out_BLHK)).detach()))


def test_observer_sees_each_layer_once_and_the_average_of_the_streams(model, by_autograd):
    watcher, expected = Watcher(), Watcher()
    loss_of(model, observer=watcher).backward()
    with by_autograd:
        loss_of(model, observer=expected)
    assert [layer for layer, _ in watcher.seen] == [0, 0, 1, 1, 2, 2, 3]
    for (layer, found), (other, wanted) in zip(watcher.seen, expected.seen, strict=True):
        assert layer == other
        assert (found - wanted).abs().max() < TOLERANCE


def test_hooks_of_blocks_are_silent_and_those_of_their_parts_fire_as_the_page_says(build, project_root):
    model, heard = build(SoftmaxConfig(), reversible=True), []
    block = model.encoder.blocks[0]
    block.register_forward_hook(lambda *_: heard.append("block"))
    block.attention.register_forward_hook(lambda *_: heard.append("attention"))
    model(windows()).sum().backward()
    # forward, and once more on the way back
    assert heard == ["attention", "attention"]
    page = (project_root / "docs" / "reformer_trunk.md").read_text()
    assert "A forward hook on a block is never called" in page


def test_weights_have_the_names_of_an_ordinary_model(build):
    ordinary, model = build(SoftmaxConfig()), build(SoftmaxConfig(), reversible=True)
    model.load_state_dict(ordinary.state_dict())
    assert model.state_dict().keys() == ordinary.state_dict().keys()


def test_causal_encoding_sees_no_later_token(build):
    model = build(SoftmaxConfig(), reversible=True)
    tokens = residues(20)
    changed = tokens.clone()
    changed[0, 12] = 4 + (changed[0, 12] - 3) % 20
    difference = (model.encode(tokens, is_causal=True) - model.encode(changed, is_causal=True)).abs().amax(-1)[0]
    assert difference[:12].max() == 0
    assert difference[12:].min() > 0


def test_causal_encoding_refuses_a_convolution_that_looks_ahead(build):
    model = build(SoftmaxConfig(), local_convolution=3)
    with pytest.raises(ConfigError, match=r"model\.local_convolution is 3, which sees later tokens"):
        model.encode(residues(5), is_causal=True)


def test_precision_without_a_reversible_trunk_is_refused():
    with pytest.raises(ValueError, match="reversible_precision is exact, but reversible is false"):
        ModelConfig(reversible_precision="exact")


def test_copy_of_a_reversible_model_answers_alike(model):
    assert torch.equal(copy.deepcopy(model).eval().encode(windows()), model.eval().encode(windows()))


def test_weight_that_changes_before_backward_is_an_error(model):
    loss = loss_of(model)
    with torch.no_grad():
        model.encoder.blocks[1].feed_forward_norm.bias += 1
    with pytest.raises(RuntimeError, match="a weight has changed since the forward pass; call backward"):
        loss.backward()


@pytest.mark.parametrize("kind", [kind for kind, config in SMALL.items() if hasattr(config, "redraw_interval")])
def test_draw_that_changes_before_backward_is_an_error(build, kind):
    attention = dataclasses.replace(SMALL[kind], redraw_interval=10)
    model = build(attention, reversible=True)
    loss = loss_of(model)
    model.set_step(9)
    loss.backward()
    loss = loss_of(model)
    model.set_step(10)
    with pytest.raises(RuntimeError, match="the random draw of a mechanism has changed since the forward pass"):
        loss.backward()


def test_backward_may_run_twice_where_the_graph_is_kept(model):
    loss = loss_of(model)
    loss.backward(retain_graph=True)
    first = take_gradients(model)
    loss.backward()
    assert distance(take_gradients(model), first) == 0


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="reversible_precision is Exact; expected 'float' or 'exact'"):
        ModelConfig(reversible=True, reversible_precision="Exact")
