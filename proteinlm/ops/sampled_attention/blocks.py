"""Which keys a block of queries sees: its own block, and some drawn from all others.

The n visible keys of a segment, in the order of their hash, fall into the fewest blocks of at most
``block_length``, equally long but for the last; so do its visible queries. Block b of the queries sees block b of the
keys, with weight 1, and s of the m = n - |block| other keys, each with weight m / s. Hidden positions are queries too:
they follow the visible ones, and blocks begin again from the first when keys run out.

The draw is systematic: number i = 0 … s - 1 is the key at rank floor((u + i) m / s) of the others, with one u uniform
in [0, 1) for each head and block. Steps are 1 at least, so no key is drawn twice; a key is an interval
of length 1, which points m / s apart meet with probability s / m exactly, so that weights of m / s leave
numerator and normaliser unbiased. It needs one random number a block, where an independent draw without replacement
would list the others of every block; errors of the two are about equal. s >= m takes all, with weight 1: that is exact.

Source: Han et al., ICLR 2024, arXiv:2310.05869, for blocks and sample; Madow, Ann. Math. Stat. 20 (1949), for the draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from proteinlm.ops.tiles import Segment
from proteinlm.randomness import stream


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockSampling:
    """Sizes of block and sample; ``seed``, ``layer`` and ``draw`` name the sample."""

    block_length: int
    num_sampled_keys: int
    seed: int
    layer: int
    draw: int

    def starts(self, num_blocks: int, num_heads: int) -> Tensor:
        """Return u as starts_NH, float64; the first blocks stay the same when there are more."""
        drawn = stream(self.seed, "sampled keys", self.layer, self.draw).random((num_blocks, num_heads))
        # multiples of 2^-32: i + u is then exact, and never rounds up to the next key
        return (torch.from_numpy(drawn) * 2**32).floor_() / 2**32


class Sizes(NamedTuple):
    """How segments fall into blocks, int64 (S,) each: all have a visible key."""

    start: Tensor
    length: Tensor
    num_visible: Tensor
    block: Tensor  # positions of a block
    num_blocks: Tensor  # of keys


def block_sizes(segments: Sequence[Segment], block_length: int) -> Sizes:
    """Return the sizes of the segments that have a visible key, on the CPU."""
    seen = [(s.start, len(s), s.num_visible) for s in segments if s.num_visible]
    start, length, num_visible = torch.tensor(seen, dtype=torch.int64).view(-1, 3).T
    num_blocks = _ceil(num_visible, block_length)
    return Sizes(start, length, num_visible, _ceil(num_visible, num_blocks), num_blocks)


class Blocks(NamedTuple):
    """Blocks of queries, or parts of them, with the keys that they see; int64 (N,) each."""

    start: Tensor  # of the segment
    first_query: Tensor  # rank in the segment, as the next
    num_queries: Tensor
    number: Tensor  # of the block of keys
    first_key: Tensor
    num_keys: Tensor
    num_others: Tensor


def query_blocks(sizes: Sizes, num_sampled: int, most_weights: int) -> Blocks:
    """Return the blocks of all segments; those whose weights would be more than ``most_weights`` in parts."""
    width = torch.minimum(sizes.block + num_sampled, sizes.num_visible)
    step = torch.minimum(sizes.block, (most_weights // width).clamp_(min=1))
    num_parts = _ceil(sizes.block, step)
    counts = _ceil(sizes.length, sizes.block) * num_parts
    owner = torch.repeat_interleave(torch.arange(len(counts)), counts)
    index = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
    block, part = index // num_parts[owner], index % num_parts[owner]
    first = block * sizes.block[owner] + part * step[owner]
    behind = torch.minimum(torch.minimum(first + step[owner], (block + 1) * sizes.block[owner]), sizes.length[owner])
    number = block % sizes.num_blocks[owner]
    first_key = number * sizes.block[owner]
    num_keys = torch.minimum(sizes.block[owner], sizes.num_visible[owner] - first_key)
    num_others = sizes.num_visible[owner] - num_keys
    found = Blocks(sizes.start[owner], first, behind - first, number, first_key, num_keys, num_others)
    return Blocks(*(field[found.num_queries > 0] for field in found))


def alike(sizes_FN: Tensor) -> Iterator[Tensor]:
    """Yield the indices of columns of about equal sizes, (n, 1): filled up to the largest they waste little."""
    # sizes of one class differ by a third at most
    classes_FN = (sizes_FN.double() + 1).log().div(torch.tensor(4 / 3).log()).ceil().long()
    owner_N = torch.unique(classes_FN, dim=1, return_inverse=True)[1]
    for number in range(int(owner_N.max()) + 1 if len(owner_N) else 0):
        yield (owner_N == number).nonzero()


def _ceil(a: Tensor, b: Tensor | int) -> Tensor:
    return -(-a // b)


def drawn_ranks(starts: Tensor, first_key: Tensor, num_keys: Tensor, num_others: Tensor, num_drawn: Tensor) -> Tensor:
    """Return the ranks of the drawn keys in the segment, (N, max of ``num_drawn``); further ones are repetition."""
    most = int(num_drawn.max())
    steps_D = torch.arange(most, dtype=torch.float64, device=starts.device)
    ratio_N = num_others.double() / num_drawn.clamp(min=1)
    others_ND = ((starts[:, None] + steps_D) * ratio_N[:, None]).long()
    others_ND = torch.minimum(others_ND, (num_others - 1).clamp(min=0)[:, None])
    return others_ND + (others_ND >= first_key[:, None]) * num_keys[:, None]
