"""LSH attention as it is printed, with rounds joined as a union: every pair, most of them hidden, in float64.

Source: Kitaev et al., ICLR 2020, arXiv:2001.04451, section 2, equations 2 to 4, and appendix A.
"""

from __future__ import annotations

import itertools
import math
from typing import Unpack

import torch
from torch import Tensor

from proteinlm.ops.lsh_attention.chunks import Chunking
from proteinlm.ops.visibility import Seen, Visibility, visibility_of


def candidate_pairs(buckets_BLHR: Tensor, chunking: Chunking, visibility: Visibility) -> Tensor:
    """Return candidates_BHLL: True where some round puts key j into a chunk that query i looks at.

    Visible positions of a segment, sorted by bucket and then by position, fall into chunks; a query looks at
    the chunks from ``num_before`` before its own to ``num_after`` behind it. Hidden positions are in no chunk.
    """
    windows, length, num_heads, num_rounds = buckets_BLHR.shape
    mask_BL = visibility.key_mask_BL
    candidates_BHLL = torch.zeros(windows, num_heads, length, length, dtype=torch.bool)
    for start, stop in itertools.pairwise(visibility.ends):
        window, offset = divmod(start, max(length, 1))
        places = [i for i in range(offset, offset + stop - start) if mask_BL is None or mask_BL[window, i]]
        for head, r in itertools.product(range(num_heads), range(num_rounds)):
            ordered = sorted(places, key=lambda i: (int(buckets_BLHR[window, i, head, r]), i))
            for a, i in enumerate(ordered):
                chunk = a // chunking.chunk_length
                first = max(chunk - chunking.num_before, 0) * chunking.chunk_length
                behind = (chunk + chunking.num_after + 1) * chunking.chunk_length
                candidates_BHLL[window, head, i, ordered[first:behind]] = True
    return candidates_BHLL


def shared_query_key_map(q_BLHK: Tensor, candidates_BHLL: Tensor, *, is_causal: bool = False) -> Tensor:
    """Return the softmax of q_i·k_j / sqrt(K), k_j = q_j / |q_j|, over the candidates as map_BHLL.

    A position is its own target only where it has no other; a row without a target is 0.
    """
    q_BLHK = q_BLHK.double()
    norms_BLH1 = q_BLHK.norm(dim=-1, keepdim=True)
    k_BLHK = torch.where(norms_BLH1 > 0, q_BLHK / norms_BLH1, 0)
    scores_BHLL = torch.einsum("bihk,bjhk->bhij", q_BLHK, k_BLHK) / math.sqrt(q_BLHK.shape[-1])
    if is_causal:
        candidates_BHLL = candidates_BHLL.tril()
    itself_LL = torch.eye(q_BLHK.shape[1], dtype=torch.bool)
    others_BHLL = candidates_BHLL & ~itself_LL
    seen_BHLL = torch.where(others_BHLL.any(-1, keepdim=True), others_BHLL, candidates_BHLL & itself_LL)
    sees_BHL1 = seen_BHLL.any(-1, keepdim=True)
    # a row of minus infinities has no softmax: leave it as it is and blank it afterwards
    return scores_BHLL.masked_fill(~seen_BHLL & sees_BHL1, -torch.inf).softmax(-1) * sees_BHL1


def lsh_map(q_BLHK: Tensor, buckets_BLHR: Tensor, chunking: Chunking, **seen: Unpack[Seen]) -> Tensor:
    """Return map_BHLL over the union of all rounds' candidates, each key once."""
    visibility = visibility_of((q_BLHK.shape[0], q_BLHK.shape[1]), **seen)
    candidates_BHLL = candidate_pairs(buckets_BLHR, chunking, visibility)
    return shared_query_key_map(q_BLHK, candidates_BHLL, is_causal=visibility.is_causal)


def lsh_attention(
    q_BLHK: Tensor, v_BLHK: Tensor, buckets_BLHR: Tensor, chunking: Chunking, **seen: Unpack[Seen]
) -> Tensor:
    """Return out_BLHK, the map times V."""
    return torch.einsum("bhij,bjhk->bihk", lsh_map(q_BLHK, buckets_BLHR, chunking, **seen), v_BLHK.double())
