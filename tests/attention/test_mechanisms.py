from __future__ import annotations

import copy
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
    SoftmaxConfig,
    WindowConfig,
    build_attention,
)
from proteinlm.config import parse, to_table
from proteinlm.errors import ConfigError, ShapeError

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
    IdentityConfig(),
]


@pytest.fixture(params=CONFIGS, ids=lambda config: config.kind)
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
