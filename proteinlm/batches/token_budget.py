"""Batches of whole sequences that stay within a number of tokens.

Sequences are packed one behind the other without padding, so a batch costs what its tokens cost
whatever their lengths are: taking them in order of arrival wastes nothing, needs no look-ahead
beyond one batch, and makes the batches a pure function of the lengths that came before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def in_token_batches(
    items: Iterable[Item], num_tokens: Callable[[Item], int], *, toks_per_batch: int
) -> Iterator[list[Item]]:
    """Yield batches of consecutive items of at most ``toks_per_batch`` tokens.

    Every item is in exactly one batch, in the order given; an item of more tokens than the budget
    is a batch of its own.

    Args:
        num_tokens: tokens of an item, special tokens included.
        toks_per_batch: the budget, 1 or more.
    """
    batch: list[Item] = []
    total = 0
    for item in items:
        tokens = num_tokens(item)
        if batch and total + tokens > toks_per_batch:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += tokens
    if batch:
        yield batch
