from __future__ import annotations

import dataclasses

import pytest
import torch

from proteinlm.attention import LshConfig, SoftmaxConfig, build_attention
from proteinlm.attention.choices import Choices
from proteinlm.attention.lsh_separate import SeparateLshAttention
from proteinlm.errors import ShapeError
from proteinlm.ops.lsh_attention import Chunking, hash_buckets, reference

HEAD_DIM = 6
CONFIG = LshConfig(chunk_length=4, num_hashes=3)


def build(config=CONFIG, seed: int = 3, layer: int = 2):
    return build_attention(config, head_dim=HEAD_DIM, layer=layer, seed=seed)


def draw(length: int = 40, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    return [torch.randn(2, length, 3, HEAD_DIM, dtype=dtype) for _ in range(2)]


@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
def test_output_and_map_are_those_of_the_reference(is_causal):
    attention, (q, v) = build(), draw()
    buckets = hash_buckets(q, attention.rotations(), 4)
    chunking = Chunking(4, 1, 0 if is_causal else 1)
    expected = reference.lsh_map(q, buckets, chunking, is_causal=is_causal)
    torch.testing.assert_close(attention.attention_map(q, q, is_causal=is_causal), expected, rtol=0, atol=1e-12)
    out = torch.einsum("bhij,bjhk->bihk", expected, v)
    torch.testing.assert_close(attention(q, q, v, is_causal=is_causal), out, rtol=0, atol=1e-12)


@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
def test_a_chunk_as_long_as_the_segment_is_exact_shared_attention(is_causal):
    q, v = draw()
    exact = build(SoftmaxConfig(shared_query_key=True))(q, q, v, is_causal=is_causal)
    got = build(dataclasses.replace(CONFIG, chunk_length=40))(q, q, v, is_causal=is_causal)
    torch.testing.assert_close(got, exact, rtol=0, atol=1e-12)


def test_a_repetition_uses_the_buckets_of_the_first_pass():
    attention, (q, v) = build(), draw()
    choices = Choices()
    first = attention(q, q, v, choices=choices)
    others = torch.randn_like(q)
    buckets = hash_buckets(q, attention.rotations(), 4)
    expected = reference.lsh_attention(others, v, buckets, Chunking(4))
    torch.testing.assert_close(attention(others, others, v, choices=choices.repeat()), expected, rtol=0, atol=1e-12)
    assert torch.equal(attention(q, q, v, choices=choices.repeat()), first)


def test_what_a_repetition_needs_is_two_bytes_a_round():
    q, v = draw()
    kept = []

    class Watched(Choices):
        def make(self, choose):
            kept.append(super().make(choose))
            return kept[-1]

    build()(q, q, v, choices=Watched())
    assert [(x.dtype, tuple(x.shape)) for x in kept] == [(torch.int16, (2, 40, 3, 3))]


def test_output_is_the_same_every_time_and_whatever_stands_beside_it():
    attention, (q, v) = build(), draw()
    assert torch.equal(attention(q, q, v), attention(q, q, v))
    alone = attention(q[1:], q[1:], v[1:])
    torch.testing.assert_close(attention(q, q, v)[1:], alone, rtol=0, atol=1e-10)


def test_rotations_follow_the_optimiser_step_layer_and_seed():
    attention = build(dataclasses.replace(CONFIG, redraw_interval=10))
    first = attention.rotations()
    attention.set_step(9)
    assert torch.equal(attention.rotations(), first)
    attention.set_step(10)
    assert not torch.equal(attention.rotations(), first)
    kept = build(dataclasses.replace(CONFIG, redraw_interval=0))
    kept.set_step(1000)
    assert torch.equal(kept.rotations(), first)
    assert not any(torch.equal(build(**other).rotations(), first) for other in ({"seed": 4}, {"layer": 0}))


def test_more_rounds_keep_the_first_ones():
    more = build(dataclasses.replace(CONFIG, num_hashes=8)).rotations()
    assert torch.equal(more[:3], build().rotations())


def test_rotations_drawn_in_inference_mode_serve_training():
    attention, (q, v) = build(), draw()
    with torch.inference_mode():
        attention(q, q, v)
    attention(q.requires_grad_(), q, v).sum().backward()
    assert q.grad.isfinite().all()


def test_a_sparse_map_of_one_head_is_part_of_the_map():
    attention, (q, _) = build(), draw()
    visible = torch.rand(2, 40) > 0.3
    options = {"key_mask_BL": visible, "cu_seqlens": torch.tensor([0, 13, 40, 61, 80], dtype=torch.int32)}
    expected = attention.attention_map(q, q, rows=slice(5, 30), **options)[1, 2]
    found = attention.sparse_map(q, window=1, head=2, rows=slice(5, 30), **options)
    torch.testing.assert_close(found.to_dense(), expected, rtol=0, atol=1e-12)
    with pytest.raises(ShapeError, match="window 2; expected one of 2 windows"):
        attention.sparse_map(q, window=2, head=0)
    with pytest.raises(ShapeError, match="head 3; expected one of 3 heads"):
        attention.sparse_map(q, window=0, head=3)


def test_separate_queries_and_keys_have_a_mechanism_of_their_own():
    attention = build(LshConfig(shared_query_key=False))
    assert isinstance(attention, SeparateLshAttention)
    assert not attention.shares_query_key


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_hashes": 0}, "num_hashes is 0; expected 1 or more"),
        ({"chunk_length": 0}, "chunk_length is 0; expected 1 or more"),
        ({"num_buckets": 3}, "num_buckets is 3; expected an even number"),
        ({"num_buckets": 2**15}, "num_buckets is 32768; expected an even number up to 16384"),
        ({"num_chunks_before": -1}, "num_chunks_before is -1; expected 0 or more"),
        ({"num_chunks_after": -1}, "num_chunks_after is -1; expected 0 or more"),
        ({"redraw_interval": -1}, "redraw_interval is -1; expected 1 or more, or 0 for never"),
        ({"num_sampled_keys": 8}, "num_sampled_keys is 8; with shared_query_key = true it has no meaning"),
        ({"shared_query_key": False, "num_hashes": 8}, "num_hashes is 8; with shared_query_key = false it has no"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LshConfig(**settings)


def test_exact_attention_of_shared_keys_has_no_varlen_form():
    with pytest.raises(ValueError, match="implementation is varlen; shared queries and keys"):
        SoftmaxConfig(shared_query_key=True, implementation="varlen")
