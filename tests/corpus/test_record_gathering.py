"""Tokens gathered in pieces are those of numpy, with its counts and the digests of the library."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash
from numba.core.errors import TypingError

from proteinlm.corpus import layout
from proteinlm.corpus.record_gathering import gather_tokens
from proteinlm.corpus.token_account import TokenAccount
from proteinlm.sequence import VOCAB_SIZE

# around what is taken in at once, 32,768 tokens, and what is counted at once, 4,096
LENGTHS = [0, 1, 700, 4095, 4096, 4097, 32_767, 32_768, 32_769, 70_000]


def _records(seed):
    random = np.random.default_rng(seed)
    lengths = random.permutation([*LENGTHS, *random.integers(0, 900, 200)])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    # 32 is a token that planes cannot hold
    tokens = random.integers(4, 33 if seed % 2 else 29, offsets[-1]).astype(np.uint8)
    return tokens, offsets


def _kept(seed, num_records):
    random = np.random.default_rng(seed)
    return np.flatnonzero(random.random(num_records) < random.choice([0.5, 0.98, 1]))


@pytest.mark.parametrize("block_bytes", [1000, 4096, 1 << 17, 1 << 20])
# bytes before the first block: within the first call, after it, after the second
@pytest.mark.parametrize("start", [0, 2048, (1 << 20) - 10, (1 << 20) - 200_000, (1 << 20) - 500_000])
def test_what_is_gathered_and_taken_into_account(monkeypatch, block_bytes, start):
    monkeypatch.setattr(layout, "BLOCK_BYTES", block_bytes)
    account, expected = TokenAccount(start), []
    for seed in range(4):
        tokens, offsets = _records(seed)
        numbers = _kept(seed, len(offsets) - 1)
        ends = np.empty(len(numbers), dtype=np.int64)
        before = len(account)
        found = gather_tokens(tokens, offsets, numbers, ends, account)
        parts = [tokens[offsets[number] : offsets[number + 1]] for number in numbers]
        assert found.tobytes() == np.concatenate(parts).tobytes()
        assert ends.tolist() == (before + np.cumsum([len(part) for part in parts])).tolist()
        expected += parts
        whole = np.concatenate(expected)
        assert len(account) == len(whole)
        assert account.digest == xxhash.xxh3_128_hexdigest(whole.tobytes())
        assert account.counts.tolist() == np.bincount(whole, minlength=VOCAB_SIZE).tolist()
    first = account.first_block * block_bytes - start
    blocks = [whole[place : place + block_bytes] for place in range(first, len(whole) - block_bytes + 1, block_bytes)]
    assert account.blocks == [xxhash.xxh3_64_hexdigest(block.tobytes()) for block in blocks]


def test_no_records_are_nothing():
    account = TokenAccount(2048)
    none = np.empty(0, dtype=np.int64)
    assert len(gather_tokens(np.zeros(5, np.uint8), np.array([0, 5]), none, none, account)) == len(account) == 0


def test_tokens_that_do_not_lie_side_by_side_are_refused():
    with pytest.raises(TypingError, match="C-contiguous"):
        TokenAccount(0).add(np.zeros(40, dtype=np.uint8)[::2])
