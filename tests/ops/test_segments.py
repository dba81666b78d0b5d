from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from proteinlm.errors import ShapeError
from proteinlm.ops.segments import find_segments, plan_tiles, row_bounds


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
    segments = find_segments(1, length, key_mask_BL=mask_1L, cu_seqlens=cu_seqlens)
    positions_T11 = torch.arange(length)[:, None, None]
    visits_T = torch.zeros(length, dtype=torch.int64)
    for tiles in plan_tiles(segments, mask_1L[0], torch.device("cpu"), tile_length):
        for tile in tiles:
            taken = tile.take(positions_T11, torch.int64).flatten()
            real = slice(None) if tile.real is None else tile.real
            visits_T.index_add_(0, taken[real], torch.ones_like(taken[real]))
    expected_T = torch.zeros_like(visits_T)
    for segment in segments:
        expected_T[segment.start : segment.stop] = int(segment.num_visible > 0)
    assert torch.equal(visits_T, expected_T)


@settings(deadline=None, derandomize=True)
@given(packed_masks(), st.integers(1, 50))
def test_tiles_hide_all_keys_but_the_visible_once(packed, tile_length):
    cu_seqlens, mask_1L = packed
    length = mask_1L.shape[1]
    segments = find_segments(1, length, key_mask_BL=mask_1L, cu_seqlens=cu_seqlens)
    positions_T11 = torch.arange(length)[:, None, None]
    seen: list[int] = []
    for tiles in plan_tiles(segments, mask_1L[0], torch.device("cpu"), tile_length):
        for tile in tiles:
            taken_G = tile.hide_keys(tile.take(positions_T11, torch.int64), -1).flatten()
            seen += taken_G[taken_G >= 0].tolist()
    assert sorted(seen) == mask_1L[0].nonzero().flatten().tolist()


@settings(deadline=None, derandomize=True)
@given(packed_masks(), st.integers(1, 50))
def test_put_writes_back_what_take_reads(packed, tile_length):
    cu_seqlens, mask_1L = packed
    length = mask_1L.shape[1]
    segments = find_segments(1, length, cu_seqlens=cu_seqlens)
    values_THK = torch.randn(length, 2, 3)
    copy_THK = torch.zeros_like(values_THK)
    for tiles in plan_tiles(segments, None, torch.device("cpu"), tile_length):
        for tile in tiles:
            tile.put(copy_THK, tile.take(values_THK, torch.float32))
    assert torch.equal(copy_THK, values_THK)


@pytest.mark.parametrize(
    ("cu_seqlens", "message"),
    [
        (torch.tensor([0, 9]), r"cu_seqlens is \[0, 9\]; expected 0 to 10 in rising order"),
        (torch.tensor([1, 5, 10]), r"expected 0 to 10 in rising order"),
        (torch.tensor([0, 5, 3, 10]), r"expected 0 to 10 in rising order"),
        (torch.tensor([0, 4, 10]), r"lacks 5, the end of a window of 5"),
        (torch.tensor([0.0, 5.0, 10.0]), r"torch.float32 \(3,\); expected int32"),
        (torch.tensor([], dtype=torch.int32), r"expected 0 to 10"),
    ],
    ids=["short", "late start", "falling", "across windows", "float", "empty"],
)
def test_bad_segment_boundaries_say_what_was_expected(cu_seqlens, message):
    with pytest.raises(ShapeError, match=message):
        find_segments(2, 5, cu_seqlens=cu_seqlens)


def test_rows_of_a_map_go_up_by_one():
    with pytest.raises(ShapeError, match="steps of 2"):
        row_bounds(slice(0, 8, 2), 10)
