"""What a reversible trunk computes back, what it keeps for that, and where it cannot."""

from __future__ import annotations

import pytest
import torch

from proteinlm.attention import SoftmaxConfig
from proteinlm.attention.interface import Attention
from proteinlm.errors import PrecisionError
from proteinlm.model.block import Block
from tests.model.conftest import SMALL, residues, step_peak, windows


def inputs_of_halves(monkeypatch):
    """Record what every half of a block is computed from, there and back."""
    seen = []
    for name in ("attend", "feed", "feed_back"):
        plain = getattr(Block, name)

        def half(self, x_BLD, *others, plain=plain):
            seen.append(x_BLD.detach().clone())
            return plain(self, x_BLD, *others)

        monkeypatch.setattr(Block, name, half)
    return seen


def deep(build, kind, precision, **settings):
    sizes = {"num_layers": 24, "hidden_size": 16, "num_heads": 2, "feed_forward_size": 16, "dropout": 0.1} | settings
    model = build(SMALL[kind], reversible=True, reversible_precision=precision, **sizes).float().train()
    with torch.no_grad():
        for block in model.encoder.blocks:
            # increments as large as those of a trained model
            block.attention_output.weight *= 200
            block.feed_forward.outer.weight *= 200
    return model


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", SMALL)
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

    def _attend(self, q_BLHK, k_BLHK, v_BLHK, visibility, choices):
        def choose():
            self.num_chosen += 1
            return ((q_BLHK.detach() * 2**24).floor() % 2).to(torch.int16)

        bucket_BLHK = choose() if choices is None or not self.listens else choices.make(choose)
        self.used.append(bucket_BLHK)
        return v_BLHK * (1 + bucket_BLHK) + q_BLHK

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
@pytest.mark.parametrize("kind", SMALL)
def test_memory_of_a_step_does_not_grow_with_depth(build, kind, precision):
    settings = {"reversible": True, "reversible_precision": precision, "dropout": 0.1}
    peaks = [step_peak(build(SMALL[kind], num_layers=n, **settings), residues(64)) for n in (4, 12)]
    # without rounding, choices are kept: at most one int32 for each of 4 heads, 2 rounds or sides and 64 tokens
    kept = 0 if precision == "exact" else 8 * 4 * 2 * 64 * 4
    assert peaks[1] <= 1.015 * peaks[0] + kept


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
