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

from proteinlm.corpus.shard_reader import SequenceSet
from proteinlm.sequence.alphabet import CLS, EOS, PAD

Context = Literal["isolated", "joint"]
# int32 wherever the numbers fit, since an epoch may have hundreds of millions of proteins
Numbers = NDArray[numpy.signedinteger]
# positions; packing counts the room in a window in 32 bits
LONGEST_WINDOW = (1 << 31) - 1
SPECIAL_TOKENS: dict[Context, int] = {"isolated": 2, "joint": 1}


@dataclass(frozen=True, kw_only=True, slots=True)
class PackingConfig:
    """How proteins become windows."""

    # positions in a window, special tokens and padding included; a longer protein is cut
    # when: proteins are longer (proteinlm inspect CORPUS counts the cuts), or memory is short
    window_length: int = 8192
    # "isolated": a protein sees only itself, packed whole; "joint": windows are cut from proteins one after the other
    # when: the concatenated proteins of the Performer paper are wanted
    context: Context = "isolated"

    def __post_init__(self) -> None:
        if not 8 <= self.window_length <= LONGEST_WINDOW:
            raise ValueError(f"window_length is {self.window_length}; expected 8 to {LONGEST_WINDOW:,} positions")


@dataclass(frozen=True)
class WindowPlan:
    """Pieces of proteins, window by window.

    A piece is ``framed[begin:end]`` of one protein, where ``framed`` is the protein with its special
    tokens. Pieces ``window_offsets[w]`` to ``window_offsets[w + 1]`` stand in window ``w``, in order.

    Attributes:
        config: how they were packed.
        sequence: int32 (P,), number of the protein.
        begin: int32 (P,), first token of the piece.
        end: int32 (P,), one past its last token.
        window_offsets: int64 (W + 1,).

    The first three are int64 where a number does not fit.
    """

    config: PackingConfig
    sequence: Numbers
    begin: Numbers
    end: Numbers
    window_offsets: NDArray[numpy.int64]

    @property
    def num_windows(self) -> int:
        """Number of windows W."""
        return len(self.window_offsets) - 1

    @property
    def num_tokens(self) -> int:
        """Number of positions that hold a token, special tokens included."""
        return int(self.end.sum(dtype=numpy.int64) - self.begin.sum(dtype=numpy.int64))

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


def number_type(largest: int) -> type[numpy.signedinteger]:
    """Return the smaller one of int32 and int64 that holds the numbers up to ``largest``."""
    return numpy.int32 if largest <= numpy.iinfo(numpy.int32).max else numpy.int64


def plan_windows(lengths: NDArray[numpy.int64], config: PackingConfig, *, order: Numbers | None = None) -> WindowPlan:
    """Plan the windows of proteins with these numbers of residues.

    Below 2 ** 31 proteins the plan takes 12 bytes for each piece, and 20 while it is made.

    Args:
        lengths: int64 (N,), residues of each protein.
        config: window length and context.
        order: numbers of the proteins to take, in order; all as they stand if None.
    """
    from proteinlm.batches.first_fit import cut_equally, cut_long, first_fit, in_windows, window_offsets_of

    special_tokens = SPECIAL_TOKENS[config.context]
    largest = max(len(lengths), int(lengths.max(initial=0)) + special_tokens)
    like = numpy.empty(0, number_type(largest))
    taken = numpy.arange(len(lengths)) if order is None else order
    if config.context == "joint":
        return WindowPlan(config, *cut_equally(taken, lengths, special_tokens, config.window_length, like))
    sequence, begin, end = cut_long(taken, lengths, special_tokens, config.window_length, like)
    windows = first_fit(end - begin, config.window_length)
    offsets = window_offsets_of(windows)
    # one after the other, so that only one of them is there twice at a time
    sequence = in_windows(sequence, windows, offsets)
    begin = in_windows(begin, windows, offsets)
    end = in_windows(end, windows, offsets)
    return WindowPlan(config, sequence, begin, end, offsets)


def build_window(plan: WindowPlan, window: int, sequences: Sequences) -> Window:
    """Return the tokens of a planned window."""
    if isinstance(sequences, SequenceSet):
        return _gathered(plan, window, sequences)
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


def _gathered(plan: WindowPlan, window: int, sequences: SequenceSet) -> Window:
    """Return the window that ``build_window`` defines, copied from the mapped shards."""
    from proteinlm.batches.gathering import gather

    first, last = plan.window_offsets[window : window + 2].tolist()
    tokens = numpy.empty(plan.config.window_length, dtype=numpy.uint8)
    positions = numpy.empty(plan.config.window_length, dtype=numpy.int64)
    bounds = numpy.empty(last - first + 2, dtype=numpy.int64)
    is_joint = plan.config.context == "joint"
    pieces = plan.sequence[first:last], plan.begin[first:last], plan.end[first:last]
    num_tokens = gather(*pieces, sequences.addresses, is_joint, tokens, positions, bounds)
    num_segments = (1 if is_joint else last - first) + (num_tokens < len(tokens))
    return Window(tokens, positions, bounds[: num_segments + 1], num_tokens)


def _framed(residues: NDArray[numpy.uint8], context: Context) -> NDArray[numpy.uint8]:
    first = [CLS] if context == "isolated" else []
    return numpy.concatenate((numpy.array(first, numpy.uint8), residues, numpy.array([EOS], numpy.uint8)))
