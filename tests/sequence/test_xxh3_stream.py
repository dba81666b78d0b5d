"""Bytes hashed in parts have the hash of the library."""

from __future__ import annotations

import numpy as np
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from proteinlm.sequence.xxh3_stream import add_bytes, begin_stream, hash_64, hash_128, new_stream

CONTENT = np.random.default_rng(8).integers(0, 256, 40_000, dtype=np.uint8)
# around the ends of stripes, short hashes and blocks
SIZES = st.sampled_from([0, 1, 3, 16, 17, 63, 64, 65, 128, 240, 241, 960, 1023, 1024, 1025, 2048, 2049, 5000])


def add(state, part):
    add_bytes(state, np.uint64(part.ctypes.data), np.uint64(len(part)))


def hashes(state):
    low, high = (int(half) for half in hash_128(state))
    return int(hash_64(state)), high << 64 | low


def expected(content):
    return xxhash.xxh3_64_intdigest(content.tobytes()), xxhash.xxh3_128_intdigest(content.tobytes())


@settings(deadline=None)  # the first call compiles
@given(st.lists(SIZES, max_size=8))
def test_parts_of_all_sizes(sizes):
    state, end = new_stream(), 0
    for size in sizes:
        add(state, CONTENT[end : end + size])
        end += size
        # to ask on the way changes nothing
        assert hashes(state) == expected(CONTENT[:end])


def test_one_part_and_two_of_any_size():
    for total in (*range(1, 1300), 2047, 2048, 2049, 3072, 3073):
        state = new_stream()
        add(state, CONTENT[:total])
        assert hashes(state) == expected(CONTENT[:total]), total
        add(state, CONTENT[total : 2 * total])
        assert hashes(state) == expected(CONTENT[: 2 * total]), total


def test_a_state_can_begin_anew():
    state = new_stream()
    add(state, CONTENT[:5000])
    begin_stream(state)
    add(state, CONTENT[7:900])
    assert hashes(state) == expected(CONTENT[7:900])
