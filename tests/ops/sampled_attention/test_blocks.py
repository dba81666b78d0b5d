from __future__ import annotations

import pytest
import torch

from proteinlm.ops.sampled_attention.blocks import BlockSampling, block_sizes, drawn_ranks, query_blocks
from proteinlm.ops.tiles import Segment


def draw(start: float, num_keys: tuple[int, int, int], num_drawn: int) -> list[int]:
    return drawn_ranks(
        torch.tensor([start], dtype=torch.float64), *torch.tensor(num_keys)[:, None], torch.tensor([num_drawn])
    )[0].tolist()


@pytest.mark.parametrize("num_drawn", [1, 2, 7, 13, 14])
@pytest.mark.parametrize("first", [0, 6, 14])
def test_each_key_outside_the_block_is_drawn_in_the_same_share_of_draws(first, num_drawn):
    # 6 of 20 keys are the block; u on a grid whose cells no interval of a key cuts apart
    num_others, counts = 14, torch.zeros(20)
    for step in range(num_others):
        ranks = draw((step + 0.5) / num_others, (first, 6, num_others), num_drawn)
        assert len(set(ranks)) == num_drawn
        counts[ranks] += 1
    assert not counts[first : first + 6].any()
    assert (torch.cat((counts[:first], counts[first + 6 :])) == num_drawn).all()


def test_the_last_start_below_one_takes_every_key_once_where_all_are_drawn():
    assert draw(1 - 2**-32, (0, 3, 5000), 5000) == list(range(3, 5003))


@pytest.mark.parametrize("length", [1, 7, 8, 9, 64, 65, 127, 1000])
def test_blocks_are_the_fewest_and_equally_long_but_for_the_last(length):
    sizes = block_sizes([Segment(5, 5 + length, length)], 8)
    assert int(sizes.num_blocks) == -(-length // 8)
    blocks = query_blocks(sizes, 4, 2**20)
    assert blocks.num_keys.sum() == blocks.num_queries.sum() == length
    assert (blocks.num_keys[:-1] == sizes.block).all()


@pytest.mark.parametrize("most_weights", [1, 50, 10**6])
def test_blocks_cut_into_parts_hold_every_query_once(most_weights):
    sizes = block_sizes([Segment(0, 37, 20), Segment(37, 37 + 90, 90), Segment(127, 130, 0)], 16)
    blocks = query_blocks(sizes, 5, most_weights)
    ranks = [
        (start, rank)
        for start, first, count in zip(*(x.tolist() for x in blocks[:3]), strict=True)
        for rank in range(first, first + count)
    ]
    assert sorted(ranks) == [(0, i) for i in range(37)] + [(37, i) for i in range(90)]
    assert (blocks.num_queries * (blocks.num_keys + 5) <= max(most_weights, 21)).all()


def test_starts_depend_on_seed_layer_and_draw_and_not_on_the_number_of_blocks():
    sampling = BlockSampling(block_length=8, num_sampled_keys=4, seed=0, layer=0, draw=0)
    starts = sampling.starts(30, 3)
    assert torch.equal(sampling.starts(7, 3), starts[:7])
    assert ((starts >= 0) & (starts < 1)).all()
    for other in ({"seed": 1}, {"layer": 1}, {"draw": 1}):
        settings = {"block_length": 8, "num_sampled_keys": 4, "seed": 0, "layer": 0, "draw": 0} | other
        assert not torch.equal(BlockSampling(**settings).starts(30, 3), starts)
