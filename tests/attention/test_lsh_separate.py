from __future__ import annotations

import pytest
import torch

from proteinlm.attention import LshConfig, ScatterbrainConfig, build_attention
from proteinlm.attention.choices import Choices
from proteinlm.errors import UnavailableError

HEAD_DIM = 6


SETTINGS = LshConfig(shared_query_key=False, chunk_length=4, num_sampled_keys=3, redraw_interval=10)


def build(kind: str, seed: int = 3, layer: int = 2):
    if kind == "scatterbrain":
        config = ScatterbrainConfig(num_random_features=8, block_length=4, redraw_interval=10)
        return build_attention(config, head_dim=HEAD_DIM, layer=layer, seed=seed)
    return build_attention(SETTINGS, head_dim=HEAD_DIM, layer=layer, seed=seed)


@pytest.fixture(params=["separate", "scatterbrain"])
def kind(request):
    return request.param


def draw() -> list[torch.Tensor]:
    return [torch.randn(2, 19, 3, HEAD_DIM, dtype=torch.float64) for _ in range(3)]


OPTIONS = {
    "key_mask_BL": torch.arange(38).view(2, 19) % 5 > 0,
    "cu_seqlens": torch.tensor([0, 3, 19, 38], dtype=torch.int32),
}


def test_the_map_of_some_heads_times_the_values_is_the_output(kind):
    attention, (q, k, v) = build(kind), draw()
    map_BHRL = attention.attention_map(q, k, rows=slice(2, 7), heads=slice(1, 3), **OPTIONS)
    product = torch.einsum("bhrl,blhk->brhk", map_BHRL, v[:, :, 1:])
    torch.testing.assert_close(product, attention(q, k, v, **OPTIONS)[:, 2:7, 1:])


def test_rows_of_the_map_are_weights_that_sum_to_one(kind):
    q, k, _ = draw()
    map_BHLL = build(kind).attention_map(q, k, **OPTIONS)
    assert (map_BHLL >= 0).all()
    torch.testing.assert_close(map_BHLL.sum(-1), torch.ones(2, 3, 19, dtype=torch.float64))


def test_a_draw_lasts_for_its_interval(kind):
    attention, inputs = build(kind), draw()
    outs = {}
    for step in (0, 9, 10, 25):
        attention.set_step(step)
        outs[step] = attention(*inputs)
    assert torch.equal(outs[0], outs[9])
    assert not torch.equal(outs[9], outs[10])
    assert not torch.equal(outs[10], outs[25])
    attention.set_step(3)
    assert torch.equal(attention(*inputs), outs[0])


@pytest.mark.parametrize("other", [{"seed": 4}, {"layer": 1}], ids=str)
def test_another_seed_or_layer_draws_something_else(kind, other):
    inputs = draw()
    assert not torch.equal(build(kind)(*inputs), build(kind, **other)(*inputs))


def test_a_repetition_keeps_the_order_of_the_first_pass(kind):
    attention, (q, k, v) = build(kind), draw()
    choices = Choices()
    attention(q, k, v, choices=choices)
    # a reversed order of directions: nothing would fall into its old block again
    turned = attention(-q, k, v, choices=choices.repeat())
    assert not torch.equal(turned, attention(-q, k, v))
    assert torch.equal(attention(q, k, v, choices=choices.repeat()), attention(q, k, v))


def test_what_a_pass_keeps_is_two_numbers_of_32_bits_a_head(kind):
    choices = Choices()
    build(kind)(*draw(), choices=choices)
    kept = choices.repeat().make(lambda: torch.tensor(0))
    assert kept.dtype == torch.int32
    assert kept.shape == (2, 3, 38)


def test_there_is_no_causal_form(kind):
    attention, (q, k, v) = build(kind), draw()
    with pytest.raises(UnavailableError, match="Attention has no causal form; leave is_causal out"):
        attention(q, k, v, is_causal=True)
    with pytest.raises(UnavailableError, match="Attention has no causal form; leave is_causal out"):
        attention.attention_map(q, k, is_causal=True)


def test_a_second_derivative_is_refused(kind):
    inputs = [x.requires_grad_() for x in draw()]
    out = build(kind)(*inputs)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(out.sum(), inputs, create_graph=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_random_features": 0}, "num_random_features is 0; expected 1 or more"),
        ({"num_random_features": 7, "feature_map": "hyperbolic"}, "is 7; expected an even number"),
        ({"block_length": 0}, "block_length is 0; expected 1 or more tokens"),
        ({"redraw_interval": -1}, "redraw_interval is -1; expected 1 or more, or 0 for never"),
    ],
)
def test_settings_of_scatterbrain_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ScatterbrainConfig(**settings)


def test_hyperbolic_features_draw_half_as_many_rows():
    config = ScatterbrainConfig(num_random_features=8, feature_map="hyperbolic")
    rows = build_attention(config, head_dim=HEAD_DIM, layer=0, seed=0).rows()
    assert torch.equal(rows[:4], -rows[4:])
