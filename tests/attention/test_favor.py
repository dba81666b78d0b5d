from __future__ import annotations

import logging

import pytest
import torch

from proteinlm.attention import FavorAttention, FavorConfig
from proteinlm.attention.favor import choose_implementation


def build(layer: int = 0, seed: int = 0, **settings: object) -> FavorAttention:
    config = FavorConfig(num_random_features=8, **settings)
    return FavorAttention(config, head_dim=6, layer=layer, seed=seed)


def test_rows_are_redrawn_each_interval_of_optimiser_steps():
    attention = build(redraw_interval=10)
    drawn = []
    for step in (0, 9, 10, 19, 20):
        attention.set_step(step)
        drawn.append(attention.rows())
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[2], drawn[3])
    assert not torch.isclose(drawn[1], drawn[2]).any()
    assert not torch.isclose(drawn[3], drawn[4]).any()


def test_going_back_to_a_step_brings_its_rows_back():
    attention = build(redraw_interval=10)
    first = attention.rows()
    attention.set_step(500)
    attention.rows()
    attention.set_step(3)
    assert torch.equal(attention.rows(), first)


def test_without_an_interval_the_first_draw_stays():
    attention = build(redraw_interval=0)
    first = attention.rows()
    attention.set_step(10**6)
    assert torch.equal(attention.rows(), first)


def test_another_run_of_the_same_step_uses_the_same_rows():
    one, other = build(layer=1, seed=7), build(layer=1, seed=7)
    one.redraw_index = other.redraw_index = 4
    assert torch.equal(one.rows(), other.rows())


@pytest.mark.parametrize("name", ["layer", "seed"])
def test_layers_and_seeds_use_different_rows(name):
    assert not torch.isclose(build().rows(), build(**{name: 1}).rows()).any()


def test_half_leaves_the_rows_in_float32():
    attention = build()
    before = attention.rows()
    assert torch.equal(attention.half().rows(), before)


def test_float64_inputs_get_float64_rows():
    q, k, v = (torch.randn(1, 4, 2, 6, dtype=torch.float64) for _ in range(3))
    attention = build()
    rounded = [x.float() for x in (q, k, v)]
    assert attention(q, k, v).dtype == torch.float64
    assert attention(*rounded).dtype == torch.float32
    assert attention.rows(dtype=torch.float64).float().equal(attention.rows())


def test_hyperbolic_features_come_in_pairs_of_opposite_rows():
    attention = build(feature_map="hyperbolic")
    rows = attention.rows()
    assert len(rows) == 8
    assert torch.equal(rows[:4], -rows[4:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_random_features": 0}, "num_random_features is 0; expected 1 or more"),
        ({"num_random_features": 7, "feature_map": "hyperbolic"}, "num_random_features is 7; expected an even number"),
        ({"redraw_interval": -1}, "redraw_interval is -1; expected 1 or more, or 0"),
    ],
    ids=["no features", "odd hyperbolic", "no interval"],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FavorConfig(**settings)


def test_auto_says_once_what_it_chose(caplog):
    choose_implementation.cache_clear()
    with caplog.at_level(logging.INFO, "proteinlm.attention.favor"):
        build()
        build(layer=1)
    assert [record.getMessage() for record in caplog.records] == ["FAVOR+ runs eager, its only implementation"]


def test_rows_drawn_in_inference_mode_serve_training_too():
    attention = FavorAttention(FavorConfig(num_random_features=8), head_dim=4, layer=0, seed=0)
    q_BLHK = torch.randn(1, 5, 1, 4, requires_grad=True)
    with torch.inference_mode():
        attention(q_BLHK, q_BLHK, q_BLHK)
    attention(q_BLHK, q_BLHK, q_BLHK).sum().backward()
    assert q_BLHK.grad.isfinite().all()
