from __future__ import annotations

import copy
import itertools
import math
import re

import pytest
import torch
from torch import Tensor

from proteinlm.attention import FavorAttention, FavorConfig
from proteinlm.errors import ConfigError, UnavailableError
from proteinlm.ops.random_features import favor_attention
from proteinlm.ops.softmax_attention import softmax_attention, softmax_map


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
    one.draw = other.draw = 4
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


# every setting that chooses what is computed, each map with each projection it is defined for
SETTINGS = [
    *({"feature_map": f, "projection": p} for f in ("positive", "hyperbolic") for p in ("iid", "regularised")),
    *({"feature_map": f, "projection": "iid"} for f in ("trigonometric", "oprf", "sderf", "saderf")),
    *({"feature_map": f, "centring": True} for f in ("positive", "hyperbolic", "trigonometric", "oprf", "sderf")),
    *({"feature_map": "generalised", "kernel_function": f} for f in ("relu", "exp", "gelu", "abs", "sigmoid")),
    *({"feature_map": "generalised", "kernel_function": f, "projection": "none"} for f in ("relu", "exp", "abs")),
    {"feature_map": "generalised", "projection": "regularised", "epsilon": 0.1},
]


def settings_id(settings: dict[str, object]) -> str:
    return " ".join(str(value) for value in settings.values())


@pytest.fixture(params=SETTINGS, ids=settings_id)
def configured(request) -> FavorAttention:
    num_features = 6 if request.param.get("projection") == "none" else 8
    config = FavorConfig(num_random_features=num_features, **request.param)
    return FavorAttention(config, head_dim=6, layer=0, seed=0).eval()


def packed() -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return q, k, v and the layout of two windows: segments of 3, 6, 8 and 1 positions, some hidden."""
    drawn = [torch.randn(2, 9, 3, 6, dtype=torch.float64) for _ in range(3)]
    hidden = torch.zeros(2, 9, dtype=torch.bool)
    hidden[0, 1] = hidden[1, 3] = hidden[1, 8] = True
    return drawn, {"key_mask_BL": ~hidden, "cu_seqlens": torch.tensor([0, 3, 9, 17, 18], dtype=torch.int32)}


def test_the_map_of_every_setting_times_the_values_is_the_output(configured):
    (q, k, v), options = packed()
    product = torch.einsum("bhrl,blhk->brhk", configured.attention_map(q, k, rows=slice(2, 7), **options), v)
    torch.testing.assert_close(product, configured(q, k, v, **options)[:, 2:7], rtol=1e-9, atol=1e-12)


def test_every_setting_uses_as_many_features_as_it_says(configured):
    rows_MK = configured.rows()
    num_rows = 6 if rows_MK is None else len(rows_MK)
    assert num_rows * (2 if configured.config.feature_map == "trigonometric" else 1) == (
        configured.config.num_random_features
    )


def test_a_copy_of_every_setting_gives_the_same_output(configured):
    (q, k, v), options = packed()
    assert torch.equal(copy.deepcopy(configured)(q, k, v, **options), configured(q, k, v, **options))


def test_trigonometric_features_are_not_trained_with():
    attention = build(feature_map="trigonometric")
    q, k, v = (torch.randn(1, 4, 2, 6, requires_grad=True) for _ in range(3))
    with pytest.raises(ConfigError, match="trigonometric features cannot be trained with"):
        attention(q, k, v)
    with torch.no_grad():
        expected = attention(q, k, v)
    assert torch.equal(attention.eval()(q, k, v), expected)


def test_features_without_projection_are_as_many_as_the_head_is_wide():
    with pytest.raises(
        ConfigError, match="num_random_features is 8; without projection there are as many as the head is wide, 6"
    ):
        build(feature_map="generalised", projection="none")


def segments_apart(attention: FavorAttention, inputs: list[Tensor], visible: Tensor) -> list[Tensor]:
    """Return what exact attention and the features give to the first and to the second six positions."""
    rows_MK = attention.rows(dtype=torch.float64)
    short, long = ([x[:, part] for x in inputs] for part in (slice(0, 6), slice(6, 20)))
    return [
        softmax_attention(*short, key_mask_BL=visible[:, :6]),
        favor_attention(*long, rows_MK, key_mask_BL=visible[:, 6:]),
    ]


def test_short_segments_are_exact_and_long_ones_by_features():
    attention = build(exact_below=6)
    inputs = [torch.randn(1, 20, 2, 6, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    visible = torch.ones(1, 20, dtype=torch.bool)
    # five visible tokens are fewer than six, six are not
    visible[0, 3] = visible[0, 12:] = False
    options = {"key_mask_BL": visible, "cu_seqlens": torch.tensor([0, 6, 20], dtype=torch.int32)}
    weights = torch.randn(1, 20, 2, 6, dtype=torch.float64)
    out = attention(*inputs, **options)
    expected = torch.cat(segments_apart(attention, inputs, visible), 1)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    for got, wanted in zip(
        torch.autograd.grad(out, inputs, weights), torch.autograd.grad(expected, inputs, weights), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def test_segments_come_back_to_their_places():
    attention = build(exact_below=5)
    ends = [0, 2, 11, 12, 14, 16, 21, 28]
    inputs = [torch.randn(2, 14, 2, 6, dtype=torch.float64) for _ in range(3)]
    cu_seqlens = torch.tensor(ends, dtype=torch.int32)
    together = attention(*inputs, cu_seqlens=cu_seqlens).view(1, 28, 2, 6)
    for start, stop in itertools.pairwise(ends):
        alone = [x.view(1, 28, 2, 6)[:, start:stop] for x in inputs]
        torch.testing.assert_close(together[:, start:stop], attention(*alone), rtol=0, atol=1e-10)


@pytest.mark.parametrize("num_pads", [0, 3, 60])
def test_padding_does_not_change_how_a_segment_is_computed(num_pads):
    attention = build(exact_below=10)
    q, k, v = (torch.randn(1, 9, 2, 6, dtype=torch.float64) for _ in range(3))
    padded = [torch.cat((x, torch.randn(1, num_pads, 2, 6, dtype=torch.float64)), 1) for x in (q, k, v)]
    out = attention(*padded, key_mask_BL=(torch.arange(9 + num_pads) < 9)[None])[:, :9]
    torch.testing.assert_close(out, softmax_attention(q, k, v), rtol=0, atol=1e-10)


def test_where_no_key_is_visible_adaptive_attention_is_zero():
    (q, k, v), options = packed()
    out = build(exact_below=4)(*(x.requires_grad_() for x in (q, k, v)), **options)
    out[1, 8].sum().backward()
    assert not any(x.any() for x in (out[1, 8], q.grad, k.grad, v.grad))


def test_maps_are_by_features_whatever_is_computed_exactly():
    (q, k, _), options = packed()
    by_features = build().attention_map(q, k, **options)
    assert torch.equal(build(exact_below=100).attention_map(q, k, **options), by_features)
    assert not torch.allclose(by_features, softmax_map(q, k, **options))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_random_features": 0}, "num_random_features is 0; expected 1 or more"),
        ({"num_random_features": 7, "feature_map": "hyperbolic"}, "num_random_features is 7; expected an even number"),
        (
            {"num_random_features": 7, "feature_map": "trigonometric"},
            "num_random_features is 7; expected an even number",
        ),
        ({"redraw_interval": -1}, "redraw_interval is -1; expected 1 or more, or 0"),
        ({"exact_below": -1}, "exact_below is -1; expected 1 or more, or 0"),
        ({"feature_map": "generalised", "exact_below": 9}, "exact_below is 9; generalised features do not estimate"),
        ({"feature_map": "generalised", "centring": True}, "centring is true; generalised kernels depend on"),
        ({"feature_map": "generalised", "epsilon": 0.0}, "epsilon is 0.0; expected more than 0"),
        (
            {"feature_map": "generalised", "kernel_function": "exp", "epsilon": 0.1},
            "epsilon is 0.1; the function exp is positive and takes none",
        ),
        ({"kernel_function": "abs"}, "kernel_function is abs; positive features have none"),
        ({"epsilon": 0.1}, "epsilon is 0.1; positive features have none"),
        ({"projection": "none"}, "projection is none; positive features are of random rows"),
        *(
            ({"projection": "regularised", "feature_map": name}, f"rows of one length bias {name} features")
            for name in ("trigonometric", "oprf", "sderf", "saderf")
        ),
    ],
    ids=lambda x: settings_id(x) if isinstance(x, dict) else "",
)
def test_settings_out_of_range_or_without_meaning_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        FavorConfig(**settings)


def test_rows_drawn_in_inference_mode_serve_training_too():
    attention = FavorAttention(FavorConfig(num_random_features=8), head_dim=4, layer=0, seed=0)
    q_BLHK = torch.randn(1, 5, 1, 4, requires_grad=True)
    with torch.inference_mode():
        attention(q_BLHK, q_BLHK, q_BLHK)
    attention(q_BLHK, q_BLHK, q_BLHK).sum().backward()
    assert q_BLHK.grad.isfinite().all()


@pytest.mark.parametrize(
    "settings",
    [
        {"centring": True},
        {"feature_map": "sderf"},
        {"feature_map": "trigonometric"},
        {"feature_map": "generalised"},
        {"exact_below": 4},
    ],
    ids=str,
)
def test_causal_form_of_what_has_none_is_refused(settings):
    attention = FavorAttention(FavorConfig(num_random_features=8, **settings), head_dim=4, layer=0, seed=0).eval()
    q_BLHK = torch.randn(1, 5, 1, 4)
    with pytest.raises(UnavailableError, match="no causal form"):
        attention(q_BLHK, q_BLHK, q_BLHK, is_causal=True)
    with pytest.raises(UnavailableError, match="no causal form"):
        attention.prefill(q_BLHK, q_BLHK, q_BLHK)


def test_the_page_on_attention_begins_with_lines_that_run_in_somebody_elses_model(project_root):
    page = (project_root / "docs" / "attention.md").read_text()
    block = re.search(r"```python\n(.*?)```", page[:1500], re.DOTALL)
    torch_layout = [torch.randn(1, 4, 300, 64) for _ in range(3)]
    names = dict(zip("qkv", (x.transpose(1, 2) for x in torch_layout), strict=True))
    # short queries and keys, as the page asks for
    names |= {name: 2 * torch.nn.functional.normalize(names[name], dim=-1) for name in "qk"}
    # positive values: an output is then in error by no more than the weights are
    names["v"] = names["v"].abs()
    exec(block[1], names)
    exact = softmax_attention(names["q"], names["k"], names["v"])
    assert names["out"].shape == (1, 300, 4, 64)
    # numerator and normaliser: |x + y|^2 is at most 2, so each weight has a relative deviation of sqrt(expm1(2) / 256)
    assert (names["out"] - exact).norm() < 2 * math.sqrt(math.expm1(2) / 256) * exact.norm()


def test_a_mechanism_says_how_it_redraws():
    attention = build(redraw_interval=1000)
    attention.set_step(2500)
    assert "draw 2, redrawn every 1,000 steps told by set_step" in repr(attention)
    assert "draw 0, never redrawn" in repr(build(redraw_interval=0))
