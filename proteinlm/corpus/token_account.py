"""What is known of the tokens of a shard as they come: how often each occurs, and digests, in one compiled pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from proteinlm.corpus import layout
from proteinlm.sequence.addresses import address_of
from proteinlm.sequence.token_counts import TokenCounter, add_counts
from proteinlm.sequence.token_planes import can_count_planes
from proteinlm.sequence.xxh3_stream import add_bytes, begin_stream, hash_64, hash_128, new_stream

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from proteinlm.sequence.token_counts import Counters

    # whether to count in planes, counters, the states of the digest and of that of a block, the numbers of
    # ``TokenAccount``, bytes of a block, the digests of blocks that have been filled
    Accounting = tuple[
        bool, Counters, NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int64], int, NDArray[np.uint64]
    ]

# what the numbers of an account are: bytes to leave out, of the block before the first; bytes that the block at hand
# still takes; blocks that have been filled since they were last taken away
_AHEAD, _ROOM, _NUM_FILLED = range(3)


class TokenAccount:
    """Counts and digests of the tokens of one shard.

    Args:
        start: bytes of the file before the tokens.

    Attributes:
        first_block: number of the first block of the file that lies wholly behind ``start``.
        blocks: the digests of the blocks from it on that have been filled.
    """

    def __init__(self, start: int) -> None:
        self._counter = TokenCounter()
        self._digest, self._block = new_stream(), new_stream()
        self.first_block = -(-start // layout.BLOCK_BYTES)
        self.blocks: list[str] = []
        self._numbers = np.array([self.first_block * layout.BLOCK_BYTES - start, layout.BLOCK_BYTES, 0])
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def digest(self) -> str:
        """The xxh3_128 of the tokens so far, and of what was added to the digest."""
        low, high = hash_128(self._digest)
        return f"{int(high):016x}{int(low):016x}"

    @property
    def counts(self) -> NDArray[np.int64]:
        """How often each token occurs so far, int64[33]."""
        return self._counter.counts

    def add(self, tokens: NDArray[np.uint8]) -> None:
        """Take in the next tokens, contiguous."""
        with self.taking_in(len(tokens)) as accounting:
            _take_in_array(tokens, accounting)

    def add_to_digest(self, values: NDArray[Any]) -> None:
        """Add what stands behind the tokens, contiguous, to the digest alone."""
        _add_to_stream(self._digest, values.view(np.uint8))

    @contextmanager
    def taking_in(self, num_tokens: int) -> Iterator[Accounting]:
        """Give what ``take_in`` needs, to be called for so many tokens in all, at most 2^31.

        After a failure the account is of no use.
        """
        filled = np.empty(num_tokens // layout.BLOCK_BYTES + 1, dtype=np.uint64)
        counters = self._counter.counters_for(num_tokens)
        yield can_count_planes(), counters, self._digest, self._block, self._numbers, layout.BLOCK_BYTES, filled
        self._size += num_tokens
        self.blocks += [f"{digest:016x}" for digest in filled[: self._numbers[_NUM_FILLED]].tolist()]
        self._numbers[_NUM_FILLED] = 0


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def take_in(tokens: Any, size: Any, accounting: Any) -> None:
    """Take in ``size`` tokens, int64, from an address on; ``accounting`` is of a ``TokenAccount``."""
    in_planes, counters, digest, block, numbers, block_bytes, filled = accounting
    add_counts(tokens, size, in_planes, counters)
    add_bytes(digest, tokens, np.uint64(size))
    place = min(numbers[_AHEAD], size)
    numbers[_AHEAD] -= place
    while place < size:
        num_taken = min(numbers[_ROOM], size - place)
        add_bytes(block, tokens + np.uint64(place), np.uint64(num_taken))
        place += num_taken
        numbers[_ROOM] -= num_taken
        if numbers[_ROOM] == 0:
            filled[numbers[_NUM_FILLED]] = hash_64(block)
            numbers[_NUM_FILLED] += 1
            numbers[_ROOM] = block_bytes
            begin_stream(block)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _take_in_array(tokens: Any, accounting: Any) -> None:
    take_in(address_of(tokens), len(tokens), accounting)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _add_to_stream(stream: Any, values: Any) -> None:
    add_bytes(stream, address_of(values), np.uint64(len(values)))
