"""The compiled XXH3 is the library's, for every size."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash

from proteinlm.sequence.xxh3 import digests, xxh3_64, xxh3_128

# every branch of the hash ends below 241 bytes, blocks of 1,024 bytes are scrambled
SIZES = [*range(1101), 2047, 2048, 2049, 4096, 4160, 10_000, 100_003]


@pytest.fixture(scope="module")
def content():
    return np.random.default_rng(5).integers(0, 256, 110_000, dtype=np.uint8)


@pytest.mark.parametrize("seed", [0, 1, 0x9E3779B1, 2**63, 2**64 - 1, 0xDEADBEEFCAFEBABE], ids=hex)
def test_64_bits_with_a_seed_are_those_of_the_library(content, seed):
    for size in SIZES:
        start = size % 17
        expected = xxhash.xxh3_64_intdigest(content[start : start + size].tobytes(), seed)
        assert int(xxh3_64(np.uint64(content.ctypes.data), start, start + size, np.uint64(seed))) == expected, size


def test_128_bits_are_those_of_the_library(content):
    for size in SIZES:
        start = size % 19
        low, high = xxh3_128(np.uint64(content.ctypes.data), start, start + size)
        expected = xxhash.xxh3_128_intdigest(content[start : start + size].tobytes())
        assert int(high) << 64 | int(low) == expected, size


def test_many_sequences_are_hashed_in_one_call(content):
    lengths = np.random.default_rng(6).integers(0, 600, 150)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    found = digests(content, offsets)
    assert found.dtype == np.uint64
    for number, (low, high) in enumerate(found.tolist()):
        part = content[offsets[number] : offsets[number + 1]].tobytes()
        assert high << 64 | low == xxhash.xxh3_128_intdigest(part)


def test_no_sequences_have_no_digests():
    assert digests(np.empty(0, dtype=np.uint8), np.zeros(1, dtype=np.int64)).shape == (0, 2)
