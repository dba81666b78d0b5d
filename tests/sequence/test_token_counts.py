"""Tokens counted in pairs, or many at once, are the tokens counted one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proteinlm.sequence import VOCAB_SIZE
from proteinlm.sequence.token_counts import TokenCounter, add_counts, count_tokens
from proteinlm.sequence.token_planes import can_count_planes


@pytest.fixture(autouse=True, scope="module")
def _compiled():
    """Compile before hypothesis takes the time."""
    count_tokens(np.zeros(2, dtype=np.uint8))


@given(st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=50), st.integers(0, 3))
def test_counts_are_those_of_bincount(tokens, start):
    found = count_tokens(np.array(tokens, dtype=np.uint8)[start:])
    assert found.dtype == np.int64
    assert found.tolist() == np.bincount(tokens[start:], minlength=VOCAB_SIZE).tolist()


@pytest.mark.parametrize("length", [99_999, 100_000, 100_001, 100_002])
def test_long_runs_of_one_token_are_counted(length):
    tokens = np.full(length, 5, dtype=np.uint8)
    tokens[length // 3] = 7
    assert count_tokens(tokens).tolist() == np.bincount(tokens, minlength=VOCAB_SIZE).tolist()


@pytest.mark.parametrize("high", [32, 33, 255])
def test_one_byte_that_planes_cannot_hold_spoils_no_count(high):
    tokens = np.random.default_rng(0).integers(0, 32, 20_001, dtype=np.uint8)
    tokens[5_000] = high
    assert count_tokens(tokens).tolist() == np.bincount(tokens, minlength=256)[:VOCAB_SIZE].tolist()


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("length", [4095, 4096, 4097, 12_289])
def test_both_ways_to_count_agree(wide, length):
    if wide and not can_count_planes():
        pytest.skip("this processor counts in pairs only")
    tokens = np.random.default_rng(length).integers(0, 32, length, dtype=np.uint8)
    counter = TokenCounter()
    add_counts(np.uint64(tokens.ctypes.data), length, wide, counter.counters_for(length))
    assert counter.counts.tolist() == np.bincount(tokens, minlength=VOCAB_SIZE).tolist()


def test_bytes_that_are_no_token_are_left_out():
    assert count_tokens(np.array([4, 200, 255, 4, 33], dtype=np.uint8)).sum() == 2


def test_a_mapped_file_is_counted_at_any_offset(tmp_path):
    content = np.arange(4, 24, dtype=np.uint8).repeat(5)
    content.tofile(tmp_path / "tokens")
    for offset in range(4):
        found = count_tokens(np.asarray(np.memmap(tmp_path / "tokens", mode="r", offset=offset)))
        assert found.tolist() == np.bincount(content[offset:], minlength=VOCAB_SIZE).tolist()
