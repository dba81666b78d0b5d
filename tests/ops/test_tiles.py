from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from proteinlm.ops.visibility import Visibility


@st.composite
def packed_masks(draw):
    lengths = draw(st.lists(st.integers(0, 40), min_size=1, max_size=12))
    bits = draw(st.lists(st.booleans(), min_size=sum(lengths), max_size=sum(lengths)))
    return torch.tensor([0, *lengths]).cumsum(0), torch.tensor(bits, dtype=torch.bool)[None]


@settings(deadline=None, derandomize=True)
@given(packed_masks(), st.integers(1, 50))
def test_tiles_visit_each_position_of_a_segment_with_a_key_once(packed, tile_length):
    cu_seqlens, mask_1L = packed
    length = mask_1L.shape[1]
    visibility = Visibility(1, length, mask_1L, cu_seqlens)
    positions_T11 = torch.arange(length)[:, None, None]
    visits_T = torch.zeros(length, dtype=torch.int64)
    for tiles in visibility.tiles(torch.device("cpu"), tile_length):
        for tile in tiles:
            taken = tile.take(positions_T11, torch.int64).flatten()
            real = slice(None) if tile.real is None else tile.real
            visits_T.index_add_(0, taken[real], torch.ones_like(taken[real]))
    expected_T = torch.zeros_like(visits_T)
    for segment in visibility.segments:
        expected_T[segment.start : segment.stop] = int(segment.num_visible > 0)
    assert torch.equal(visits_T, expected_T)


@settings(deadline=None, derandomize=True)
@given(packed_masks(), st.integers(1, 50))
def test_tiles_hide_all_keys_but_the_visible_once(packed, tile_length):
    cu_seqlens, mask_1L = packed
    length = mask_1L.shape[1]
    visibility = Visibility(1, length, mask_1L, cu_seqlens)
    positions_T11 = torch.arange(length)[:, None, None]
    seen: list[int] = []
    for tiles in visibility.tiles(torch.device("cpu"), tile_length):
        for tile in tiles:
            taken_G = tile.hide_keys(tile.take(positions_T11, torch.int64), -1).flatten()
            seen += taken_G[taken_G >= 0].tolist()
    assert sorted(seen) == mask_1L[0].nonzero().flatten().tolist()


@settings(deadline=None, derandomize=True)
@given(packed_masks(), st.integers(1, 50))
def test_put_writes_back_what_take_reads(packed, tile_length):
    cu_seqlens, mask_1L = packed
    length = mask_1L.shape[1]
    visibility = Visibility(1, length, None, cu_seqlens)
    values_THK = torch.randn(length, 2, 3)
    copy_THK = torch.zeros_like(values_THK)
    for tiles in visibility.tiles(torch.device("cpu"), tile_length):
        for tile in tiles:
            tile.put(copy_THK, tile.take(values_THK, torch.float32))
    assert torch.equal(copy_THK, values_THK)
