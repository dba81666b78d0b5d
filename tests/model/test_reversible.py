"""The reversible trunk against the same function by ordinary autograd."""

from __future__ import annotations

import copy

import pytest
import torch

from proteinlm.attention import LshConfig, ScatterbrainConfig, SoftmaxConfig
from proteinlm.attention.interface import Attention
from proteinlm.attention.mechanisms import MECHANISMS
from proteinlm.errors import ConfigError, PrecisionError
from proteinlm.model import ModelConfig, encoder
from proteinlm.model.block import Block
from proteinlm.model.reversible import run_reversible
from tests.model.conftest import residues, step_peak

TOLERANCE = 1e-10

LENGTH = 23

# each kind, those that hash with so few positions together that a window falls into several chunks or blocks
ATTENTION = {kind: config() for kind, (config, _) in MECHANISMS.items()} | {
    "lsh": LshConfig(chunk_length=3, num_hashes=2),
    "lsh, separate": LshConfig(shared_query_key=False, chunk_length=3, num_sampled_keys=4),
    "scatterbrain": ScatterbrainConfig(num_random_features=16, block_length=3),
}

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


def windows(seed=0):
    return torch.cat([residues(LENGTH, seed), residues(LENGTH, seed + 1)])


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


@pytest.mark.parametrize("precision", ["float", "exact"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("kind", ATTENTION)
def test_gradients_are_those_of_ordinary_autograd(build, by_autograd, kind, layout, precision):
    attention = ATTENTION[kind]
    settings = {"num_layers": 3, "dropout": 0.1, "reversible": True, "reversible_precision": precision}
    whole = build(attention, **settings).train()
    model = build(attention, feed_forward_chunk=7, **settings).train()
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
    increments = []
    plain = Block.feed

    def feed(self, x_BLD, around):
        increments.append(plain(self, x_BLD, around))
        return increments[-1]

    monkeypatch.setattr(Block, "feed", feed)
    loss_of(model).backward()
    forward, again = increments[:3], increments[:2:-1]
    for one, other in zip(forward, again, strict=True):
        assert (one == 0).any()
        assert torch.equal(one == 0, other == 0)


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

    def attention(self, layer, q_BLHK, k_BLHK, v_BLHK, out_BLHK):
        self.seen.append((layer, torch.stack((q_BLHK, k_BLHK, v_BLHK, out_BLHK)).detach()))


def test_observer_sees_each_layer_once_and_the_average_of_the_streams(model, by_autograd):
    watcher, expected = Watcher(), Watcher()
    loss_of(model, observer=watcher).backward()
    with by_autograd:
        loss_of(model, observer=expected)
    assert [layer for layer, _ in watcher.seen] == [0, 0, 1, 1, 2, 2, 3]
    for (layer, found), (other, wanted) in zip(watcher.seen, expected.seen, strict=True):
        assert layer == other
        assert (found - wanted).abs().max() < TOLERANCE


def test_weights_have_the_names_of_an_ordinary_model(build):
    ordinary, model = build(SoftmaxConfig()), build(SoftmaxConfig(), reversible=True)
    model.load_state_dict(ordinary.state_dict())
    assert model.state_dict().keys() == ordinary.state_dict().keys()


def inputs_of_halves(monkeypatch):
    """Record what every half of a block is computed from."""
    seen = []
    for name in ("attend", "feed"):
        plain = getattr(Block, name)

        def half(self, x_BLD, around, plain=plain):
            seen.append(x_BLD.detach().clone())
            return plain(self, x_BLD, around)

        monkeypatch.setattr(Block, name, half)
    return seen


def deep(build, kind, precision, **settings):
    sizes = {"num_layers": 24, "hidden_size": 16, "num_heads": 2, "feed_forward_size": 16, "dropout": 0.1} | settings
    model = build(ATTENTION[kind], reversible=True, reversible_precision=precision, **sizes).float().train()
    with torch.no_grad():
        for block in model.encoder.blocks:
            # increments as large as those of a trained model
            block.attention_output.weight *= 200
            block.feed_forward.outer.weight *= 200
    return model


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ATTENTION)
def test_exact_streams_are_computed_back_to_the_bit(build, monkeypatch, kind, autocast):
    model = deep(build, kind, "exact", feed_forward_chunk=6)
    seen = inputs_of_halves(monkeypatch)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = model.encode(windows(), dropout_keys_B=[1, 2]).float().square().sum()
    loss.backward()
    forward, again = seen[:48], seen[:47:-1]
    assert len(again) == 48
    assert all(torch.equal(one, other) for one, other in zip(forward, again, strict=True))
    assert max(x.abs().max() for x in forward) > 1


def test_float_streams_are_computed_back_up_to_rounding(build, monkeypatch):
    model = deep(build, "softmax", "float")
    seen = inputs_of_halves(monkeypatch)
    model.encode(windows(), dropout_keys_B=[1, 2]).square().sum().backward()
    forward, again = seen[:48], seen[:47:-1]
    assert not torch.equal(forward[0], again[0])
    largest = max(float(x.abs().max()) for x in forward)
    # 2 * 24 sums and differences, each rounded by half a unit of the largest value and carried on by the layers
    error = max(float((one - other).abs().max()) for one, other in zip(forward, again, strict=True))
    assert error < 48 * 48 * largest * 2**-24


def test_stream_beyond_the_exact_range_is_named(build):
    model = deep(build, "softmax", "exact", num_layers=4)
    with torch.no_grad():
        model.encoder.blocks[2].feed_forward.outer.bias[3] = 1500.0
    expected = r"layer 2: a stream of the reversible trunk reaches 1,5\d\d\.\d; exact reconstruction holds below 1,024"
    with pytest.raises(PrecisionError, match=expected), torch.no_grad():
        model.encode(windows())


def test_embedding_beyond_the_exact_range_is_named(build):
    model = deep(build, "softmax", "exact", num_layers=1)
    with torch.no_grad():
        model.encoder.embedding.weight += 2000
    with pytest.raises(PrecisionError, match=r'the embedding: .* set model\.reversible_precision = "float"'):
        model.encode(windows())


class HashingAttention(Attention):
    """Chooses by the last bits of its queries, which rounding flips."""

    is_exact = False

    def __init__(self, head_dim, *, listens=True):
        super().__init__(head_dim)
        self.listens = listens
        self.used = []
        self.num_chosen = 0

    def _attend_form(self, q_BLHK, k_BLHK, v_BLHK, key_mask_BL, cu_seqlens, is_causal, choices):
        def choose():
            self.num_chosen += 1
            return ((q_BLHK.detach() * 2**24).floor() % 2).to(torch.int16)

        bucket_BLHK = choose() if choices is None or not self.listens else choices.make(choose)
        self.used.append(bucket_BLHK)
        return v_BLHK * (1 + bucket_BLHK) + q_BLHK

    def _attend(self, *_):
        raise AssertionError("unused")

    def _map(self, *_):
        raise AssertionError("unused")


def hashing(build, precision, **options):
    model = deep(build, "softmax", precision)
    for block in model.encoder.blocks:
        block.attention = HashingAttention(8, **options)
    model.encode(windows()).square().sum().backward()
    return [block.attention for block in model.encoder.blocks]


def test_choices_are_repeated_where_rounding_would_change_them(build):
    for mechanism in hashing(build, "float"):
        forward, again = mechanism.used
        assert torch.equal(forward, again)
        assert mechanism.num_chosen == 1
    # the same without being asked to repeat: this is what the choices are kept for
    assert not all(torch.equal(*mechanism.used) for mechanism in hashing(build, "float", listens=False))


def test_exact_streams_choose_again_what_they_chose(build):
    for mechanism in hashing(build, "exact"):
        assert torch.equal(*mechanism.used)
        assert mechanism.num_chosen == 2


def test_two_passes_keep_their_own_choices(build):
    model = deep(build, "softmax", "float", num_layers=2)
    mechanism = model.encoder.blocks[0].attention = HashingAttention(8)
    (model.encode(windows(0)).sum() + model.encode(windows(7)).sum()).backward()
    first, second, *again = mechanism.used
    assert not torch.equal(first, second)
    assert {id(x) for x in again} == {id(first), id(second)}


@pytest.mark.parametrize("precision", ["float", "exact"])
@pytest.mark.parametrize("kind", ATTENTION)
def test_memory_of_a_step_does_not_grow_with_depth(build, kind, precision):
    settings = {"reversible": True, "reversible_precision": precision, "dropout": 0.1}
    peaks = [step_peak(build(ATTENTION[kind], num_layers=n, **settings), residues(64)) for n in (4, 32)]
    if precision == "exact":
        assert peaks[1] <= 1.05 * peaks[0]
    else:
        # int16 and int32 choices are kept; a mechanism that chooses nothing keeps nothing
        ordinary = step_peak(build(ATTENTION[kind], num_layers=32), residues(64))
        assert peaks[1] <= 1.05 * peaks[0] or peaks[1] < ordinary / 2


def test_memory_of_an_ordinary_trunk_grows_with_depth(build):
    shallow, deeper = (step_peak(build(SoftmaxConfig(), num_layers=n), residues(64)) for n in (4, 32))
    assert deeper > 5 * shallow


def test_forward_pass_saves_two_streams_whatever_the_depth(build):
    saved = {}
    for depth in (2, 8):
        sizes = []
        model = build(SoftmaxConfig(), num_layers=depth, reversible=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.nbytes) or x, lambda x: x):
            model.encode(residues(50))
        saved[depth] = sum(sizes)
    assert saved[2] == saved[8]


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
