"""XXH3 of bytes that come in parts: the state is an array, so that compiled loops can add to it.

The library ``xxhash`` does the same, with the interpreter's lock held or after waiting for it; here bytes
are hashed by the loop that has them in a core's cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from proteinlm.sequence.addresses import address_of, copy_bytes
from proteinlm.sequence.xxh3 import (
    FIRST_ACCUMULATORS,
    HASH_BLOCK,
    SECRET,
    accumulate_blocks,
    accumulate_end,
    ending_64,
    ending_128,
    xxh3_64,
    xxh3_128,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

# what the hash of so few bytes is, accumulators do not tell
_SHORT = 240
# of a state: accumulators, bytes so far, then bytes: the last of the block before, and those held back, a whole
# block at most, as what is done to a block depends on whether more follows
_SIZE = 8
_BEFORE = 8 * (_SIZE + 1)
_HELD = _BEFORE + 64
_NUM_WORDS = (_HELD + HASH_BLOCK) // 8


def new_stream() -> NDArray[np.uint64]:
    """Return the state before the first byte."""
    state = np.zeros(_NUM_WORDS, dtype=np.uint64)
    begin_stream(state)
    return state


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def begin_stream(state: Any) -> None:
    """Make a state that of no bytes."""
    for number, word in enumerate(FIRST_ACCUMULATORS):
        state[number] = word
    state[_SIZE] = 0


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _num_held(state: Any) -> Any:
    return (state[_SIZE] - np.uint64(1)) % np.uint64(HASH_BLOCK) + np.uint64(1) if state[_SIZE] else np.uint64(0)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _accumulators_of(state: Any) -> Any:
    return state[0], state[1], state[2], state[3], state[4], state[5], state[6], state[7]


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def add_bytes(state: Any, text: Any, size: Any) -> None:
    """Add ``size`` bytes, a uint64, from an address on."""
    num_held, held, block = _num_held(state), address_of(state) + np.uint64(_HELD), np.uint64(HASH_BLOCK)
    state[_SIZE] += size
    if num_held + size <= block:
        copy_bytes(held + num_held, text, np.int64(size))
        return
    num_taken = block - num_held
    copy_bytes(held + num_held, text, np.int64(num_taken))
    text, size = text + num_taken, size - num_taken
    found = accumulate_blocks(held, np.uint64(1), address_of(SECRET), _accumulators_of(state))
    num_blocks = (size - np.uint64(1)) // block
    found = accumulate_blocks(text, num_blocks, address_of(SECRET), found)
    for number, word in enumerate(found):
        state[number] = word
    rest = text + num_blocks * block
    end = held + block if num_blocks == 0 else rest
    copy_bytes(held - np.uint64(64), end - np.uint64(64), np.int64(64))
    copy_bytes(held, rest, np.int64(size - num_blocks * block))


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _ended(state: Any) -> Any:
    held = address_of(state) + np.uint64(_HELD)
    return accumulate_end(held, _num_held(state), address_of(SECRET), _accumulators_of(state))


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def hash_64(state: Any) -> Any:
    """Return the 64-bit hash of the bytes so far, a uint64; more may be added afterwards."""
    size = state[_SIZE]
    if size <= np.uint64(_SHORT):
        return xxh3_64(address_of(state), _HELD, _HELD + np.int64(size), np.uint64(0))
    return ending_64(_ended(state), size, address_of(SECRET))


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def hash_128(state: Any) -> Any:
    """Return the low and the high half, uint64, of the 128-bit hash of the bytes so far."""
    size = state[_SIZE]
    if size <= np.uint64(_SHORT):
        return xxh3_128(address_of(state), _HELD, _HELD + np.int64(size))
    return ending_128(_ended(state), size, address_of(SECRET))
