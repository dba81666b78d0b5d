"""Packing: which piece of which protein stands where in which window.

Isolated: a protein is ``<cls> residues <eos>``, packed whole by first fit; only one longer than a
window is cut, and its pieces say where they begin. Joint: residues and ``<eos>``, one protein after
the other, cut into equal windows wherever the cut falls. Either way every residue is in one window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy
from numpy.typing import NDArray

from proteinlm.sequence.alphabet import CLS, EOS, PAD

Context = Literal["isolated", "joint"]
SPECIAL_TOKENS: dict[Context, int] = {"isolated": 2, "joint": 1}


@dataclass(frozen=True, kw_only=True, slots=True)
class PackingConfig:
    """How proteins become windows."""

    # positions in a window, special tokens and padding included
    window_length: int = 8192
    context: Context = "isolated"

    def __post_init__(self) -> None:
        if self.window_length < 8:
            raise ValueError(f"window_length is {self.window_length}; expected 8 positions or more")


@dataclass(frozen=True)
class WindowPlan:
    """Pieces of proteins, window by window.

    A piece is ``framed[begin:end]`` of one protein, where ``framed`` is the protein with its special
    tokens. Pieces ``window_offsets[w]`` to ``window_offsets[w + 1]`` stand in window ``w``, in order.

    Attributes:
        config: how they were packed.
        sequence: int64 (P,), number of the protein.
        begin: int64 (P,), first token of the piece.
        end: int64 (P,), one past its last token.
        window_offsets: int64 (W + 1,).
    """

    config: PackingConfig
    sequence: NDArray[numpy.int64]
    begin: NDArray[numpy.int64]
    end: NDArray[numpy.int64]
    window_offsets: NDArray[numpy.int64]

    @property
    def num_windows(self) -> int:
        """Number of windows W."""
        return len(self.window_offsets) - 1

    @property
    def num_tokens(self) -> int:
        """Number of positions that hold a token, special tokens included."""
        return int((self.end - self.begin).sum())

    @property
    def fill(self) -> float:
        """Share of the positions that hold a token."""
        return self.num_tokens / max(1, self.num_windows * self.config.window_length)

    def pieces(self, window: int) -> Iterator[tuple[int, int, int]]:
        """Yield (protein, begin, end) of the pieces in a window."""
        for piece in range(self.window_offsets[window], self.window_offsets[window + 1]):
            yield int(self.sequence[piece]), int(self.begin[piece]), int(self.end[piece])


class Sequences(Protocol):
    """Encoded proteins by number, as a split of a corpus or a list of arrays offers them."""

    def __len__(self) -> int:
        """Return the number of proteins."""

    def tokens(self, index: int) -> NDArray[numpy.uint8]:
        """Return the residues of a protein as token ids, without special tokens."""


@dataclass(frozen=True)
class Window:
    """One window of tokens.

    Attributes:
        tokens: uint8 (L,), padded with ``<pad>`` at the end.
        positions: int64 (L,), position in the protein (isolated) or in the window (joint).
        bounds: int64 (S + 1,), bounds of the segments; padding is a segment of its own.
        num_tokens: positions before the padding.
    """

    tokens: NDArray[numpy.uint8]
    positions: NDArray[numpy.int64]
    bounds: NDArray[numpy.int64]
    num_tokens: int


def plan_windows(
    lengths: NDArray[numpy.int64], config: PackingConfig, *, order: NDArray[numpy.int64] | None = None
) -> WindowPlan:
    """Plan the windows of proteins with these numbers of residues.

    Args:
        lengths: int64 (N,), residues of each protein.
        config: window length and context.
        order: in which order to take the proteins; as they stand if None.
    """
    taken = numpy.arange(len(lengths)) if order is None else order
    framed = lengths[taken] + SPECIAL_TOKENS[config.context]
    if config.context == "joint":
        return _cut_equally(taken, framed, config)
    return _pack_whole(taken, framed, config)


def _cut_equally(taken: NDArray[numpy.int64], framed: NDArray[numpy.int64], config: PackingConfig) -> WindowPlan:
    ends = numpy.cumsum(framed)
    total = int(ends[-1]) if len(ends) else 0
    cuts = numpy.union1d(ends, numpy.arange(config.window_length, total, config.window_length))
    starts = numpy.concatenate(([0], cuts[:-1])) if len(cuts) else cuts
    owner = numpy.searchsorted(ends, starts, side="right")
    offset = (ends - framed)[owner]
    num_windows = -(-total // config.window_length)
    window_offsets = numpy.searchsorted(starts, numpy.arange(num_windows + 1) * config.window_length)
    return WindowPlan(config, taken[owner], starts - offset, cuts - offset, window_offsets.astype(numpy.int64))


def _pack_whole(taken: NDArray[numpy.int64], framed: NDArray[numpy.int64], config: PackingConfig) -> WindowPlan:
    whole, rest = numpy.divmod(framed, config.window_length)
    num_pieces = whole + (rest > 0)
    owner = numpy.repeat(numpy.arange(len(framed)), num_pieces)
    first_piece = numpy.cumsum(num_pieces) - num_pieces
    begin = (numpy.arange(len(owner)) - first_piece[owner]) * config.window_length
    end = numpy.minimum(begin + config.window_length, framed[owner])
    window = first_fit(end - begin, config.window_length)
    by_window = numpy.argsort(window, kind="stable")
    counts = numpy.bincount(window, minlength=0)
    window_offsets = numpy.concatenate(([0], numpy.cumsum(counts))).astype(numpy.int64)
    return WindowPlan(config, taken[owner][by_window], begin[by_window], end[by_window], window_offsets)


def first_fit(sizes: NDArray[numpy.int64], capacity: int) -> NDArray[numpy.int64]:
    """Return the window of each piece: the first in which there is room for it.

    A tree over the room left in each window finds it in O(log W).

    Args:
        sizes: int64 (P,), each from 1 to ``capacity``.
        capacity: positions in a window.
    """
    leaves, room = 1, [capacity] * 2
    windows = numpy.empty(len(sizes), dtype=numpy.int64)
    for piece, size in enumerate(sizes.tolist()):
        if room[1] < size:
            leaves, room = _doubled(leaves, room, capacity)
        node = 1
        while node < leaves:
            node *= 2
            if room[node] < size:
                node += 1
        windows[piece] = node - leaves
        room[node] -= size
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return windows


def _doubled(leaves: int, room: list[int], capacity: int) -> tuple[int, list[int]]:
    """Return a tree of twice as many windows, the new ones empty."""
    grown = [capacity, capacity]
    width = 1
    while width <= leaves:
        grown += room[width : 2 * width] + [capacity] * width
        width *= 2
    return 2 * leaves, grown


def build_window(plan: WindowPlan, window: int, sequences: Sequences) -> Window:
    """Return the tokens of a planned window."""
    length = plan.config.window_length
    tokens = numpy.full(length, PAD, dtype=numpy.uint8)
    positions = numpy.zeros(length, dtype=numpy.int64)
    bounds = [0]
    place = 0
    for sequence, begin, end in plan.pieces(window):
        stop = place + end - begin
        tokens[place:stop] = _framed(sequences.tokens(sequence), plan.config.context)[begin:end]
        positions[place:stop] = numpy.arange(begin, end)
        place = stop
        bounds.append(place)
    if plan.config.context == "joint":
        positions[:place] = numpy.arange(place)
        bounds = [0, place]
    if place < length:
        bounds.append(length)
    return Window(tokens, positions, numpy.array(bounds, dtype=numpy.int64), place)


def _framed(residues: NDArray[numpy.uint8], context: Context) -> NDArray[numpy.uint8]:
    first = [CLS] if context == "isolated" else []
    return numpy.concatenate((numpy.array(first, numpy.uint8), residues, numpy.array([EOS], numpy.uint8)))
