from __future__ import annotations

import copy
import math
import pickle
import re
from dataclasses import dataclass

import pytest
import torch

from proteinlm.attention import (
    MECHANISMS,
    AttentionConfig,
    BigBirdConfig,
    FavorConfig,
    IdentityConfig,
    LinearConfig,
    LshConfig,
    ScatterbrainConfig,
    SoftmaxConfig,
    WindowConfig,
    build_attention,
    listed_name,
)
from proteinlm.config import parse, to_table
from proteinlm.errors import ConfigError, ShapeError
from proteinlm.ops.lsh_attention import Chunking, hash_buckets
from proteinlm.ops.lsh_attention import reference as lsh_reference

HEAD_DIM = 6


@dataclass(frozen=True, kw_only=True)
class Recipe:
    attention: AttentionConfig


CONFIGS = [
    SoftmaxConfig(),
    FavorConfig(num_random_features=8),
    LinearConfig(),
    WindowConfig(window=2),
    BigBirdConfig(block_length=2, num_random_blocks=1),
    LshConfig(chunk_length=2, num_hashes=2),
    ScatterbrainConfig(num_random_features=8, block_length=3),
    IdentityConfig(),
]


# forms that a setting of a kind chooses
FORMS = {
    "softmax, shared": SoftmaxConfig(shared_query_key=True),
    "lsh, separate": LshConfig(shared_query_key=False, chunk_length=2, num_sampled_keys=2),
}


@pytest.fixture(params=[*CONFIGS, *FORMS.values()], ids=[*(config.kind for config in CONFIGS), *FORMS])
def attention(request):
    return build_attention(request.param, head_dim=HEAD_DIM, layer=2, seed=3)


def draw(*sizes: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.randn(*sizes, dtype=dtype) for _ in range(3)]


def test_every_kind_is_tested_here():
    assert sorted(config.kind for config in CONFIGS) == sorted(MECHANISMS)


@pytest.mark.parametrize("kind", list(MECHANISMS))
def test_a_table_names_its_mechanism_by_kind(kind):
    config = parse(Recipe, {"attention": {"kind": kind}}, source="recipe").attention
    assert isinstance(config, MECHANISMS[kind][0])
    assert parse(Recipe, {"attention": to_table(config)}, source="recipe").attention == config


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (SoftmaxConfig(), "softmax"),
        (FavorConfig(num_random_features=64), "FAVOR+ 64"),
        (FavorConfig(num_random_features=64, exact_below=1000), "adaptive FAVOR+ 64, exact below 1,000"),
        (FavorConfig(num_random_features=64, feature_map="generalised"), "generalised relu 64"),
        (SoftmaxConfig(shared_query_key=True), "shared-QK softmax"),
        (LshConfig(num_hashes=8), "shared-QK lsh, 8 rounds"),
        (LshConfig(num_hashes=1), "shared-QK lsh, 1 round"),
        (LshConfig(shared_query_key=False, num_sampled_keys=1024), "separate-QK lsh, 1,024 sampled keys"),
        (ScatterbrainConfig(num_random_features=64), "scatterbrain 64"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_results_list_apart_what_computes_apart(config, name):
    assert listed_name(config) == name


def test_an_unknown_kind_lists_those_that_exist():
    with pytest.raises(ConfigError, match=r"attention.kind: is 'fovar'; expected one of 'softmax', 'favor', 'linear'"):
        parse(Recipe, {"attention": {"kind": "fovar"}}, source="recipe")


def test_a_mechanism_has_nothing_that_a_checkpoint_would_hold(attention):
    attention(*draw(1, 5, 2, HEAD_DIM))
    assert not attention.state_dict()
    assert not list(attention.parameters()) + list(attention.buffers())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_copy_gives_the_same_output(attention, copied):
    q, k, v = draw(1, 5, 2, HEAD_DIM)
    assert torch.equal(copied(attention)(q, k, v), attention(q, k, v))


def test_the_map_times_the_values_is_the_output(attention):
    q, k, v = draw(2, 9, 3, HEAD_DIM, dtype=torch.float64)
    options = {"key_mask_BL": torch.rand(2, 9) > 0.4, "cu_seqlens": torch.tensor([0, 3, 9, 18], dtype=torch.int32)}
    product = torch.einsum("bhrl,blhk->brhk", attention.attention_map(q, k, rows=slice(2, 7), **options), v)
    torch.testing.assert_close(product, attention(q, k, v, **options)[:, 2:7])


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        *((value, dtype) for value in (math.nan, math.inf) for dtype in (torch.float64, torch.bfloat16, torch.float16)),
        # finite, but their products are not
        (-1e38, torch.float32),
        (1e200, torch.float64),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "config",
    [
        *CONFIGS,
        *FORMS.values(),
        FavorConfig(num_random_features=8, exact_below=8),
        FavorConfig(num_random_features=8, feature_map="sderf", projection="iid", centring=True),
        FavorConfig(num_random_features=8, feature_map="generalised"),
    ],
    ids=lambda config: f"{config.kind} {getattr(config, 'feature_map', '')} {getattr(config, 'exact_below', '')}",
)
def test_what_a_hidden_position_holds_reaches_no_gradient(config, value, dtype):
    attention = build_attention(config, head_dim=HEAD_DIM, layer=2, seed=3)
    inputs, weights = draw(2, 11, 3, HEAD_DIM, dtype=dtype), torch.randn(2, 11, 3, HEAD_DIM)
    # padding, a hole, and a segment of which nothing is visible
    visible = torch.arange(11) < torch.tensor([[11], [5]])
    visible[0, :3] = visible[0, 7] = False
    hidden = ~visible[..., None, None]
    options = {"key_mask_BL": visible, "cu_seqlens": torch.tensor([0, 3, 11, 22], dtype=torch.int32)}
    results = []
    for held in (inputs, [x.masked_fill(hidden, value) for x in inputs]):
        leaves = [x.clone().requires_grad_() for x in held]
        out = attention(*leaves, **options)
        gradients = torch.autograd.grad(out, leaves, weights.masked_fill(hidden, 0).to(dtype))
        map_BLHL = attention.attention_map(*leaves[:2], **options).transpose(1, 2)
        assert out.isfinite().all()
        assert map_BLHL.isfinite().all()
        results.append([out[visible], map_BLHL[visible], *gradients])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("sizes", [(2, 7), (2, 0), (0, 7)], ids=["all hidden", "no position", "no window"])
@pytest.mark.parametrize("is_packed", [False, True], ids=["windows", "segments"])
def test_where_there_is_nothing_to_read_each_input_still_gets_a_gradient(attention, sizes, is_packed):
    inputs = [x.requires_grad_() for x in draw(*sizes, 3, HEAD_DIM)]
    cu_seqlens = torch.arange(0, math.prod(sizes) + 1, max(sizes[1], 1), dtype=torch.int32) if is_packed else None
    out = attention(*inputs, key_mask_BL=torch.zeros(sizes, dtype=torch.bool), cu_seqlens=cu_seqlens)
    assert out.shape == inputs[2].shape
    gradients = torch.autograd.grad(out.sum(), inputs)
    assert not any(x.any() for x in (out, *gradients))


def test_projections_of_one_tensor_need_no_copy_first(attention):
    qkv = torch.randn(2, 7, 3, 3, HEAD_DIM)
    views = qkv.unbind(2)
    assert torch.equal(attention(*views), attention(*(x.contiguous() for x in views)))


@pytest.mark.parametrize(
    ("q", "k", "v", "mask", "message"),
    [
        ((2, 5, 3, 4), (2, 5, 3, 4), (2, 5, 3, 4), None, "queries are (2, 5, 3, 4); expected (B, L, H, 6)"),
        ((5, 3, 6), (5, 3, 6), (5, 3, 6), None, "queries are (5, 3, 6); expected (B, L, H, 6)"),
        ((2, 5, 3, 6), (2, 4, 3, 6), (2, 5, 3, 6), None, "keys are (2, 4, 3, 6) but queries (2, 5, 3, 6)"),
        ((2, 5, 3, 6), (2, 5, 3, 6), (2, 5, 1, 6), None, "values are (2, 5, 1, 6) but queries (2, 5, 3, 6)"),
        ((2, 5, 3, 6), (2, 5, 3, 6), (2, 5, 3, 6), torch.ones(2, 4) > 0, "key mask is torch.bool (2, 4)"),
        ((2, 5, 3, 6), (2, 5, 3, 6), (2, 5, 3, 6), torch.ones(2, 5), "expected torch.bool (2, 5)"),
    ],
    ids=["head width", "three dimensions", "keys", "values", "mask shape", "mask dtype"],
)
def test_sizes_that_do_not_fit_are_named(attention, q, k, v, mask, message):
    with pytest.raises(ShapeError, match=re.escape(message)):
        attention(torch.randn(q), torch.randn(k), torch.randn(v), key_mask_BL=mask)


@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize(
    "config",
    [FavorConfig(num_random_features=64), LinearConfig(), LshConfig(chunk_length=8), FORMS["softmax, shared"]],
    ids=lambda config: config.kind,
)
def test_gradients_in_half_precision_see_the_output_unrounded(config, is_causal):
    attention = build_attention(config, head_dim=16, layer=0, seed=0)
    q, k, v, grad = (torch.randn(1, 200, 2, 16).bfloat16() for _ in range(4))
    # values of nearly one size: the gradient of q is a small difference of large products
    v = (v * 0.1 + 4).bfloat16()
    gradients = {}
    for dtype in (torch.bfloat16, torch.float64):
        inputs = [x.to(dtype, copy=True).requires_grad_() for x in (q, k, v)]
        attention(*inputs, is_causal=is_causal).backward(grad.to(dtype))
        gradients[dtype] = [x.grad.double() for x in inputs]
    # a gradient that is only rounded itself differs by 2^-9 at most, in norm by less
    for half, exact in zip(*gradients.values(), strict=True):
        assert (half - exact).norm() <= 2**-8 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "config",
    [
        BigBirdConfig(block_length=8),
        ScatterbrainConfig(num_random_features=16, block_length=8),
        ScatterbrainConfig(num_random_features=16, block_length=8, feature_map="hyperbolic"),
        FavorConfig(num_random_features=16, feature_map="hyperbolic"),
    ],
    ids=lambda config: f"{config.kind} {getattr(config, 'feature_map', '')}",
)
def test_long_queries_and_keys_in_half_precision_are_as_in_float64(config, dtype):
    attention = build_attention(config, head_dim=16, layer=0, seed=0)
    q, k, v, grad = draw(1, 100, 2, 16)[0], *draw(1, 100, 2, 16)
    found = {}
    for scale in (30, 1000):
        for precision in (dtype, torch.float64):
            inputs = [x.to(dtype).to(precision, copy=True).requires_grad_() for x in (q * scale, k * scale, v)]
            out = attention(*inputs)
            out.backward(grad.to(precision))
            found[scale, precision] = out.double()
            assert all(x.isfinite().all() for x in (out, *(x.grad for x in inputs)))
    # logits of float32 are below 4 · 30^2 · 16 / 4 and so in error by less than 16 · 14,400 · 2^-24 = 0.014
    error = (found[30, dtype] - found[30, torch.float64]).norm()
    assert error <= (2 * math.expm1(0.014) + torch.finfo(dtype).eps) * found[30, torch.float64].norm()


def test_a_protein_of_one_letter_is_read_by_lsh_as_by_its_definition():
    # every query is the same and falls into one bucket: only positions tell chunks apart
    attention = build_attention(LshConfig(chunk_length=4, num_hashes=2), head_dim=HEAD_DIM, layer=0, seed=0)
    q = torch.ones(1, 41, 2, HEAD_DIM, dtype=torch.float64).mul(0.3).requires_grad_()
    v = torch.randn(1, 41, 2, HEAD_DIM, dtype=torch.float64)
    buckets = hash_buckets(q, attention.rotations(), 4)
    expected = lsh_reference.lsh_attention(q, v, buckets, Chunking(4))
    out = attention(q, q, v)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(out.square().sum(), q)
    assert gradient.isfinite().all()
