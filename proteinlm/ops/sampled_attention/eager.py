"""Blocks of queries with their own keys and a sample of the others, as readings of sparse softmax.

The order differs from head to head, so a position here is one of B·L·H rows, each of one head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Unpack

import torch
from torch import Tensor

from proteinlm.ops.blank_map import BlankMap
from proteinlm.ops.sampled_attention.blocks import Blocks, BlockSampling, alike, block_sizes, drawn_ranks, query_blocks
from proteinlm.ops.sampled_attention.order import check_orders
from proteinlm.ops.sparse_softmax import READING_ELEMENTS, Reading, reading_weights, sparse_softmax
from proteinlm.ops.tiles import Segment, Tile
from proteinlm.ops.visibility import Seen, check_inputs


def sampled_attention(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHK: Tensor,
    orders_2HT: Tensor,
    sampling: BlockSampling,
    **seen: Unpack[Seen],
) -> Tensor:
    """Return softmax attention of q, k, v (B, L, H, K) to one block of keys and a sample of the others.

    out_i = sum_j w_ij exp(q_i·k_j / sqrt(K)) v_j / sum_j w_ij exp(q_i·k_j / sqrt(K)), w_ij being 1 in the block, m / s
    for what was drawn and 0 else (see ``blocks``): numerator and normaliser are unbiased estimates of those of
    softmax attention. Exactly 0, with zero gradients, where no key is visible. Time O(L (block + s) K),
    memory O(L K) a head, forward and backward; any length. Scores and sums are float32 for any input but
    float64, also under autocast. Gradients run through scores and values; order and draw are constants.

    Args:
        orders_2HT: what ``hash_orders`` returns; kept for backward in place of blocks.
        seen: see ``Visibility``; there is no causal form.

    Returns:
        out_BLHK in the dtype of ``v_BLHK``. Differentiable once. A hidden position may hold anything.

    Raises:
        ShapeError: if the arguments do not fit together.
        UnavailableError: if a causal form is asked for.

    Source: Han et al., ICLR 2024, arXiv:2310.05869, with exact weights, masks and segments.
    """
    visibility = check_inputs(
        q_BLHK, k_BLHK, v_BLHK, bidirectional_only="LSH attention with separate queries and keys", **seen
    )
    check_orders(orders_2HT, q_BLHK)
    plan = SampledPlan(visibility.segments, orders_2HT, sampling)
    q_BNHK, k_BNHK, v_BNHK = (x.flatten(1, 2).unsqueeze(2) for x in (visibility.finite_queries(q_BLHK), k_BLHK, v_BLHK))
    return sparse_softmax(q_BNHK, k_BNHK, v_BNHK, plan).view_as(v_BLHK)


class SampledPlan:
    """The readings of all blocks, made anew at each pass: what is kept are the orders and a few numbers a block."""

    def __init__(self, segments: Sequence[Segment], orders_2HT: Tensor, sampling: BlockSampling) -> None:
        device, self.num_heads = orders_2HT.device, orders_2HT.shape[1]
        sizes = block_sizes(segments, sampling.block_length)
        self.orders_2HT, self.num_sampled = orders_2HT, sampling.num_sampled_keys
        most_blocks = int(sizes.num_blocks.max()) if len(sizes.num_blocks) else 0
        self.starts_NH = sampling.starts(most_blocks, self.num_heads).to(device)
        blocks = query_blocks(sizes, sampling.num_sampled_keys, READING_ELEMENTS)
        self.groups = [group.to(device) for group in _group(blocks, sampling.num_sampled_keys, self.num_heads)]
        self.blocks = Blocks(*(field.to(device) for field in blocks))

    def __iter__(self) -> Iterator[Reading]:
        return map(self.reading, self.groups)

    def reading(self, ids_N: Tensor) -> Reading:
        """Return what some blocks read; a number of ``ids_N`` is that of a block times H, plus the head's."""
        head_N1 = (ids_N % self.num_heads)[:, None]
        blocks = Blocks(*(field[ids_N // self.num_heads] for field in self.blocks))
        start_N1 = blocks.start[:, None]
        ranks_NC, real_NC = _runs(blocks.first_query, blocks.num_queries)
        queries_NC = self.orders_2HT[0][head_N1, start_N1 + ranks_NC].long() * self.num_heads + head_N1
        is_whole = bool(real_NC.all())
        num_drawn = blocks.num_others.clamp(max=self.num_sampled)
        starts_N = self.starts_NH[blocks.number, head_N1[:, 0]]
        drawn_ND = drawn_ranks(starts_N, blocks.first_key, blocks.num_keys, blocks.num_others, num_drawn)
        own_NJ, real_NJ = _runs(blocks.first_key, blocks.num_keys)
        ranks_NJ = torch.cat((own_NJ, drawn_ND), dim=1)
        keys_NJ = self.orders_2HT[1][head_N1, start_N1 + ranks_NJ].long() * self.num_heads + head_N1
        return Reading(
            Tile(queries_NC.flatten(), len(ids_N), None if is_whole else real_NC.flatten(), None),
            Tile(keys_NJ.flatten(), len(ids_N), None, None),
            log_weights_SJ=_log_weights(real_NJ, drawn_ND, blocks.num_others, num_drawn),
        )


def _runs(first_N: Tensor, count_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return runs of ranks, the last one repeated where a run is short, and which are no repetition."""
    steps_C = torch.arange(int(count_N.max()), device=first_N.device)
    ranks_NC = first_N[:, None] + torch.minimum(steps_C, count_N[:, None] - 1)
    return ranks_NC, steps_C < count_N[:, None]


def _log_weights(real_NJ: Tensor, drawn_ND: Tensor, num_others: Tensor, num_drawn: Tensor) -> Tensor:
    own_NJ = torch.zeros(real_NJ.shape, dtype=torch.float64, device=real_NJ.device).masked_fill_(~real_NJ, -torch.inf)
    steps_D = torch.arange(drawn_ND.shape[1], device=real_NJ.device)
    weight_N1 = (num_others / num_drawn.clamp(min=1).double()).clamp(min=1).log()[:, None]
    return torch.cat((own_NJ, torch.where(steps_D < num_drawn[:, None], weight_N1, -torch.inf)), dim=1)


def _group(blocks: Blocks, num_sampled: int, num_heads: int) -> Iterator[Tensor]:
    """Yield the numbers of blocks of about equal sizes, all heads, whose weights fit one reading."""
    sizes = torch.stack((blocks.num_queries, blocks.num_keys, blocks.num_others.clamp(max=num_sampled)))
    for members in alike(sizes):
        num_queries, num_keys, num_drawn = (int(x.max()) for x in sizes[:, members[:, 0]])
        ids = (members * num_heads + torch.arange(num_heads)).flatten()
        most = READING_ELEMENTS // (num_queries * (num_keys + num_drawn))
        yield from torch.split(ids, max(1, most))


@torch.no_grad()
def sampled_map(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    orders_2HT: Tensor,
    sampling: BlockSampling,
    *,
    rows: slice = slice(None),
    heads: slice = slice(None),
    **seen: Unpack[Seen],
) -> Tensor:
    """Return the weights of ``sampled_attention`` for some rows and heads of queries (B, L, H, K), without gradient.

    Args:
        rows: the queries wanted, a slice of L with step 1.
        heads: the heads wanted, a slice of H.
        seen: see ``Visibility``; there is no causal form.

    Returns:
        map_BHRL, float32, or float64 for float64 queries or keys; rows sum to 1 where a key is visible
        and are 0 elsewhere.
    """
    visibility = check_inputs(q_BLHK, k_BLHK, bidirectional_only="LSH attention with separate queries and keys", **seen)
    check_orders(orders_2HT, q_BLHK)
    length, num_heads = q_BLHK.shape[1:3]
    wanted_H = torch.full((num_heads,), -1, device=q_BLHK.device)
    chosen = range(num_heads)[heads]
    wanted_H[list(chosen)] = torch.arange(len(chosen), device=q_BLHK.device)
    blank = BlankMap(visibility, rows, q_BLHK[:, :, heads], k_BLHK)
    q_NK, k_NK = (x.flatten(0, 2).unsqueeze(1) for x in (visibility.finite_queries(q_BLHK), k_BLHK))
    with torch.autocast(q_BLHK.device.type, enabled=False):
        for reading in SampledPlan(visibility.segments, orders_2HT, sampling):
            place_SC, keys_SJ, real_SC = _places(reading)
            head_SC, row_SC = wanted_H[place_SC % num_heads], place_SC // num_heads % length
            wanted_SC = real_SC & (head_SC >= 0) & (row_SC >= blank.first) & (row_SC < blank.behind)
            run_N, query_N = wanted_SC.nonzero(as_tuple=True)
            if len(run_N):
                weights_NJ = reading_weights(reading, q_NK, k_NK, blank.map_BHRL.dtype)[run_N, query_N]
                place_N, head_N, row_N = (x[run_N, query_N][:, None] for x in (place_SC, head_SC, row_SC - blank.first))
                where = (place_N // (num_heads * length), head_N, row_N, keys_SJ[run_N] // num_heads % length)
                # what fills up a tile has weight 0
                blank.map_BHRL.index_put_(where, weights_NJ, accumulate=True)
    return blank.map_BHRL


def _places(reading: Reading) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows of queries and of keys of each block, and which queries are no repetition."""
    queries_N, keys_N = reading.queries.positions, reading.keys.positions
    assert isinstance(queries_N, Tensor)
    assert isinstance(keys_N, Tensor)
    real_N = torch.ones_like(queries_N, dtype=torch.bool) if reading.queries.real is None else reading.queries.real
    num_runs = reading.keys.num_runs
    return queries_N.view(num_runs, -1), keys_N.view(num_runs, -1), real_N.view(num_runs, -1)
