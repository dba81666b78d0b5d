"""Parity with the LSH attention of Hugging Face, with what it does otherwise put into an oracle here."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from proteinlm.ops.lsh_attention import Chunking, hash_buckets, lsh_attention, rotations

HEADS, HEAD_DIM, LENGTH, CHUNK = 2, 8, 64, 8
NUM_BUCKETS = 8

reformer = pytest.importorskip(
    "transformers.models.reformer.modeling_reformer", reason="transformers is not installed: no peer to compare with"
)


def peer(num_rounds: int, num_before: int, num_after: int, *, is_causal: bool) -> torch.nn.Module:
    """Return the peer's module with projections that hand the input over: its first half queries, its second values."""
    config = reformer.ReformerConfig(
        attention_head_size=HEAD_DIM,
        num_attention_heads=HEADS,
        hidden_size=2 * HEADS * HEAD_DIM,
        num_hashes=num_rounds,
        num_buckets=NUM_BUCKETS,
        lsh_attn_chunk_length=CHUNK,
        lsh_num_chunks_before=num_before,
        lsh_num_chunks_after=num_after,
        lsh_attention_probs_dropout_prob=0.0,
        is_decoder=is_causal,
    )
    module = reformer.LSHSelfAttention(config).double().eval()
    size = HEADS * HEAD_DIM
    with torch.no_grad():
        module.query_key.weight.copy_(torch.eye(2 * size)[:size])
        module.value.weight.copy_(torch.eye(2 * size)[size:])
    return module


def run_peer(module: torch.nn.Module, q: Tensor, v: Tensor, buckets_BLHR: Tensor) -> Tensor:
    offsets_R1 = NUM_BUCKETS * torch.arange(buckets_BLHR.shape[-1])[:, None]
    buckets_BHRL = buckets_BLHR.permute(0, 2, 3, 1).long() + offsets_R1
    found = module(torch.cat((q.flatten(2), v.flatten(2)), -1), buckets=buckets_BHRL.contiguous())
    return found.hidden_states.view_as(q)


def draw(num_rounds: int) -> tuple[Tensor, Tensor, Tensor]:
    q, v = (torch.randn(2, LENGTH, HEADS, HEAD_DIM, dtype=torch.float64) for _ in range(2))
    turned = rotations(num_rounds, HEAD_DIM, seed=0, layer=0, draw=0)
    return q, v, hash_buckets(q, turned, CHUNK, num_buckets=NUM_BUCKETS)


def counted_pairs(buckets_BLHR: Tensor, num_before: int, num_after: int) -> Tensor:
    """Return how often each pair is a candidate, all rounds sorted in one circle, as counts_BHLL."""
    windows, length, num_heads, num_rounds = buckets_BLHR.shape
    counts_BHLL = torch.zeros(windows, num_heads, length, length, dtype=torch.float64)
    for window in range(windows):
        for head in range(num_heads):
            circle = [
                i
                for r in range(num_rounds)
                for i in sorted(range(length), key=lambda i, r=r: (int(buckets_BLHR[window, i, head, r]), i))
            ]
            chunks = [circle[start : start + CHUNK] for start in range(0, len(circle), CHUNK)]
            for n, chunk in enumerate(chunks):
                for shift in range(-num_before, num_after + 1):
                    for i in chunk:
                        counts_BHLL[window, head, i, chunks[(n + shift) % len(chunks)]] += 1
    return counts_BHLL


@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize(("num_before", "num_after"), [(0, 0), (1, 0), (1, 1)])
@pytest.mark.parametrize("num_rounds", [1, 4])
def test_the_peer_is_our_hashing_with_a_wrap_and_every_round_counted(num_rounds, num_before, num_after, is_causal):
    q, v, buckets = draw(num_rounds)
    k = q * (q.square().mean(-1, keepdim=True) + 1e-6).rsqrt() / math.sqrt(HEAD_DIM)
    scores_BHLL = torch.einsum("bihk,bjhk->bhij", q, k)
    counts_BHLL = counted_pairs(buckets, num_before, num_after)
    if is_causal:
        counts_BHLL = counts_BHLL.tril()
    others_BHLL = counts_BHLL * (1 - torch.eye(LENGTH))
    counts_BHLL = torch.where(others_BHLL.any(-1, keepdim=True), others_BHLL, counts_BHLL)
    expected = torch.einsum("bhij,bjhk->bihk", (scores_BHLL + counts_BHLL.log()).softmax(-1), v)
    got = run_peer(peer(num_rounds, num_before, num_after, is_causal=is_causal), q, v, buckets)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
def test_our_output_is_the_peers_where_it_neither_wraps_nor_counts_twice(is_causal, monkeypatch):
    # one round and no neighbours; its keys are shorter than 1 by an epsilon, and it does not divide by sqrt(K)
    q, v, buckets = draw(1)
    module = peer(1, 0, 0, is_causal=is_causal)
    exact = module._len_norm
    monkeypatch.setattr(module, "_len_norm", lambda x: exact(x, epsilon=0.0))
    got = lsh_attention(q * math.sqrt(HEAD_DIM), v, buckets, Chunking(CHUNK, 0, 0), is_causal=is_causal)
    torch.testing.assert_close(got, run_peer(module, q, v, buckets), rtol=0, atol=1e-10)
