"""A set of records holds what was added."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from proteinlm.corpus import record_set
from proteinlm.corpus.record_set import RecordSet


@given(st.integers(0, 70), st.data())
def test_numbers_added_in_any_order_come_back_in_order(num_records, data):
    numbers = data.draw(st.lists(st.integers(0, max(num_records - 1, 0)), unique=True, max_size=num_records))
    found = RecordSet(num_records)
    middle = len(numbers) // 2
    for part in (numbers[:middle], numbers[middle:]):
        found.add(np.array(part, dtype=np.uint64))
    assert found.numbers().tolist() == sorted(numbers)
    assert len(found) == len(numbers)
    start = data.draw(st.integers(0, num_records))
    stop = data.draw(st.integers(start, num_records))
    assert found.mask(start, stop).tolist() == [number in numbers for number in range(start, stop)]


def test_blocks_cover_the_whole_set(monkeypatch):
    monkeypatch.setattr(record_set, "_STEP", 16)
    found = RecordSet(100)
    found.add(np.array([99, 0, 15, 16, 50], dtype=np.uint64))
    assert [block.tolist() for block in found.blocks()] == [[0, 15], [16], [50], [99]]
