"""FASTA files in, text in blocks of whole records out, as far as that goes without looking at each record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from proteinlm.errors import FastaError
from proteinlm.sequence.compression import SourceDigest
from proteinlm.sequence.fasta_text import FastaText, before_nul, last_header, next_header
from proteinlm.sequence.timings import Timings

# bytes of text after which a block is handed on: few enough for a cache, and so many that threads seldom wait
BLOCK_BYTES = 5 << 19
# the last byte of it begins the next record
RECORD_END = b"\n>"
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True, eq=False)
class TextBlock:
    """Text of whole records of one source, its line ends made LF.

    Attributes:
        source: number of the source, from 0.
        name: name of the source, as messages call it.
        text: the records; begins with ``>``.
        position: bytes of the source's text before it.
        num_opening_lines: lines of the source before its first header, in its first block.
        treatments: what was taken away on the way here and not told with an earlier block.
        holds_nul: whether the text is only the lines up to one with a NUL byte, which settle refuses.
        num_bytes_read: bytes of the source, as it lies on disk, that had been read by then.
        digest_read: their xxh3_128.
    """

    source: int
    name: str
    text: bytes
    position: int
    num_opening_lines: int
    treatments: Mapping[str, int]
    holds_nul: bool
    num_bytes_read: int
    digest_read: str


def texts_of_pieces(
    source: int,
    name: str,
    pieces: Iterator[bytes],
    digest: SourceDigest,
    *,
    skipped: int,
    block_bytes: int,
    timings: Timings | None,
) -> Iterator[TextBlock]:
    """Yield the text of a FASTA source, after its first ``skipped`` bytes, in blocks of whole records.

    Args:
        source: its number, from 0.
        name: how messages call it.
        pieces: its text; best cut where records end.
        digest: of the source as far as it has been read.
        skipped: where a record begins.
        block_bytes: text after which a block is handed on.
        timings: gets the stage ``cut``.

    Raises:
        FastaError: if it is no FASTA, or is shorter than ``skipped``.
    """
    cutter = _TextCutter(source, name, digest, skipped)
    for block in _timed(cutter, pieces, block_bytes, timings):
        yield block
        if block.holds_nul:
            # settle refuses it, and what follows with it
            return


def _timed(
    cutter: _TextCutter, pieces: Iterator[bytes], block_bytes: int, timings: Timings | None
) -> Iterator[TextBlock]:
    """Yield the blocks; the stage ``cut`` gets the time that they took beside that of the pieces."""
    if timings is not None:
        pieces = _watched(pieces, timings, -1)
    blocks = cutter.blocks(_regrouped(cutter.checked(pieces, block_bytes), block_bytes))
    return blocks if timings is None else _watched(blocks, timings, 1)


def _watched(items: Iterator[_Item], timings: Timings, sign: int) -> Iterator[_Item]:
    while True:
        start = timings.clock()
        item = next(items, None)
        timings.add("cut", sign * (timings.clock() - start))
        if item is None:
            return
        yield item


def _regrouped(pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Yield the same bytes in pieces of about ``size`` that end before a header, if one is in their last part.

    A piece of that size that ends there by itself is not copied, any other once. What was read before a
    failure comes before it.
    """
    gathered: list[bytes] = []
    num_gathered = 0
    try:
        for piece in pieces:
            # a piece that ends early is joined to the next: members may hold a record each
            if 2 * num_gathered >= size:
                last = gathered.pop()
                # 0 where there is none
                cut = 0 if piece.startswith(b">") and last.endswith(b"\n") else last.rfind(RECORD_END) + 1
                yield _joined([*gathered, memoryview(last)[:cut] if cut else last])
                gathered = [last[cut:]] if cut else []
                num_gathered = sum(map(len, gathered))
            gathered.append(piece)
            num_gathered += len(piece)
    except FastaError:
        if gathered:
            yield _joined(gathered)
        raise
    if gathered:
        yield _joined(gathered)


def _joined(parts: Sequence[bytes | memoryview]) -> bytes:
    # of bytes alone it is these, not a copy
    return b"".join(parts)


class _TextCutter(FastaText):
    """Cuts the text of one source between records."""

    def __init__(self, source: int, name: str, digest: SourceDigest, skipped: int) -> None:
        super().__init__(name, Counter())
        self._source = source
        self._digest = digest
        # bytes of the text before the block that comes next
        self._position = skipped
        self._is_open = skipped > 0
        # a piece without bytes that need care
        self._usual = b""

    def blocks(self, pieces: Iterable[bytes]) -> Iterator[TextBlock]:
        """Yield the text in ``pieces`` from the position on, one block for each that ends a record."""
        # whole lines of the block that comes next
        pending: list[bytes] = []
        try:
            for whole in self._from_position(self._whole_lines(self._looked_at(pieces))):
                lines = before_nul(whole) if self._may_hold(b"\0", whole) else whole
                text = self._opened(lines)
                if pending and text.startswith(b">"):
                    yield self._block(pending)
                    pending = []
                elif (cut := last_header(text)) > 0:
                    yield self._block([*pending, memoryview(text)[:cut]])
                    pending, text = [], text[cut:]
                if text:
                    pending.append(text)
                if lines is not whole:
                    if not self._is_open:
                        self._refuse_nul(b"")
                    yield from self._whole_records(pending)
                    yield self._block([*pending, whole[len(lines) :]], holds_nul=True)
                    return
        except FastaError:
            yield from self._whole_records(pending)
            raise
        if not self._is_open:
            self._refuse_no_record()
        if pending:
            yield self._block(pending)

    def _looked_at(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the pieces, keeping in mind the one at hand if nothing in it needs care."""
        from proteinlm.sequence.usual_text import is_usual

        for piece in pieces:
            self._usual = piece if is_usual(piece) else b""
            yield piece

    def _may_hold(self, byte: bytes, text: bytes) -> bool:
        # most texts are the piece itself
        return text is not self._usual and super()._may_hold(byte, text)

    def _whole_records(self, pending: list[bytes]) -> Iterator[TextBlock]:
        """Yield all but the last record, which is left in ``pending``."""
        text = _joined(pending)
        if (cut := last_header(text)) > 0:
            block = self._block([memoryview(text)[:cut]])
            pending[:] = [text[cut:]]
            yield block

    def checked(self, pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
        """Yield the pieces if the first, as long as read_fasta has it, begins no foreign format.

        Pieces much longer than ``size`` come in parts.
        """
        is_opening = True
        for piece in pieces:
            if is_opening:
                self._refuse_foreign(piece)
                is_opening = False
            if len(piece) < 2 * size:
                yield piece
            else:
                yield from (piece[start : start + size] for start in range(0, len(piece), size))

    def _opened(self, lines: bytes) -> bytes:
        """Return ``lines`` from the first header of the source on."""
        if self._is_open:
            return lines
        start = next_header(lines, 0)
        head = lines if start < 0 else lines[:start]
        self._skip_opening(head)
        self._position += len(head)
        self._is_open = start >= 0
        return lines[len(head) :]

    def _from_position(self, texts: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the text from the position on, where a record begins, of a source that was read up to there."""
        left = self._position
        while self._is_open:
            text = next(texts, None)
            if text is None:
                if left:
                    raise FastaError(f"{self._name}: is shorter than where reading ended before; begin again")
                return
            # the header at the position had been seen, so what was taken away from this text has been told
            self._treatments.clear()
            if left < len(text):
                yield text[left:]
                break
            left -= len(text)
        yield from texts

    def _block(self, parts: Sequence[bytes | memoryview], *, holds_nul: bool = False) -> TextBlock:
        num_bytes_read, digest_read = self._digest.so_far
        block = TextBlock(
            source=self._source,
            name=self._name,
            text=_joined(parts),
            position=self._position,
            num_opening_lines=self._line - 1,
            treatments=dict(self._treatments),
            holds_nul=holds_nul,
            num_bytes_read=num_bytes_read,
            digest_read=digest_read,
        )
        self._position += len(block.text)
        self._treatments.clear()
        self._line = 1
        return block
