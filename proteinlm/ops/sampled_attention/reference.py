"""Sampled attention with a weight for every pair, in float64, from the same order and draw.

Source: Han et al., ICLR 2024, arXiv:2310.05869, with exact weights, masks and segments.
"""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import Tensor

from proteinlm.ops.sampled_attention.blocks import BlockSampling
from proteinlm.ops.tiles import Segment
from proteinlm.ops.visibility import Seen, Visibility, visibility_of


def pair_weights(orders_2HT: Tensor, sampling: BlockSampling, visibility: Visibility) -> Tensor:
    """Return w_ij as weights_BHLL: 1 in the block, (n - block) / s for what was drawn, 0 else (see ``blocks``)."""
    num_heads, length = orders_2HT.shape[1], visibility.length
    weights_BHLL = torch.zeros(visibility.num_windows, num_heads, length, length, dtype=torch.float64)
    for segment in visibility.segments:
        window, offset = divmod(segment.start, length)
        for head in range(num_heads if segment.num_visible else 0):
            part = weights_BHLL[window, head, offset : offset + len(segment), offset : offset + len(segment)]
            _weigh_segment(part, segment, orders_2HT[:, head], sampling, (num_heads, head))
    return weights_BHLL


def _weigh_segment(
    part_LL: Tensor, segment: Segment, orders_2T: Tensor, sampling: BlockSampling, heads: tuple[int, int]
) -> None:
    queries, keys = ([t - segment.start for t in order[segment.start : segment.stop].tolist()] for order in orders_2T)
    n = segment.num_visible
    num_blocks = math.ceil(n / sampling.block_length)
    size = math.ceil(n / num_blocks)
    starts_NH = sampling.starts(num_blocks, heads[0])
    for rank, query in enumerate(queries):
        block = rank // size % num_blocks
        own = keys[:n][block * size : (block + 1) * size]
        others = keys[: block * size] + keys[:n][(block + 1) * size :]
        part_LL[query, own] = 1
        s = min(sampling.num_sampled_keys, len(others))
        for i in range(s):
            drawn = others[math.floor((float(starts_NH[block, heads[1]]) + i) * (len(others) / s))]
            part_LL[query, drawn] = len(others) / s


def weighted_map(q_BLHK: Tensor, k_BLHK: Tensor, weights_BHLL: Tensor) -> Tensor:
    """Return w_ij exp(q_i·k_j / sqrt(K)) over its sum as map_BHLL; a row without a weight is 0."""
    scores_BHLL = torch.einsum("bihk,bjhk->bhij", q_BLHK.double(), k_BLHK.double()) / math.sqrt(q_BLHK.shape[-1])
    sees_BHL1 = (weights_BHLL > 0).any(-1, keepdim=True)
    seen_BHLL = (weights_BHLL > 0) | ~sees_BHL1
    logits_BHLL = torch.where(seen_BHLL, scores_BHLL + weights_BHLL.clamp(min=1e-300).log(), -torch.inf)
    return logits_BHLL.softmax(-1) * sees_BHL1


def sampled_map(
    q_BLHK: Tensor, k_BLHK: Tensor, orders_2HT: Tensor, sampling: BlockSampling, **seen: Unpack[Seen]
) -> Tensor:
    """Return map_BHLL; a row without a visible key is 0."""
    visibility = visibility_of((q_BLHK.shape[0], q_BLHK.shape[1]), **seen)
    return weighted_map(q_BLHK, k_BLHK, pair_weights(orders_2HT, sampling, visibility))


def sampled_attention(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHK: Tensor,
    orders_2HT: Tensor,
    sampling: BlockSampling,
    **seen: Unpack[Seen],
) -> Tensor:
    """Return out_BLHK, the map times V."""
    map_BHLL = sampled_map(q_BLHK, k_BLHK, orders_2HT, sampling, **seen)
    return torch.einsum("bhij,bjhk->bihk", map_BHLL, v_BLHK.double())
