"""The causal and the recurrent form, of every mechanism that has one."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from proteinlm.attention import Attention, FavorConfig, LinearConfig, SoftmaxConfig, build_attention
from proteinlm.errors import ShapeError, UnavailableError
from proteinlm.ops.linear_attention import recurrent as linear_recurrent
from proteinlm.ops.random_features import recurrent as favor_recurrent

HEAD_DIM = 6
RECURRENT = {
    "linear": LinearConfig(),
    "linear, numerator": LinearConfig(normalisation="numerator"),
    "linear, decay": LinearConfig(decay="distance"),
    "linear, numerator, decay": LinearConfig(normalisation="numerator", decay="distance"),
    "favor": FavorConfig(num_random_features=8),
    "favor, hyperbolic": FavorConfig(num_random_features=8, feature_map="hyperbolic"),
}


def build(config: object) -> Attention:
    return build_attention(config, head_dim=HEAD_DIM, layer=2, seed=3)


@pytest.fixture(params=list(RECURRENT.values()), ids=list(RECURRENT))
def attention(request):
    return build(request.param)


@pytest.fixture(params=[SoftmaxConfig(), *RECURRENT.values()], ids=["softmax", *RECURRENT])
def causal(request):
    return build(request.param)


def draw(length: int, dtype: torch.dtype = torch.float64, num_windows: int = 2) -> list[Tensor]:
    return [torch.randn(num_windows, length, 3, HEAD_DIM, dtype=dtype) for _ in range(3)]


def continued(attention: Attention, inputs: list[Tensor], start: int, key_mask: Tensor | None = None) -> Tensor:
    """Return the output of a prefill of ``start`` positions and a step for each that follows."""
    mask = None if key_mask is None else key_mask[:, :start]
    out, state = attention.prefill(*(x[:, :start] for x in inputs), key_mask_BL=mask)
    outputs = [out]
    for i in range(start, inputs[0].shape[1]):
        out, state = attention.step(*(x[:, i] for x in inputs), state)
        outputs.append(out[:, None])
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("start", [0, 1, 150], ids=["from nothing", "from one", "from several chunks"])
def test_recurrent_form_equals_the_parallel_one(attention, start):
    inputs = draw(start + 20)
    expected = attention(*inputs, is_causal=True)
    torch.testing.assert_close(continued(attention, inputs, start), expected, rtol=0, atol=1e-10)


def test_recurrent_form_equals_the_parallel_one_after_hidden_keys(attention):
    inputs = draw(40)
    key_mask = torch.ones(2, 40, dtype=torch.bool)
    # padding on the left, holes, and a window that begins with nothing to see
    key_mask[0, :7] = key_mask[0, 11:13] = key_mask[1, :30] = False
    dirty = [inputs[0], *(x.masked_fill(~key_mask[..., None, None], torch.nan) for x in inputs[1:])]
    expected = attention(*inputs, key_mask_BL=key_mask, is_causal=True)
    torch.testing.assert_close(continued(attention, dirty, 30, key_mask), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e200], ids=str)
def test_what_a_hidden_position_holds_reaches_no_causal_gradient(causal, value):
    inputs = draw(90)
    key_mask = torch.ones(2, 90, dtype=torch.bool)
    key_mask[0, :7] = key_mask[0, 11:13] = key_mask[1, 30:70] = False
    hidden = ~key_mask[..., None, None]
    results = []
    for held in (inputs, [x.masked_fill(hidden, value) for x in inputs]):
        leaves = [x.clone().requires_grad_() for x in held]
        out = causal(*leaves, key_mask_BL=key_mask, is_causal=True)
        gradients = torch.autograd.grad(out, leaves, (~hidden).double().expand_as(out))
        results.append([out[key_mask], *gradients])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("module", [linear_recurrent, favor_recurrent], ids=["linear", "favor"])
def test_a_state_of_several_chunks_is_that_of_one(attention, module, monkeypatch):
    inputs = draw(20)
    before = continued(attention, inputs, 17)
    monkeypatch.setattr(module, "CHUNK_LENGTH", 5)
    torch.testing.assert_close(continued(attention, inputs, 17), before, rtol=0, atol=1e-10)


def test_a_state_grows_with_no_token_and_is_left_as_it_was(attention):
    inputs = draw(9)
    _, state = attention.prefill(*inputs)
    kept = {field.name: getattr(state, field.name).clone() for field in dataclasses.fields(state)}
    _, behind = attention.step(*(x[:, 0] for x in inputs), state)
    assert all(torch.equal(getattr(state, name), value) for name, value in kept.items())
    assert all(getattr(behind, name).shape == value.shape for name, value in kept.items())
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(state, next(iter(kept)), None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_states_of_half_precision_are_float32_also_under_autocast(attention, dtype):
    inputs = draw(9, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, state = attention.prefill(*inputs)
        out, state = attention.step(*(x[:, 0] for x in inputs), state)
    assert out.dtype == dtype
    assert {getattr(state, field.name).dtype for field in dataclasses.fields(state)} == {torch.float32}


def test_a_redraw_of_the_rows_leaves_a_begun_sequence_alone():
    attention = build(FavorConfig(num_random_features=8, redraw_interval=1))
    inputs = draw(9)
    expected = attention(*inputs, is_causal=True)
    _, state = attention.prefill(*(x[:, :8] for x in inputs))
    attention.set_step(1)
    out, _ = attention.step(*(x[:, 8] for x in inputs), state)
    torch.testing.assert_close(out, expected[:, 8], rtol=0, atol=1e-10)


@pytest.mark.parametrize("j", [0, 100, 140, 299])
def test_no_output_knows_a_later_key(causal, j):
    q, k, v = draw(300, num_windows=1)
    before = causal(q, k, v, is_causal=True)
    changed = [x.index_fill(1, torch.tensor([j]), 9.0) for x in (k, v)]
    after = causal(q, *changed, is_causal=True)
    torch.testing.assert_close(after[:, :j], before[:, :j], rtol=0, atol=1e-12)
    assert not torch.isclose(after[:, j], before[:, j]).all()
    # chunks of the linear mechanisms have equal length here, five of 60 because 64 is the longest
    if not causal.is_exact:
        assert torch.equal(after[:, : j // 60 * 60], before[:, : j // 60 * 60])


@pytest.mark.parametrize("name", ["softmax", "linear", "linear, decay", "favor", "favor, hyperbolic"])
def test_the_causal_map_times_the_values_is_the_causal_output(name):
    causal = build(RECURRENT.get(name, SoftmaxConfig()))
    q, k, v = draw(9)
    options = {"key_mask_BL": torch.rand(2, 9) > 0.4, "cu_seqlens": torch.tensor([0, 3, 9, 18], dtype=torch.int32)}
    map_BHRL = causal.attention_map(q, k, rows=slice(2, 7), is_causal=True, **options)
    product = torch.einsum("bhrl,blhk->brhk", map_BHRL, v)
    torch.testing.assert_close(product, causal(q, k, v, is_causal=True, **options)[:, 2:7])


@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
def test_a_map_of_some_heads_is_that_part_of_the_map(causal, is_causal):
    q, k, _ = draw(9)
    whole = causal.attention_map(q, k, is_causal=is_causal)
    part = causal.attention_map(q, k, heads=slice(1, 3), is_causal=is_causal)
    torch.testing.assert_close(part, whole[:, 1:3])


class OnlyBidirectional(Attention):
    is_exact = False

    def _attend(self, q_BLHK, k_BLHK, v_BLHK, visibility, choices):
        return v_BLHK

    def _map(self, q_BLHK, k_BLHK, visibility, rows, heads):
        raise NotImplementedError


def test_a_mechanism_without_causal_form_says_so_and_the_way_out():
    q, k, v = draw(4)
    attention = OnlyBidirectional(HEAD_DIM)
    for call in (
        lambda: attention(q, k, v, is_causal=True),
        lambda: attention.attention_map(q, k, is_causal=True),
    ):
        with pytest.raises(UnavailableError, match="OnlyBidirectional has no causal form; leave is_causal out, or use"):
            call()


@pytest.mark.parametrize("attention", [OnlyBidirectional(HEAD_DIM), build(SoftmaxConfig())], ids=["other", "softmax"])
def test_a_mechanism_without_recurrent_form_says_so_and_the_way_out(attention):
    q, k, v = draw(4)
    for call in (lambda: attention.prefill(q, k, v), lambda: attention.step(q[:, 0], k[:, 0], v[:, 0], None)):
        with pytest.raises(UnavailableError, match=r"Attention|OnlyBidirectional.* has no recurrent form; .* 'favor'"):
            call()


def test_a_state_of_another_mechanism_is_refused():
    q, k, v = draw(4)
    _, state = build(LinearConfig()).prefill(q, k, v)
    with pytest.raises(ShapeError, match="state is a LinearState; expected the FavorState that prefill returns"):
        build(FavorConfig()).step(q[:, 0], k[:, 0], v[:, 0], state)
    with pytest.raises(ShapeError, match=r"state is \(2, 3, 6, 7\); expected \(2, 3, 6, 6\)"):
        build(LinearConfig(normalisation="numerator")).step(q[:, 0], k[:, 0], v[:, 0], state)


def test_sizes_of_a_step_that_do_not_fit_are_named(attention):
    q, k, v = draw(4)
    _, state = attention.prefill(q, k, v)
    with pytest.raises(ShapeError, match="values are"):
        attention.step(q[:, 0], k[:, 0], v[:1, 0], state)
    with pytest.raises(ShapeError, match="state is"):
        attention.step(q[:1, 0], k[:1, 0], v[:1, 0], state)
