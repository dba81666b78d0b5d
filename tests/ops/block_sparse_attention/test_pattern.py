from __future__ import annotations

import torch

from proteinlm.ops.block_sparse_attention.pattern import BlockPattern, random_blocks, reaches
from proteinlm.ops.visibility import Visibility


def pattern(**settings: int) -> BlockPattern:
    sizes = {"block_length": 4, "num_window_blocks": 1, "num_global_tokens": 1, "num_random_blocks": 3}
    return BlockPattern(**sizes | {"seed": 0, "layer": 0} | settings)


def test_random_blocks_lie_outside_the_window_and_differ():
    for block, drawn in enumerate(random_blocks(pattern(), 30)):
        assert len(set(drawn)) == 3
        assert all(0 <= i < 30 and abs(i - block) > 1 for i in drawn)


def test_where_fewer_blocks_remain_all_are_taken():
    assert random_blocks(pattern(), 4) == ((2, 3), (3,), (0,), (0, 1))
    assert random_blocks(pattern(num_window_blocks=5), 4) == ((), (), (), ())
    assert random_blocks(pattern(), 0) == ()


def test_every_block_outside_the_window_is_drawn_equally_often():
    num_blocks, num_draws, probability = 10, 400, 3 / 8
    counts = torch.zeros(num_blocks)
    for seed in range(num_draws):
        counts[list(random_blocks(pattern(seed=seed), num_blocks)[0])] += 1
    assert not counts[:2].any()
    sigma = (num_draws * probability * (1 - probability)) ** 0.5
    assert ((counts[2:] - num_draws * probability).abs() < 4 * sigma).all()


def test_the_draw_depends_on_seed_layer_and_number_of_blocks_and_on_nothing_else():
    first = random_blocks(pattern(), 40)
    random_blocks.cache_clear()
    assert random_blocks(pattern(), 40) == first
    assert random_blocks(pattern(seed=1), 40) != first
    assert random_blocks(pattern(layer=1), 40) != first
    assert random_blocks(pattern(), 41)[:40] != first


def test_a_segment_reaches_up_to_its_last_visible_key():
    key_mask = torch.tensor([[1, 0, 1, 0, 0, 0, 0, 1]], dtype=torch.bool)
    cu_seqlens = torch.tensor([0, 2, 5, 7, 8], dtype=torch.int32)
    segments = Visibility(1, 8, key_mask, cu_seqlens).segments
    assert reaches(segments, key_mask.flatten()) == [1, 1, 0, 1]
    assert reaches(segments, None) == [2, 3, 2, 1]
